package nats

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natserr"
	"github.com/foomo/goflux/transport"
)

// Subscribe subscribes at the server, as a member of the queue group cfg.Group
// if it is set, and returns when the server has the subscription. While the
// connection is being restored it waits for that, as long as ctx allows. When
// the connection is lost later, nats.go subscribes again as soon as it is back;
// what is published in between does not arrive.
//
// What arrives waits for credit within the limits of [WithPendingLimits]. The
// goroutine of nats.go never waits, so a subscription without credit holds up
// neither the caller's other subscriptions nor its Drain.
//
// cfg.Notify receives [*transport.DroppedError] values, ten a second at the
// most, whose counts add up to exactly what was dropped when Close returns, and
// [transport.ErrDisconnected] each time the connection is lost. It is called
// from one goroutine, and not after Close has returned.
//
// Errors, each in a [*transport.Error]: [transport.ErrInvalidSubject];
// [transport.ErrInvalidOption] for a name that is no group's or a missing sink;
// [natsgo.ErrPermissionViolation] when the server does not allow the subject;
// [natsgo.ErrMaxSubscriptionsExceeded]; [transport.ErrDisconnected] when the
// connection broke meanwhile; [transport.ErrClosed]; the error of ctx. After
// an error there is no subscription.
//
// nats.go tells of a refusal through the connection's error handler, which is
// the caller's, and through its last error, which is read here. So a refusal
// goes unseen when something else goes wrong on the connection within the same
// round trip, or when permissions change and the connection is made anew later.
func (t *Transport) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	return t.attach(ctx, cfg, false)
}

// attach subscribes; requests are stamped with the time of their arrival.
func (t *Transport) attach(ctx context.Context, cfg transport.SubscribeConfig, requests bool) (transport.Subscription, error) {
	s, err := t.subscribe(ctx, cfg, requests)
	if err != nil {
		return nil, &transport.Error{Op: opSubscribe, Subject: cfg.Subject, Err: err}
	}

	return s, nil
}

func (t *Transport) subscribe(ctx context.Context, cfg transport.SubscribeConfig, requests bool) (*subscription, error) {
	if cfg.Sink == nil {
		return nil, fmt.Errorf("%w: there is no sink for the messages", transport.ErrInvalidOption)
	}

	// nats.go sends a malformed filter, and closes the connection for good
	// when the server objects (v1.55.0), with all that the caller runs over it.
	if err := transport.ValidateFilter(cfg.Subject); err != nil {
		return nil, err
	}

	select {
	case t.attaching <- struct{}{}:
		defer func() { <-t.attaching }()
	case <-ctx.Done():
	}

	if err := t.check(ctx); err != nil {
		return nil, err
	}

	s := &subscription{
		t:      t,
		cfg:    cfg,
		stamps: requests,
		gone:   make(chan struct{}),
		done:   make(chan struct{}),
		quit:   make(chan struct{}),
		closed: make(chan struct{}),
		kick:   make(chan struct{}, 1),
	}
	s.work = s.deliver
	before := t.nc.LastError()

	if err := s.attach(); err != nil {
		return nil, err
	}

	err := flush(ctx, t.nc)
	if err == nil {
		err = refusal(before, t.nc.LastError(), cfg)
	}

	if err == nil {
		err = t.enter(s)
	}

	if err != nil {
		s.stop()
		_ = s.sub.Unsubscribe() // It fails only where there is none any more.

		return nil, err
	}

	if cfg.Notify != nil {
		s.watcher.Go(s.watch)
	}

	return s, nil
}

// refusal returns what the server had against a subscription, if that is the
// connection's last error and was not before.
func refusal(before, last error, cfg transport.SubscribeConfig) error {
	tooMany := errors.Is(last, natsgo.ErrMaxSubscriptionsExceeded)
	denied := errors.Is(last, natsgo.ErrPermissionViolation) &&
		// Permissions Violation for Subscription to "subject" using queue "group"
		strings.Contains(last.Error(), "Subscription to "+strconv.Quote(cfg.Subject))

	if (tooMany || denied) && last != before { //nolint:errorlint // the very same error is an old one
		return last
	}

	return nil
}

// opSubscribe is the operation that errors of a subscription name.
const opSubscribe = "subscribe"

// pollEvery is how often Close looks whether nats.go has handed over its list.
// There is no event for that, and it is a matter of microseconds.
const pollEvery = time.Millisecond

// subscription takes messages over from nats.go at once and hands them to the
// sink as credit allows.
//
// It does not leave them in the list of nats.go, which could only be done by
// keeping its goroutine waiting: that list is discarded when the connection is
// closed, and Drain and Barrier of the caller's connection wait for it.
type subscription struct {
	t      *Transport
	cfg    transport.SubscribeConfig
	stamps bool // deliveries tell when they arrived
	sub    *natsgo.Subscription

	work func() // deliver, so that a go statement needs no closure

	mu      sync.Mutex
	queue   queue
	credit  int
	busy    bool          // somebody calls the sink
	idle    chan struct{} // closed when nobody does any more; made by who waits
	closing bool          // credit and limits count no more
	stopped bool          // nothing reaches the sink any more
	dropped int           // since the last report
	seen    int           // of those that nats.go dropped
	err     error         // why it ended by itself

	gone   chan struct{} // closed when nats.go delivers no more
	done   chan struct{} // closed when it ended by itself
	quit   chan struct{} // closed when nothing reaches the sink any more
	closed chan struct{} // closed when Close is done

	kick    chan struct{} // wakes the watcher for a report
	watcher sync.WaitGroup
}

// attach subscribes with nats.go, which sends that to the server.
func (s *subscription) attach() error {
	var err error

	if s.cfg.Group == "" {
		s.sub, err = s.t.nc.Subscribe(s.cfg.Subject, s.receive)
	} else {
		s.sub, err = s.t.nc.QueueSubscribe(s.cfg.Subject, s.cfg.Group, s.receive)
	}

	if err != nil {
		return natserr.Map(err)
	}

	s.sub.SetClosedHandler(s.ended)

	// Never below the defaults: then each message that nats.go drops has
	// others in front of it which are still to be received, so that receive
	// sees every drop.
	return natserr.Map(s.sub.SetPendingLimits(
		front(s.t.limits.messages, natsgo.DefaultSubPendingMsgsLimit),
		front(s.t.limits.bytes, natsgo.DefaultSubPendingBytesLimit),
	))
}

func front(limit, least int) int {
	if limit < 0 {
		return limit
	}

	return max(limit, least)
}

// receive is the callback of nats.go, which calls it serially. It does not wait
// for credit.
func (s *subscription) receive(m *natsgo.Msg) {
	// It fails only when the subscription is gone.
	missed, _ := m.Sub.Dropped()

	r := received{msg: m}
	if s.stamps {
		r.at = time.Now()
	}

	s.mu.Lock()

	if missed > s.seen {
		s.drop(missed - s.seen)
		s.seen = missed
	}

	switch {
	case s.stopped:
	case s.closing, s.credit > 0 && !s.busy, s.queue.fits(m, s.t.limits):
		s.queue.push(r)
	default:
		s.drop(1)
	}

	start := s.start()
	s.mu.Unlock()

	if start {
		s.deliver()
	}
}

// drop counts messages that were dropped. The caller holds the lock.
func (s *subscription) drop(n int) {
	s.dropped += n

	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// ready reports whether the sink may have the next message. The caller holds
// the lock.
func (s *subscription) ready() bool {
	return !s.stopped && s.queue.count > 0 && (s.closing || s.credit > 0)
}

// start reports whether the caller is to call deliver, as the only one. The
// caller holds the lock.
func (s *subscription) start() bool {
	if s.busy || !s.ready() {
		return false
	}

	s.busy = true

	return true
}

// deliver hands over what it may, one message after the other.
func (s *subscription) deliver() {
	s.mu.Lock()
	defer s.mu.Unlock()

	for s.ready() {
		r := s.queue.pop()
		s.credit = max(s.credit-1, 0)
		s.mu.Unlock()

		s.cfg.Sink(transport.Delivery{
			Subject: r.msg.Subject,
			Reply:   r.msg.Reply,
			Header:  transport.Header(r.msg.Header),
			Data:    r.msg.Data,
			Arrived: r.at,
			Settler: settler{},
		})

		s.mu.Lock()
	}

	s.busy = false

	if s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// rest waits until nobody calls the sink.
func (s *subscription) rest(ctx context.Context) error {
	s.mu.Lock()

	if !s.busy {
		s.mu.Unlock()

		return nil
	}

	if s.idle == nil {
		s.idle = make(chan struct{})
	}

	idle := s.idle
	s.mu.Unlock()

	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Info returns the filter; there is no lease and no redelivery.
func (s *subscription) Info() transport.Info {
	return transport.Info{Filter: s.cfg.Subject, MaxDeliver: 1}
}

// Request adds credit. What waits is handed over by a goroutine of its own,
// since the caller may hold what the sink needs.
func (s *subscription) Request(n int) {
	if n < 1 {
		return
	}

	s.mu.Lock()
	s.credit = min(s.credit, math.MaxInt-n) + n
	start := s.start()
	s.mu.Unlock()

	if start {
		go s.work()
	}
}

// Pause takes the credit back and waits for a delivery that is under way. The
// server goes on sending, and what arrives is kept within the limits.
func (s *subscription) Pause(ctx context.Context) error {
	s.mu.Lock()
	s.credit = 0
	s.mu.Unlock()

	return s.fail("pause", s.rest(ctx))
}

// Flush returns when the server has answered, so that it has seen all that was
// sent before.
func (s *subscription) Flush(ctx context.Context) error {
	return s.fail("flush", flush(ctx, s.t.nc))
}

// Close unsubscribes at the server, hands over all that was received until
// then, and returns. Without a connection it hands over what there is and sees
// to it that nats.go does not subscribe again. The error says that ctx ended
// before that was done: what had not arrived by then is lost.
func (s *subscription) Close(ctx context.Context) error {
	s.mu.Lock()
	again := s.closing
	s.closing = true
	start := s.start()
	s.mu.Unlock()

	if again {
		select {
		case <-s.closed:
			return nil
		case <-ctx.Done():
			return s.fail("close", ctx.Err())
		}
	}

	defer close(s.closed)

	if start {
		s.deliver()
	}

	err := s.detach(ctx)
	if err == nil {
		err = s.rest(ctx)
	}

	s.stop()
	s.t.leave(s)
	s.watcher.Wait()
	s.report()

	return s.fail("close", err)
}

// detach ends the subscription at the server and within nats.go, and returns
// when receive is called no more. The error is that of ctx.
func (s *subscription) detach(ctx context.Context) error {
	nc := s.t.nc
	reconnects := nc.Stats().Reconnects

	// What was on its way has been read when the server has answered. If the
	// connection is broken, or breaks, nothing comes any more.
	if nc.IsConnected() && flush(ctx, nc) == nil && s.cfg.Group != "" {
		// What the server assigns to this member of the group until it has
		// heard of the end would be lost for the group: Drain unsubscribes
		// at the server and still receives.
		err := s.sub.Drain()

		if err == nil && nc.Stats().Reconnects == reconnects {
			_ = flush(ctx, nc)
		}
	}

	s.emptied(ctx)

	// After Drain, nats.go v1.55.0 removes the subscription by itself, after
	// a round trip or two, and without a word to the server. If the client
	// has reconnected and subscribed again by then, the server goes on
	// assigning messages to nobody. Hence the sign of life before Drain, no
	// waiting after it on another connection, and this, which sends the word.
	// It fails only where there is no subscription any more, or where the
	// caller drains the connection, which is then about to remove it.
	_ = s.sub.Unsubscribe()

	select {
	case <-s.gone:
	case <-ctx.Done():
	}

	return ctx.Err()
}

// emptied waits until nats.go has handed over what it holds, or ctx ends.
func (s *subscription) emptied(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()

	for {
		if n, _, err := s.sub.Pending(); err != nil || n == 0 {
			return
		}

		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// stop lets nothing reach the sink any more. It is called once.
func (s *subscription) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.stopped = true
	s.queue = queue{}
	close(s.quit)
}

// Done is closed when the connection was closed for good, the transport was
// closed, or the caller drained the connection.
func (s *subscription) Done() <-chan struct{} { return s.done }

// Err tells why Done is closed.
func (s *subscription) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.err
}

// ended is called by nats.go, after the last call of receive: the subscription
// was removed, or its connection closed.
func (s *subscription) ended(string) {
	nc := s.t.nc

	switch last := nc.LastError(); {
	case !nc.IsClosed():
		s.end(transport.Mark(transport.ErrClosed, natsgo.ErrConnectionDraining))
	case last != nil:
		// Its text only: it need not be the reason.
		s.end(transport.Mark(transport.ErrClosed, fmt.Errorf("%w; its last error: %s", natsgo.ErrConnectionClosed, last.Error())))
	default:
		s.end(transport.Mark(transport.ErrClosed, natsgo.ErrConnectionClosed))
	}

	close(s.gone)
}

// abandon ends the subscription because its transport is closed.
func (s *subscription) abandon() {
	s.end(errTransportClosed)

	_ = s.sub.Unsubscribe() // It fails only when it is, or will be, gone.
}

// end closes Done, unless the owner closes the subscription or it has ended.
func (s *subscription) end(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.closing || s.stopped || s.err != nil {
		return
	}

	s.err = &transport.Error{Op: opSubscribe, Subject: s.cfg.Subject, Err: reason}
	close(s.done)
}

// fail gives an error its circumstances.
func (s *subscription) fail(doing string, err error) error {
	if err == nil {
		return nil
	}

	return &transport.Error{Op: opSubscribe, Subject: s.cfg.Subject, Err: fmt.Errorf("%s: %w", doing, err)}
}
