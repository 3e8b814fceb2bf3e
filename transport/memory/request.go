package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/foomo/goflux/transport"
)

// Requests are apart from the messages: they are neither stored nor retained,
// and go to the responders that are there, one of each group, as on core NATS.
// Subscriptions do not see them, and responders see nothing that is published.
var _ transport.RequestReplier = (*Transport)(nil)

// Request sends a request to the responders that are there and returns the first
// reply. It fails with [transport.ErrNoResponders], [transport.ErrTooLarge],
// [*FullError] when a responder holds [WithMaxPending] requests (their bytes are
// bounded by that times [WithMaxPayload]), [transport.ErrClosed], or the error of
// ctx.
func (t *Transport) Request(ctx context.Context, msg transport.Message) (transport.Delivery, error) {
	c, err := t.live.ask(ctx, msg, true)
	if err == nil {
		var d transport.Delivery
		if d, err = c.next(ctx, &t.live); err == nil {
			return d, nil
		}
	}

	return transport.Delivery{}, &transport.Error{Op: "request", Subject: msg.Subject, Err: err}
}

// RequestMany sends a request when the iteration starts, and yields the replies
// of all responders that were there then. Errors are those of
// [Transport.Request].
func (t *Transport) RequestMany(ctx context.Context, msg transport.Message) iter.Seq2[transport.Delivery, error] {
	return func(yield func(transport.Delivery, error) bool) {
		c, err := t.live.ask(ctx, msg, false)

		for err == nil {
			var d transport.Delivery
			if d, err = c.next(ctx, &t.live); err == nil && !yield(d, nil) {
				return
			}
		}

		yield(transport.Delivery{}, &transport.Error{Op: "request", Subject: msg.Subject, Err: err})
	}
}

// Responder returns the side that answers. What it delivers is not settled.
func (t *Transport) Responder() transport.Responder { return &t.live }

// replyTo stands in the Reply of requests, so that their receiver sees that an
// answer is wanted. It goes by the token.
const replyTo = "_INBOX.memory"

// call is a request that waits for replies. It is the token of its deliveries.
type call struct {
	replies  chan transport.Delivery // as long as replies are wanted; more are dropped
	deadline time.Time               // zero for none
}

func (c *call) next(ctx context.Context, l *live) (transport.Delivery, error) {
	select {
	case d := <-c.replies:
		return d, nil
	case <-ctx.Done():
		return transport.Delivery{}, ctx.Err()
	case <-l.closing:
		return transport.Delivery{}, transport.ErrClosed
	}
}

// live knows the responders of a transport.
type live struct {
	cfg     *config
	closing chan struct{}

	mu        sync.Mutex // never held while a sink runs
	closed    bool
	listeners []*listener
	turn      int
}

var _ transport.Responder = (*live)(nil)

// Capabilities implements [transport.Capable].
func (l *live) Capabilities() transport.Capabilities {
	return transport.Of(transport.Groups, transport.RequestReply)
}

// ask hands a request to those who are to answer.
func (l *live) ask(ctx context.Context, msg transport.Message, once bool) (*call, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}

	if err := checkSize(msg, l.cfg.maxPayload); err != nil {
		return nil, err
	}

	l.mu.Lock()
	defer l.mu.Unlock()

	if l.closed {
		return nil, transport.ErrClosed
	}

	chosen, err := l.choose(msg.Subject)
	if err != nil {
		return nil, err
	}

	wanted := len(chosen)
	if once {
		wanted = 1
	}

	c := &call{replies: make(chan transport.Delivery, wanted)}
	c.deadline, _ = ctx.Deadline()

	for _, s := range chosen {
		s.queue = append(s.queue, transport.Delivery{
			Subject: msg.Subject,
			Reply:   replyTo,
			Header:  msg.Header.Clone(),
			Data:    bytes.Clone(msg.Data),
			Token:   c,
			Settler: unsettled{},
		})
	}

	for _, s := range chosen {
		s.deliver()
	}

	return c, nil
}

// choose returns all responders without a group, and one of each group.
func (l *live) choose(subject string) ([]*listener, error) {
	var (
		chosen []*listener
		full   *listener
		groups map[string]bool // whether one of it has been chosen
	)

	l.turn++

	// Each call begins with another one, so that members take turns.
	for i := range l.listeners {
		s := l.listeners[(l.turn+i)%len(l.listeners)]
		if !transport.Covers(s.filter, subject) || (s.group != "" && groups[s.group]) {
			continue
		}

		if len(s.queue) >= l.cfg.maxPending {
			full = s

			continue
		}

		chosen = append(chosen, s)

		if s.group != "" {
			if groups == nil {
				groups = map[string]bool{}
			}

			groups[s.group] = true
		}
	}

	switch {
	case len(chosen) > 0:
		return chosen, nil
	case full != nil:
		return nil, &FullError{Group: full.group, Filter: full.filter, Limit: l.cfg.maxPending}
	default:
		return nil, transport.ErrNoResponders
	}
}

// Subscribe implements [transport.Subscriber] for requests. It does not wait.
// Its errors are those of [Transport.Subscribe], but a group may have several
// subjects: its members share what each of them is there for.
func (l *live) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	s, err := l.subscribe(ctx, cfg)
	if err != nil {
		return nil, &transport.Error{Op: "subscribe", Subject: cfg.Subject, Err: err}
	}

	return s, nil
}

func (l *live) subscribe(ctx context.Context, cfg transport.SubscribeConfig) (*listener, error) {
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

	l.mu.Lock()
	defer l.mu.Unlock()

	if l.closed {
		return nil, transport.ErrClosed
	}

	s := &listener{live: l, filter: cfg.Subject, group: cfg.Group, sink: cfg.Sink, done: make(chan struct{})}
	l.listeners = append(l.listeners, s)

	return s, nil
}

// Deadline implements [transport.Responder].
func (l *live) Deadline(request transport.Delivery, _ time.Time) (time.Time, bool) {
	c, ok := request.Token.(*call)
	if !ok {
		return time.Time{}, false
	}

	return c.deadline, !c.deadline.IsZero()
}

// Reply implements [transport.Responder]. It does not wait. It fails with
// [transport.ErrTooLarge], and with [transport.ErrInvalidOption] for what is not
// a request of this transport.
func (l *live) Reply(_ context.Context, request transport.Delivery, reply transport.Message) error {
	c, ok := request.Token.(*call)
	if !ok {
		return &transport.Error{Op: "reply", Subject: request.Subject, Err: fmt.Errorf(
			"%w: the token %T is not of this transport", transport.ErrInvalidOption, request.Token)}
	}

	if err := checkSize(reply, l.cfg.maxPayload); err != nil {
		return &transport.Error{Op: "reply", Subject: request.Subject, Err: err}
	}

	d := transport.Delivery{
		Subject: replyTo, Header: reply.Header.Clone(), Data: bytes.Clone(reply.Data), Settler: unsettled{},
	}

	select {
	case c.replies <- d:
	default: // there was one already
	}

	return nil
}

// close ends all that waits. It does not wait for sinks.
func (l *live) close() {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.closed {
		return
	}

	l.closed = true
	close(l.closing)

	for _, s := range l.listeners {
		s.end()
	}

	l.listeners = nil
}

// listener is the subscription of a responder.
type listener struct {
	live   *live
	filter string
	group  string
	sink   func(transport.Delivery)
	done   chan struct{}

	// What follows is guarded by the mu of live.
	queue   []transport.Delivery
	credit  int
	busy    bool
	idle    chan struct{} // closed when the sink returns; nil if nobody waits
	closing bool          // credit counts no more
	stopped bool          // nothing reaches the sink any more
	ended   bool          // by the transport
}

// deliver hands over what it may, one after the other. The lock is held, and
// given up around each call of the sink.
func (s *listener) deliver() {
	if s.busy {
		return
	}

	s.busy = true

	// Deferred, so that a sink that panics leaves everything usable.
	defer func() {
		s.busy = false

		if s.idle != nil {
			close(s.idle)
			s.idle = nil
		}

		if s.ended {
			close(s.done)
		}
	}()

	for !s.stopped && len(s.queue) > 0 && (s.closing || s.credit > 0) {
		d := s.queue[0]
		s.queue[0] = transport.Delivery{}
		s.queue = s.queue[1:]
		s.credit = max(s.credit-1, 0)
		s.hand(d)
	}

	if len(s.queue) == 0 {
		s.queue = nil
	}
}

// hand calls the sink.
func (s *listener) hand(d transport.Delivery) {
	s.live.mu.Unlock()
	defer s.live.mu.Lock()

	s.sink(d)
}

// Info implements [transport.Subscription], as do the methods below.
func (s *listener) Info() transport.Info { return transport.Info{Filter: s.filter, MaxDeliver: 1} }

// Request delivers what waits before it returns.
func (s *listener) Request(n int) {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()

	if n > 0 && !s.ended {
		s.credit += n
		s.deliver()
	}
}

// Pause waits for the sink to return, should it be running.
func (s *listener) Pause(ctx context.Context) error {
	s.live.mu.Lock()
	s.credit = 0
	idle := s.whenIdle()
	s.live.mu.Unlock()

	return s.wait(ctx, "pause", idle)
}

// Flush has nothing to wait for.
func (s *listener) Flush(context.Context) error {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()

	if s.live.closed {
		return s.failed("flush", transport.ErrClosed)
	}

	return nil
}

// Close hands over the requests that wait, since nobody else would get them.
func (s *listener) Close(ctx context.Context) error {
	l := s.live

	l.mu.Lock()
	l.listeners = slices.DeleteFunc(l.listeners, func(other *listener) bool { return other == s })

	if !s.closing && !s.ended {
		s.closing = true
		s.deliver()
	}

	idle := s.whenIdle()
	l.mu.Unlock()

	err := s.wait(ctx, "close", idle)

	l.mu.Lock()
	s.stopped = true
	l.mu.Unlock()

	return err
}

// Done is closed when the transport was closed and the sink has returned.
func (s *listener) Done() <-chan struct{} { return s.done }

// Err is [transport.ErrClosed] when Done is closed.
func (s *listener) Err() error {
	select {
	case <-s.done:
		return s.failed("subscribe", transport.ErrClosed)
	default:
		return nil
	}
}

// end is for the transport, when it is closed.
func (s *listener) end() {
	s.ended, s.stopped, s.queue = true, true, nil

	if !s.busy {
		close(s.done)
	}
}

func (s *listener) whenIdle() <-chan struct{} {
	if s.busy && s.idle == nil {
		s.idle = make(chan struct{})
	}

	return s.idle
}

func (s *listener) wait(ctx context.Context, op string, idle <-chan struct{}) error {
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

func (s *listener) failed(op string, err error) error {
	return &transport.Error{Op: op, Subject: s.filter, Err: err}
}

// unsettled is the settler of what is delivered at most once.
type unsettled struct{}

// Settle implements [transport.Settler].
func (unsettled) Settle(context.Context, any, transport.Verdict) error {
	return &transport.Error{Op: "settle", Err: transport.Mark(transport.ErrUnsupported,
		errors.New("a request is delivered once and answered; there is nothing to settle"))}
}

// Metadata implements [transport.Settler].
func (unsettled) Metadata(any) transport.Metadata { return transport.Metadata{} }
