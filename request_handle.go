package goflux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// answerer handles the requests of one Serve: it decodes, calls the handler,
// answers and, where requests are stored, settles.
type answerer[Req, Resp any] struct {
	reqCodec  Codec[Req]
	respCodec Codec[Resp]
	handler   RequestHandler[Req, Resp]
	answering
}

func (a *answerer[Req, Resp]) lane(*engine.Job) string { return single }

func (a *answerer[Req, Resp]) handle(ctx context.Context, job *engine.Job) (time.Duration, bool) {
	if ans, handled := job.Payload.(*answer); handled {
		job.Retries = ans.retries // to send it again is not to try the request again

		return a.deliver(ctx, job, ans)
	}

	if job.Exited != nil {
		return a.crashed(ctx, job, exited(job))
	}

	start := job.Started()
	d := &job.Delivery

	due, bounded := a.responder.Deadline(*d, job.Arrived())
	if bounded && !start.Before(due) {
		a.skip(ctx, job)

		return 0, false
	}

	clock := a.telemetry.clock(ctx, a.telemetry.consumed, a.telemetry.processed)
	ctx, span := a.telemetry.startProcess(ctx, d, a.filter)
	x := newExchange(ctx, d, due)
	data, err := a.run(x, d)
	x.end()
	a.telemetry.endProcess(ctx, span, a.filter, clock, err)

	return a.finish(ctx, job, x, data, time.Since(start), err)
}

// run decodes, calls the handler and encodes. It turns panics into errors.
func (a *answerer[Req, Resp]) run(x *exchange, d *transport.Delivery) (data []byte, err error) {
	var req Req

	if err := decodeInto(a.reqCodec, d.Data, &req); err != nil {
		return nil, &outcome{kind: OutcomeRejected, err: err, undecodable: true}
	}

	defer recoverTo(&err)

	resp, err := a.handler(x, req)
	if err != nil {
		return nil, err
	}

	data, err = a.respCodec.Encode(resp)
	if err != nil {
		err = transport.Mark(ErrEncode, err)
	} else if err = x.call.reply.ValidateUser(); err != nil {
		err = fmt.Errorf("the reply's headers: %w", err)
	}

	if err != nil {
		// Handling it again would end the same way.
		return nil, Reject(err)
	}

	return data, nil
}

// answering is the part of an answerer that does not depend on its types.
type answering struct {
	*replier
	settlement
	counters

	patience patience
	retract  func() // of the announcement; nil when there is none
}

func (a *answering) begin(r *receiver, subject string) { a.settlement.begin(r, subject) }

// attach announces the service, now that there is a subscription.
func (a *answering) attach(sub transport.Subscription) {
	a.settlement.attach(sub)
	a.announce(sub.Info())
}

// crashed answers a request whose handling did not come to an end: as one whose
// handler failed, unless it was answered.
func (a *answering) crashed(ctx context.Context, job *engine.Job, err error) (after time.Duration, retry bool) {
	if _, handled := job.Payload.(*answer); handled {
		return a.settlement.crashed(ctx, job, err)
	}

	return a.finish(ctx, job, newExchange(ctx, &job.Delivery, time.Time{}), nil, 0, err)
}

// skip ends a request that nobody waits for any more.
func (a *answering) skip(ctx context.Context, job *engine.Job) {
	a.late.Add(1)
	a.cfg.log().LogAttrs(ctx, slog.LevelWarn,
		"goflux: a request was not handled: its deadline had passed before a handler was free",
		slog.String("subject", job.Delivery.Subject))
	a.settle(ctx, job, transport.Verdict{Action: transport.Term, Reason: "the deadline of the request has passed"})
}

// finish answers and settles. With retry, the engine comes back to the request.
func (a *answering) finish(
	ctx context.Context, job *engine.Job, x *exchange, data []byte, took time.Duration, err error,
) (after time.Duration, retry bool) {
	ans := &x.answer
	ans.err, ans.retries = err, job.Retries

	if err != nil {
		ans.told, ans.chosen = toldError(err)

		if !a.final(job, ans.chosen, err) {
			return a.conclude(ctx, job, err)
		}
	}

	ans.compose(a.replyHeader(ctx, &x.call), data)
	a.count(took, ans.told)

	// A handler that fails because the patience of its caller is at an end
	// has nobody to tell: the caller knows, and is not to get another error
	// in the very moment.
	ans.mute = errors.Is(err, context.DeadlineExceeded) && !ans.chosen && x.overdue()

	return a.deliver(ctx, job, ans)
}

// answer is what a request ends with.
type answer struct {
	header  Header
	data    []byte
	err     error        // of the handler
	told    *RemoteError // what of it is in header and data
	chosen  bool         // that was meant for the caller
	mute    bool         // nobody waits for it any more
	retries int          // of the request, when it was handled
	undelivered
}

func (ans *answer) compose(header Header, data []byte) {
	ans.header, ans.data = header, data

	if ans.told != nil {
		ans.header, ans.data = ans.told.write(header), ans.told.Details
	}
}

// deliver sends an answer and settles its request. With retry, the engine keeps
// the request, and the answer with it, for another try.
//
// The handler is not called again because of an answer that cannot be
// delivered: it would not be any more welcome. The answer is dropped then.
func (a *answering) deliver(ctx context.Context, job *engine.Job, ans *answer) (after time.Duration, retry bool) {
	err := a.send(ctx, job, ans)

	if !a.caps.Has(transport.Acks) {
		a.report(job, ans, err)

		return 0, false
	}

	switch {
	case err == nil:
	case errors.Is(err, ErrInvalidSubject):
		a.logFailure(job, "a reply was dropped: there is no place where it could go", err)
	case a.elsewhere(job):
		a.logFailure(job, "a reply was not delivered before the lease was over; the broker delivers the request again", err)

		return 0, false
	case a.keep(job, ans, err):
		job.Payload = ans

		return ans.pause(), true
	default:
		a.logFailure(job, "a reply was dropped: nobody was there for it", err)
	}

	return a.settleAnswered(ctx, job, ans)
}

// settleAnswered settles a request whose answer was delivered.
func (a *answering) settleAnswered(ctx context.Context, job *engine.Job, ans *answer) (after time.Duration, retry bool) {
	if ans.err != nil && ans.chosen && !isOutcome(ans.err) {
		a.settle(ctx, job, transport.Verdict{Action: transport.Term, Reason: "answered with an error"})

		return 0, false
	}

	return a.conclude(ctx, job, ans.err)
}

// report logs what nobody else gets to see of a request that is not settled.
func (a *answering) report(job *engine.Job, ans *answer, err error) {
	if err != nil {
		a.logFailure(job, "a request could not be answered", err)
	}

	if ans.err != nil && !ans.chosen {
		a.logFailure(job, "the handler of a request failed", ans.err)
	}
}

func isOutcome(err error) bool {
	_, is := asOutcome(err)

	return is
}

// final reports whether a request that failed will not be tried again, so that
// its caller has to be told now. It decides as conclude does.
func (a *answering) final(job *engine.Job, chosen bool, err error) bool {
	if !a.caps.Has(transport.Acks) {
		return true
	}

	o, asked := asOutcome(err)

	switch {
	case asked && o.kind != OutcomeDelayed:
		return true
	case a.elsewhere(job):
		return false // somebody else answers
	case chosen && !asked:
		return true
	default:
		return a.last(a.attempt(job))
	}
}

// send sends an answer. One that is too large becomes an error.
func (a *answering) send(ctx context.Context, job *engine.Job, ans *answer) error {
	if ans.mute {
		return nil
	}

	// An answer must not fail because the process is shutting down.
	if a.caps.Has(transport.Acks) {
		var cancel context.CancelFunc

		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
	} else if ctx.Err() != nil {
		ctx = context.WithoutCancel(ctx)
	}

	err := a.responder.Reply(ctx, job.Delivery, transport.Message{Header: ans.header, Data: ans.data})
	if !errors.Is(err, ErrTooLarge) {
		return err
	}

	a.logFailure(job, "a reply is too large", err)

	if ans.told == nil {
		a.errors.Add(1) // it was counted as a success
	}

	ans.told = errReplyTooBig
	ans.compose(nil, nil)
	a.lastError.Store(ans.told)

	return a.responder.Reply(ctx, job.Delivery, transport.Message{Header: ans.header, Data: ans.data})
}

// replyHeader returns the headers of the reply: those of the handler, the id of
// the request, and the trace context.
func (a *answering) replyHeader(ctx context.Context, call *Call) Header {
	h := call.reply
	if h.ValidateUser() != nil {
		h = nil // run has reported it, or there is an error anyway
	}

	if id := call.ID(); id != "" && transport.ValidateValue(transport.HeaderMessageID, id) == nil {
		if h == nil {
			h = make(Header, 1)
		}

		h.Set(transport.HeaderMessageID, id)
	}

	return a.telemetry.inject(ctx, h)
}
