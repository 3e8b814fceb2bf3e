package goflux

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/foomo/goflux/transport"
)

// BoundRequester is a [Requester] bound to a transport. It is safe for
// concurrent use.
type BoundRequester[Req, Resp any] struct {
	reqCodec  Codec[Req]
	respCodec Codec[Resp]
	asker
}

var _ Requester[struct{}, struct{}] = (*BoundRequester[struct{}, struct{}])(nil)

// NewRequester returns a requester over any transport with request-reply. It
// fails with [ErrUnsupported] for a transport without, and with
// [ErrInvalidOption] for a codec that lacks the direction it is used in, a nil
// transport or a bad option.
func NewRequester[Req, Resp any](
	t transport.Transport, reqCodec Codec[Req], respCodec Codec[Resp], opts ...RequesterOption,
) (*BoundRequester[Req, Resp], error) {
	rt, err := requestReplier(t)
	if err != nil {
		return nil, construction("requester", err)
	}

	r := newRequester(rt, reqCodec, respCodec, opts)
	if r.err != nil {
		return nil, r.err
	}

	return r, nil
}

// BindRequester is [NewRequester] for the constructors of transports that cannot
// return an error: what is wrong is returned by every request. err, if not nil,
// is why there is no transport. Where t has a Close() error, the requester closes
// it with itself.
func BindRequester[Req, Resp any](
	t transport.Requester, err error, reqCodec Codec[Req], respCodec Codec[Resp], opts ...Option,
) *BoundRequester[Req, Resp] {
	fitting, mismatch := optionsOf[RequesterOption]("requester", opts)
	if err = cmp.Or(err, mismatch); err != nil {
		return &BoundRequester[Req, Resp]{asker: asker{err: construction("requester", err)}}
	}

	r := newRequester(t, reqCodec, respCodec, fitting)

	if c, ok := t.(io.Closer); ok && r.err == nil {
		r.release = c.Close
	}

	return r
}

func newRequester[Req, Resp any](
	t transport.Requester, reqCodec Codec[Req], respCodec Codec[Resp], opts []RequesterOption,
) *BoundRequester[Req, Resp] {
	r := &BoundRequester[Req, Resp]{reqCodec: reqCodec, respCodec: respCodec, asker: asker{transport: t}}

	switch {
	case t == nil:
		r.err = fmt.Errorf("%w: the transport is nil", ErrInvalidOption)
	case reqCodec.Encode == nil:
		r.err = fmt.Errorf("%w: the codec of the requests cannot encode", ErrInvalidOption)
	case respCodec.Decode == nil:
		r.err = fmt.Errorf("%w: the codec of the replies cannot decode", ErrInvalidOption)
	default:
		r.err = applyOptions(opts, RequesterOption.applyRequester, &r.cfg)
	}

	if r.err != nil {
		r.err = construction("requester", r.err)
	}

	r.telemetry = r.cfg.tel()

	return r
}

// requestReplier returns what t can do about requests.
func requestReplier(t transport.Transport) (transport.RequestReplier, error) {
	if t == nil {
		return nil, fmt.Errorf("%w: the transport is nil", ErrInvalidOption)
	}

	rt, ok := t.(transport.RequestReplier)
	if !ok {
		return nil, fmt.Errorf("%w: it needs %s, this one has: %s; requests over JetStream are made with jetstream.NewRequester",
			ErrUnsupported, transport.RequestReply, t.Capabilities())
	}

	return rt, nil
}

// Request sends req on subject and waits for the first reply. It goes out under
// the id and headers of ctx ([WithMessageID], [WithHeader]) and its trace
// context. ctx should have a deadline: it is told to the responder, which does
// not start on a request that nobody waits for any more, and without one a
// request whose responder dies waits for ever.
//
// Errors are [*Error] values. Those that say that there is no answer:
// [ErrNoResponders], [context.DeadlineExceeded], [context.Canceled],
// [ErrDisconnected]; of the last three nobody knows whether the request was
// handled. An answer that is an error is a [*RemoteError], one that cannot be
// understood [ErrDecode]. Those that say that nothing was sent:
// [ErrInvalidSubject], [ErrInvalidHeader], [ErrEncode], [ErrTooLarge],
// [ErrBufferFull], [ErrClosed].
func (r *BoundRequester[Req, Resp]) Request(ctx context.Context, subject string, req Req) (Resp, error) {
	msg, err := r.RequestMessage(ctx, subject, req)

	return msg.Payload, err
}

// RequestMessage is [BoundRequester.Request] for those who want the headers of
// the reply, too. With a [*RemoteError] it returns the message without a
// payload. The message's Subject is that of the reply; there is nothing to
// settle.
func (r *BoundRequester[Req, Resp]) RequestMessage(ctx context.Context, subject string, req Req) (Message[Resp], error) {
	msg, err := r.prepare(ctx, subject, req)
	if err != nil {
		return Message[Resp]{}, err
	}

	start := r.telemetry.clock(ctx, r.telemetry.sent, r.telemetry.duration)
	ctx, span := r.telemetry.startRequest(ctx, subject, msg.ID)
	msg.Header = r.telemetry.inject(ctx, msg.Header)

	var reply Message[Resp]

	d, err := r.transport.Request(ctx, msg)
	if err == nil {
		reply, err = readReply(r.respCodec, "request", subject, d)
	}

	r.telemetry.endRequest(ctx, span, start, d.Header, err)

	return reply, err
}

// prepare makes the message of a request, without what belongs to one attempt at
// sending it.
func (r *BoundRequester[Req, Resp]) prepare(ctx context.Context, subject string, req Req) (transport.Message, error) {
	if err := r.ready(ctx, subject); err != nil {
		return transport.Message{}, err
	}

	data, err := r.reqCodec.Encode(req)
	if err != nil {
		return transport.Message{}, &Error{Op: "request", Subject: subject, Err: transport.Mark(ErrEncode, err)}
	}

	id := outgoingID(ctx)

	header, err := outgoingHeader(HeaderFromContext(ctx), id)
	if err != nil {
		return transport.Message{}, &Error{Op: "request", Subject: subject, Err: err}
	}

	return transport.Message{Subject: subject, Header: header, Data: data, ID: id}, nil
}

// readReply makes a message of a reply. Its error is that of the responder, or
// of the codec.
func readReply[Resp any](codec Codec[Resp], op, subject string, d transport.Delivery) (Message[Resp], error) {
	msg := newMessage[Resp](d)

	if err := readRemoteError(d); err != nil {
		return msg, &Error{Op: op, Subject: subject, Err: err}
	}

	if err := decodeInto(codec, d.Data, &msg.Payload); err != nil {
		return Message[Resp]{}, &Error{Op: op, Subject: subject, Err: err}
	}

	return msg, nil
}

type requesterConfig struct {
	commonConfig
}

// asker is what all requesters share, whatever their types.
type asker struct {
	transport transport.Requester
	cfg       requesterConfig
	telemetry *Telemetry
	closed    atomic.Bool
	release   func() error // closes a transport of its own; else nil
	err       error        // of the construction
}

// Close makes later requests fail with [ErrClosed]. What is under way, be it a
// Request or a RequestMany, ends as it would have where the requester was built
// on a transport, and with ErrClosed at once where it was built on a connection.
// Transport and connection stay open. Closing twice is a no-op.
func (a *asker) Close() {
	if !a.closed.Swap(true) && a.release != nil {
		_ = a.release() // the transport has nothing but requests to end
	}
}

// ready checks what can be checked before the value is encoded.
func (a *asker) ready(ctx context.Context, subject string) error {
	if a.err != nil {
		return a.err
	}

	if a.closed.Load() {
		return &Error{Op: "request", Subject: subject, Err: fmt.Errorf("%w: the requester", ErrClosed)}
	}

	if err := transport.ValidateSubject(subject); err != nil {
		return &Error{Op: "request", Err: err}
	}

	if err := ctx.Err(); err != nil {
		return &Error{Op: "request", Subject: subject, Err: err}
	}

	return nil
}
