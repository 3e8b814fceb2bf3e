package engine

// maxParked bounds how many jobs may wait behind others without counting
// against the window: enough that a stuck key holds back nobody else, and a
// bound on memory. JetStream's MaxAckPending (1000 by default) is reached
// before.
const maxParked = 8192

// lane is the jobs of one ordering key: one that is ready, runs or waits for
// its next try, and those behind it. A lane exists as long as it has jobs, so
// the map of lanes is bounded by what is held.
type lane struct{ last *Job }

// enterLane puts the job into the lane of its key. It reports whether the job
// may start: it is the first one, or there are no lanes. The caller holds the
// lock.
func (e *Engine) enterLane(job *Job) bool {
	if e.lanes == nil {
		return true
	}

	l := e.lanes[job.key]
	if l == nil {
		l = &lane{last: job}
		e.lanes[job.key] = l
		job.lane = l

		return true
	}

	job.lane, job.state = l, parked
	l.last.behind = job
	l.last = job
	e.blocked++

	return false
}

// leaveLane takes the first job out of its lane and returns the next, if any.
// The caller holds the lock.
func (e *Engine) leaveLane(job *Job) *Job {
	if job.lane == nil {
		return nil
	}

	next := job.behind
	if next == nil {
		delete(e.lanes, job.key)
	} else {
		e.blocked--
	}

	return next
}
