package engine

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux/transport"
)

// Job is a delivery on its way through the engine. It is recycled when it is
// done with, so nobody outside keeps it.
type Job struct {
	Delivery transport.Delivery

	// Payload is what the Lane function made of the delivery, so that Handle
	// does not have to do it again.
	Payload any

	// Failure is the handler's verdict where the handler is done and only
	// the dead letter remains to be stored.
	Failure error

	// Retries counts the tries here that came before this one, beyond the
	// deliveries of the broker.
	Retries int

	settling atomic.Bool

	state      state
	arrived    time.Time
	lease      time.Time // when the lease was last known to be renewed
	started    time.Time
	due        time.Time
	cancel     context.CancelCauseFunc
	cancelled  bool
	generation uint64

	key        string // what Lane returned
	lane       *lane
	behind     *Job // the next one of the lane
	prev, next *Job // the list of all held jobs; next also chains free ones
}

type state uint8

const (
	parked  state = iota // behind another one of its lane, or to be handed back
	queued               // ready to be started
	running              // with a handler
	waiting              // for its next try
)

// Settling says that the job's delivery is about to be settled, so that its
// lease is not renewed under the settlement: a renewal that reaches the server
// after a delayed nak would undo the delay.
func (j *Job) Settling() { j.settling.Store(true) }

// Arrived returns when the delivery reached the engine.
func (j *Job) Arrived() time.Time { return j.arrived }

// Started returns when this try began. It is for Handle.
func (j *Job) Started() time.Time { return j.started }

// nak hands the delivery back. A failure changes nothing: the lease runs out.
func (j *Job) nak(delay time.Duration) {
	j.Settling()

	_ = j.Delivery.Settler.Settle(context.Background(), j.Delivery.Token, transport.Verdict{Action: transport.Nak, Delay: delay})
}

// acquire returns an empty job. The caller holds the lock.
func (e *Engine) acquire() *Job {
	job := e.free
	if job == nil {
		return &Job{}
	}

	e.free = job.next
	job.next = nil
	job.settling.Store(false)

	return job
}

// release recycles a job. The caller holds the lock. The free list is as long
// as the most jobs that were ever held at once.
func (e *Engine) release(job *Job) {
	job.Delivery = transport.Delivery{}
	job.Payload = nil
	job.Retries, job.Failure = 0, nil
	job.state = parked
	job.cancel, job.cancelled = nil, false
	job.key, job.lane, job.behind = "", nil, nil
	job.generation++
	job.prev, job.next = nil, e.free
	e.free = job
}

// jobList is a doubly linked list in order of arrival.
type jobList struct {
	first, last *Job
	len         int
}

func (l *jobList) push(j *Job) {
	j.prev, j.next = l.last, nil
	if l.last != nil {
		l.last.next = j
	} else {
		l.first = j
	}

	l.last = j
	l.len++
}

func (l *jobList) remove(j *Job) {
	if j.prev != nil {
		j.prev.next = j.next
	} else {
		l.first = j.next
	}

	if j.next != nil {
		j.next.prev = j.prev
	} else {
		l.last = j.prev
	}

	j.prev, j.next = nil, nil
	l.len--
}

// ring is a first-in-first-out queue that grows as needed.
type ring struct {
	jobs  []*Job
	head  int
	count int
}

func (r *ring) len() int { return r.count }

func (r *ring) push(j *Job) {
	if r.count == len(r.jobs) {
		grown := make([]*Job, max(16, 2*len(r.jobs)))
		n := copy(grown, r.jobs[r.head:])
		copy(grown[n:], r.jobs[:r.head])
		r.jobs, r.head = grown, 0
	}

	r.jobs[(r.head+r.count)&(len(r.jobs)-1)] = j
	r.count++
}

func (r *ring) pop() *Job {
	j := r.jobs[r.head]
	r.jobs[r.head] = nil
	r.head = (r.head + 1) & (len(r.jobs) - 1)
	r.count--

	return j
}
