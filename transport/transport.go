// Package transport is the seam between goflux and a broker.
//
// A transport moves bytes: it publishes a [Message], hands received [Delivery]
// values to a sink as far as it was given credit, and settles them. Everything
// else (codecs, ids, tracing, concurrency, retries, dead letters, shutdown) is
// written once above this package, in github.com/foomo/goflux.
//
// Users meet this package when they open a transport by URL ([Open]) and when
// they ask what it can do ([Capabilities]). Authors of a transport implement
// [Publisher], [Subscriber], [Subscription] and [Settler], and prove it with
// the suite in transport/transporttest.
package transport

import (
	"context"
	"time"
)

// Transport is a broker seen from both ends.
//
// All methods may be called concurrently.
type Transport interface {
	Publisher
	Subscriber

	// Close releases what the transport made itself, in reverse order: a
	// connection handed to it by its caller stays open. Publishing and
	// subscribing afterwards fail with [ErrClosed]; subscriptions that still
	// run end as if the broker had gone, with [ErrClosed]. Closing twice is
	// a no-op that returns nil.
	Close() error
}

// Capable tells what a transport can do.
type Capable interface {
	// Capabilities returns the same value for the life of the transport.
	Capabilities() Capabilities
}

// Publisher sends messages.
type Publisher interface {
	Capable

	// Publish hands one message to the broker. With [Receipts] it returns
	// when the broker has confirmed the message, else when the message is
	// in the hands of the client.
	//
	// Concurrency: any number of calls at once. Blocking: no longer than ctx.
	// Retries: none but what the broker's protocol defines (ADR-22 on
	// JetStream); retrying under a stable id is the caller's. Buffers: Data
	// and Header belong to the transport only until Publish returns; a
	// transport that keeps them copies them. Validation: subject and header
	// have been checked by the caller ([ValidateSubject], [Header.Validate]);
	// the size is checked here, before anything is sent, and is [ErrTooLarge].
	// Errors: with [Receipts], an error after which the message may be stored
	// all the same matches [ErrPublishUnknown]; after any other one it is not.
	// When it fails for want of a connection or a buffer, nothing of the
	// message is kept.
	Publish(ctx context.Context, msg Message) (Receipt, error)
}

// Subscriber opens subscriptions.
type Subscriber interface {
	Capable

	// Subscribe attaches to the broker and returns when the broker has the
	// subscription, so that a message published afterwards is not missed.
	// Nothing is delivered before the first [Subscription.Request].
	//
	// Concurrency: any number of calls at once. Blocking: no longer than
	// ctx, which bounds the attaching only, not the life of the
	// subscription. Errors: [ErrStreamNotFound], [ErrConsumerNotFound],
	// [ErrSubjectMismatch], [ErrUnsupported], [ErrClosed]. Retries: none.
	Subscribe(ctx context.Context, cfg SubscribeConfig) (Subscription, error)
}

// SubscribeConfig says what a subscription wants.
type SubscribeConfig struct {
	// Subject is the filter, with the wildcards of NATS. It is empty only
	// where the source behind the subscriber decides what is delivered.
	Subject string

	// Group names the queue group: each message goes to one member of it.
	// Empty means a subscription of its own, which gets every message. On
	// transports with [Durable] the group is durable too: it keeps its place
	// while no member is there.
	Group string

	// Sink receives the deliveries. The transport calls it serially, in the
	// order of the broker, never after Close has returned. The sink does not
	// block and does not settle; it owns the delivery from then on.
	Sink func(Delivery)

	// Notify receives what is worth knowing and does not end the
	// subscription: messages dropped by the client ([DroppedError]), a
	// connection that was lost, an [Info] that has changed. It may be nil, may
	// be called concurrently and must not block.
	Notify func(error)
}

// Subscription is one attachment to the broker. Its owner grants credit and
// closes it; it settles what it received through the [Settler] of each
// [Delivery].
type Subscription interface {
	// Info describes the subscription, as far as is known: the value changes
	// when the configuration at the broker does. After a Flush without an
	// error it is no older than that; Notify tells of a change that may matter
	// at once. It is cheap, never blocks and may be called at any time.
	Info() Info

	// Request lets n more deliveries reach the sink, in addition to what
	// earlier requests left over. It never blocks. The broker gives out no
	// more than was requested, so that nothing waits in a buffer of the
	// client with its lease running; transports without leases may buffer.
	// n < 1 is ignored.
	Request(n int)

	// Pause takes back what is left of the credit. When it returns, no
	// delivery reaches the sink until the next Request, and the broker keeps
	// the messages for others. Deliveries that were on their way arrive
	// before it returns. ctx bounds the wait.
	Pause(ctx context.Context) error

	// Flush returns when the broker has seen every settlement sent before
	// it. Its failure means that the broker cannot be reached, or no longer
	// knows the subscription ([ErrConsumerNotFound]).
	Flush(ctx context.Context) error

	// Close ends the subscription at the broker. Deliveries that were on
	// their way arrive before it returns; a transport without [Redelivery]
	// also hands over what it still buffers, whatever the credit, since
	// nobody else would get it. ctx bounds the wait, not the end: after a
	// timeout nothing reaches the sink either. Settling what was delivered
	// still works after Close. A second Close is a no-op.
	Close(ctx context.Context) error

	// Done is closed when the subscription has ended by itself.
	Done() <-chan struct{}

	// Err tells why Done is closed: [ErrConsumerNotFound],
	// [ErrStreamNotFound], [ErrClosed], [ErrDisconnected]. Nil before.
	Err() error
}

// Info describes a subscription.
type Info struct {
	// Stream and Consumer name the durable things behind the subscription,
	// for error messages and telemetry. Both may be empty.
	Stream   string
	Consumer string

	// Filter is what the broker selects by: a subject, possibly with
	// wildcards. It is of low cardinality.
	Filter string

	// AckWait is how long a delivery may stay unsettled before the broker
	// gives it to somebody else: its lease. Zero means no lease.
	AckWait time.Duration

	// MaxDeliver is how often the broker delivers one message at the most.
	// Zero means without limit, one that there is no redelivery.
	MaxDeliver int

	// BackOff, where the broker was configured with a list of delays, holds
	// it: the n-th redelivery (from 0) is due after BackOff[n], the last one
	// repeats.
	BackOff []time.Duration
}
