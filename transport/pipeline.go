package transport

import (
	"context"
	"time"
)

// Pipeliner is a publisher that can have many messages on their way to the
// broker at once. Without it goflux publishes a batch one message after the
// other.
type Pipeliner interface {
	Publisher

	// OpenPipeline opens a way to publish without waiting for receipts. done
	// is called with the outcome of a message and the token it was sent
	// under, serially, from a goroutine of the transport; it does not block.
	// ended is called once, after the last done, when no outcome will come any
	// more because transport or connection were closed, with an error around
	// [ErrClosed]; it does not block, either, and is not called when the
	// pipeline itself was closed before.
	//
	// ctx bounds the opening; the connection may do so, too, since nobody who
	// has a deadline waits for OpenPipeline itself.
	OpenPipeline(ctx context.Context, done func(token uint64, r Receipt, err error), ended func(err error)) (Pipeline, error)
}

// Pipeline is a way to publish without waiting for receipts. Its owner bounds
// how much is under way, watches the time, and repeats what needs repeating.
type Pipeline interface {
	// Send hands a message to the client. Messages reach the broker in the
	// order of the calls. An error means that it was not sent, and done will
	// not be called: [ErrDisconnected] and [ErrBufferFull] while there is no
	// connection, [ErrTooLarge], [ErrClosed]. Where the connection broke while
	// it was sent the error is [ErrPublishUnknown].
	//
	// Concurrency: one call at a time. Blocking: while the connection takes
	// no more. Buffers: Data and Header stay the caller's and are neither
	// changed nor used by the transport after Send has returned; until then
	// it may add to Header. Retries: none. The outcome of a message may never
	// come, or come before Send returns, or several times after the message
	// was sent several times under one token. As with
	// [Publisher.Publish], an error with which the message may be stored all
	// the same matches [ErrPublishUnknown].
	Send(token uint64, msg Message) error

	// Close stops the calls of done and ended; none comes after it has
	// returned. It may be called while Send blocks, and does not wait for a
	// connection that takes no more. Closing twice is a no-op.
	Close() error
}

// Retry is how a transport retries a message that no stream answered for, as
// ADR-22 has it. Nothing was stored then, so it needs no message id.
type Retry struct {
	// Wait is the time between two tries.
	Wait time.Duration

	// Attempts is how many tries may follow the first; -1 means until ctx
	// ends.
	Attempts int
}

// OrDefault returns r, or where r is nil what ADR-22 has as its default: 250 ms,
// and 2 tries after the first.
func (r *Retry) OrDefault() Retry {
	if r == nil {
		return Retry{Wait: 250 * time.Millisecond, Attempts: 2}
	}

	return *r
}
