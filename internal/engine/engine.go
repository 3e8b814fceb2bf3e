// Package engine runs the handlers of one subscription: it asks the broker for
// as much as the handlers can take, runs them side by side, keeps the leases of
// what it holds, and ends in order.
//
// It knows nothing of types, codecs or the meaning of errors: the function it
// calls handles a delivery and settles it.
package engine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/foomo/goflux/transport"
)

// ErrDraining is the cause with which handler contexts end when a subscription
// stops and its drain timeout is over.
var ErrDraining = transport.NewSentinel("draining", "the subscription stops and its drain timeout is over")

// ErrLeaseLost is the cause with which a handler's context ends when its lease
// could not be renewed, so that somebody else may be handling the message.
var ErrLeaseLost = transport.NewSentinel("lease_lost", "the lease of the message was lost: another replica may be handling it")

// ErrMaxHandlingTime is the cause with which a handler's context ends when it
// ran for longer than the configured maximum.
var ErrMaxHandlingTime = transport.NewSentinel("max_handling_time", "the handler exceeded its maximum handling time")

// DrainError says that a subscription stopped before all its handlers had
// finished.
type DrainError struct {
	// Abandoned is how many messages were left in the hands of handlers that
	// did not return, or could not be handled in time. A broker that
	// redelivers does so when their leases run out.
	Abandoned int
}

// Error tells how many were abandoned.
func (e *DrainError) Error() string {
	return fmt.Sprintf("goflux: %d messages were abandoned: their handlers did not return within the drain timeout", e.Abandoned)
}

// ErrorType is the error's low-cardinality name.
func (e *DrainError) ErrorType() string { return "drain_timeout" }

// cancelGrace is how long handlers whose context was cancelled at the drain
// timeout have to return and settle.
const cancelGrace = time.Second

// Config configures an engine. Handle is required.
type Config struct {
	// Concurrency is how many handlers run at once, at least 1.
	Concurrency int

	// Window, if positive, is how many deliveries are taken from the broker
	// before they can be handled. By default that follows from the pace of
	// the handlers. It is for deliveries without a lease whose time in the
	// queue has to be known.
	Window int

	// Handle handles the job's delivery and settles it. With retry, the job
	// is kept and handled again after the given time; its lane stays closed.
	// It is called from several goroutines and does not panic.
	Handle func(ctx context.Context, job *Job) (after time.Duration, retry bool)

	// Lane returns the job's ordering key: jobs of one key are handled one
	// after the other, in the order of arrival. Nil means no ordering. It is
	// called serially and does not panic.
	Lane func(job *Job) string

	// Redelivery says that the broker redelivers what is handed back.
	Redelivery bool

	// DrainTimeout bounds how long running handlers may go on after the end.
	DrainTimeout time.Duration

	// MaxHandlingTime bounds one run of a handler; zero means no bound. It
	// is enforced to within an eighth.
	MaxHandlingTime time.Duration

	// OnExpired, if set, is called for a delivery whose lease ran out before
	// its handler started. It does not block.
	OnExpired func(transport.Delivery)
}

// Engine runs the handlers of one subscription.
type Engine struct {
	cfg  Config
	sub  transport.Subscription
	info transport.Info
	base context.Context //nolint:containedctx // the values of the handlers' contexts

	mu       sync.Mutex
	work     sync.Cond // workers wait here for jobs
	ready    ring      // jobs that may be started
	held     jobList   // every job from its arrival to its end
	free     *Job      // recycled jobs
	lanes    map[string]*lane
	blocked  int // jobs that wait behind another one of their lane
	waiting  int // jobs that wait for their next try
	granted  int // credit given to the broker and not used yet
	workers  int
	idle     int
	pace     pace
	draining bool          // nothing new is asked for
	closed   bool          // nothing new arrives
	stopped  bool          // workers go home
	drained  chan struct{} // closed when nothing arrives and nothing is held

	kick chan struct{} // wakes the keeper before its time
}

// New returns an engine that is not running. ctx supplies the values of the
// handlers' contexts; its end does not end them.
func New(ctx context.Context, cfg Config) *Engine {
	e := &Engine{
		cfg:     cfg,
		base:    context.WithoutCancel(ctx),
		drained: make(chan struct{}),
		kick:    make(chan struct{}, 1),
	}
	e.work.L = &e.mu

	if cfg.Lane != nil {
		e.lanes = map[string]*lane{}
	}

	return e
}

// Run serves sub until ctx ends or the subscription ends by itself, drains, and
// closes it. Deliver must be the subscription's sink. It returns nil when ctx
// ended and all was finished, a [*DrainError] when something was abandoned, or
// the error with which the subscription ended, or both.
func (e *Engine) Run(ctx context.Context, sub transport.Subscription) error {
	e.sub, e.info = sub, sub.Info()

	keeping, stopKeeper := context.WithCancel(e.base)

	var keeper sync.WaitGroup

	keeper.Go(func() { e.keep(keeping) })

	e.refill()

	var ended error

	select {
	case <-ctx.Done():
	case <-sub.Done():
		ended = sub.Err()
	}

	abandoned := e.drain()

	stopKeeper()
	keeper.Wait()

	switch {
	case abandoned == 0:
		return ended
	case ended == nil:
		return &DrainError{Abandoned: abandoned}
	default:
		return fmt.Errorf("%w; %w", ended, &DrainError{Abandoned: abandoned})
	}
}

// Deliver is the sink of the subscription.
func (e *Engine) Deliver(d transport.Delivery) {
	now := time.Now()

	e.mu.Lock()
	job := e.acquire()
	e.mu.Unlock()

	job.Delivery = d
	job.arrived, job.lease = now, now

	if e.cfg.Lane != nil {
		// The sink is serial, so keys keep the order of arrival.
		job.key = e.cfg.Lane(job)
	}

	e.mu.Lock()
	e.granted = max(e.granted-1, 0)
	e.pace.size(len(d.Data))
	e.held.push(job)

	switch {
	case e.draining && e.cfg.Redelivery:
		job.state = parked // is handed back when the subscription is closed
	case e.enterLane(job):
		e.enqueue(job)
	default:
		e.mu.Unlock()
		e.refill()

		return
	}

	e.mu.Unlock()
}

// enqueue makes a job ready and sees to it that somebody takes it. The caller
// holds the lock.
func (e *Engine) enqueue(job *Job) {
	job.state = queued
	e.ready.push(job)

	switch {
	case e.idle > 0:
		// Counted here, not by the one who wakes: of two jobs that come before
		// it does, the second must find another worker.
		e.idle--
		e.work.Signal()
	case e.workers < e.cfg.Concurrency:
		e.workers++

		go e.worker()
	}
}

// worker runs handlers until the engine stops.
func (e *Engine) worker() {
	var scope handlerScope
	defer scope.end()

	e.mu.Lock()
	defer e.mu.Unlock()

	for {
		for e.ready.len() == 0 {
			if e.stopped {
				e.workers--

				return
			}

			e.idle++
			e.work.Wait()
		}

		job := e.ready.pop()
		start := time.Now()

		if e.info.AckWait > 0 && start.Sub(job.lease) > e.info.AckWait {
			// The broker has given it to somebody else by now.
			e.expire(job)

			continue
		}

		ctx := scope.enter(e.base)
		job.state, job.started, job.cancel = running, start, scope.cancel
		e.mu.Unlock()

		after, retry := e.cfg.Handle(ctx, job)
		took := time.Since(start)

		e.mu.Lock()

		if job.cancelled {
			scope.end()
		}

		job.cancel, job.cancelled = nil, false
		e.pace.handled(took)

		if retry {
			e.again(job, start.Add(took+after))
		} else {
			e.finish(job)
		}

		if n := e.demand(); n > 0 {
			e.mu.Unlock()
			e.sub.Request(n)
			e.mu.Lock()
		}
	}
}

// handlerScope is the context of a worker's handlers. One serves message after
// message, so that none has to be made per message; after it was cancelled the
// next message gets a new one.
type handlerScope struct {
	ctx    context.Context //nolint:containedctx // it lives as long as the worker
	cancel context.CancelCauseFunc
}

func (s *handlerScope) enter(base context.Context) context.Context {
	if s.ctx == nil {
		s.ctx, s.cancel = context.WithCancelCause(base)
	}

	return s.ctx
}

func (s *handlerScope) end() {
	if s.ctx != nil {
		s.cancel(nil)
		s.ctx, s.cancel = nil, nil
	}
}

// expire drops a job whose lease ran out before it was started. The caller
// holds the lock; it is released for the callback.
func (e *Engine) expire(job *Job) {
	d := job.Delivery
	e.finish(job)
	n := e.demand()
	e.mu.Unlock()

	if e.cfg.OnExpired != nil {
		e.cfg.OnExpired(d)
	}

	if n > 0 {
		e.sub.Request(n)
	}

	e.mu.Lock()
}

// finish lets go of a job and opens its lane to the next. The caller holds the
// lock.
func (e *Engine) finish(job *Job) {
	if next := e.leaveLane(job); next != nil {
		e.enqueue(next)
	}

	e.held.remove(job)
	e.release(job)

	e.checkDrained()
}

// again keeps a job for its next try. When the subscription stops, another
// replica tries instead, if the broker gives it to one. The caller holds the
// lock; it is released to hand the job back.
func (e *Engine) again(job *Job, due time.Time) {
	switch {
	case !e.draining || !e.cfg.Redelivery:
	case !e.closed:
		e.leaveLane(job)
		job.lane, job.state = nil, parked // is handed back when the subscription is closed

		return
	default:
		e.mu.Unlock()
		back := e.handBack(job)
		e.mu.Lock()

		if back {
			e.finish(job)

			return
		}
	}

	job.state, job.due = waiting, due
	job.settling.Store(false)
	job.Retries++
	e.waiting++

	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// refill grants the broker what is missing to a full window.
func (e *Engine) refill() {
	e.mu.Lock()
	n := e.demand()
	e.mu.Unlock()

	if n > 0 {
		e.sub.Request(n)
	}
}

// demand returns the credit to grant now, and books it. The caller holds the
// lock and calls Request after releasing it, since a sink may be called from
// within.
//
// Jobs that cannot run because of their lane, or wait for their next try, do
// not count, up to a bound: a stuck key holds back nobody else.
func (e *Engine) demand() int {
	if e.draining {
		return 0
	}

	parked := min(e.blocked+e.waiting, maxParked)

	window, step := e.cfg.Window, e.cfg.Window/2
	if window <= 0 {
		window, step = e.pace.window(e.cfg.Concurrency, e.info.AckWait)
	}

	missing := window - (e.held.len - parked) - e.granted
	if missing < step {
		return 0
	}

	e.granted += missing

	return missing
}
