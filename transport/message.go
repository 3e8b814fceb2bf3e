package transport

import (
	"context"
	"time"
)

// Message is what a publisher hands to a transport. It is passed by value so
// that publishing allocates nothing here.
type Message struct {
	// Subject is where the message goes. It has no wildcards.
	Subject string

	// Reply is the subject on which an answer is expected; empty for none.
	Reply string

	// Header may be nil. The transport may add to it.
	Header Header

	// Data is the encoded payload; nil and empty are the same.
	Data []byte

	// ID is the id under which a broker with [Deduplication] stores the
	// message once. Empty means no de-duplication. It is also in Header,
	// under [HeaderMessageID], for the receiver.
	ID string

	// Retry, if not nil, replaces the broker's usual retries. Transports
	// without [Receipts] ignore it.
	Retry *Retry

	// Terms, if not nil, say on what conditions the message is to be stored.
	// The transport has the capabilities that they need: the caller has
	// checked it.
	Terms *Terms
}

// Receipt is a broker's answer to a publish. It is zero on transports without
// [Receipts].
type Receipt struct {
	// Stream is the name of the stream that stored the message.
	Stream string

	// Sequence is the message's place in the stream, from 1.
	Sequence uint64

	// Duplicate is true when the broker already had a message with this id,
	// so that this one was not stored again.
	Duplicate bool
}

// Delivery is a received message that is to be settled.
type Delivery struct {
	// Subject is the subject the message was published on.
	Subject string

	// Reply is the subject on which the sender expects an answer; empty for
	// none.
	Reply string

	// Header holds what the sender set, keys in the sender's case. Nil when
	// there are none. It belongs to the receiver.
	Header Header

	// Data is the payload. It belongs to the receiver; the transport never
	// touches it again.
	Data []byte

	// Arrived is when the message reached this process. It is for requests
	// that are waited for, and may have waited for credit since; zero where
	// that makes no difference.
	Arrived time.Time

	// Token identifies the delivery to its Settler. It is opaque.
	Token any

	// Settler settles the delivery and describes it. It is never nil, and
	// one value serves a whole subscription.
	Settler Settler
}

// Settler tells the broker what became of a delivery. All methods may be
// called concurrently.
type Settler interface {
	// Settle carries out the verdict. The first verdict that is not [Extend]
	// wins; after it every call returns [ErrSettled] and changes nothing.
	// Transports without [Acks] return [ErrUnsupported]. It does not wait
	// for the broker, except for [AckSync], which ctx bounds. A verdict on a
	// delivery whose lease ran out still counts where the broker takes it, and
	// changes nothing where the message is done with: both return nil.
	Settle(ctx context.Context, token any, v Verdict) error

	// Metadata tells what the broker knows of the delivery. It costs a parse
	// on some transports, hence is asked only when wanted. It is the zero
	// value where the transport knows nothing.
	Metadata(token any) Metadata
}

// Verdict is what is to become of a delivery.
type Verdict struct {
	// Action is what to do.
	Action Action

	// Delay goes with [Nak]: the broker waits that long before it delivers
	// again. Zero and less mean at once.
	Delay time.Duration

	// Reason goes with [Term]: a short text for the broker's advisories. It
	// never holds payload.
	Reason string
}

// Action is the kind of a [Verdict].
type Action uint8

const (
	// Ack says that the message was handled: it is done with. It does not
	// wait for the broker.
	Ack Action = iota + 1

	// AckSync is an Ack that returns when the broker has confirmed it, so
	// that the message cannot be delivered again.
	AckSync

	// Nak asks for another delivery, after the verdict's delay.
	Nak

	// Term says that the message must not be delivered again, handled or
	// not.
	Term

	// Extend renews the lease: the ack wait starts anew.
	Extend
)

// String returns the action's name in the words of NATS.
func (a Action) String() string {
	switch a {
	case Ack:
		return "ack"
	case AckSync:
		return "ack sync"
	case Nak:
		return "nak"
	case Term:
		return "term"
	case Extend:
		return "in progress"
	default:
		return "unknown"
	}
}

// Metadata is what the broker knows of a delivery. Fields that a transport
// does not have are zero.
type Metadata struct {
	// Stream and Consumer are the names behind the delivery.
	Stream   string
	Consumer string

	// Sequence is the message's place in its stream, from 1.
	Sequence uint64

	// Attempt counts the deliveries of this message to this consumer, this
	// one included: 1 is the first.
	Attempt int

	// Pending is how many more messages wait for the consumer. It is only
	// meaningful when Attempt is not zero.
	Pending uint64

	// Timestamp is when the broker stored the message.
	Timestamp time.Time
}
