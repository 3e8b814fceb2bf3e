package goflux

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/foomo/goflux/transport"
)

// healthTimeout is how long a look at the health takes without a deadline: less
// than what platforms give a probe, with room for a change of leader.
const healthTimeout = 900 * time.Millisecond

// Health reports whether messages can arrive: nil when a Subscribe, or Serve, is
// running, and the broker has just confirmed that it knows the subscription of
// each that is. It is made for the readiness probe of a platform; each call costs
// a round trip to the broker for each subscription, so ask every few seconds.
// Without a deadline in ctx it takes 900 ms at the most.
//
// Errors: [ErrNotServing] when none is running: none has begun, all have ended,
// or they drain; where the last one ended with an error, that is part of it.
// [ErrDisconnected] or [context.DeadlineExceeded] when the broker does not answer,
// [ErrConsumerNotFound] and [ErrStreamNotFound] when somebody has deleted what the
// subscription is at the broker. A subscription goes on by itself as soon as that
// is over, so unready is the word for it rather than dead; one that cannot go on
// ends, and Subscribe returns why.
//
// It may be called concurrently, and before Subscribe.
func (r *receiver) Health(ctx context.Context) error {
	if r.err != nil {
		return r.err
	}

	running, last := r.vitals.look()
	if len(running) == 0 {
		if last != nil {
			return &Error{Op: "health", Err: fmt.Errorf("%w; the last one ended with: %w", ErrNotServing, last)}
		}

		return &Error{Op: "health", Err: ErrNotServing}
	}

	if _, some := ctx.Deadline(); !some {
		var cancel context.CancelFunc

		ctx, cancel = context.WithTimeout(ctx, healthTimeout)
		defer cancel()
	}

	var (
		asking sync.WaitGroup
		errs   = make([]error, len(running))
	)

	for i, sub := range running {
		asking.Go(func() { errs[i] = sub.Flush(ctx) })
	}

	asking.Wait()

	return errors.Join(errs...)
}

// vitals are the subscriptions that are being served.
type vitals struct {
	mu      sync.Mutex
	running []*vital
	last    error // of the one that ended last
}

type vital struct{ transport.Subscription }

// begin enters a subscription, until ctx ends or it is to be removed.
func (v *vitals) begin(ctx context.Context, sub transport.Subscription) (end func()) {
	entry := &vital{sub}

	v.mu.Lock()
	v.running = append(v.running, entry)
	v.mu.Unlock()

	remove := func() {
		v.mu.Lock()
		defer v.mu.Unlock()

		v.running = slices.DeleteFunc(v.running, func(other *vital) bool { return other == entry })
	}
	stop := context.AfterFunc(ctx, remove)

	return func() {
		stop()
		remove()
	}
}

// ended notes how a Subscribe ended.
func (v *vitals) ended(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()

	v.last = err
}

func (v *vitals) look() (running []*vital, last error) {
	v.mu.Lock()
	defer v.mu.Unlock()

	return slices.Clone(v.running), v.last
}
