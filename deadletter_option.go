package goflux

import (
	"fmt"
	"strings"
	"time"

	"github.com/foomo/goflux/transport"
)

// WithDeadLetter publishes what cannot be handled on subject, as a
// [DeadLetter]: what the handler rejects ([Reject]), what fails on the last
// attempt, and what does not decode. The last attempt is the one after which
// the broker would give the message up (MaxDeliver); where there is no
// redelivery it is every one. Of a [Consumer], which has no handler, it is what
// does not decode; for the rest there is [DeadLetterOf].
//
// The bytes and headers of the message go out unaltered, with headers that
// begin with Goflux-Dead- beside them. The message is terminated when the
// broker has stored the dead letter, not before. As long as it cannot be
// stored, the message is kept here with its lease, counts against the limit of
// unsettled messages, and storing is tried again, after 100 ms at first and
// every 30 s in the end: beside the handlers, by one message for all that wait,
// so that they hold back nobody as long as there are no more than 8192 of them,
// or 64 MiB. Where there is no redelivery nothing keeps the
// message: it is lost, and logged, after six tries in about three seconds.
// [BoundConsumer.Fetch] tells what a consumer does instead.
//
// The dead letters need a place that keeps them: on JetStream a stream with
// subject whose retention is limits or workqueue (interest keeps nothing for
// consumers that come later), in memory a queue group that subscribed to
// subject before, or a history.
//
// It is the transport of the subscriber or consumer that publishes. Where that
// cannot, as one that was built on a bare consumer, the construction fails with
// [ErrInvalidOption]: use [WithDeadLetterPublisher]. On a transport without
// receipts (core NATS) nobody confirms a dead letter: it is sent, and lost
// where nobody listens. Who would receive its own dead letters, an endless loop,
// fails with [ErrInvalidOption]: Subscribe does, and [NewConsumer] or, where
// only the broker knows what is delivered, Fetch.
//
// A dead letter is stored once as long as the tries are no further apart than
// the de-duplication window of its stream (2 minutes by default).
func WithDeadLetter(subject string) ReceiverOption {
	return withDeadLetter("WithDeadLetter", subject, func(*deadLetterConfig) error { return nil })
}

// WithDeadLetterPublisher is [WithDeadLetter] with a transport of its own for
// the dead letters, which stays the caller's. For a subscriber or consumer on a
// JetStream consumer it is jetstream.New(js).
//
// Where the transport that receives redelivers, pub must have receipts:
// otherwise messages would be terminated though nobody confirmed their dead
// letters, which is refused with [ErrUnsupported].
func WithDeadLetterPublisher(pub transport.Publisher, subject string) ReceiverOption {
	return withDeadLetter("WithDeadLetterPublisher", subject, func(c *deadLetterConfig) error {
		if pub == nil {
			return fmt.Errorf("%w: the publisher is nil", ErrInvalidOption)
		}

		c.publisher = pub

		return nil
	})
}

func withDeadLetter(name, subject string, set func(c *deadLetterConfig) error) ReceiverOption {
	return receiverOption{named(name), func(c *receiverConfig) error {
		c.deadLetter = &deadLetterConfig{subject: subject}

		if err := transport.ValidateSubject(subject); err != nil {
			return err
		}

		return set(c.deadLetter)
	}}
}

// How often a dead letter is tried to be stored.
var deadLetterRetry = ExponentialRetry(100*time.Millisecond, 30*time.Second)

// deadLetterTries bounds the tries where nobody else keeps the message.
const deadLetterTries = 6

type deadLetterConfig struct {
	publisher transport.Publisher
	subject   string
}

// check completes the configuration of what receives from t. A nil receiver means
// that there are no dead letters.
func (c *deadLetterConfig) check(t transport.Subscriber) error {
	if c == nil {
		return nil
	}

	if c.publisher == nil {
		pub, able := t.(transport.Publisher)
		if !able {
			return fmt.Errorf("WithDeadLetter: %w: the transport cannot publish: use WithDeadLetterPublisher, "+
				"on JetStream with the transport of jetstream.New(js)", ErrInvalidOption)
		}

		c.publisher = pub
	}

	return require(c.publisher, t.Capabilities().Has(transport.Redelivery), "WithDeadLetterPublisher", transport.Receipts)
}

// checkSubject reports whether a subscription to subject would receive its own
// dead letters, as far as that is known before the broker is asked: where t
// publishes too, the subject is what selects.
func (c *deadLetterConfig) checkSubject(t transport.Subscriber, subject string) error {
	if _, whole := t.(transport.Publisher); !whole {
		return nil
	}

	return c.checkLoop(subject, subject)
}

// checkLoop is checkSubject for a subscription that selects by filter.
//
// A subscription without a subject, on a consumer without a filter, receives
// what its stream has, which is not known here; bring sees what gets through.
func (c *deadLetterConfig) checkLoop(subject, filter string) error {
	if c == nil || (subject == "" && (filter == "" || filter == ">")) {
		return nil
	}

	if subject != "" && !transport.Covers(subject, c.subject) {
		return nil
	}

	// Several filters are joined by commas.
	for one := range strings.SplitSeq(filter, ",") {
		if one == "" || transport.Covers(one, c.subject) {
			return c.loop()
		}
	}

	return nil
}

func (c *deadLetterConfig) loop() error {
	return fmt.Errorf("%w: the subscription receives its own dead letters on %q, an endless loop: "+
		"choose another subject for them, or subscribe to less", ErrInvalidOption, c.subject)
}
