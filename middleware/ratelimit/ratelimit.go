// Package ratelimit limits how many messages a handler gets in a time, with a
// limiter of golang.org/x/time/rate.
package ratelimit

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/pause"
	"github.com/foomo/goflux/transport"
)

// DefaultMaxWait is how long a message waits for its turn where [WithMaxWait]
// does not say.
const DefaultMaxWait = time.Minute

// maxDelay bounds how long a message is put off: limits may be changed at any
// time, and one of zero would put it off for ever.
const maxDelay = time.Minute

// ErrLimited is the reason of the [goflux.RetryAfter] that is returned for a
// message whose turn is too far away.
var ErrLimited = transport.NewSentinel("rate_limited", "the rate limit leaves no turn for the message in time")

// Option configures [Middleware].
type Option interface{ apply(c *config) }

type option func(*config)

func (o option) apply(c *config) { o(c) }

type config struct{ maxWait time.Duration }

// WithMaxWait sets how long a message may wait for its turn; the default is
// [DefaultMaxWait]. Zero and less mean not at all.
//
// A message that would wait for longer is redelivered, and that counts as a
// delivery where these are limited. While every handler waits, nothing more is
// fetched; while none does, everything is, to be put off. So keep the maximum
// above the concurrency divided by the rate, unless messages are expendable.
func WithMaxWait(d time.Duration) Option {
	return option(func(c *config) { c.maxWait = max(d, 0) })
}

// Middleware makes each message take a token of the limiter before it reaches
// the handler. Where there is none, the message waits in place: it keeps its
// worker and its lease, so the subscription slows down to the rate, and nothing
// is redelivered because of it.
//
// When the wait would exceed [WithMaxWait] or the deadline of ctx, the message
// takes no token and is returned at once, with [goflux.RetryAfter] for that
// time, though at most a minute, because of [ErrLimited]. When ctx ends while
// it waits, the error has its cause.
//
// One limiter may serve several handlers, and may be changed while it does. A
// nil limiter means no limit. Nil options are ignored. A message that does not
// wait allocates nothing.
func Middleware[T any](limiter *rate.Limiter, opts ...Option) goflux.Middleware[T] {
	c := config{maxWait: DefaultMaxWait}

	for _, opt := range opts {
		if opt != nil {
			opt.apply(&c)
		}
	}

	return func(next goflux.Handler[T]) goflux.Handler[T] {
		if limiter == nil {
			return next
		}

		return func(ctx context.Context, msg goflux.Message[T]) error {
			if !limiter.Allow() {
				if err := c.wait(ctx, limiter); err != nil {
					return err
				}
			}

			return next(ctx, msg)
		}
	}
}

// wait takes a token that is not there yet.
func (c *config) wait(ctx context.Context, limiter *rate.Limiter) error {
	limit := c.maxWait
	if deadline, some := ctx.Deadline(); some {
		limit = min(limit, time.Until(deadline))
	}

	turn := limiter.Reserve()

	delay := turn.Delay() // without end for a limiter that lets nothing pass
	if delay > limit {
		turn.Cancel()

		return goflux.RetryAfter(min(delay, maxDelay), ErrLimited)
	}

	if err := pause.For(ctx, delay); err != nil {
		turn.Cancel()

		return fmt.Errorf("waiting for a turn under the rate limit: %w", err)
	}

	return nil
}
