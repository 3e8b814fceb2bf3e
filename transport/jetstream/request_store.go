package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	wait "github.com/foomo/goflux/internal/pause"
	"github.com/foomo/goflux/transport"
)

// publishAttempt is how long a stream may take to confirm a request before it is
// sent again, under the same id; half of what is left when that is less.
const publishAttempt = 2 * time.Second

// retryPause is how long nothing is tried after a server could not be reached,
// or had no answer.
const retryPause = 100 * time.Millisecond

// store publishes a request, again and again where it is unknown whether it was
// stored: its id makes sure that it is stored once. The receipt is that of a
// duplicate also when the first one was this request itself.
func (r *requests) store(ctx context.Context, msg transport.Message, headers map[string]string) (transport.Receipt, error) {
	if msg.Header == nil {
		msg.Header = make(transport.Header, len(headers)+1)
	}

	for key, value := range headers {
		msg.Header.Set(key, value)
	}

	for {
		receipt, err := r.tryStore(ctx, msg)

		switch {
		case err == nil:
			return receipt, nil
		case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
			return transport.Receipt{}, transport.Mark(ctx.Err(), err)
		case ctx.Err() != nil, errors.Is(err, transport.ErrNoStream):
			return transport.Receipt{}, err
		case !errors.Is(err, transport.ErrPublishUnknown) && !errors.Is(err, transport.ErrDisconnected):
			return transport.Receipt{}, err
		}

		if errors.Is(err, context.DeadlineExceeded) {
			if why := r.unconfirmed(ctx, msg.Subject); why != nil {
				return transport.Receipt{}, why
			}
		}

		if wait.For(ctx, retryPause) != nil {
			return transport.Receipt{}, transport.Mark(ctx.Err(), err)
		}
	}
}

func (r *requests) tryStore(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	patience := publishAttempt

	if at, some := ctx.Deadline(); some {
		patience = min(patience, max(time.Until(at)/2, retryPause))
	}

	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()

	return r.t.publish(ctx, msg)
}

// unconfirmed says why nobody confirms what is published on a subject, if that
// will stay so: where others are subscribed to it, a stream is not missed by
// itself. It returns nil when a stream is there, or nobody knows.
func (r *requests) unconfirmed(ctx context.Context, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()

	name, err := r.t.js.StreamNameBySubject(ctx, subject)

	switch {
	case errors.Is(err, natsjs.ErrStreamNotFound):
		return transport.Mark(transport.ErrNoStream, errors.New("somebody is subscribed to the subject, but no stream has it"))
	case err != nil:
		return nil // what cannot be known is not reported
	}

	stream, err := r.t.js.Stream(ctx, name)
	if err == nil && stream.CachedInfo().Config.NoAck {
		return transport.Mark(transport.ErrUnsupported,
			fmt.Errorf("the stream %q confirms nothing: requests need one without NoAck", name))
	}

	return nil
}

// fit reports a stream that requests cannot be submitted to, once for each
// stream as a rule. The answer of a server that cannot be reached is not waited
// for again.
func (r *requests) fit(ctx context.Context, name string) error {
	if last := r.checked.Load(); last != nil && *last == name {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()

	stream, err := r.t.js.Stream(ctx, name)
	if err == nil && stream.CachedInfo().Config.Retention != natsjs.WorkQueuePolicy {
		return invalid("the stream %q has %v retention, so nobody could tell whether a request in it is done with: "+
			"submit to one with work-queue retention; this request is stored", name, stream.CachedInfo().Config.Retention)
	}

	r.checked.Store(&name)

	return nil
}
