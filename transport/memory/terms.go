package memory

import (
	"bytes"
	"container/heap"
	"context"
	"fmt"
	"time"

	"github.com/foomo/goflux/transport"
)

var _ transport.AtomicPublisher = (*Transport)(nil)

// expected reports with a [*transport.ConflictError] that the message was to
// follow another one than it would. The lock is held.
func (t *Transport) expected(terms *transport.Terms, subject string) error {
	conflict := func(expected *uint64, last uint64) error {
		if expected == nil || *expected == last {
			return nil
		}

		return &transport.ConflictError{Expected: *expected, Last: last, Known: true}
	}

	if err := conflict(terms.LastSequence, t.sequence); err != nil {
		return err
	}

	return conflict(terms.LastSubjectSequence, t.history.last(subject))
}

// last returns the sequence of the last message on subject that is retained, 0
// if there is none.
func (h *history) last(subject string) uint64 {
	for i := range h.ring {
		// From the newest to the oldest, which is the next to go.
		if m := h.ring[(h.next+len(h.ring)-1-i)%len(h.ring)]; m.subject == subject {
			return m.sequence
		}
	}

	return 0
}

// later lets a message wait in the clock until it is due. It has a sequence for
// that, and gets another one when it is stored. The lock is held.
func (t *Transport) later(m *message, id string, due time.Time) (transport.Receipt, error) {
	if t.waiting >= t.cfg.maxPending {
		return transport.Receipt{}, fmt.Errorf("%w: %d messages wait to be delivered later: raise WithMaxPending",
			transport.ErrBufferFull, t.waiting)
	}

	t.number(m, id)

	t.waiting++
	t.clock.delays.push(&entry{msg: m, due: due})
	t.arm(due)

	return transport.Receipt{Stream: Stream, Sequence: m.sequence}, nil
}

// release stores a message whose time has come. A queue that is full takes it
// all the same: nobody is there to be told.
func (t *Transport) release(e *entry, now time.Time) {
	heap.Remove(&t.clock.delays, e.slot-1)

	t.waiting--
	e.msg.stored = now
	t.number(e.msg, "")

	for _, q := range t.store(e.msg) {
		t.handOver(q)
	}
}

// PublishAtomic implements [transport.AtomicPublisher]. No queue gets a message
// of the batch before all have theirs. It fails as Publish does.
func (t *Transport) PublishAtomic(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	if len(msgs) == 0 {
		return transport.Receipt{}, nil
	}

	r, err := t.publishAtomic(ctx, msgs)
	if err != nil {
		return transport.Receipt{}, &transport.Error{Op: "publish", Subject: msgs[0].Subject, Err: err}
	}

	return r, nil
}

func (t *Transport) publishAtomic(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	if err := ctx.Err(); err != nil {
		return transport.Receipt{}, err
	}

	for _, msg := range msgs {
		if err := checkSize(msg, t.cfg.maxPayload); err != nil {
			return transport.Receipt{}, err
		}
	}

	t.mu.Lock()
	defer t.mu.Unlock()

	if t.closed {
		return transport.Receipt{}, transport.ErrClosed
	}

	now := time.Now()

	if r, err := t.duplicates(msgs, now); err != nil || r.Duplicate {
		return r, err
	}

	more := map[*queue]int{}

	for _, msg := range msgs {
		for _, q := range t.index.match(nil, msg.Subject) {
			if more[q]++; q.pending+more[q] > t.cfg.maxPending { //nolint:gocritic // as short as it gets
				return transport.Receipt{}, &FullError{Group: q.group, Filter: q.filter, Limit: t.cfg.maxPending}
			}
		}
	}

	for _, msg := range msgs {
		m := newMessage(msg)
		m.stored = now

		t.number(m, msg.ID)
		t.store(m)
	}

	receipt := transport.Receipt{Stream: Stream, Sequence: t.sequence}

	for q := range more {
		t.deliver(q)
	}

	return receipt, nil
}

// duplicates looks for messages whose ids are known: none, or all, or it is
// [transport.ErrDuplicate]. The lock is held.
func (t *Transport) duplicates(msgs []transport.Message, now time.Time) (transport.Receipt, error) {
	r := transport.Receipt{Stream: Stream}
	known := 0
	ids := make(map[string]bool, len(msgs))

	for _, msg := range msgs {
		if msg.ID == "" {
			continue
		}

		if ids[msg.ID] {
			return transport.Receipt{}, fmt.Errorf("%w: two messages of the batch have the id %q", transport.ErrDuplicate, msg.ID)
		}

		ids[msg.ID] = true

		if sequence, stored := t.ids.find(msg.ID, now); stored {
			known++
			r.Sequence, r.Duplicate = sequence, true
		}
	}

	switch known {
	case 0, len(msgs):
		return r, nil
	default:
		return transport.Receipt{}, transport.ErrDuplicate
	}
}

// store retains a message and puts it into the queues that want it, which are
// returned. The lock is held.
func (t *Transport) store(m *message) []*queue {
	t.history.add(m)

	queues := t.index.match(nil, m.subject)
	for _, q := range queues {
		q.store(m)
	}

	return queues
}

// newMessage copies a message.
func newMessage(msg transport.Message) *message {
	return &message{
		subject: msg.Subject,
		reply:   msg.Reply,
		header:  msg.Header.Clone(),
		data:    bytes.Clone(msg.Data),
	}
}
