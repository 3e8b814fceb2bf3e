package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/foomo/goflux/transport"
)

// keep is the one clock of an engine: it starts what waits for its next try,
// ends handlers that run for too long or have lost their lease, and has leases
// renewed. It never waits for the broker.
func (e *Engine) keep(ctx context.Context) {
	k := keeper{Engine: e, idle: make(chan struct{}, 1)}
	k.idle <- struct{}{}

	defer k.renewing.Wait()

	timer := time.NewTimer(0)
	defer timer.Stop()

	for {
		select {
		case <-ctx.Done():
			return
		case <-e.kick:
		case <-timer.C:
		}

		now := time.Now()
		next := e.look(now)

		if ackWait := e.sub.Info().AckWait; ackWait > 0 && now.Sub(k.renewed) >= ackWait/3-ackWait/20 {
			k.renew(ctx, now, ackWait)
		}

		timer.Reset(max(next-time.Since(now), time.Millisecond))
	}
}

// Wake makes the engine look at once whether anything is due, since the world
// has changed: the configuration of the consumer, for one. It does not block.
func (e *Engine) Wake() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// look does what is due, and returns how long nothing else will be.
func (e *Engine) look(now time.Time) (next time.Duration) {
	ackWait := e.sub.Info().AckWait

	e.mu.Lock()
	defer e.mu.Unlock()

	next = time.Hour
	if ackWait > 0 {
		next = min(next, ackWait/3)
	}

	if e.cfg.MaxHandlingTime > 0 {
		next = min(next, e.cfg.MaxHandlingTime)
	}

	// due reports whether t has come.
	due := func(t time.Time) bool {
		left := t.Sub(now)
		if left > 0 {
			next = min(next, left)
		}

		return left <= 0
	}

	for j := e.held.first; j != nil; j = j.next {
		if ackWait > 0 && !j.lost.Load() && due(j.lease.Add(ackWait)) {
			j.lose()
		}

		switch {
		case j.state == waiting && due(j.due):
			e.enqueue(j)
		case j.state == running && e.cfg.MaxHandlingTime > 0 && !j.cancelled && due(j.started.Add(e.cfg.MaxHandlingTime)):
			j.end(ErrMaxHandlingTime)
		}
	}

	if b := &e.burials; b.queue.len() > 0 && due(b.shut) {
		e.dig()
	}

	e.alarm = now.Add(next)

	return next
}

// end cancels the job's handler. The caller holds the engine's lock.
func (j *Job) end(cause error) {
	if j.cancel != nil && !j.cancelled {
		j.cancelled = true
		j.cancel(cause)
	}
}

// lose notes that the job's lease has run out: somebody else may have the
// message. The caller holds the engine's lock.
func (j *Job) lose() {
	j.lost.Store(true)

	if j.state == running {
		j.end(ErrLeaseLost)
	}
}

// expired reports whether the job's lease has run out. The caller holds the
// lock.
func (e *Engine) expired(job *Job, now time.Time) bool {
	ackWait := e.sub.Info().AckWait

	return job.lost.Load() || (ackWait > 0 && now.Sub(job.lease) >= ackWait)
}

// keeper is the state of the clock that concerns leases.
type keeper struct {
	*Engine

	renewed  time.Time     // when leases were last sent
	batch    []lease       // reused; of who has taken the token
	idle     chan struct{} // holds a token while nothing is being renewed
	renewing sync.WaitGroup
}

// lease is what has to be known to renew a job's lease without the lock.
type lease struct {
	job        *Job
	generation uint64
	delivery   transport.Delivery
}

// renew has the leases of all that is held extended, in a goroutine of its own,
// unless the last time is not over yet.
func (k *keeper) renew(ctx context.Context, now time.Time, ackWait time.Duration) {
	select {
	case <-k.idle:
	default:
		return
	}

	k.renewed = now

	k.collect(now, ackWait)

	if len(k.batch) == 0 {
		k.idle <- struct{}{}

		return
	}

	k.renewing.Go(func() {
		k.extend(ctx, now, ackWait)
		k.idle <- struct{}{}

		k.Wake() // what is known of the consumer may be new
	})
}

// collect gathers what has been held for a while: what arrived just now is
// renewed the next time, well within its ack wait. A lease that has run out is
// not, since that would extend the one of whoever has the message now.
func (k *keeper) collect(now time.Time, ackWait time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()

	for j := k.held.first; j != nil; j = j.next {
		if now.Sub(j.lease) < ackWait/6 || k.expired(j, now) || (j.state == running && j.cancelled) {
			continue
		}

		k.batch = append(k.batch, lease{j, j.generation, j.Delivery})
	}
}

// extend extends the leases of a batch, then asks the broker for a sign of life:
// extending is fire and forget, and a client that is reconnecting takes it
// without a word.
//
// A lease is renewed when the broker has seen that before it ran out, and it
// begins when that was sent, since the broker did not see it before. All else is
// left to the clock.
func (k *keeper) extend(ctx context.Context, sent time.Time, ackWait time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, max(ackWait/4, 10*time.Millisecond))
	defer cancel()

	for i := range k.batch {
		if l := &k.batch[i]; !l.job.settling.Load() {
			// A failure shows in the flush below, or the delivery is settled.
			_ = l.delivery.Settler.Settle(ctx, l.delivery.Token, transport.Verdict{Action: transport.Extend})
		}
	}

	err := k.sub.Flush(ctx)
	gone := errors.Is(err, transport.ErrConsumerNotFound) || errors.Is(err, transport.ErrStreamNotFound)
	now := time.Now()

	k.mu.Lock()
	defer k.mu.Unlock()

	for i := range k.batch {
		switch j := k.batch[i].job; {
		case j.generation != k.batch[i].generation:
		case gone:
			j.lose()
		case err == nil && !k.expired(j, now):
			j.lease = sent
		}
	}

	clear(k.batch)
	k.batch = k.batch[:0]
}
