package goflux

import (
	"cmp"
	"context"
	"fmt"

	"github.com/foomo/goflux/transport"
)

// DurableRequester is a [Requester] whose requests are stored: they wait for a
// responder, and their replies can wait for whoever holds the ticket. It is safe
// for concurrent use.
type DurableRequester[Req, Resp any] struct {
	BoundRequester[Req, Resp]

	durable transport.DurableRequester
}

// BindDurableRequester returns a durable requester for the constructors of
// transports: what is wrong is returned by every call. err, if not nil, is why
// there is no transport. The requester closes t with itself.
func BindDurableRequester[Req, Resp any](
	t transport.DurableRequester, err error, reqCodec Codec[Req], respCodec Codec[Resp], opts ...Option,
) *DurableRequester[Req, Resp] {
	fitting, mismatch := optionsOf[RequesterOption]("requester", opts)
	r := &DurableRequester[Req, Resp]{durable: t}

	if err = cmp.Or(err, mismatch); err != nil {
		r.err = construction("requester", err)

		return r
	}

	bound := newRequester(t, reqCodec, respCodec, fitting)
	r.reqCodec, r.respCodec = reqCodec, respCodec
	r.transport, r.cfg, r.telemetry, r.err = bound.transport, bound.cfg, bound.telemetry, bound.err

	return r
}

// Submit stores req on subject and returns a ticket for its reply: a string
// without white space that can be kept, and handed to [DurableRequester.Await]
// at any time by any process that has a requester of the same kind. Whether it
// is handled does not depend on ctx, nor on whether the ticket is ever used.
//
// Under a message id ([WithMessageID]) the same request is stored once: another
// Submit with the id, on the same subject, returns the same ticket, as long as
// the stream remembers the id. Retry under an id what ended with
// [context.DeadlineExceeded] or [ErrDisconnected]: it may have been stored.
//
// Errors are [*Error] values around those of [BoundPublisher.Publish].
func (r *DurableRequester[Req, Resp]) Submit(ctx context.Context, subject string, req Req) (ticket string, err error) {
	msg, err := r.prepare(ctx, subject, req)
	if err != nil {
		return "", err
	}

	start := r.telemetry.clock(ctx, r.telemetry.sent, r.telemetry.duration)
	ctx, span := r.telemetry.startSend(ctx, subject, msg.ID)
	msg.Header = r.telemetry.inject(ctx, msg.Header)

	ticket, err = r.durable.Submit(ctx, msg)
	r.telemetry.endSend(ctx, span, start, err)

	return ticket, err
}

// Await returns the reply to the request of a ticket, and waits for it as long
// as ctx does. It may be called any number of times, until the reply expires,
// and concurrently.
//
// Errors are [*Error] values: [ErrTicketUnknown] for what is no ticket of this
// kind of requester, [ErrTicketExpired] when the request is done with and its
// reply is not kept any more, a [*RemoteError] when the responder answered with
// an error, [ErrDecode] for a reply that does not decode, [ErrClosed],
// [context.DeadlineExceeded] or [context.Canceled]. After the last two the
// ticket is still good.
func (r *DurableRequester[Req, Resp]) Await(ctx context.Context, ticket string) (Resp, error) {
	msg, err := r.AwaitMessage(ctx, ticket)

	return msg.Payload, err
}

// AwaitMessage is [DurableRequester.Await] for those who want the headers of the
// reply, too. There is nothing to settle.
func (r *DurableRequester[Req, Resp]) AwaitMessage(ctx context.Context, ticket string) (Message[Resp], error) {
	if r.err != nil {
		return Message[Resp]{}, r.err
	}

	if r.closed.Load() {
		return Message[Resp]{}, &Error{Op: "await", Err: fmt.Errorf("%w: the requester", ErrClosed)}
	}

	d, err := r.durable.Await(ctx, ticket)
	if err != nil {
		return Message[Resp]{}, err
	}

	return readReply(r.respCodec, "await", "", d)
}

// Close makes later calls fail with [ErrClosed], and those that wait, too. What
// was stored stays. Closing twice is a no-op.
func (r *DurableRequester[Req, Resp]) Close() {
	r.BoundRequester.Close()

	if r.err == nil {
		r.durable.Close()
	}
}
