package engine

// maxParked and maxParkedBytes bound the jobs that are held without counting
// against the window: enough that a stuck key, or a storage of dead letters that
// fails, holds back nobody else, and a bound on memory. JetStream's
// MaxAckPending (1000 by default) is reached before the former.
const (
	maxParked      = 8192
	maxParkedBytes = 64 << 20
)

// lane is the jobs of one ordering key: one that is ready, runs or waits for
// its next try, and those behind it. A lane exists as long as it has jobs, so
// the map of lanes is bounded by what is held.
type lane struct{ last *Job }

// enterLane puts the job into the lane of its key. It reports whether the job
// may start: it is the first one, or there is nothing to wait for. The caller
// holds the lock.
func (e *Engine) enterLane(job *Job) bool {
	if e.lanes == nil || job.lane != nil || (job.Burial != nil && !e.cfg.Strict) {
		return true
	}

	l := e.lanes[job.key]
	if l == nil {
		l = &lane{last: job}
		e.lanes[job.key] = l
		job.lane = l

		return true
	}

	job.lane = l
	l.last.behind = job
	l.last = job
	e.become(job, blocked)

	return false
}

// leaveLane takes a job that is the first one out of its lane, and has the next
// one started. The caller holds the lock.
func (e *Engine) leaveLane(job *Job) {
	if job.lane == nil {
		return
	}

	next := job.behind
	job.lane, job.behind = nil, nil

	if next == nil {
		delete(e.lanes, job.key)
	} else {
		e.enqueue(next)
	}
}

// parkedLen returns how many jobs do not count against the window. The caller
// holds the lock.
func (e *Engine) parkedLen() int {
	n := min(e.parked, maxParked)
	if e.parkedBytes > maxParkedBytes {
		// As many as are within the bound, on average.
		n = min(n, int(int64(e.parked)*maxParkedBytes/int64(e.parkedBytes)))
	}

	return n
}
