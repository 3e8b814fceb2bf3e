package goflux

import (
	"context"
	"runtime/debug"
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

// lane returns the ordering key of a job. Messages that do not decode are in
// the lane of the empty key: they are rejected there one by one.
func (p *processor[T]) lane(job *engine.Job) string {
	if p.key == nil {
		return single
	}

	msg, err := p.decode(job.Delivery)
	job.Payload = &decoded[T]{msg.Payload, err}

	if err != nil {
		return single
	}

	key := single

	// A key function that panics fails again in handle, where it is reported.
	_ = guard(func() error {
		key = p.key(msg)

		return nil
	})

	return key
}

func (p *processor[T]) handle(ctx context.Context, job *engine.Job) (time.Duration, bool) {
	if job.Failure != nil {
		// The handler has spoken; what is left is to store the dead letter.
		return p.conclude(ctx, job, job.Failure)
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

// recoverTo is deferred: it turns a panic into a PanicError.
func recoverTo(err *error) {
	if v := recover(); v != nil {
		*err = &PanicError{Value: v, Stack: debug.Stack()}
	}
}
