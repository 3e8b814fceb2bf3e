package goflux

import (
	"context"
	"errors"
	"log/slog"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// burial is a dead letter that has yet to be stored. Its job keeps it between the
// tries, so that they are all about the same letter.
type burial struct {
	err    error // the handler's
	letter DeadLetter[[]byte]
}

func (s *settlement) newBurial(job *engine.Job, err error, reason string) *burial {
	d := job.Delivery

	letter := newDeadLetter(d.Subject, d.Header, d.Data, d.Settler.Metadata(d.Token), reason, err)
	letter.Attempts = s.attempt(job)

	if letter.Consumer == "" {
		letter.Consumer = s.cfg.group
	}

	return &burial{err: err, letter: letter}
}

// bring makes one try to store the dead letter of a job, beside the handlers.
func (s *settlement) bring(ctx context.Context, job *engine.Job) engine.Burial {
	b, _ := job.Burial.(*burial)

	switch {
	case job.Retries > 0 && job.LeaseLost() && !s.last(s.delivered(job)):
		// What the handler named is done, but not for ever: whoever gets the
		// message now will come to it again.
		s.logFailure(job, "a lease was lost before the dead letter was stored; the broker delivers the message again", b.err)

		return engine.Dropped
	case s.lost(job, b, job.Retries, nil):
		return engine.Dropped // others have asked for it
	}

	storing, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()

	err := s.store(storing, job, b)

	switch {
	case err == nil:
		return engine.Buried
	case s.lost(job, b, job.Retries+1, err):
		return engine.Lost
	case errors.Is(err, ErrTooLarge), errors.Is(err, ErrInvalidHeader), errors.Is(err, ErrInvalidOption):
		return engine.Refused // whatever becomes of others
	default:
		return engine.Failing
	}
}

// store is one try. An error means that the message is as it was.
func (s *settlement) store(ctx context.Context, job *engine.Job, b *burial) (err error) {
	dead := s.cfg.deadLetter

	if job.Delivery.Subject == dead.subject {
		err = dead.loop()
	} else {
		err = guard(func() error { return StoreDeadLetter(ctx, dead.publisher, dead.subject, b.letter) })
	}

	if err == nil {
		s.logFailure(job, "a message went to the dead letters: "+b.letter.Reason, b.err, slog.Int("attempt", b.letter.Attempts))
		s.settle(ctx, job, transport.Verdict{Action: transport.Term, Reason: b.letter.Reason})
	}

	return err
}

// lost reports whether a message is lost because so many tries to store its dead
// letter were in vain, the last one with err, and nobody else keeps it.
func (s *settlement) lost(job *engine.Job, b *burial, tries int, err error) bool {
	switch {
	case !s.caps.Has(transport.Redelivery) && tries >= deadLetterTries:
		s.logFailure(job, "a message was lost: neither handled nor stored as a dead letter", errors.Join(b.err, err))

		return true
	case err != nil:
		s.logFailure(job, "a dead letter could not be stored; trying again", err)
	}

	return false
}
