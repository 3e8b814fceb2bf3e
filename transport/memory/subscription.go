package memory

import (
	"context"
	"fmt"
	"math"

	"github.com/foomo/goflux/transport"
)

// subscription is a member of a queue.
type subscription struct {
	transport *Transport
	queue     *queue
	sink      func(transport.Delivery)
	done      chan struct{}

	// What follows is guarded by the transport's mu.
	credit int
	busy   bool          // its sink is running
	idle   chan struct{} // closed when the sink returns; nil if nobody waits
	closed bool          // by its owner
	err    error         // why it ends by itself
}

// Subscribe implements [transport.Subscriber]. It does not wait. It fails with
// [transport.ErrInvalidSubject], [transport.ErrInvalidOption] for a group name
// that JetStream would not take and for a missing sink,
// [transport.ErrSubjectMismatch] when the group has another filter,
// [transport.ErrClosed], or the error of a ctx that had ended before. Notify is
// never called: the transport has neither a connection to lose nor a buffer to
// drop from.
func (t *Transport) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	s, err := t.subscribe(ctx, cfg)
	if err != nil {
		return nil, &transport.Error{Op: "subscribe", Subject: cfg.Subject, Consumer: cfg.Group, Err: err}
	}

	return s, nil
}

func (t *Transport) subscribe(ctx context.Context, cfg transport.SubscribeConfig) (*subscription, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}

	if err := transport.ValidateFilter(cfg.Subject); err != nil {
		return nil, err
	}

	if cfg.Group != "" {
		if err := transport.ValidateName(cfg.Group); err != nil {
			return nil, err
		}
	}

	if cfg.Sink == nil {
		return nil, fmt.Errorf("%w: a subscription needs a sink", transport.ErrInvalidOption)
	}

	t.mu.Lock()
	defer t.mu.Unlock()

	if t.closed {
		return nil, transport.ErrClosed
	}

	q := t.groups[cfg.Group]

	switch {
	case q == nil:
		q = t.open(cfg.Group, cfg.Subject)
	case q.filter != cfg.Subject:
		return nil, fmt.Errorf("%w: the group has %q: use that subject, or another group", transport.ErrSubjectMismatch, q.filter)
	}

	s := &subscription{transport: t, queue: q, sink: cfg.Sink, done: make(chan struct{})}
	q.members = append(q.members, s)

	return s, nil
}

// open makes a queue. One without a group is not among the groups.
func (t *Transport) open(group, filter string) *queue {
	q := &queue{group: group, filter: filter}

	for _, m := range t.history.all() {
		if transport.Covers(filter, m.subject) {
			q.store(m)
		}
	}

	t.index.add(q)

	if group != "" {
		t.groups[group] = q
	}

	return q
}

// Info implements [transport.Subscription].
func (s *subscription) Info() transport.Info {
	return transport.Info{
		Stream:     Stream,
		Consumer:   s.queue.group,
		Filter:     s.queue.filter,
		AckWait:    s.transport.cfg.ackWait,
		MaxDeliver: s.transport.cfg.maxDeliver,
	}
}

// Request implements [transport.Subscription]. Messages that wait reach the
// sink before it returns, or are about to reach it from another goroutine.
func (s *subscription) Request(n int) {
	t := s.transport

	t.mu.Lock()
	defer t.mu.Unlock()

	if n < 1 {
		return
	}

	// Once it is closed, it is no member, and its credit means nothing.
	s.credit = int(min(uint64(s.credit)+uint64(n), math.MaxInt)) //nolint:gosec // neither is negative
	t.deliver(s.queue)
}

// Pause implements [transport.Subscription]. It waits for the sink to return,
// should it be running.
func (s *subscription) Pause(ctx context.Context) error {
	s.transport.mu.Lock()
	s.credit = 0
	idle := s.whenIdle()
	s.transport.mu.Unlock()

	return s.wait(ctx, "pause", idle)
}

// Flush implements [transport.Subscription]: settlements are carried out when
// Settle returns, so there is nothing to wait for. It fails with
// [transport.ErrClosed] when the transport is closed.
func (s *subscription) Flush(context.Context) error {
	s.transport.mu.Lock()
	defer s.transport.mu.Unlock()

	if s.transport.closed {
		return s.failed("flush", transport.ErrClosed)
	}

	return nil
}

// Close implements [transport.Subscription]. What a member of a group has not
// settled comes back to the group when its lease runs out, or when it is
// naked; the queue of an ungrouped subscription is dropped.
func (s *subscription) Close(ctx context.Context) error {
	t := s.transport

	t.mu.Lock()

	if !s.closed {
		s.closed = true
		s.credit = 0
		s.queue.leave(s)

		if q := s.queue; q.group == "" && !q.dropped {
			q.drop()
			t.clock.forget(q)
			t.index.remove(q)
		}
	}

	idle := s.whenIdle()

	t.mu.Unlock()

	return s.wait(ctx, "close", idle)
}

// Done implements [transport.Subscription].
func (s *subscription) Done() <-chan struct{} { return s.done }

// Err implements [transport.Subscription].
func (s *subscription) Err() error {
	select {
	case <-s.done:
		return s.failed("subscribe", s.err)
	default:
		return nil
	}
}

// end is for the transport, when it is closed. Done waits for the sink, so that
// no delivery comes after it.
func (s *subscription) end(err error) {
	s.credit = 0
	s.err = err

	if !s.busy {
		close(s.done)
	}
}

// rest says that the sink has returned.
func (s *subscription) rest() {
	s.busy = false

	if s.idle != nil {
		close(s.idle)
		s.idle = nil
	}

	if s.err != nil {
		close(s.done)
	}
}

// whenIdle returns a channel that is closed when the sink returns, nil when it
// is not running.
func (s *subscription) whenIdle() <-chan struct{} {
	if s.busy && s.idle == nil {
		s.idle = make(chan struct{})
	}

	return s.idle
}

func (s *subscription) wait(ctx context.Context, op string, idle <-chan struct{}) error {
	if idle == nil {
		return nil
	}

	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return s.failed(op, ctx.Err())
	}
}

func (s *subscription) failed(op string, err error) error {
	return &transport.Error{Op: op, Subject: s.queue.filter, Consumer: s.queue.group, Err: err}
}
