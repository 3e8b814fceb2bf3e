package engine

// maxParked bounds how many jobs may wait behind others without counting
// against the window: enough that a stuck key holds back nobody else, and a
// bound on memory. JetStream's MaxAckPending (1000 by default) is reached
// before.
const maxParked = 8192

// lane is the jobs of one ordering key: one that is ready, runs or waits for
// its next try, and those behind it. A lane exists as long as it has jobs, so
// the map of lanes is bounded by what is held.
type lane struct {
	key  string
	last *Job
}

// enterLane puts the job into the lane of its key. It reports whether the job
// is the first one and may start. The caller holds the lock.
func (e *Engine) enterLane(job *Job, key string) bool {
	l := e.lanes[key]
	if l == nil {
		l = &lane{key: key, last: job}
		e.lanes[key] = l
		job.lane = l

		return true
	}

	job.lane, job.state = l, parked
	l.last.behind = job
	l.last = job

	return false
}

// leaveLane takes the first job out of its lane and returns the next, if any.
// The caller holds the lock.
func (e *Engine) leaveLane(job *Job) *Job {
	l := job.lane
	if l == nil {
		return nil
	}

	next := job.behind
	if next == nil {
		delete(e.lanes, l.key)
	}

	return next
}
