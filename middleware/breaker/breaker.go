// Package breaker stops handling messages while what their handler depends on
// is down, with a circuit breaker of github.com/sony/gobreaker/v2.
package breaker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/pause"
)

const (
	defaultTimeout = 60 * time.Second // as gobreaker has it

	// probePause is how long a message is put off that comes while others try
	// whether the breaker may close.
	probePause = time.Second

	// margin is for the clock having to pass the end of the open state, not
	// only to reach it.
	margin = time.Millisecond
)

// Breaker is a circuit breaker for handlers. All handlers that depend on the
// same thing share one, whatever their types. It is safe for concurrent use,
// and knows of its own process only.
type Breaker struct {
	breaker  *gobreaker.CircuitBreaker[struct{}]
	name     string
	timeout  time.Duration
	excluded func(error) bool

	made   time.Time
	opened atomic.Int64 // nanoseconds since made
}

// New returns a breaker that is closed. The settings are those of gobreaker,
// and so are their defaults: it opens after more than 5 failures in a row, is
// open for 60 s, and half-open then lets one message through, whose success
// closes it.
//
// One default is of this package. Where IsExcluded is nil, these errors count
// neither as failure nor as success: [goflux.Reject] and [goflux.Drop], which
// tell of the message, [goflux.RetryAfter], which is a decision, and what a
// handler returns when its context ended because the subscription stops
// ([goflux.ErrDraining]) or lost the lease ([goflux.ErrLeaseLost]). All else
// is a failure, a panic included. An IsExcluded replaces the first three; it is
// not called for nil.
//
// OnStateChange, ReadyToTrip, IsSuccessful and IsExcluded are called
// concurrently with handlers, and must not use the breaker: it is locked.
func New(settings gobreaker.Settings) *Breaker {
	b := &Breaker{name: settings.Name, timeout: settings.Timeout, excluded: settings.IsExcluded, made: time.Now()}

	if b.timeout <= 0 {
		b.timeout = defaultTimeout
	}

	if b.excluded == nil {
		b.excluded = func(err error) bool { return goflux.OutcomeOf(err).Chosen() }
	}

	settings.Timeout = b.timeout
	settings.IsExcluded = func(err error) bool {
		_, neutral := err.(neutralError) //nolint:errorlint // made here, and wrapped by nobody

		return neutral
	}

	changed := settings.OnStateChange
	settings.OnStateChange = func(name string, from, to gobreaker.State) {
		if to == gobreaker.StateOpen {
			b.opened.Store(int64(time.Since(b.made)))
		}

		if changed != nil {
			changed(name, from, to)
		}
	}

	b.breaker = gobreaker.NewCircuitBreaker[struct{}](settings)

	return b
}

// State returns whether the breaker is closed, half-open or open.
func (b *Breaker) State() gobreaker.State { return b.breaker.State() }

// Option configures [Middleware].
type Option interface{ apply(c *config) }

type option func(*config)

func (o option) apply(c *config) { o(c) }

type config struct{ maxWait time.Duration }

// WithMaxWait makes a message wait in place for up to d while the breaker is
// open, rather than be put off at once. Zero and less, the default, mean that
// it does not wait.
//
// While its handlers wait, a subscription fetches nothing more, so messages
// stay in order and none uses up its deliveries. On the other hand it takes
// that much longer to stop: its handlers are cancelled only when the drain
// timeout is over. Choose more than the timeout of the breaker where deliveries
// are limited.
func WithMaxWait(d time.Duration) Option {
	return option(func(c *config) { c.maxWait = max(d, 0) })
}

// Middleware lets messages through to the handler while the breaker is closed,
// and some while it is half-open. Others are returned without being handled,
// with [goflux.RetryAfter] for the time until the breaker is half-open, because
// of [gobreaker.ErrOpenState]; while it is half-open and other messages try it
// out, for a second, because of [gobreaker.ErrTooManyRequests].
//
// Each time counts as a delivery. Where a consumer limits these (MaxDeliver),
// use [WithMaxWait], or messages that come last during a long outage go to the
// dead letters without having been handled.
//
// The handler's error is returned as it is, and its panics go on. A nil breaker
// lets everything through. Nil options are ignored.
func Middleware[T any](b *Breaker, opts ...Option) goflux.Middleware[T] {
	var c config

	for _, opt := range opts {
		if opt != nil {
			opt.apply(&c)
		}
	}

	return func(next goflux.Handler[T]) goflux.Handler[T] {
		if b == nil {
			return next
		}

		return func(ctx context.Context, msg goflux.Message[T]) error {
			let, err := through(ctx, b, next, msg)
			if let {
				return err
			}

			for begin := time.Now(); ; {
				delay := b.delay(err)
				if delay > c.maxWait-time.Since(begin) {
					return goflux.RetryAfter(delay, fmt.Errorf("circuit breaker %q: %w", b.name, err))
				}

				if err := pause.For(ctx, delay); err != nil {
					return fmt.Errorf("waiting for the circuit breaker %q: %w", b.name, err)
				}

				if let, err = through(ctx, b, next, msg); let {
					return err
				}
			}
		}
	}
}

// through calls the handler if the breaker lets the message through.
func through[T any](ctx context.Context, b *Breaker, next goflux.Handler[T], msg goflux.Message[T]) (let bool, err error) {
	_, err = b.breaker.Execute(func() (struct{}, error) {
		let = true

		err := next(ctx, msg)
		if err != nil && b.neutral(ctx, err) {
			err = neutralError{err}
		}

		return struct{}{}, err
	})

	if n, neutral := err.(neutralError); neutral { //nolint:errorlint // made here, and wrapped by nobody
		err = n.error
	}

	return let, err
}

// neutralError marks for gobreaker an error that does not count.
type neutralError struct{ error }

func (b *Breaker) neutral(ctx context.Context, err error) bool {
	cause := context.Cause(ctx)

	return errors.Is(cause, goflux.ErrDraining) || errors.Is(cause, goflux.ErrLeaseLost) || b.excluded(err)
}

// delay returns for how long there is no use in coming back.
func (b *Breaker) delay(refusal error) time.Duration {
	if !errors.Is(refusal, gobreaker.ErrOpenState) {
		return min(probePause, b.timeout)
	}

	open := time.Since(b.made) - time.Duration(b.opened.Load())

	return max(b.timeout-open, 0) + margin
}
