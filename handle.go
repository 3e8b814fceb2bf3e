package goflux

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// processor handles the deliveries of one subscription: it decodes, calls the
// handler and settles.
type processor[T any] struct {
	codec   Codec[T]
	handler Handler[T]
	key     func(Message[T]) string
	keyless uint64 // messages that have no key, so far; lane counts them
	settlement
}

func (p *processor[T]) begin(r *receiver, subject string) {
	p.settlement.begin(r, subject)
	p.key, _ = r.cfg.key.(func(Message[T]) string)
}

// decoded is what lane leaves for handle.
type decoded[T any] struct {
	payload T
	err     error
}

// lane returns the ordering key of a job. A message that does not decode, or
// whose key function panics, has none: it is in a lane of its own, so that it
// holds back nobody until it is settled. That it failed shows in run.
func (p *processor[T]) lane(job *engine.Job) string {
	if p.key == nil {
		return single
	}

	var key string

	msg, err := p.decode(job.Delivery)
	if err == nil {
		err = guard(func() error {
			key = p.key(msg)

			return nil
		})
	}

	job.Payload = &decoded[T]{msg.Payload, err}

	if err != nil {
		p.keyless++

		return keylessPrefix + strconv.FormatUint(p.keyless, 10)
	}

	return key
}

// keylessPrefix begins the lanes of messages without a key. Should a key begin
// so too, its messages only wait for one another.
const keylessPrefix = "\x00goflux."

func (p *processor[T]) handle(ctx context.Context, job *engine.Job) (time.Duration, bool) {
	if job.Exited != nil {
		return p.conclude(ctx, job, exited(job))
	}

	start := p.telemetry.clock(ctx, p.telemetry.consumed, p.telemetry.processed)
	ctx, span := p.telemetry.startProcess(ctx, &job.Delivery, p.filter)

	if id := headerID(job.Delivery.Header); id != "" {
		ctx = withReceivedID(ctx, id)
	}

	err := p.run(ctx, job)
	p.telemetry.endProcess(ctx, span, p.filter, start, err)

	return p.conclude(ctx, job, err)
}

// handling returns how an engine lets w handle a job. A panic of the handler is
// concluded within; one around it, of what else users supply, is here.
func handling(w work) func(ctx context.Context, job *engine.Job) (after time.Duration, retry bool) {
	return func(ctx context.Context, job *engine.Job) (after time.Duration, retry bool) {
		err := guard(func() error {
			after, retry = w.handle(ctx, job)

			return nil
		})
		if err == nil {
			return after, retry
		}

		// Should that panic as well, the lease runs out.
		_ = guard(func() error {
			after, retry = w.crashed(ctx, job, err)

			return nil
		})

		return after, retry
	}
}

// burying returns how an engine lets w store dead letters.
func burying(w work) func(ctx context.Context, job *engine.Job) engine.Burial {
	return func(ctx context.Context, job *engine.Job) (b engine.Burial) {
		err := guard(func() error {
			b = w.bring(ctx, job)

			return nil
		})
		if err != nil {
			return engine.Refused
		}

		return b
	}
}

// run calls the handler, if the payload decodes, and turns panics into errors.
func (p *processor[T]) run(ctx context.Context, job *engine.Job) (err error) {
	msg := newMessage[T](job.Delivery)

	if d, done := job.Payload.(*decoded[T]); done {
		msg.Payload, err = d.payload, d.err
	} else {
		msg, err = p.decode(job.Delivery)
	}

	if err != nil {
		return err
	}

	msg.automatic = !p.cfg.manual

	defer recoverTo(&err)

	return p.handler(ctx, msg)
}

// decode makes the message of a delivery. Its error is a rejection.
func (p *processor[T]) decode(d transport.Delivery) (msg Message[T], err error) {
	msg = newMessage[T](d)

	if err := decodeInto(p.codec, d.Data, &msg.Payload); err != nil {
		return msg, &outcome{kind: OutcomeRejected, err: err, undecodable: true}
	}

	return msg, nil
}

// decodeInto decodes with a codec that may panic on hostile bytes.
func decodeInto[T any](codec Codec[T], data []byte, v *T) (err error) {
	defer func() {
		if err != nil {
			err = transport.Mark(ErrDecode, err)
		}
	}()
	defer recoverTo(&err)

	return codec.Decode(data, v) //nolint:wrapcheck // marked above
}

// guard calls f and turns a panic into an error.
func guard(f func() error) (err error) {
	defer recoverTo(&err)

	return f()
}

// recoverTo is deferred around what users supply: it turns a panic into a
// PanicError, and makes sure of an error that was returned.
func recoverTo(err *error) {
	if v := recover(); v != nil {
		*err = &PanicError{Value: v, Stack: debug.Stack()}
	}

	*err = sound(*err)
}

// exited is the failure of a handler that ended its goroutine instead of
// returning: a panic without a value.
func exited(job *engine.Job) error {
	return &PanicError{Value: errExited, Stack: job.Exited}
}

var errExited = errors.New("the handler ended its goroutine (runtime.Goexit, or FailNow of package testing) instead of returning")

// sound returns err, if its methods can be called. They cannot where a nil
// pointer of a type of the user's became an error, as "var e *MyErr; return e"
// makes it: such an error would panic wherever it is looked at. What it asks for
// is kept.
func sound(err error) (safe error) {
	if err == nil {
		return nil
	}

	var o *outcome

	defer func() {
		if recover() == nil {
			return
		}

		safe = &PanicError{
			Value: fmt.Sprintf("the error that was returned is a %T, whose methods panic: a nil pointer that became an error?", err),
			Stack: debug.Stack(),
		}

		if o != nil {
			safe = &outcome{kind: o.kind, delay: o.delay, undecodable: o.undecodable, err: safe}
		}
	}()

	o, _ = asOutcome(err)
	_ = err.Error()
	_ = OutcomeOf(err)
	_ = transport.ErrorType(err)

	return err
}
