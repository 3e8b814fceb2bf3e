package engine

import (
	"context"
	"time"
)

// drain ends the subscription in order and returns how many messages were
// abandoned.
//
//  1. Nothing new is started, and the broker is told to stop.
//  2. What waits is handed back, so that another replica has it at once: after
//     the broker has stopped, else it would come back here. What cannot be
//     handed back, because the broker would give it up instead of delivering
//     it again, is handled.
//  3. Running handlers go on, leases kept, until the drain timeout.
//  4. Then their contexts end, and they have a moment to return.
func (e *Engine) drain() (abandoned int) {
	timeout := time.NewTimer(e.cfg.DrainTimeout)
	defer timeout.Stop()

	e.mu.Lock()
	e.draining = true

	if e.cfg.Redelivery {
		e.unstart()
	}

	e.mu.Unlock()

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

// closeTimeout bounds how long the broker may take to stop.
const closeTimeout = 5 * time.Second

// close closes the subscription and hands back what it had delivered and what
// was not started.
func (e *Engine) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()

	_ = e.sub.Close(ctx)

	e.mu.Lock()
	e.closed = true

	var jobs []*Job

	for j := e.held.first; j != nil; j = j.next {
		if j.state == parked && j.lane == nil {
			jobs = append(jobs, j)
		}
	}

	e.checkDrained()
	e.mu.Unlock()

	for _, job := range jobs {
		e.giveBack(job)
	}
}

// unstart takes the jobs that wait for a worker, for their lane or for their
// next try out of the queue; they stay held. Lanes keep their running job only.
// The caller holds the lock.
func (e *Engine) unstart() {
	for e.ready.len() > 0 {
		e.ready.pop()
	}

	e.blocked, e.waiting = 0, 0
	clear(e.lanes)

	for j := e.held.first; j != nil; j = j.next {
		l := j.lane
		j.behind = nil

		switch {
		case j.state != running:
			j.lane, j.state = nil, parked
		case l != nil:
			l.last = j
			e.lanes[j.key] = l
		}
	}
}

// giveBack hands a job that was not started back to the broker, or has it
// handled where that would lose it.
func (e *Engine) giveBack(job *Job) {
	back := e.handBack(job)

	e.mu.Lock()
	defer e.mu.Unlock()

	switch {
	case back:
		e.finish(job)
	case e.enterLane(job):
		e.enqueue(job)
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
