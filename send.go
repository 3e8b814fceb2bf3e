package goflux

import (
	"context"
	"fmt"
	"time"

	"github.com/foomo/goflux/transport"
)

// SendOption says on what terms one message is to be stored, see
// [BoundPublisher.Send].
type SendOption interface {
	Option

	applySend(t *transport.Terms) error
}

type sendOption struct {
	named

	apply func(*transport.Terms) error
}

func (o sendOption) applySend(t *transport.Terms) error { return o.apply(t) }

// ExpectLastSequence makes the broker store the message only if the last
// message of the stream has the sequence n, 0 for a stream that never had one:
// only if nothing was stored since the sender has looked. Otherwise Send fails
// with [ErrConflict]; errors.As finds a [*ConflictError], which tells the last
// sequence where the broker does.
//
// A message whose id is stored already does not conflict: the receipt says that
// it is a duplicate. So it goes together with [WithPublishRetry]. When an attempt
// got no answer and a later one conflicts, the error is [ErrPublishUnknown] as
// well, unless the last sequence is above n: that of a stream only ever grows, so
// the message is not stored, and never will be. It needs a transport with
// [transport.ExpectedSequence].
//
// To find out on JetStream whether the id is stored, it is sent once more, in a
// message that the stream never stores. Who subscribes to the subject without a
// stream (core NATS) sees it: an empty message with the header Nats-Rollup: none.
func ExpectLastSequence(n uint64) SendOption {
	return sendOption{"ExpectLastSequence", func(t *transport.Terms) error {
		t.LastSequence = &n

		return nil
	}}
}

// ExpectLastSubjectSequence is [ExpectLastSequence] for the last message on the
// subject: n is its sequence in the stream, 0 when the subject has none. That of a
// subject shrinks when its last message is deleted; so a conflict after an attempt
// that got no answer is [ErrPublishUnknown], whatever the last sequence.
func ExpectLastSubjectSequence(n uint64) SendOption {
	return sendOption{"ExpectLastSubjectSequence", func(t *transport.Terms) error {
		t.LastSubjectSequence = &n

		return nil
	}}
}

// TTL lets the broker remove the message after d, delivered or not. JetStream
// counts in seconds, and not beyond its calendar: d is rounded up to a second,
// and more than 100 years are 100 years (nats-server 2.11; the stream needs
// AllowMsgTTL, else the error is [ErrUnsupported]). Zero and less are
// [ErrInvalidOption]. It needs a transport with [transport.MessageTTL].
func TTL(d time.Duration) SendOption {
	return sendOption{"TTL", func(t *transport.Terms) error {
		t.TTL = d

		if d <= 0 {
			return fmt.Errorf("%w: a TTL of %v", ErrInvalidOption, d)
		}

		return nil
	}}
}

// Send is [BoundPublisher.Publish] for those who want to know where the broker
// stored the message, or that it was a duplicate, and for those who have terms.
// Terms that the transport does not have are [ErrUnsupported], before anything
// is sent; so are those that the stream does not allow, with a text that says
// what to set.
func (p *BoundPublisher[T]) Send(ctx context.Context, subject string, v T, opts ...SendOption) (Receipt, error) {
	if len(opts) == 0 || p.err != nil {
		return p.publish(ctx, subject, v, nil)
	}

	terms := &transport.Terms{}

	if err := applyOptions(opts, SendOption.applySend, terms); err != nil {
		return Receipt{}, publishError(subject, err)
	}

	if err := lacking(p.transport, terms.Needs()); err != nil {
		return Receipt{}, publishError(subject, err)
	}

	return p.publish(ctx, subject, v, terms)
}

// PublishAt stores v now and lets it be delivered at the given time: by the
// broker's clock never earlier, and later by what the broker's timer takes, a
// fraction of a second on JetStream. A time that is not in the future by the
// clock of this process publishes at once. What a broker cannot keep is
// [ErrInvalidOption]: on JetStream a time after the year 2262.
//
// Until then the message waits in the broker, and survives what the broker
// survives. Nil means that it does; the other results are those of
// [BoundPublisher.Publish]. The id of the message is that of its waiting: one
// that waits already is not stored twice.
//
// It needs a transport with [transport.Scheduling]. On JetStream the stream
// needs AllowMsgSchedules (nats-server 2.12) and subjects of its own for what
// waits, by default "schedule.orders.>" for "orders.>"; see WithSchedulePrefix
// of transport/jetstream. Where they are missing the error says what to set.
func (p *BoundPublisher[T]) PublishAt(ctx context.Context, subject string, v T, at time.Time) error {
	if p.err != nil {
		return p.err
	}

	terms := &transport.Terms{At: at}

	if err := lacking(p.transport, terms.Needs()); err != nil {
		return publishError(subject, err)
	}

	if !at.After(time.Now()) {
		terms = nil
	}

	_, err := p.publish(ctx, subject, v, terms)

	return err
}

// PublishAfter is [BoundPublisher.PublishAt] after d, counted by the clock of this
// process: where the broker's is ahead, the message comes earlier by that much.
// Zero and less publish at once.
func (p *BoundPublisher[T]) PublishAfter(ctx context.Context, subject string, v T, d time.Duration) error {
	return p.PublishAt(ctx, subject, v, time.Now().Add(d))
}

// PublishAtomic stores all items, in order and with nothing between them, or
// none: when the error is nil all are stored, and unless it is
// [ErrPublishUnknown] none is. The receipt is that of the last one.
//
// The items have to belong to one stream, and be no more than it takes (1000 on
// JetStream, else [ErrTooLarge]). An id that was stored before makes the batch
// fail with [ErrDuplicate], and so does one that two items have; where all items
// have one that was stored, the batch is a duplicate, and the receipt says so.
// With [WithPublishRetry] the batch is repeated as a whole. No items are nothing
// to do.
//
// To find out on JetStream whether ids are stored, each is sent once more, in a
// message that the stream never stores. Who subscribes to the subject without a
// stream (core NATS) sees it: an empty message with the header Nats-Rollup: none.
//
// It needs a transport with [transport.AtomicBatches], else the error is
// [ErrUnsupported]. A stream of JetStream needs AllowAtomicPublish (nats-server
// 2.12).
func (p *BoundPublisher[T]) PublishAtomic(ctx context.Context, items ...Item[T]) (Receipt, error) {
	if p.err != nil {
		return Receipt{}, p.err
	}

	if err := require(p.transport, true, "PublishAtomic", transport.AtomicBatches); err != nil {
		return Receipt{}, publishError("", err)
	}

	t, atomic := p.transport.(transport.AtomicPublisher)
	if !atomic {
		return Receipt{}, publishError("", ErrUnsupported)
	}

	flights := make([]flight, 0, len(items))
	msgs := make([]transport.Message, 0, len(items))

	end := func(err error) {
		for _, f := range flights { //nolint:gocritic // a copy is simpler
			p.telemetry.endSend(f.ctx, f.span, f.start, err)
		}
	}

	ids := make(map[string]bool, len(items))

	for i := range items {
		f, err := p.prepare(ctx, &items[i])
		if id := f.msg.ID; err == nil && id != "" && ids[id] {
			err = publishError(f.msg.Subject, fmt.Errorf("%w: two messages of the batch have the id %q", ErrDuplicate, id))
			p.telemetry.endSend(f.ctx, f.span, f.start, err)
		}

		ids[f.msg.ID] = true

		if err != nil {
			end(err)

			return Receipt{}, err
		}

		flights, msgs = append(flights, f), append(msgs, f.msg)
	}

	if len(items) == 0 {
		return Receipt{}, nil
	}

	receipt, err := p.deliverAtomic(ctx, t, msgs)
	end(err)

	return receipt, err
}

func (s *sender) deliverAtomic(ctx context.Context, t transport.AtomicPublisher, msgs []transport.Message) (Receipt, error) {
	if !s.cfg.safe {
		ctx, cancel := s.bound(ctx)
		defer cancel()

		return t.PublishAtomic(ctx, msgs)
	}

	msgs[0].Retry = &noRetry

	return s.persist(ctx, msgs[0], batchDoublings, func(ctx context.Context) (Receipt, error) {
		return t.PublishAtomic(ctx, msgs)
	})
}
