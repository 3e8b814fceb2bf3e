package middleware

import (
	"context"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/pause"
)

// The limits of [Retry].
const (
	// MaxRetryAttempts is how many tries there are at the most.
	MaxRetryAttempts = 10

	// MaxRetryTime is how long after the beginning of the first try another
	// one may begin.
	MaxRetryTime = 5 * time.Second
)

// Retry calls a handler that failed again, in place: attempts times at the
// most, the first one included, with the waits of backoff in between; its
// argument is the number of the try that failed, from 1. One attempt and less
// mean no retry, more than [MaxRetryAttempts] mean that many. A nil backoff is
// [goflux.DefaultRetryPolicy].
//
// It is for faults that are over in a moment, such as a conflict of two
// transactions. While it waits, the message keeps its worker and its place in
// the order, and the tries are lost when the process ends. So it is bounded:
// where the next try would begin later than [MaxRetryTime] after the first, it
// returns the error. For all else the redelivery by the broker is better, see
// [goflux.WithRetryPolicy], which follows in any case: with a limit of 5
// deliveries and Retry(3), a message that always fails is handled 15 times.
//
// It returns the error of the last try, unchanged. [goflux.RetryAfter],
// [goflux.Reject] and [goflux.Drop] end it at once, as does the end of ctx. A
// panic is tried again only where [Recover] is inside. All tries get the same
// message; what a handler changes behind a pointer in it, the next try sees.
func Retry[T any](attempts int, backoff goflux.RetryPolicy) goflux.Middleware[T] {
	attempts = min(attempts, MaxRetryAttempts)

	if backoff == nil {
		backoff = goflux.DefaultRetryPolicy
	}

	return func(next goflux.Handler[T]) goflux.Handler[T] {
		if attempts <= 1 {
			return next
		}

		return func(ctx context.Context, msg goflux.Message[T]) error {
			start := time.Now()

			for attempt := 1; ; attempt++ {
				err := next(ctx, msg)
				if err == nil || attempt == attempts || goflux.OutcomeOf(err).Chosen() {
					return err
				}

				wait := backoff(attempt)
				if wait > MaxRetryTime-time.Since(start) || pause.For(ctx, wait) != nil {
					return err
				}
			}
		}
	}
}
