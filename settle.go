package goflux

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// settlement turns the outcome of a handler into what the broker is told. It is
// the only place where that is decided; docs/outcomes.md shows it as a table.
type settlement struct {
	cfg       *subscriberConfig
	caps      transport.Capabilities
	info      transport.Info
	telemetry *Telemetry
	filter    string // the subscription's filter, of low cardinality
}

func (s *settlement) begin(r *receiver, subject string) {
	s.cfg = &r.cfg
	s.caps = r.transport.Capabilities()
	s.telemetry = r.cfg.tel()
	s.filter = subject
}

func (s *settlement) attach(info transport.Info) {
	s.info = info

	if s.filter == "" {
		s.filter = info.Filter
	}
}

// conclude settles a delivery by the error of its handler. With retry, the
// engine keeps the message and comes back to it after the given time.
func (s *settlement) conclude(ctx context.Context, job *engine.Job, err error) (after time.Duration, retry bool) {
	if b, begun := err.(*burial); begun { //nolint:errorlint // only ever as it is, see handle
		return s.bring(ctx, job, b)
	}

	if err == nil {
		if !s.cfg.manual {
			s.settle(ctx, job, transport.Verdict{Action: s.ack()})
		}

		return 0, false
	}

	o, chosen := asOutcome(err)
	undecodable := chosen && o.undecodable

	if s.cfg.manual && !undecodable && !errors.Is(err, ErrPanic) {
		s.logFailure(job, "a handler failed; settling is up to it", err)

		return 0, false
	}

	switch {
	case chosen && o.kind == OutcomeDropped:
		s.logFailure(job, "a message was dropped", err)
		s.settle(ctx, job, transport.Verdict{Action: transport.Term, Reason: "dropped"})

		return 0, false
	case chosen && o.kind == OutcomeRejected:
		return s.bury(ctx, job, err, reasonOf(undecodable))
	case errors.Is(context.Cause(ctx), ErrLeaseLost) && !s.last(s.attempt(job)-job.Retries):
		// The broker has given the message to somebody else: another nak
		// would make a third delivery.
		s.logFailure(job, "a handler failed after its lease was lost", err)

		return 0, false
	}

	attempt := s.attempt(job)

	if s.last(attempt) {
		return s.bury(ctx, job, err, ReasonExhausted)
	}

	delay := s.delay(attempt)

	switch {
	case chosen:
		delay = o.delay
	case errors.Is(context.Cause(ctx), ErrDraining):
		delay = 0 // not the message's fault: another replica may start at once
	}

	s.logFailure(job, "a handler failed; the message is retried", err, slog.Int("attempt", attempt), slog.Duration("delay", delay))

	if s.cfg.strict {
		return delay, true
	}

	s.settle(ctx, job, transport.Verdict{Action: transport.Nak, Delay: delay})

	return 0, false
}

func (s *settlement) ack() transport.Action {
	if s.cfg.ackSync {
		return transport.AckSync
	}

	return transport.Ack
}

// attempt returns which try this was, from 1; tries that were made here count.
func (s *settlement) attempt(job *engine.Job) int {
	d := job.Delivery

	return max(d.Settler.Metadata(d.Token).Attempt, 1) + job.Retries
}

// last reports whether the broker would give the message up instead of
// delivering it again.
func (s *settlement) last(attempt int) bool {
	return !s.caps.Has(transport.Redelivery) || (s.info.MaxDeliver > 0 && attempt >= s.info.MaxDeliver)
}

// delay returns how long the message waits after its attempt failed.
func (s *settlement) delay(attempt int) time.Duration {
	if n := len(s.info.BackOff); n > 0 {
		return s.info.BackOff[min(attempt, n)-1]
	}

	return s.cfg.retry(attempt)
}

func reasonOf(undecodable bool) string {
	if undecodable {
		return ReasonUndecodable
	}

	return ReasonRejected
}

// bury ends a message that will not be handled: it is stored as a dead letter,
// where these are configured, and only then terminated. Until it is stored the
// message is kept here, with its lease, and storing it is tried again.
func (s *settlement) bury(ctx context.Context, job *engine.Job, err error, reason string) (after time.Duration, retry bool) {
	switch {
	case s.cfg.deadLetter != nil:
		return s.beginBurial(ctx, job, err, reason)
	case reason == ReasonExhausted:
		s.giveUp(ctx, job, err)
	default:
		s.logFailure(job, "a message was terminated: "+reason, err)
		s.settle(ctx, job, transport.Verdict{Action: transport.Term, Reason: reason})
	}

	return 0, false
}

// giveUp ends a message that has no attempts left, where there are no dead
// letters. The nak changes nothing but makes the broker say so: it keeps the
// message where the stream's retention does, and raises an advisory.
func (s *settlement) giveUp(ctx context.Context, job *engine.Job, err error) {
	if !s.caps.Has(transport.Redelivery) {
		s.logFailure(job, "a message was lost: its handler failed and this transport does not redeliver", err)

		return
	}

	s.logFailure(job, "a message was given up: it has no attempts left and no dead letters are configured", err)
	s.settle(ctx, job, transport.Verdict{Action: transport.Nak})
}

// settleTimeout bounds what waits for the broker while settling.
const settleTimeout = 5 * time.Second

// settle tells the broker. It does so under a context that outlives the
// subscription's: an ack must not fail because its process is shutting down.
func (s *settlement) settle(ctx context.Context, job *engine.Job, v transport.Verdict) {
	if !s.caps.Has(transport.Acks) {
		return
	}

	job.Settling()

	if v.Action == transport.AckSync {
		var cancel context.CancelFunc

		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
	}

	d := job.Delivery

	err := d.Settler.Settle(ctx, d.Token, v)
	if err == nil || errors.Is(err, ErrSettled) {
		return // already settled: the handler did it
	}

	s.logFailure(job, "a message could not be settled ("+v.Action.String()+"); the broker will deliver it again", err)
}

// logFailure logs what no caller gets to see. It never logs a payload.
func (s *settlement) logFailure(job *engine.Job, text string, err error, attrs ...slog.Attr) {
	attrs = append(attrs,
		slog.String("subject", job.Delivery.Subject),
		slog.String("stream", s.info.Stream),
		slog.String("consumer", s.info.Consumer),
		slog.Any("error", err),
	)

	if p, panicked := errors.AsType[*PanicError](err); panicked {
		attrs = append(attrs, slog.String("stack", string(p.Stack)))
	}

	s.cfg.log().LogAttrs(context.Background(), slog.LevelWarn, "goflux: "+text, attrs...)
}

func (r *receiver) onExpired(ctx context.Context, d transport.Delivery) {
	r.expired.Add(1)
	r.cfg.log().LogAttrs(ctx, slog.LevelWarn, "goflux: a lease ran out before a handler was free; the broker delivers the message again",
		slog.String("subject", d.Subject))
}

func (r *receiver) onNotify(ctx context.Context, subject string, err error) {
	if dropped, some := errors.AsType[*DroppedError](err); some {
		r.dropped.Add(dropped.Count)
	}

	r.cfg.log().LogAttrs(ctx, slog.LevelWarn, "goflux: a subscription reports",
		slog.String("subject", subject), slog.Any("error", err))
}
