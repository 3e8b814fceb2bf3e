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
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux/transport"
)

// ErrDraining is the cause with which handler contexts end when a subscription
// stops and its drain timeout is over.
var ErrDraining = transport.NewSentinel("draining", "the subscription stops and its drain timeout is over")

// ErrLeaseLost is the cause with which a handler's context ends when its lease
// could not be renewed, so that somebody else may be handling the message.
var ErrLeaseLost = transport.NewSentinel("lease_lost", "the lease of the message was lost: another replica may be handling it; "+
	"the broker could not be reached for the ack wait, which may be longer, or the consumer is gone")

// ErrMaxHandlingTime is the cause with which a handler's context ends when it
// ran for longer than the configured maximum.
var ErrMaxHandlingTime = transport.NewSentinel("max_handling_time", "the handler exceeded its maximum handling time: "+
	"raise it (WithMaxHandlingTime), or split the work")

// DrainError says that a subscription stopped before all its handlers had
// finished.
type DrainError struct {
	// Abandoned is how many messages were left in the hands of handlers that
	// did not return, or were not started in time. A broker that redelivers
	// does so when their leases run out; the callers of live requests that
	// were not started were told.
	Abandoned int
}

// Error tells how many were abandoned.
func (e *DrainError) Error() string {
	return fmt.Sprintf("goflux: %d messages were abandoned: they were not handled, or not stored as dead letters, "+
		"within the drain timeout; "+
		"handlers should return when their context ends, or need a longer timeout (WithDrainTimeout)", e.Abandoned)
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

	// Sparing says to fetch nothing ahead of the handlers where the broker
	// limits the deliveries of a message: handing back what was not started
	// uses one up.
	Sparing bool

	// Handle handles the job's delivery and settles it. With retry, the job
	// is kept and handled again after the given time; its lane stays closed.
	// If it leaves a Burial in the job then, Bury is called instead, at once.
	// It is called from several goroutines and does not panic. If it ends its
	// goroutine instead of returning (runtime.Goexit), it is called again at
	// once, with the job's Exited set; if it does that again, the job is let
	// go of unsettled.
	Handle func(ctx context.Context, job *Job) (after time.Duration, retry bool)

	// Lane returns the job's ordering key: jobs of one key are handled one
	// after the other, in the order of arrival. Nil means no ordering. It is
	// called serially and does not panic.
	Lane func(job *Job) string

	// Strict keeps the lane of a job closed until the job is settled, also
	// when it is to be buried.
	Strict bool

	// Bury makes one try to store the Burial of a job, and settles the job if
	// that succeeds. It is required if Handle leaves burials. It is called
	// from several goroutines, heeds ctx, and does not panic.
	Bury func(ctx context.Context, job *Job) Burial

	// BuryRetry returns how long to wait after some tries in a row, from 1,
	// that failed.
	BuryRetry func(failures int) time.Duration

	// Redelivery says that the broker redelivers what is handed back.
	Redelivery bool

	// DrainTimeout bounds how long running handlers may go on after the end.
	DrainTimeout time.Duration

	// MaxHandlingTime bounds one run of a handler; zero means no bound.
	MaxHandlingTime time.Duration

	// OnExpired, if set, is called for a delivery whose lease ran out before
	// its handler started. It does not block.
	OnExpired func(transport.Delivery)

	// OnDrain, if set, is called when the end begins, before the broker is
	// told to stop. It does not block.
	OnDrain func()

	// OnAbandoned, if set, is called for each job that was not started when
	// the drain timeout was over, and that the broker does not deliver again.
	// ctx bounds all these calls together.
	OnAbandoned func(ctx context.Context, job *Job)
}

// Engine runs the handlers of one subscription.
type Engine struct {
	cfg  Config
	sub  transport.Subscription
	base context.Context //nolint:containedctx // the values of the handlers' contexts

	until context.Context //nolint:containedctx // that of Run

	mu          sync.Mutex
	work        sync.Cond // workers wait here for jobs
	ready       ring      // jobs that may be started
	held        jobList   // every job from its arrival to its end
	free        *Job      // recycled jobs
	lanes       map[string]*lane
	burials     burials
	parked      int // jobs that do not occupy a handler, nor will at once
	parkedBytes int
	abandoned   int // jobs that will not be started any more
	granted     int // credit given to the broker and not used yet
	workers     int
	idle        int
	pace        pace
	draining    bool          // nothing new is asked for
	closed      bool          // nothing new arrives
	stopped     bool          // no handler is started; workers go home
	drained     chan struct{} // closed when nothing arrives and nothing goes on

	graveside context.Context //nolint:containedctx // of burials; ends with Run
	digging   sync.WaitGroup  // burials

	alarm time.Time     // when the keeper looks again
	kick  chan struct{} // wakes the keeper before its time
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
	e.sub, e.until = sub, ctx

	keeping, stopKeeper := context.WithCancel(e.base)
	defer stopKeeper()

	var stopBurials context.CancelFunc

	e.graveside, stopBurials = context.WithCancel(e.base)
	defer stopBurials()

	var keeper sync.WaitGroup

	keeper.Go(func() { e.keep(keeping) })

	e.refill()

	var ended error

	select {
	case <-ctx.Done():
	case <-sub.Done():
		ended = sub.Err()
	}

	abandoned := e.drain(stopBurials)

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
	job.lease = now

	if job.arrived = d.Arrived; job.arrived.IsZero() {
		job.arrived = now
	}

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
		e.become(job, returning)
	case e.enterLane(job):
		e.enqueue(job)
	default:
		e.grant()
	}

	e.mu.Unlock()
}

// enqueue makes a job ready and sees to it that somebody takes it. The caller
// holds the lock.
func (e *Engine) enqueue(job *Job) {
	switch {
	case job.Burial != nil:
		e.lay(job)

		return
	case e.stopped:
		e.become(job, abandoned)

		return
	}

	e.become(job, queued)
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
	var (
		scope handlerScope
		job   *Job // in the hands of Handle
		home  bool
	)

	e.mu.Lock()

	defer func() {
		if !home {
			e.replace(job)
		}

		e.mu.Unlock()
		scope.end()
	}()

	for {
		e.grant()

		for e.ready.len() == 0 {
			if e.stopped {
				e.workers--
				home = true

				return
			}

			e.idle++
			e.work.Wait()
		}

		next := e.ready.pop()
		start := time.Now()

		if e.expired(next, start) {
			// The broker has given it to somebody else by now.
			e.expire(next)

			continue
		}

		ctx := scope.enter(e.base)
		e.become(next, running)
		next.started, next.cancel = start, ctx.cancel
		job = next

		var (
			after, took time.Duration
			retry       bool
		)

		e.unlocked(func() {
			after, retry = e.cfg.Handle(ctx, next)
			took = time.Since(start)
		})

		job = nil

		if next.cancelled || ctx.watched.Load() {
			scope.end()
		}

		next.cancel, next.cancelled = nil, false
		e.pace.handled(took)

		switch {
		case retry && next.Burial != nil:
			e.toBury(next)
		case retry:
			e.again(next, start.Add(took+after))
		default:
			e.finish(next)
		}
	}
}

// unlocked calls what is not ours without the lock, which the caller holds. It
// is deferred to take it again: a handler that ends its goroutine, as FailNow of
// package testing does, leaves everything usable.
func (e *Engine) unlocked(f func()) {
	e.mu.Unlock()
	defer e.mu.Lock()

	f()
}

// replace puts another worker in the place of one whose goroutine was ended, by
// the handler of a job if there is one. The caller holds the lock.
func (e *Engine) replace(job *Job) {
	switch {
	case job == nil:
	case job.Exited != nil:
		e.finish(job)
	default:
		// The stack is that of whoever ended the goroutine.
		job.Exited = debug.Stack()
		job.cancel, job.cancelled = nil, false
		e.become(job, queued)
		e.ready.push(job)
	}

	go e.worker()
}

// handlerScope is the context of a worker's handlers. One serves message after
// message, so that none has to be made per message, until it was cancelled, or
// somebody waits for its end: that comes when the handler returns.
type handlerScope struct{ ctx *handlerContext }

// handlerContext knows whether its end matters to anybody. All that waits for
// it, contexts made of it among them, asks for Done.
type handlerContext struct {
	context.Context //nolint:containedctx // it is one

	cancel  context.CancelCauseFunc
	watched atomic.Bool
}

// Done implements [context.Context].
func (c *handlerContext) Done() <-chan struct{} {
	c.watched.Store(true)

	return c.Context.Done()
}

func (s *handlerScope) enter(base context.Context) *handlerContext {
	if s.ctx == nil {
		ctx, cancel := context.WithCancelCause(base)
		s.ctx = &handlerContext{Context: ctx, cancel: cancel}
	}

	return s.ctx
}

func (s *handlerScope) end() {
	if s.ctx != nil {
		s.ctx.cancel(nil)
		s.ctx = nil
	}
}

// expire drops a job whose lease ran out before it was started. The caller
// holds the lock; it is released for the callback.
func (e *Engine) expire(job *Job) {
	d := job.Delivery
	e.finish(job)

	if e.cfg.OnExpired != nil {
		e.unlocked(func() { e.cfg.OnExpired(d) })
	}
}

// finish lets go of a job and opens its lane to the next. The caller holds the
// lock.
func (e *Engine) finish(job *Job) {
	e.leaveLane(job)
	e.held.remove(job)
	e.release(job)

	e.checkDrained()
}

// again keeps a job for its next try. When the subscription stops, another
// replica tries instead, if the broker gives it to one. The caller holds the
// lock; it is released to hand the job back.
func (e *Engine) again(job *Job, due time.Time) {
	job.due = due
	job.Exited = nil
	job.settling.Store(false)
	job.Retries++

	switch {
	case !e.draining || !e.cfg.Redelivery:
		e.await(job)
	case !e.closed:
		e.become(job, returning)
	default:
		e.giveBack(job)
	}
}

// await keeps a job until it is due. The caller holds the lock.
func (e *Engine) await(job *Job) {
	e.become(job, waiting)

	if job.due.Before(e.alarm) {
		e.Wake()
	}
}

// refill grants the broker what is missing to a full window.
func (e *Engine) refill() {
	e.mu.Lock()
	defer e.mu.Unlock()

	e.grant()
}

// grant is refill for who holds the lock, which is released for the call.
func (e *Engine) grant() {
	if n := e.demand(); n > 0 {
		e.unlocked(func() { e.sub.Request(n) })
	}
}

// demand returns the credit to grant now, and books it. The caller holds the
// lock and calls Request after releasing it, since a sink may be called from
// within.
//
// Jobs that cannot run because of their lane, or wait for their next try, do
// not count, up to a bound: a stuck key holds back nobody else.
func (e *Engine) demand() int {
	// The end may have come before the one who drains was woken.
	if e.draining || e.until.Err() != nil {
		return 0
	}

	info := e.sub.Info()

	window, step := e.pace.window(e.cfg.Concurrency, info.AckWait)
	if e.cfg.Sparing && info.MaxDeliver > 0 {
		window, step = e.cfg.Concurrency, 1
	}

	missing := window - (e.held.len - e.parkedLen()) - e.granted
	if missing < step {
		return 0
	}

	e.granted += missing

	return missing
}
