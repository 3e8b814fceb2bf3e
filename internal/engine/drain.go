package engine

import (
	"context"
	"time"
)

// drain ends the subscription in order and returns how many messages were
// abandoned.
//
//  1. Nothing new is started, and the broker is told to stop.
//  2. What waits is handed back at once, so that another replica has it.
//     What cannot be handed back, because the broker would give it up instead
//     of delivering it again, is handled.
//  3. Running handlers go on, leases kept, until the drain timeout.
//  4. Then their contexts end, and they have a moment to return.
func (e *Engine) drain() (abandoned int) {
	timeout := time.NewTimer(e.cfg.DrainTimeout)
	defer timeout.Stop()

	e.mu.Lock()
	e.draining = true
	back := e.takeUnstarted()
	e.mu.Unlock()

	for _, u := range back {
		e.giveBack(u)
	}

	e.close()

	select {
	case <-e.drained:
	case <-timeout.C:
		e.cancelAll()

		grace := time.NewTimer(cancelGrace)
		defer grace.Stop()

		select {
		case <-e.drained:
		case <-grace.C:
		}
	}

	// The settlements were written to the connection; this waits until the
	// broker has them, so that the caller may close the connection. Without a
	// broker there is nothing to wait for: leases run out.
	ctx, cancel := context.WithTimeout(context.Background(), cancelGrace)
	defer cancel()

	_ = e.sub.Flush(ctx)

	e.mu.Lock()
	defer e.mu.Unlock()

	e.stopped = true
	e.work.Broadcast()

	for e.ready.len() > 0 {
		e.ready.pop()
	}

	return e.held.len
}

// close closes the subscription. What it hands over meanwhile goes the way of
// Deliver.
func (e *Engine) close() {
	ctx, cancel := context.WithTimeout(context.Background(), max(e.cfg.DrainTimeout, cancelGrace))
	defer cancel()

	_ = e.sub.Close(ctx)

	e.mu.Lock()
	defer e.mu.Unlock()

	e.closed = true
	e.checkDrained()
}

// unstarted is a job that was taken out of the queue, with its ordering key.
type unstarted struct {
	job *Job
	key string
}

// takeUnstarted takes the jobs that wait for a worker, for their lane or for
// their next try out of the queue; they stay held. Lanes keep their running job
// only. The caller holds the lock.
func (e *Engine) takeUnstarted() []unstarted {
	if !e.cfg.Redelivery {
		return nil
	}

	for e.ready.len() > 0 {
		e.ready.pop()
	}

	e.blocked, e.waiting = 0, 0
	clear(e.lanes)

	var taken []unstarted

	for j := e.held.first; j != nil; j = j.next {
		l := j.lane
		j.behind = nil

		switch {
		case j.state != running:
			u := unstarted{job: j}
			if l != nil {
				u.key = l.key
			}

			j.lane, j.state = nil, parked
			taken = append(taken, u)
		case l != nil:
			l.last = j
			e.lanes[l.key] = l
		}
	}

	return taken
}

// giveBack hands a job that was taken out of the queue back to the broker, or
// has it handled where that would lose it.
func (e *Engine) giveBack(u unstarted) {
	back := e.handBack(u.job)

	e.mu.Lock()
	defer e.mu.Unlock()

	switch {
	case back:
		e.finish(u.job)
	case e.lanes == nil || e.enterLane(u.job, u.key):
		e.enqueue(u.job)
	default:
		e.blocked++
	}
}

// handBack naks the job's delivery, if the broker delivers it again: one that
// has used up its deliveries would be given up.
func (e *Engine) handBack(job *Job) bool {
	if !e.cfg.Redelivery {
		return false
	}

	d := job.Delivery
	if e.info.MaxDeliver > 0 && d.Settler.Metadata(d.Token).Attempt >= e.info.MaxDeliver {
		return false
	}

	job.nak(0)

	return true
}

// cancelAll ends the contexts of all running handlers.
func (e *Engine) cancelAll() {
	e.mu.Lock()
	defer e.mu.Unlock()

	for j := e.held.first; j != nil; j = j.next {
		if j.state == running {
			j.end(ErrDraining)
		}
	}
}

// checkDrained says that the end is reached when nothing arrives and nothing is
// held any more. The caller holds the lock.
func (e *Engine) checkDrained() {
	if !e.closed || e.held.len > 0 {
		return
	}

	select {
	case <-e.drained:
	default:
		close(e.drained)
	}
}
