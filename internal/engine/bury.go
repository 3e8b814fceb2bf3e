package engine

import "time"

// Burial is how a try to bury a job has ended.
type Burial uint8

const (
	// Buried says that it was stored.
	Buried Burial = iota + 1

	// Dropped says that it is not to be stored any more. The storage was not
	// asked.
	Dropped

	// Refused says that the storage did not take this one. It may take others.
	Refused

	// Failing says that the storage fails, whatever it is given.
	Failing

	// Lost says that the storage fails, and that this was the last try.
	Lost
)

// burials are the jobs whose handlers are done and that are to be stored
// elsewhere, beside the handlers and without holding them back: in the order in
// which they came, as many at once as there are handlers. While the storage
// fails it is asked with one of them at a time, once per back-off for all.
//
// It is guarded by the engine's lock.
type burials struct {
	queue    ring
	active   int       // in the hands of Bury
	failures int       // of the storage, in a row
	failed   time.Time // when that was last noticed
	shut     time.Time // nothing is tried before; the keeper tries then
	over     bool      // nothing is begun any more
}

// toBury takes over a job whose handler is done. Its key is free, unless it is to
// be held until the job is settled. The caller holds the lock.
func (e *Engine) toBury(job *Job) {
	job.Exited, job.Retries = nil, 0
	job.settling.Store(false)

	if !e.cfg.Strict {
		e.leaveLane(job)
	}

	if e.burials.over {
		// Nobody waits any more for its handler, which sees to it alone.
		e.unlocked(func() { e.cfg.Bury(e.base, job) })
		e.finish(job)

		return
	}

	e.lay(job)
}

// lay puts a job among those that are to be buried. Of a subscription that stops
// another replica does it where the storage fails. The caller holds the lock.
func (e *Engine) lay(job *Job) {
	if e.draining && e.cfg.Redelivery && time.Now().Before(e.burials.shut) {
		e.again(job, e.burials.shut)

		return
	}

	e.become(job, burying)
	e.burials.queue.push(job)
	e.dig()
}

// dig begins the burials that may be begun. The caller holds the lock.
func (e *Engine) dig() {
	b := &e.burials

	limit := e.cfg.Concurrency
	if b.failures > 0 {
		limit = 1
	}

	for !b.over && b.queue.len() > 0 && b.active < limit {
		if time.Now().Before(b.shut) {
			if b.shut.Before(e.alarm) {
				e.Wake()
			}

			return
		}

		job := b.queue.pop()
		b.active++

		e.digging.Go(func() { e.bury(job) })
	}
}

// bury makes one try.
func (e *Engine) bury(job *Job) {
	start, result := time.Now(), Refused // if Bury ends its goroutine

	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()

		e.burials.active--
		e.buried(job, start, result)
		e.dig()
		e.grant()
	}()

	result = e.cfg.Bury(e.graveside, job)
}

// buried goes on after a try that began at start. The caller holds the lock; it
// is released to hand jobs back.
func (e *Engine) buried(job *Job, start time.Time, result Burial) {
	b := &e.burials

	switch result {
	case Buried:
		b.failures, b.shut = 0, time.Time{}
		e.finish(job)
	case Dropped:
		e.finish(job)
	case Refused:
		e.again(job, time.Now().Add(e.cfg.BuryRetry(job.Retries+1)))
	case Failing:
		e.fail(start)

		job.Retries++
		e.lay(job)
	case Lost:
		e.finish(job)
		e.fail(start)
	}
}

// fail shuts the queue: what one was told holds for all.
func (e *Engine) fail(start time.Time) {
	b := &e.burials
	if start.Before(b.failed) {
		return // it was under way when another one failed
	}

	b.failures++
	b.failed = time.Now()
	b.shut = b.failed.Add(e.cfg.BuryRetry(b.failures))

	for n := b.queue.len(); n > 0 && b.queue.len() > 0; n-- {
		job := b.queue.pop()
		job.Retries++
		e.lay(job)
	}
}
