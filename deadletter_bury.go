package goflux

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// burial is a dead letter that has yet to be stored. The job keeps it as its
// failure between the tries, so that they are all about the same letter.
type burial struct {
	error // the handler's

	letter DeadLetter[[]byte]
	tries  int
}

func (b *burial) Unwrap() error { return b.error }

// beginBurial makes the dead letter of a message and stores it.
func (s *settlement) beginBurial(ctx context.Context, job *engine.Job, err error, reason string) (after time.Duration, retry bool) {
	d := job.Delivery

	// The first verdict wins, also over a dead letter: a handler may have
	// settled before it failed. If it has not, storing has a whole lease.
	if serr := d.Settler.Settle(ctx, d.Token, transport.Verdict{Action: transport.Extend}); errors.Is(serr, ErrSettled) {
		s.logFailure(job, "a handler failed after it had settled its message", err)

		return 0, false
	}

	m := d.Settler.Metadata(d.Token)
	letter := DeadLetter[[]byte]{
		Subject:  d.Subject,
		Header:   d.Header,
		Raw:      d.Data,
		Reason:   reason,
		Error:    err.Error(),
		Attempts: s.attempt(job),
		Stream:   m.Stream,
		Sequence: m.Sequence,
		Consumer: m.Consumer,
		Stored:   m.Timestamp,
		Time:     time.Now(),
	}

	if letter.Consumer == "" {
		letter.Consumer = s.cfg.group
	}

	return s.bring(ctx, job, &burial{error: err, letter: letter})
}

// bring tries to store a dead letter, and terminates the message if that
// succeeds.
func (s *settlement) bring(ctx context.Context, job *engine.Job, b *burial) (after time.Duration, retry bool) {
	dead := s.cfg.deadLetter

	// The message is not to be lost because its handler took too long, or
	// because the subscription stops.
	storing, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()

	var err error
	if job.Delivery.Subject == dead.subject {
		err = dead.loop()
	} else {
		err = StoreDeadLetter(storing, dead.publisher, dead.subject, b.letter)
	}

	b.tries++

	switch {
	case err == nil:
		s.logFailure(job, "a message went to the dead letters: "+b.letter.Reason, b.error, slog.Int("attempt", b.letter.Attempts))
		s.settle(ctx, job, transport.Verdict{Action: transport.Term, Reason: b.letter.Reason})

		return 0, false
	case !s.caps.Has(transport.Redelivery) && b.tries >= deadLetterTries:
		s.logFailure(job, "a message was lost: neither handled nor stored as a dead letter", errors.Join(b.error, err))

		return 0, false
	default:
		job.Failure = b
		after = deadLetterRetry(b.tries + 1)

		s.logFailure(job, "a dead letter could not be stored; trying again", err, slog.Duration("delay", after))

		return after, true
	}
}
