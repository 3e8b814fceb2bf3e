// Package goflux is a typed messaging layer for Go services. A message is a Go
// type, a handler is a function, and the error it returns says what becomes of
// the message:
//
//	t, err := transport.Open(ctx, "jetstream://localhost:4222?stream=ORDERS")
//	sub, err := goflux.NewSubscriber(t, json.NewCodec[Order]())
//	err = sub.Subscribe(ctx, "orders.created", func(ctx context.Context, msg goflux.Message[Order]) error {
//		return ship(ctx, msg.Payload)
//	})
//
// Which broker carries the bytes is one line of configuration: core NATS for
// what is fast and fleeting, JetStream for what is durable, an embedded server
// or plain memory for development and tests. The packages below transport/
// provide them; each also has constructors of its own for those who hold a
// connection, a stream or a consumer already.
//
// # Outcomes
//
// A handler returns nil when the message is done with; see [RetryAfter],
// [Reject] and [Drop] for the other outcomes. Any other error, and a panic, is
// retried by the [RetryPolicy]. A payload that does not decode is rejected
// without the handler being called.
package goflux

import (
	"context"
	"slices"

	"github.com/foomo/goencode"
)

// Codec turns a T into bytes and back. Those of github.com/foomo/goencode, and
// the ones below codec/, fit. It must be safe for concurrent use.
type Codec[T any] = goencode.Codec[T, []byte]

// Publisher sends values of one type.
type Publisher[T any] interface {
	// Publish encodes v and sends it on subject. It returns when the broker
	// has confirmed the message, where the transport has receipts, else when
	// the client has it. It blocks no longer than ctx, unless the network
	// stalls in the middle of a write: docs/publishing.md says which calls that
	// holds up, and for how long.
	Publish(ctx context.Context, subject string, v T) error

	// Close makes every later Publish fail with [ErrClosed]. It closes
	// neither the transport nor the connection. Closing twice returns nil.
	Close() error
}

// BatchPublisher sends many values without waiting for each.
type BatchPublisher[T any] interface {
	Publisher[T]

	// PublishBatch sends the items in order and returns what became of each,
	// in the same order. The error is nil when all were published. It blocks
	// no longer than ctx.
	PublishBatch(ctx context.Context, items ...Item[T]) ([]Result, error)

	// PublishAsync sends v and returns before the broker has confirmed it.
	// It blocks while too many are under way, no longer than ctx.
	PublishAsync(ctx context.Context, subject string, v T) (*Pending, error)

	// Flush returns when everything that was published before has been
	// confirmed, or has failed, or ctx ends.
	Flush(ctx context.Context) error
}

// Subscriber hands messages of one type to a handler.
type Subscriber[T any] interface {
	// Subscribe serves the subject until ctx ends, then drains and returns.
	// It returns nil when everything was finished.
	Subscribe(ctx context.Context, subject string, handler Handler[T]) error

	// Close ends all running Subscribe calls as if their ctx had ended, and
	// makes later ones fail with [ErrClosed]. It does not wait: a Subscribe
	// call returns when it has drained.
	Close()
}

// Consumer fetches messages of one type in batches.
type Consumer[T any] interface {
	// Fetch returns up to n messages, at least one. It blocks until there is
	// one or ctx ends. Every message has to be settled.
	Fetch(ctx context.Context, n int) ([]Message[T], error)

	// Close makes later Fetch calls fail with [ErrClosed]. Messages that were
	// fetched can still be settled.
	Close()
}

// Requester asks and waits for the answer.
type Requester[Req, Resp any] interface {
	// Request sends req on subject and returns the reply. It blocks no
	// longer than ctx.
	Request(ctx context.Context, subject string, req Req) (Resp, error)

	// Close makes later requests fail with [ErrClosed].
	Close()
}

// Responder answers requests.
type Responder[Req, Resp any] interface {
	// Serve answers requests on subject until ctx ends, then drains and
	// returns. It returns nil when every request it took was answered.
	Serve(ctx context.Context, subject string, handler RequestHandler[Req, Resp]) error

	// Close ends all running Serve calls as if their ctx had ended.
	Close()
}

// Handler handles one message. Its error is the message's outcome, see the
// package documentation. ctx lives on while the subscription drains; it ends
// when the drain timeout is over, when the lease of the message is lost, or
// when the maximum handling time is exceeded; [context.Cause] tells which. It
// ends with the handler for all that waits for it (contexts made of it, calls of
// [context.AfterFunc]), and must not be used after that.
//
// Handlers are called concurrently where the subscription says so.
type Handler[T any] func(ctx context.Context, msg Message[T]) error

// RequestHandler answers one request.
type RequestHandler[Req, Resp any] func(ctx context.Context, req Req) (Resp, error)

// Middleware wraps a handler. It is applied once, when the handler is built,
// not per message.
type Middleware[T any] func(Handler[T]) Handler[T]

// Chain makes one middleware of several. The first one is the outermost: it
// sees the message first and the error last.
func Chain[T any](middlewares ...Middleware[T]) Middleware[T] {
	return func(h Handler[T]) Handler[T] {
		for _, middleware := range slices.Backward(middlewares) {
			h = middleware(h)
		}

		return h
	}
}
