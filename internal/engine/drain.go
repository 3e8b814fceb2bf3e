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
//  4. Then their contexts end, and they have a moment to return, and to have
//     dead letters stored. What was not started by then is abandoned.
//  5. Then nothing is begun any more, and burials end.
func (e *Engine) drain(stopBurials func()) (abandoned int) {
	cut := make(chan struct{})
	timeout := time.AfterFunc(e.cfg.DrainTimeout, func() {
		e.cutOff()
		close(cut)
	})

	defer timeout.Stop()

	if e.cfg.OnDrain != nil {
		e.cfg.OnDrain()
	}

	e.mu.Lock()
	e.draining = true

	if e.cfg.Redelivery {
		e.unstart(returning)
	}

	e.mu.Unlock()

	e.close()

	select {
	case <-e.drained:
	case <-cut:
		grace := time.NewTimer(cancelGrace)
		defer grace.Stop()

		abandoned = e.tellAbandoned()

		select {
		case <-e.drained:
		case <-grace.C:
		}
	}

	e.mu.Lock()
	e.stopped, e.burials.over = true, true
	e.work.Broadcast()
	e.mu.Unlock()

	stopBurials()

	ctx, cancel := context.WithTimeout(context.Background(), cancelGrace)
	defer cancel()

	e.awaitBurials(ctx)

	// The settlements were written to the connection; this waits until the
	// broker has them, so that the caller may close the connection. Without a
	// broker there is nothing to wait for: leases run out.
	_ = e.sub.Flush(ctx)

	e.mu.Lock()
	defer e.mu.Unlock()

	return abandoned + e.held.len
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
	defer e.mu.Unlock()

	e.closed = true

	// From here on each job that is not to go on is handed back when it comes.
	if jobs := e.in(returning); len(jobs) > 0 {
		e.unlocked(func() { e.refresh(ctx) })

		for _, job := range jobs {
			e.giveBack(job)
		}
	}

	e.checkDrained()
}

// refresh asks the broker how often it delivers a message, which may be other
// than it was.
func (e *Engine) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cancelGrace)
	defer cancel()

	_ = e.sub.Flush(ctx)
}

// in returns the jobs that are in a state, in order of arrival. The caller holds
// the lock.
func (e *Engine) in(s state) []*Job {
	var jobs []*Job

	for j := e.held.first; j != nil; j = j.next {
		if j.state == s {
			jobs = append(jobs, j)
		}
	}

	return jobs
}

// unstart takes the jobs that wait for a worker, for their lane or for their
// next try out of the queue, into another state; they stay held. Lanes keep the
// one that goes on. The caller holds the lock.
func (e *Engine) unstart(into state) {
	for e.ready.len() > 0 {
		e.ready.pop()
	}

	if into == returning && e.burials.failures > 0 {
		// The storage of another replica may do better.
		for e.burials.queue.len() > 0 {
			e.become(e.burials.queue.pop(), waiting)
		}
	}

	clear(e.lanes)

	for j := e.held.first; j != nil; j = j.next {
		l := j.lane
		j.behind = nil

		switch {
		case j.state == running, j.state == burying, j.state == returning, j.Burial != nil && into == abandoned:
			if l != nil {
				l.last = j
				e.lanes[j.key] = l
			}
		default:
			j.lane = nil
			e.become(j, into)
		}
	}
}

// giveBack hands a job back to the broker, or keeps it where that would lose it.
// The caller holds the lock; it is released meanwhile.
func (e *Engine) giveBack(job *Job) {
	var back bool

	e.unlocked(func() { back = e.handBack(job) })

	switch {
	case back:
		e.finish(job)
	case !e.enterLane(job):
	case job.due.After(time.Now()):
		e.await(job)
	default:
		e.enqueue(job)
	}
}

// handBack lets the broker deliver the job again, if it does: one that has used
// up its deliveries would be given up.
func (e *Engine) handBack(job *Job) bool {
	if !e.cfg.Redelivery {
		return false
	}

	d := job.Delivery
	if limit := e.sub.Info().MaxDeliver; limit > 0 && d.Settler.Metadata(d.Token).Attempt >= limit {
		return false
	}

	// Where its lease has run out, it has. One that waited for its next try comes
	// at once as well: those behind it in its lane do, and must not pass it.
	if !job.lost.Load() {
		job.nak()
	}

	return true
}

// cutOff is the end of the drain timeout: nothing is started any more, and the
// contexts of running handlers end.
func (e *Engine) cutOff() {
	e.mu.Lock()
	defer e.mu.Unlock()

	e.stopped = true
	e.unstart(abandoned)

	for j := e.held.first; j != nil; j = j.next {
		if j.state == running {
			j.end(ErrDraining)
		}
	}

	e.work.Broadcast()
	e.checkDrained()
}

// tellAbandoned tells of the jobs that will not be started and that nobody else
// gets, and lets go of them. It returns how many.
func (e *Engine) tellAbandoned() int {
	if e.cfg.OnAbandoned == nil || e.cfg.Redelivery {
		return 0
	}

	ctx, cancel := context.WithTimeout(e.base, cancelGrace)
	defer cancel()

	e.mu.Lock()
	defer e.mu.Unlock()

	jobs := e.in(abandoned)

	for _, job := range jobs {
		e.unlocked(func() { e.cfg.OnAbandoned(ctx, job) })
		e.finish(job)
	}

	return len(jobs)
}

// awaitBurials waits for those that are being made.
func (e *Engine) awaitBurials(ctx context.Context) {
	done := make(chan struct{})

	go func() {
		e.digging.Wait()
		close(done)
	}()

	select {
	case <-done:
	case <-ctx.Done():
	}
}

// checkDrained says that the end is reached when nothing arrives and nothing goes
// on any more. The caller holds the lock.
func (e *Engine) checkDrained() {
	if !e.closed || e.held.len > e.abandoned {
		return
	}

	select {
	case <-e.drained:
	default:
		close(e.drained)
	}
}
