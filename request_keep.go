package goflux

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/foomo/goflux/internal/engine"
)

// An answer that could not be delivered is sent again: a few times for everybody,
// and for longer as far as patience goes. The pauses double, up to a bound.
const (
	answerTries = 5

	// A requester that is back waits for its answer that long.
	answerPause    = 250 * time.Millisecond
	maxAnswerPause = 5 * time.Second

	// Who is subscribed and says nothing holds a handler up with each try.
	silentPause = time.Second

	// answerPatience is enough for a requester to reconnect.
	answerPatience = 2 * time.Minute

	// patientAnswers, times the concurrency, is how many answers may need
	// patience within its duration. They stay unsettled, of which brokers
	// allow so many; and the requester of a thousand requests may have died.
	patientAnswers = 8
)

// undelivered is what there is to know of an answer that nobody has taken.
type undelivered struct {
	tries   int
	since   time.Time // of the first try
	silent  bool      // the last try got no reaction at all
	patient bool
}

func (u *undelivered) failed(err error) {
	if u.tries == 0 {
		u.since = time.Now()
	}

	u.tries++

	// Such a try counts twice.
	if u.silent = errors.Is(err, context.DeadlineExceeded); u.silent {
		u.tries++
	}
}

// pause returns how long to wait before the next try.
func (u *undelivered) pause() time.Duration {
	d := answerPause
	if u.silent {
		d = silentPause
	}

	for n := 1; n < u.tries && d < maxAnswerPause; n++ {
		d *= 2
	}

	return min(d, maxAnswerPause)
}

// keep reports whether an answer is sent again: until its requester does not
// wait any more, as far as patience goes. What a broker is to keep, or what
// waits for the connection, is kept as long as the lease.
func (a *answering) keep(job *engine.Job, ans *answer, err error) bool {
	ans.failed(err)

	if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDisconnected) {
		return true
	}

	until := ans.since.Add(answerPatience)
	if due, bounded := a.responder.Deadline(job.Delivery, job.Arrived()); bounded && due.Before(until) {
		until = due
	}

	now := time.Now()

	if !now.Before(until) {
		return false
	}

	if ans.tries >= answerTries && !ans.patient && !ans.silent {
		ans.patient = a.patience.take(now, patientAnswers*a.cfg.concurrency)
	}

	return ans.tries < answerTries || ans.patient
}

// patience counts the answers that it is granted to.
type patience struct {
	mu    sync.Mutex
	since time.Time
	used  int
}

func (p *patience) take(now time.Time, limit int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()

	if now.Sub(p.since) > answerPatience {
		p.since, p.used = now, 0
	}

	if p.used >= limit {
		return false
	}

	p.used++

	return true
}
