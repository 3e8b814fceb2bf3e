package goflux

import (
	"context"
	"fmt"

	"github.com/foomo/goflux/transport"
)

// DurableRequester is a [Requester] whose requests are stored: they wait for a
// responder, and their replies can wait for whoever holds the ticket. It is safe
// for concurrent use.
type DurableRequester[Req, Resp any] struct {
	requester *BoundRequester[Req, Resp]
	durable   transport.DurableRequester
}

var _ Requester[struct{}, struct{}] = (*DurableRequester[struct{}, struct{}])(nil)

// BindDurableRequester returns a durable requester for the constructors of
// transports: what is wrong is returned by every call. err, if not nil, is why
// there is no transport. The requester closes t with itself.
func BindDurableRequester[Req, Resp any](
	t transport.DurableRequester, err error, reqCodec Codec[Req], respCodec Codec[Resp], opts ...Option,
) *DurableRequester[Req, Resp] {
	return &DurableRequester[Req, Resp]{
		requester: BindRequester[Req, Resp](t, err, reqCodec, respCodec, opts...),
		durable:   t,
	}
}

// Err returns what was wrong with the arguments of the constructor, or nil: what
// every call would return.
func (r *DurableRequester[Req, Resp]) Err() error { return r.requester.Err() }

// Request stores req on subject and waits for the reply, which comes straight to
// this process. It works though no responder is there yet. The deadline of ctx
// is told to the responder, which does not start on a request that nobody waits
// for any more; without one, the request waits for ever.
//
// Under a message id ([WithMessageID]) a request is stored once per subject,
// within the de-duplication window of its stream. Another Request with the id is
// [ErrDuplicateRequest], since the reply goes to the first one; a Submit with it
// is another request.
//
// Errors are [*Error] values. A [*RemoteError] and [ErrDecode] are about the
// reply. After [context.DeadlineExceeded], [context.Canceled] and [ErrClosed]
// the request may be stored, and handled until its deadline. Of others, as
// [ErrNoStream], nothing was stored, unless they are [ErrPublishUnknown] too.
func (r *DurableRequester[Req, Resp]) Request(ctx context.Context, subject string, req Req) (Resp, error) {
	return r.requester.Request(ctx, subject, req)
}

// RequestMessage is [DurableRequester.Request] for those who want the headers of
// the reply, too. With a [*RemoteError] it returns the message without a
// payload. There is nothing to settle.
func (r *DurableRequester[Req, Resp]) RequestMessage(ctx context.Context, subject string, req Req) (Message[Resp], error) {
	return r.requester.RequestMessage(ctx, subject, req)
}

// Submit stores req on subject, in a stream with work-queue retention, and
// returns a ticket for its reply: a string without white space that can be kept,
// and handed to [DurableRequester.Await] at any time by any process that has a
// requester of the same kind. Whether it is handled does not depend on ctx, nor
// on whether the ticket is ever used.
//
// Under a message id ([WithMessageID]) the same request is stored once: another
// Submit with the id, on the same subject, returns the same ticket, as long as
// the reply is kept, and until then as long as the stream remembers the id. That
// is its de-duplication window, two minutes unless set: make it as long as
// requests may wait, or a request that is submitted again after it while it
// still waits is stored, and handled, twice. Its first reply counts for both
// tickets. To have a request handled anew after its reply, submit it under
// another id. A Request with the id is another request.
//
// Retry under an id what ended with [context.DeadlineExceeded] or
// [ErrDisconnected]: it may have been stored.
//
// Errors are [*Error] values around those of [BoundPublisher.Publish], and
// [ErrInvalidOption] for a requester without a stream of replies, and for a
// stream of another retention.
func (r *DurableRequester[Req, Resp]) Submit(ctx context.Context, subject string, req Req) (ticket string, err error) {
	msg, err := r.requester.prepare(ctx, subject, req)
	if err != nil {
		return "", err
	}

	tel := r.requester.telemetry
	start := tel.clock(ctx, tel.sent, tel.duration)
	ctx, span := tel.startSend(ctx, subject, msg.ID)
	msg.Header = tel.inject(ctx, msg.Header)

	ticket, err = r.durable.Submit(ctx, msg)
	tel.endSend(ctx, span, start, err)

	return ticket, err
}

// Await returns the reply to the request of a ticket, and waits for it as long
// as ctx does. It may be called any number of times, until the reply expires,
// and concurrently.
//
// Errors are [*Error] values: [ErrTicketUnknown] for what is no ticket of this
// kind of requester, [ErrTicketExpired] when the request is done with, or was
// deleted, and its reply is not kept any more, a [*RemoteError] when the
// responder answered with an error, [ErrDecode] for a reply that does not decode,
// [ErrClosed], [context.DeadlineExceeded] or [context.Canceled]. After the last
// two the ticket is still good.
//
// A ticket that somebody made up is [ErrTicketUnknown] where tickets are made
// with a key. Without one it may be ErrTicketExpired: it then tells that a
// message of its sequence was removed from a stream with work-queue retention,
// of those that the requester may look at, and never more.
func (r *DurableRequester[Req, Resp]) Await(ctx context.Context, ticket string) (Resp, error) {
	msg, err := r.AwaitMessage(ctx, ticket)

	return msg.Payload, err
}

// AwaitMessage is [DurableRequester.Await] for those who want the headers of the
// reply, too. There is nothing to settle.
func (r *DurableRequester[Req, Resp]) AwaitMessage(ctx context.Context, ticket string) (Message[Resp], error) {
	if r.requester.err != nil {
		return Message[Resp]{}, r.requester.err
	}

	if r.requester.closed.Load() {
		return Message[Resp]{}, &Error{Op: "await", Err: fmt.Errorf("%w: the requester", ErrClosed)}
	}

	d, err := r.durable.Await(ctx, ticket)
	if err != nil {
		return Message[Resp]{}, err
	}

	return readReply(r.requester.respCodec, "await", "", d)
}

// Close makes later calls fail with [ErrClosed], and those that wait, too. What
// was stored stays. Closing twice is a no-op.
func (r *DurableRequester[Req, Resp]) Close() {
	r.requester.Close()

	if r.requester.err == nil {
		r.durable.Close()
	}
}
