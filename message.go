package goflux

import (
	"context"
	"time"

	"github.com/foomo/goflux/transport"
)

// Header holds the headers of a message: a key with one or more values. Keys
// are case-sensitive, as they are in NATS.
type Header = transport.Header

// Metadata is what the broker knows of a message: stream, consumer, sequence,
// delivery attempt, time. Fields that the transport does not have are zero.
type Metadata = transport.Metadata

// Receipt is the broker's answer to a publish: stream, sequence, and whether
// the message was a duplicate. It is zero on transports without receipts.
type Receipt = transport.Receipt

// Message is a received message.
//
// With automatic acks the outcome of the handler settles it; with
// [WithManualAck], and when it was fetched, one of its verbs does. The first
// verb wins: after it all return [ErrSettled] and change nothing, so settling
// twice is harmless. Verbs may be called from any goroutine. On transports
// without acks they return [ErrUnsupported].
type Message[T any] struct {
	// Subject is the subject the message was published on.
	Subject string

	// Payload is the decoded value.
	Payload T

	// Header holds all headers the sender set. It is nil when there are none.
	Header Header

	data      []byte // as received, for a dead letter
	token     any
	settler   transport.Settler
	automatic bool // the outcome of its handler settles it
}

// ID returns the id the sender gave the message: the header X-Message-ID, else
// Nats-Msg-Id as set by other clients, else "".
func (m Message[T]) ID() string { return headerID(m.Header) }

// Metadata returns what the broker knows of the message. It is computed when
// asked for.
func (m Message[T]) Metadata() Metadata {
	if m.settler == nil {
		return Metadata{}
	}

	return m.settler.Metadata(m.token)
}

// Attempt returns how often the message was delivered to this consumer, this
// time included: 1 is the first. It is 0 where the transport does not count.
func (m Message[T]) Attempt() int { return m.Metadata().Attempt }

// Ack says that the message was handled. It does not wait for the broker; the
// message comes again should the acknowledgement get lost.
func (m Message[T]) Ack() error {
	return m.settle(context.Background(), transport.Verdict{Action: transport.Ack})
}

// AckSync is [Message.Ack], but returns when the broker has confirmed it, so
// that the message does not come again. It costs a round trip. ctx bounds the
// wait; without a deadline, the client's default request timeout does.
//
// That it returns nil does not say that nobody else has handled the message.
// When the lease has run out the broker delivers the message again, and still
// takes the ack of the first delivery: JetStream takes that of any attempt, and
// confirms it also where the message is done with (nats-server v2.15.2). Who
// fetches keeps the lease by [Message.InProgress]; see [BoundConsumer.Fetch].
func (m Message[T]) AckSync(ctx context.Context) error {
	return m.settle(ctx, transport.Verdict{Action: transport.AckSync})
}

// Nak asks for another delivery at once. Where the message fails again and
// again, this is a hot loop: prefer [Message.NakWithDelay].
func (m Message[T]) Nak() error { return m.NakWithDelay(0) }

// NakWithDelay asks for another delivery after d. Zero and less mean at once.
func (m Message[T]) NakWithDelay(d time.Duration) error {
	return m.settle(context.Background(), transport.Verdict{Action: transport.Nak, Delay: d})
}

// Term says that the message must not be delivered again. It does not go to
// the dead letters: [Reject] does that, and [StoreDeadLetter] with
// [DeadLetterOf] before Term.
func (m Message[T]) Term() error {
	return m.settle(context.Background(), transport.Verdict{Action: transport.Term})
}

// InProgress renews the lease of the message: the ack wait starts anew. While
// a handler runs this is done for it; it is of use to those who fetch, or who
// settle after the handler has returned. It does not wait for the broker, and
// brings back no lease that has run out: call it well before.
func (m Message[T]) InProgress() error {
	return m.settle(context.Background(), transport.Verdict{Action: transport.Extend})
}

func (m Message[T]) settle(ctx context.Context, v transport.Verdict) error {
	if m.settler == nil {
		return &Error{Op: "settle", Subject: m.Subject, Err: transport.ErrUnsupported}
	}

	err := m.settler.Settle(ctx, m.token, v)
	if err == nil {
		return nil
	}

	return &Error{Op: v.Action.String(), Subject: m.Subject, Err: err}
}

// newMessage makes the message of a delivery, without its payload.
func newMessage[T any](d transport.Delivery) Message[T] {
	return Message[T]{Subject: d.Subject, Header: d.Header, data: d.Data, token: d.Token, settler: d.Settler}
}

const headerNatsMessageID = "Nats-Msg-Id"

func headerID(h Header) string {
	if len(h) == 0 {
		return ""
	}

	if id := h.Get(transport.HeaderMessageID); id != "" {
		return id
	}

	return h.Get(headerNatsMessageID)
}
