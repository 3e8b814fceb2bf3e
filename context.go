package goflux

import "context"

type (
	messageIDKey struct{}
	headerKey    struct{}
)

// messageID is an id in a context. One that came with a received message is
// told by MessageID, but does not go out again with what the handler
// publishes: two messages with one id are one message to a broker that
// de-duplicates, and to an idempotent receiver, so the second would vanish.
type messageID struct {
	id       string
	received bool
}

// WithMessageID returns a context under which the next message is published
// with id, in the header X-Message-ID. Where the broker de-duplicates, it
// stores the id once. An id names one message: use a context of its own for
// each. An empty id means none.
//
// The id must be a valid header value ([Header.Validate]); Publish returns
// [ErrInvalidHeader] otherwise.
func WithMessageID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, messageIDKey{}, messageID{id: id})
}

// MessageID returns the id of ctx: the one set with [WithMessageID], or, in a
// handler, the one of the message being handled. It is "" when there is none.
//
// The id of a handled message is not sent along with what its handler
// publishes; pass it on with WithMessageID where a message is forwarded.
func MessageID(ctx context.Context) string {
	id, _ := ctx.Value(messageIDKey{}).(messageID)

	return id.id
}

func outgoingID(ctx context.Context) string {
	if id, _ := ctx.Value(messageIDKey{}).(messageID); !id.received {
		return id.id
	}

	return ""
}

func withReceivedID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, messageIDKey{}, messageID{id: id, received: true})
}

// WithHeader returns a context under which messages are published with the
// headers of h. It replaces headers set before. The header is read when a
// message is published and never written to.
//
// Reserved names ([transport.Reserved]) and what NATS would alter on its way
// make Publish return [ErrInvalidHeader].
func WithHeader(ctx context.Context, h Header) context.Context {
	return context.WithValue(ctx, headerKey{}, h)
}

// HeaderFromContext returns the headers set with [WithHeader], or nil. The
// headers of a received message are in [Message.Header]; they are not in the
// handler's context and do not go out again by themselves.
func HeaderFromContext(ctx context.Context) Header {
	h, _ := ctx.Value(headerKey{}).(Header)

	return h
}
