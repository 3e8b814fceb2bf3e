package goflux

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/foomo/goflux/transport"
)

// ManyOption configures one call of RequestMany.
type ManyOption interface{ applyMany(m *many) error }

type manyOption func(*many) error

func (o manyOption) applyMany(m *many) error { return o(m) }

type many struct {
	replies int           // 0: no limit
	stall   time.Duration // 0: none
}

// WithMaxReplies ends a RequestMany after n replies, errors of responders
// included. Fewer are waited for as long as ctx allows, or until [WithStall]. By
// default there is no limit; n must be positive.
func WithMaxReplies(n int) ManyOption {
	return manyOption(func(m *many) error {
		m.replies = n

		if n < 1 {
			return fmt.Errorf("%w: WithMaxReplies(%d): use a positive number", ErrInvalidOption, n)
		}

		return nil
	})
}

// WithStall ends a RequestMany when for d after a reply no other one came. The
// first reply is waited for as long as ctx allows: responders need time, and it
// may be that nobody answers. So ctx needs a deadline, unless there is
// [WithMaxReplies]. By default there is no such end; d must be positive.
func WithStall(d time.Duration) ManyOption {
	return manyOption(func(m *many) error {
		m.stall = d

		if d <= 0 {
			return fmt.Errorf("%w: WithStall(%v): use a positive duration", ErrInvalidOption, d)
		}

		return nil
	})
}

// errStalled is the cause with which a RequestMany ends that has waited for
// another reply in vain.
var errStalled = errors.New("stalled")

// RequestMany sends req and yields the replies of all who answer, in the order
// of their arrival, until [WithMaxReplies], [WithStall] or the deadline of ctx
// ends it. The first or the last of them there must be. The request is sent when
// the iteration starts, and again with each further one.
//
//	for resp, err := range r.RequestMany(ctx, "inventory.count", req, goflux.WithStall(100*time.Millisecond)) { ... }
//
// Responders that share a queue group give one reply together: the others need
// [WithoutQueueGroup], or groups of their own.
//
// An error that a responder answered with, a [*RemoteError], and a reply that
// does not decode, [ErrDecode], are yielded in place of a value, and the
// iteration goes on. Errors that end it come last: those of
// [BoundRequester.Request], and [ErrUnsupported] where the transport cannot
// gather replies. A deadline is an error only if nobody had answered.
func (r *BoundRequester[Req, Resp]) RequestMany(
	ctx context.Context, subject string, req Req, opts ...ManyOption,
) iter.Seq2[Resp, error] {
	return func(yield func(Resp, error) bool) {
		var none Resp

		asked, m, err := r.manyRequester(ctx, subject, opts)
		if err != nil {
			yield(none, err)

			return
		}

		msg, err := r.prepare(ctx, subject, req)
		if err != nil {
			yield(none, err)

			return
		}

		start := r.telemetry.clock(ctx, r.telemetry.sent, r.telemetry.duration)
		ctx, span := r.telemetry.startRequest(ctx, subject, msg.ID)
		msg.Header = r.telemetry.inject(ctx, msg.Header)

		err = gather(ctx, asked, msg, m, func(d transport.Delivery) bool {
			reply, err := readReply(r.respCodec, "request", subject, d)

			return yield(reply.Payload, err)
		})

		r.telemetry.endRequest(ctx, span, start, nil, err)

		if err != nil {
			yield(none, err)
		}
	}
}

// manyRequester checks what RequestMany was given.
func (a *asker) manyRequester(ctx context.Context, subject string, opts []ManyOption) (transport.ManyRequester, many, error) {
	var m many

	if a.err != nil {
		return nil, m, a.err
	}

	fail := func(err error) (transport.ManyRequester, many, error) {
		return nil, m, &Error{Op: "request", Subject: subject, Err: err}
	}

	t, ok := a.transport.(transport.ManyRequester)
	if !ok {
		return fail(fmt.Errorf("%w: gathering the replies of many needs a transport with %s", ErrUnsupported, transport.RequestReply))
	}

	for _, opt := range opts {
		if opt == nil {
			return fail(fmt.Errorf("%w: a nil option", ErrInvalidOption))
		}

		if err := opt.applyMany(&m); err != nil {
			return fail(err)
		}
	}

	if _, bounded := ctx.Deadline(); !bounded && m.replies == 0 {
		return fail(fmt.Errorf("%w: gathering replies might never end: give ctx a deadline, or use WithMaxReplies", ErrInvalidOption))
	}

	return t, m, nil
}

// gather calls take with each reply until it says no, or until the end. It
// returns why it had to end early, if it had to.
func gather(ctx context.Context, t transport.ManyRequester, msg transport.Message, m many, take func(transport.Delivery) bool) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)

	var stall *time.Timer
	defer func() {
		if stall != nil {
			stall.Stop()
		}
	}()

	n := 0

	for d, err := range t.RequestMany(ctx, msg) {
		switch {
		case err == nil:
		case errors.Is(context.Cause(ctx), errStalled), n > 0 && errors.Is(err, context.DeadlineExceeded):
			return nil
		default:
			return err
		}

		n++

		// Time that the caller takes is not time without a reply.
		if stall != nil {
			stall.Stop()
		}

		if !take(d) || n == m.replies {
			return nil
		}

		if m.stall > 0 {
			stall = time.AfterFunc(m.stall, func() { end(errStalled) })
		}
	}

	return nil
}
