package goflux

import (
	"context"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// undertaker ends the fetched messages that do not decode. It does so by the
// settlement of subscribers, but has no engine that keeps messages with their
// leases: the broker does, as long as it delivers them again. Who holds the
// turn of the consumer calls it.
type undertaker struct {
	settlement

	// unburied are the messages that nobody would deliver again, and whose
	// dead letters could not be stored yet.
	unburied []unburied
}

type unburied struct {
	*burial

	job   *engine.Job
	tries int // so far
	due   time.Time
}

// undecoded is a message that did not decode, and why.
type undecoded struct {
	job *engine.Job
	err error
}

// bury ends messages that did not decode.
func (u *undertaker) bury(ctx context.Context, failed []undecoded) {
	if len(failed) == 0 {
		return
	}

	ctx, cancel := u.limit(ctx)
	defer cancel()

	for _, f := range failed {
		if u.cfg.deadLetter == nil {
			u.settlement.bury(ctx, f.job, f.err, ReasonUndecodable)

			continue
		}

		b := u.newBurial(f.job, f.err, ReasonUndecodable)
		u.try(ctx, unburied{burial: b, job: f.job, tries: b.letter.Attempts - 1}) // one for each delivery
	}
}

// buryDue tries again for those whose time has come.
func (u *undertaker) buryDue(ctx context.Context) {
	if len(u.unburied) == 0 {
		return
	}

	ctx, cancel := u.limit(ctx)
	defer cancel()

	all, now := u.unburied, time.Now()
	u.unburied = nil

	for _, w := range all {
		if w.due.After(now) {
			u.unburied = append(u.unburied, w)

			continue
		}

		// The tries are close enough for it to keep the lease.
		d := w.job.Delivery
		_ = d.Settler.Settle(ctx, d.Token, transport.Verdict{Action: transport.Extend})

		u.try(ctx, w)
	}
}

// try tries to store a dead letter. If that fails, the broker gets the message
// back while it still has attempts.
func (u *undertaker) try(ctx context.Context, w unburied) {
	err := u.store(ctx, w.job, w.burial)
	w.tries++

	if err == nil || u.lost(w.job, w.burial, w.tries, err) {
		return
	}

	after := deadLetterRetry(w.tries + 1)

	if !u.last(w.letter.Attempts) {
		u.settle(ctx, w.job, transport.Verdict{Action: transport.Nak, Delay: after})

		return
	}

	if ackWait := u.info().AckWait; ackWait > 0 {
		after = min(after, ackWait/3)
	}

	w.due = time.Now().Add(after)
	u.unburied = append(u.unburied, w)
}

// wake returns when the next try is due; nil means never.
func (u *undertaker) wake() <-chan time.Time {
	if len(u.unburied) == 0 {
		return nil
	}

	next := u.unburied[0].due
	for _, w := range u.unburied[1:] {
		if w.due.Before(next) {
			next = w.due
		}
	}

	return time.After(time.Until(next))
}

// close tries once more, and then gives up. The nak makes the broker say so.
func (u *undertaker) close() {
	ctx, cancel := u.limit(context.Background())
	defer cancel()

	for _, w := range u.unburied {
		if err := u.store(ctx, w.job, w.burial); err != nil {
			u.logFailure(w.job, "a message was given up: neither handled nor stored as a dead letter", err)
			u.settle(ctx, w.job, transport.Verdict{Action: transport.Nak})
		}
	}

	u.unburied = nil
}

// limit bounds what is done in one go, since messages that did decode wait
// meanwhile. The end of ctx does not interrupt it.
func (u *undertaker) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := settleTimeout
	if ackWait := u.info().AckWait; ackWait > 0 {
		limit = min(limit, ackWait/2)
	}

	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}
