package goflux

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/foomo/goflux/transport"
)

// The reasons for which a message becomes a dead letter.
const (
	// ReasonRejected: the handler returned [Reject].
	ReasonRejected = "rejected"
	// ReasonUndecodable: the payload could not be decoded.
	ReasonUndecodable = "undecodable"
	// ReasonExhausted: handling failed on the last attempt.
	ReasonExhausted = "attempts exhausted"
)

// DeadLetter is a message that could not be handled, and what is known of why.
// [ParseDeadLetter] makes one of a received message. Fields that the dead
// letter does not tell are zero.
type DeadLetter[T any] struct {
	// Subject is the subject the message was published on.
	Subject string

	// Header holds the headers of the message as its sender, and the server
	// that stored it, had set them. It is nil when there were none.
	Header Header

	// Raw is the payload, byte by byte as it was received.
	Raw []byte

	// Payload is the decoded value; it is zero when DecodeErr is set.
	Payload T

	// DecodeErr is why Raw could not be decoded, an error around [ErrDecode];
	// nil when it could.
	DecodeErr error

	// Reason is one of [ReasonRejected], [ReasonUndecodable] and
	// [ReasonExhausted].
	Reason string

	// Error is the text of the error that the last attempt ended with: one
	// line of at most 1 KiB. It is empty when there was no room for it.
	Error string

	// Attempts is how often the message was tried, from 1.
	Attempts int

	// Stream, Sequence and Consumer tell where the message was stored, and
	// for whom it was not handled. A transport without streams has none.
	Stream   string
	Sequence uint64
	Consumer string

	// Stored is when the broker stored the message.
	Stored time.Time

	// Time is when the message was given up.
	Time time.Time

	// Redriven is how often [Redrive] had sent the message back before.
	Redriven int

	// Omitted are the names of headers of the message for which the dead letter
	// had no room, the largest one first. A "..." at the end stands for more.
	// [Redrive] sends the message back without them.
	Omitted []string
}

// ID returns the id of the message that died: the header X-Message-ID, else
// Nats-Msg-Id, else "".
func (d DeadLetter[T]) ID() string { return headerID(d.Header) }

// ParseDeadLetter reads a message that was received from the dead letters.
// Dead letters are read like all messages, by a [Subscriber] or a [Consumer]
// of bytes, since what they hold may not decode:
//
//	sub, err := goflux.NewSubscriber(t, raw.Bytes())
//	err = sub.Subscribe(ctx, "dead.orders", func(ctx context.Context, msg goflux.Message[[]byte]) error {
//		dead := goflux.ParseDeadLetter(msg, json.NewCodec[Order]())
//		...
//	})
//
// It never fails: a payload that does not decode sets DecodeErr, headers that
// make no sense are ignored. Of a message that is no dead letter only Raw,
// Payload and Header are set; its Subject is "".
func ParseDeadLetter[T any](msg Message[[]byte], codec Codec[T]) DeadLetter[T] {
	dead := parseDeadLetter(msg.Header, msg.Payload)
	typed := DeadLetter[T]{
		Subject: dead.Subject, Header: dead.Header, Raw: dead.Raw,
		Reason: dead.Reason, Error: dead.Error, Attempts: dead.Attempts,
		Stream: dead.Stream, Sequence: dead.Sequence, Consumer: dead.Consumer,
		Stored: dead.Stored, Time: dead.Time, Redriven: dead.Redriven, Omitted: dead.Omitted,
	}

	typed.DecodeErr = decodeInto(codec, dead.Raw, &typed.Payload)

	return typed
}

// DeadLetterOf makes a dead letter of a received message, for those who settle
// by hand: a worker that fetched it, or a handler with [WithManualAck].
//
//	dead := goflux.DeadLetterOf(msg, goflux.ReasonRejected, err)
//	if err := goflux.StoreDeadLetter(ctx, t, "dead.orders", dead); err != nil {
//		return errors.Join(err, msg.NakWithDelay(time.Second)) // it is still there
//	}
//	return msg.Term()
//
// It holds the bytes and headers as they were received, whatever became of
// Payload, and has the message id that [WithDeadLetter] would give it: made
// again of another delivery of the message, a broker that de-duplicates stores
// it once. reason is one of [ReasonRejected], [ReasonUndecodable] and
// [ReasonExhausted], or a word of your own. err may be nil. Its time is now.
//
// Of a [Message] that was not received but composed, as in a test, Raw is nil.
// It may be called concurrently, and changes nothing.
func DeadLetterOf[T any](msg Message[T], reason string, err error) DeadLetter[[]byte] {
	return newDeadLetter(msg.Subject, msg.Header, msg.data, msg.Metadata(), reason, err)
}

func newDeadLetter(subject string, h Header, data []byte, m Metadata, reason string, err error) DeadLetter[[]byte] {
	dead := DeadLetter[[]byte]{
		Subject:  subject,
		Header:   h,
		Raw:      data,
		Payload:  data,
		Reason:   reason,
		Attempts: max(m.Attempt, 1),
		Stream:   m.Stream,
		Sequence: m.Sequence,
		Consumer: m.Consumer,
		Stored:   m.Timestamp,
		Time:     time.Now(),
		Redriven: int(headerCount(h, headerRedriven)), //nolint:gosec // bounded by headerCount
	}

	if err != nil {
		dead.Error = headerText(sound(err).Error())
	}

	return dead
}

// StoreDeadLetter publishes a dead letter on subject: what [WithDeadLetter]
// does by itself, for those who settle by hand. [DeadLetterOf] makes one of a
// message. Terminate the message only when StoreDeadLetter returned nil.
//
// Raw, Header and Subject go out unaltered; headers that would instruct the
// server, or that no client could send, travel under other names. Payload and
// DecodeErr are not used. A zero Time is now. An error text that is too long is
// cut. Where the message would exceed a limit of the broker, the text is left
// out, then as many of the largest headers as it takes, then all of them; Omitted
// tells which ones. The payload is never cut.
//
// The dead letter has a message id made of stream, sequence and consumer, so
// that a broker with de-duplication stores it once, however often it is tried
// within its window. Without a sequence the id is made of the message and its
// Time.
//
// Errors are [*Error] values around [ErrInvalidSubject], [ErrInvalidOption],
// [ErrInvalidHeader], [ErrTooLarge] and what publishing fails with. It may be
// called concurrently.
func StoreDeadLetter(ctx context.Context, pub transport.Publisher, subject string, dead DeadLetter[[]byte]) error {
	if err := storeDeadLetter(ctx, pub, subject, dead); err != nil {
		return &Error{Op: "store dead letter", Subject: subject, Stream: dead.Stream, Consumer: dead.Consumer, Err: err}
	}

	return nil
}

func storeDeadLetter(ctx context.Context, pub transport.Publisher, subject string, dead DeadLetter[[]byte]) error {
	if pub == nil {
		return fmt.Errorf("%w: the publisher is nil", ErrInvalidOption)
	}

	if err := transport.ValidateSubject(subject); err != nil {
		return err
	}

	if dead.Time.IsZero() {
		dead.Time = time.Now()
	}

	dead.Error = headerText(dead.Error)

	if err := deadHeader(dead).Validate(); err != nil {
		return err
	}

	letter := transport.Message{Subject: subject, Data: dead.Raw, ID: deadLetterID(dead)}

	var err error

	for _, shrink := range shrinkings {
		shrink(&dead)

		letter.Header = deadHeader(dead)

		if _, err = pub.Publish(ctx, letter); !errors.Is(err, ErrTooLarge) {
			return err
		}
	}

	return fmt.Errorf("%w: the payload, with the headers that a dead letter needs; "+
		"raise the maximum message size for the dead letters (max_payload of the server, MaxMsgSize of the stream)", err)
}
