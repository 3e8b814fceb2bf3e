package goflux

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// settlement turns the outcome of a handler into what the broker is told. It is
// the only place where that is decided; docs/outcomes.md shows it as a table.
type settlement struct {
	cfg       *subscriberConfig
	caps      transport.Capabilities
	sub       transport.Subscription
	telemetry *Telemetry
	filter    string // the subscription's filter, of low cardinality
	over      atomic.Bool

	asking chan struct{} // takes a token of who looks at asked
	asked  time.Time     // when the broker was last asked for its configuration
}

func (s *settlement) begin(r *receiver, subject string) {
	s.cfg = &r.cfg
	s.caps = r.transport.Capabilities()
	s.telemetry = r.cfg.tel()
	s.filter = subject
}

func (s *settlement) attach(sub transport.Subscription) {
	s.sub = sub
	s.asking = make(chan struct{}, 1)

	if s.filter == "" {
		s.filter = sub.Info().Filter
	}
}

// info is what is known of the subscription. It is zero before there is one.
func (s *settlement) info() transport.Info {
	if s.sub == nil {
		return transport.Info{}
	}

	return s.sub.Info()
}

// infoAge is how old may be what is known of the broker's configuration when a
// message failed, and how long asking for it may take.
const infoAge = time.Second

// refresh asks for it where it is older. MaxDeliver may be changed at any time,
// and a message that has no attempt left is lost by being handed back.
func (s *settlement) refresh() {
	s.asking <- struct{}{}

	if time.Since(s.asked) >= infoAge {
		ctx, cancel := context.WithTimeout(context.Background(), infoAge)
		defer cancel()

		_ = s.sub.Flush(ctx)
		s.asked = time.Now()
	}

	<-s.asking
}

// leave says that the subscription has ended, and left to the broker what is
// still in the hands of handlers.
func (s *settlement) leave() { s.over.Store(true) }

// conclude settles a delivery by the error of its handler. With retry, the
// engine keeps the message and comes back to it after the given time.
func (s *settlement) conclude(ctx context.Context, job *engine.Job, err error) (after time.Duration, retry bool) {
	if err == nil {
		if !s.cfg.manual {
			s.settle(ctx, job, transport.Verdict{Action: s.ack()})
		}

		return 0, false
	}

	o, chosen := asOutcome(err)
	undecodable := chosen && o.undecodable
	final := chosen && o.kind != OutcomeDelayed

	switch {
	case s.cfg.manual && !undecodable && !errors.Is(err, ErrPanic):
		s.logFailure(job, "a handler failed; settling is up to it", err)

		return 0, false
	case !final && s.elsewhere(job):
		// Another nak would make a third delivery.
		s.logFailure(job, "a handler failed after its lease was over; the broker delivers the message again", err)

		return 0, false
	case !undecodable && s.settled(ctx, job):
		s.logFailure(job, "a handler failed after it had settled its message", err)

		return 0, false
	case chosen && o.kind == OutcomeDropped:
		s.logFailure(job, "a message was dropped", err)
		s.settle(ctx, job, transport.Verdict{Action: transport.Term, Reason: "dropped"})

		return 0, false
	case chosen && o.kind == OutcomeRejected:
		return s.bury(ctx, job, err, reasonOf(undecodable))
	}

	attempt := s.attempt(job)

	if s.last(attempt) {
		return s.bury(ctx, job, err, ReasonExhausted)
	}

	var delay time.Duration

	switch {
	case chosen:
		delay = o.delay
	case errors.Is(context.Cause(ctx), ErrDraining):
		// Not the message's fault: another replica may start at once.
	default:
		delay = s.delay(job, attempt)
	}

	s.logFailure(job, "a handler failed; the message is retried", err, slog.Int("attempt", attempt), slog.Duration("delay", delay))

	if s.cfg.strict {
		return delay, true
	}

	s.settle(ctx, job, transport.Verdict{Action: transport.Nak, Delay: delay})

	return 0, false
}

// crashed concludes a handling in which something panicked that is not the
// handler, such as a tracer: the message failed.
func (s *settlement) crashed(ctx context.Context, job *engine.Job, err error) (after time.Duration, retry bool) {
	return s.conclude(ctx, job, err)
}

func (s *settlement) ack() transport.Action {
	if s.cfg.ackSync {
		return transport.AckSync
	}

	return transport.Ack
}

// attempt returns which try this was, from 1; tries that were made here count.
func (s *settlement) attempt(job *engine.Job) int {
	return s.delivered(job) + job.Retries
}

// delivered returns how often the broker has delivered the message, this time
// included.
func (s *settlement) delivered(job *engine.Job) int {
	d := job.Delivery

	return max(d.Settler.Metadata(d.Token).Attempt, 1)
}

// last reports whether the broker would give the message up instead of
// delivering it again.
func (s *settlement) last(attempt int) bool {
	if !s.caps.Has(transport.Redelivery) {
		return true
	}

	s.refresh()

	limit := s.info().MaxDeliver

	return limit > 0 && attempt >= limit
}

// elsewhere reports whether the broker has given the message to somebody else,
// or is about to: the lease was lost, was left to run out at the end of the
// subscription, or was let go of at the maximum handling time and has run out
// since. It has not where this was the last attempt.
func (s *settlement) elsewhere(job *engine.Job) bool {
	return (job.LeaseLost() || s.over.Load()) && !s.last(s.delivered(job))
}

// settled reports whether the handler has settled the message: the first verdict
// wins, whatever comes after it. If it has not, its lease is a whole one again.
func (s *settlement) settled(ctx context.Context, job *engine.Job) bool {
	if !s.caps.Has(transport.Acks) {
		return false
	}

	d := job.Delivery

	return errors.Is(d.Settler.Settle(ctx, d.Token, transport.Verdict{Action: transport.Extend}), ErrSettled)
}

// delay returns how long the message waits after its attempt failed. A policy
// that panics is replaced by the default one.
func (s *settlement) delay(job *engine.Job, attempt int) (d time.Duration) {
	if list := s.info().BackOff; len(list) > 0 {
		return list[min(attempt, len(list))-1]
	}

	err := guard(func() error {
		d = s.cfg.retry(attempt)

		return nil
	})
	if err != nil {
		s.logFailure(job, "a retry policy failed; the default one is used", err)

		return DefaultRetryPolicy(attempt)
	}

	return d
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
		job.Burial = s.newBurial(job, err, reason)

		return 0, true
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
	info := s.info()
	attrs = append(attrs,
		slog.String("subject", job.Delivery.Subject),
		slog.String("stream", info.Stream),
		slog.String("consumer", info.Consumer),
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
