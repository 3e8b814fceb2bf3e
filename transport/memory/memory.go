// Package memory is a transport within the process: no broker, no network, no
// files. It is what handlers are tested with, so it behaves like JetStream in
// all that it claims: acknowledgements, leases, redelivery, delayed naks,
// attempt counters, durable groups, receipts and de-duplication.
//
// What follows from being in memory: nothing survives [Transport.Close], and
// two transports share nothing.
//
// # Messages
//
// A message goes to every ungrouped subscription and to every group whose
// filter selects its subject. Each of them is a queue of its own, which begins
// with the retained history, see [WithHistory], and otherwise with what is
// published after it was made. A group is made by its first Subscribe and
// stays, with its messages, until the transport is closed. It has one filter:
// another one under its name is [transport.ErrSubjectMismatch]. The queue of an
// ungrouped subscription goes with it. A message that no queue wants is
// confirmed and gone, as on a stream with interest retention.
//
// A queue holds at most [WithMaxPending] messages that are not done with. When
// it is full, publishing fails with [*FullError], and no queue gets the
// message.
//
// # Delivery
//
// Sinks run in the goroutine of whoever makes a delivery possible: the one that
// publishes, requests or settles. There is no goroutine per subscription; one
// timer serves all leases and delays, and takes over from a caller that would
// deliver without end. A sink may publish, request and settle. It must not wait
// for its own Pause or Close, which wait for it.
//
// Members of a group that have credit take turns. What is redelivered comes
// before what is new, and goes to any member.
//
// # Settlement
//
// As on JetStream (nats-server v2.15.2), the lease of a delivery runs from the
// sink's call on. When it has run out, the message is delivered again, but the
// old delivery may still settle it: its ack is an ack, and its nak redelivers,
// even while the message is being handled elsewhere. A verdict on a message
// that another delivery has settled returns nil and changes nothing; a second
// verdict on one delivery returns [transport.ErrSettled].
//
// After [WithMaxDeliver] attempts, a nak or an expired lease gives the message
// up: it is dropped and counted, see [Transport.GivenUp].
package memory

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/foomo/goflux/transport"
)

// Stream is the name in the receipts and metadata of every memory transport.
const Stream = "memory"

// Transport is a [transport.Transport] in memory. Make it with [New].
type Transport struct {
	cfg          config
	capabilities transport.Capabilities

	// mu guards all that follows, the queues, entries and subscriptions
	// included. It is never held while a sink runs.
	mu       sync.Mutex
	closed   bool
	sequence uint64
	givenUp  uint64
	waiting  int // messages that are to be delivered later

	index   index
	groups  map[string]*queue
	history history
	ids     ids
	clock   clock

	live live
}

var _ transport.Transport = (*Transport)(nil)

// New returns an empty transport. It fails with [transport.ErrInvalidOption].
// It starts nothing; the caller closes it all the same, to end what subscribes
// to it and to stop its timer.
func New(opts ...Option) (*Transport, error) {
	t, err := build(opts)
	if err != nil {
		return nil, &transport.Error{Op: "open", Err: err}
	}

	return t, nil
}

func build(opts []Option) (*Transport, error) {
	cfg, err := configure(opts)
	if err != nil {
		return nil, err
	}

	t := &Transport{
		cfg: cfg,
		capabilities: transport.Of(
			transport.Acks, transport.Redelivery, transport.DelayedNak, transport.Attempts, transport.Leases,
			transport.Groups, transport.Durable, transport.Receipts, transport.Deduplication, transport.Fetching,
			transport.RequestReply, transport.Scheduling, transport.AtomicBatches,
		),
		groups:  map[string]*queue{},
		history: history{limit: cfg.history},
		ids:     ids{window: cfg.duplicateWindow},
	}
	if cfg.history > 0 {
		t.capabilities |= transport.Of(transport.Replay, transport.ExpectedSequence)
	}

	t.live = live{cfg: &t.cfg, closing: make(chan struct{})}

	return t, nil
}

// Capabilities returns all that this package claims, with [transport.Replay]
// and [transport.ExpectedSequence] only if there is a history, see
// [WithHistory]: the last message on a subject is the last one that it retains.
// [transport.Persistent] and [transport.MessageTTL] are never among them.
func (t *Transport) Capabilities() transport.Capabilities { return t.capabilities }

// GivenUp returns how many messages were dropped because they were delivered
// [WithMaxDeliver] times and not acknowledged. A message counts once for each
// queue that gave it up.
func (t *Transport) GivenUp() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()

	return t.givenUp
}

// Publish implements [transport.Publisher]. It does not wait: when it returns,
// the message is in all queues that want it, and the sinks that had credit for
// it have been called or are about to be. It fails with
// [transport.ErrTooLarge], [*FullError], [transport.ErrClosed] or the error of
// a ctx that had ended before; in all these cases nothing was stored.
func (t *Transport) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	receipt, err := t.publish(ctx, msg)
	if err != nil {
		return transport.Receipt{}, &transport.Error{Op: "publish", Subject: msg.Subject, Err: err}
	}

	return receipt, nil
}

func (t *Transport) publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	if err := ctx.Err(); err != nil {
		return transport.Receipt{}, err
	}

	if err := checkSize(msg, t.cfg.maxPayload); err != nil {
		return transport.Receipt{}, err
	}

	// Copied here so that the lock is not held for it.
	m := newMessage(msg)

	t.mu.Lock()
	defer t.mu.Unlock()

	if t.closed {
		return transport.Receipt{}, transport.ErrClosed
	}

	m.stored = time.Now()

	if msg.ID != "" {
		if original, known := t.ids.find(msg.ID, m.stored); known {
			return transport.Receipt{Stream: Stream, Sequence: original, Duplicate: true}, nil
		}
	}

	if msg.Terms != nil {
		if err := t.expected(msg.Terms, msg.Subject); err != nil {
			return transport.Receipt{}, err
		}

		if at := msg.Terms.At; at.After(m.stored) {
			return t.later(m, msg.ID, at)
		}
	}

	// On the stack for as many queues as most programs have for a subject.
	var buf [8]*queue

	queues := t.index.match(buf[:0], msg.Subject)
	for _, q := range queues {
		if q.pending >= t.cfg.maxPending {
			return transport.Receipt{}, &FullError{Group: q.group, Filter: q.filter, Limit: t.cfg.maxPending}
		}
	}

	t.number(m, msg.ID)

	// Delivering gives up the lock: the sequence is kept apart from it.
	receipt := transport.Receipt{Stream: Stream, Sequence: m.sequence}

	t.history.add(m)

	for _, q := range queues {
		q.store(m)
	}

	for _, q := range queues {
		t.deliver(q)
	}

	return receipt, nil
}

// number gives m the next sequence, and remembers it by the id. The lock is
// held.
func (t *Transport) number(m *message, id string) {
	t.sequence++
	m.sequence = t.sequence

	if id != "" {
		t.ids.add(id, m.sequence, m.stored)
	}
}

// Close implements [transport.Transport]: subscriptions end with
// [transport.ErrClosed], and all messages are gone. It does not wait for a sink
// that is running, so that a sink may call it; such a subscription is Done when
// its sink has returned. It may be called any number of times and returns nil.
func (t *Transport) Close() error {
	t.live.close()

	t.mu.Lock()
	defer t.mu.Unlock()

	t.closed = true
	t.clock.stop()

	for _, q := range t.index.all() {
		for _, s := range q.members {
			s.end(transport.ErrClosed)
		}

		q.drop()
	}

	t.index, t.groups, t.history, t.ids = index{}, nil, history{}, ids{}

	return nil
}

// maxHeader is what JetStream takes of headers, whatever the payload limit
// (nats-server v2.15.2, API error 10097).
const maxHeader = math.MaxUint16

// checkSize measures a message as NATS sends it.
func checkSize(msg transport.Message, limit int) error {
	header := 0

	if len(msg.Header) > 0 {
		header = len("NATS/1.0\r\n\r\n")

		for k, vs := range msg.Header {
			for _, v := range vs {
				header += len(k) + len(": ") + len(v) + len("\r\n")
			}
		}
	}

	switch size := header + len(msg.Data); {
	case header > maxHeader:
		return fmt.Errorf("%w: %d bytes of headers, and JetStream takes %d: move them to the payload",
			transport.ErrTooLarge, header, maxHeader)
	case size > limit:
		return fmt.Errorf("%w: %d bytes with headers, and the limit is %d: raise it with WithMaxPayload, or send a reference",
			transport.ErrTooLarge, size, limit)
	default:
		return nil
	}
}
