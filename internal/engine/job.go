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

	// Burial is what remains to be stored of a job whose handler is done. See
	// Config.Handle.
	Burial any

	// Exited is set when the handler ended its goroutine instead of returning:
	// the stack of that goroutine. Handle then concludes what is left.
	Exited []byte

	// Retries counts the tries here that came before this one, beyond the
	// deliveries of the broker: those of the handler or, when there is a
	// Burial, those of which it has been told that the storage fails.
	Retries int

	settling atomic.Bool

	state      state
	arrived    time.Time
	lease      time.Time // when it begins
	lost       atomic.Bool
	started    time.Time
	due        time.Time
	cancel     context.CancelCauseFunc
	cancelled  bool
	generation uint64

	bytes      int    // while it is parked
	key        string // what Lane returned
	lane       *lane
	behind     *Job // the next one of the lane
	prev, next *Job // the list of all held jobs; next also chains free ones
}

type state uint8

const (
	idle      state = iota // not held
	queued                 // ready to be started
	running                // with a handler
	blocked                // behind another one of its lane
	waiting                // for its next try
	burying                // to be buried, or being buried
	returning              // to be handed back when the broker has stopped
	abandoned              // not to be started any more
)

// parks reports whether a job in this state does not count against the window.
func (s state) parks() bool { return s == blocked || s == waiting || s == burying }

// become changes the state of a job. The caller holds the lock.
func (e *Engine) become(job *Job, s state) {
	switch was, is := job.state.parks(), s.parks(); {
	case is && !was:
		job.bytes = size(&job.Delivery)
		e.parked++
		e.parkedBytes += job.bytes
	case was && !is:
		e.parked--
		e.parkedBytes -= job.bytes
	}

	switch was, is := job.state == abandoned, s == abandoned; {
	case is && !was:
		e.abandoned++
	case was && !is:
		e.abandoned--
	}

	job.state = s
}

// size is what a delivery occupies in memory, about.
func size(d *transport.Delivery) int {
	n := len(d.Data) + len(d.Subject) + len(d.Reply)

	for key, values := range d.Header {
		n += len(key)
		for _, v := range values {
			n += len(v)
		}
	}

	return n
}

// Settling says that the job's delivery is about to be settled, so that its
// lease is not renewed under the settlement: a renewal that reaches the server
// after a delayed nak would undo the delay.
func (j *Job) Settling() { j.settling.Store(true) }

// LeaseLost reports whether the job's lease has run out, so that somebody else may
// be handling the message. It may be called concurrently.
func (j *Job) LeaseLost() bool { return j.lost.Load() }

// Arrived returns when the delivery reached this process, as far as the
// transport knows, and else when it reached the engine.
func (j *Job) Arrived() time.Time { return j.arrived }

// Started returns when this try began. It is for Handle.
func (j *Job) Started() time.Time { return j.started }

// nak hands the delivery back. A failure changes nothing: the lease runs out.
func (j *Job) nak() {
	j.Settling()

	_ = j.Delivery.Settler.Settle(context.Background(), j.Delivery.Token, transport.Verdict{Action: transport.Nak})
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
	job.lost.Store(false)

	return job
}

// release recycles a job. The caller holds the lock. The free list is as long
// as the most jobs that were ever held at once.
func (e *Engine) release(job *Job) {
	job.Delivery = transport.Delivery{}
	job.Payload = nil
	job.Burial, job.Exited, job.Retries = nil, nil, 0
	job.due = time.Time{}
	e.become(job, idle)
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
