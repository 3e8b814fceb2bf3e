package middleware

import (
	"context"
	"fmt"
	"time"

	"github.com/foomo/goflux"
)

// Timeout gives the handler d to return: then its context ends, and the error
// it returns matches [context.DeadlineExceeded], whatever else it is, so the
// message is retried by the retry policy. A handler that returns nil all the
// same has handled the message, and one that returns an outcome
// ([goflux.Reject] and the like) has decided; both stand. Zero and less mean no
// timeout.
//
// Nothing in Go can stop a handler that ignores its context: it goes on, and
// Timeout waits for it, so that no message is handled twice at once because of
// a timeout. Give the context to every call that takes one.
//
// It costs a timer and a context per message. [goflux.WithMaxHandlingTime]
// bounds a whole handling without them; Timeout may bound a part, such as each
// try of [Retry].
func Timeout[T any](d time.Duration) goflux.Middleware[T] {
	over := &timeoutError{text: fmt.Sprintf("the handler did not return within %v", d)}

	return func(next goflux.Handler[T]) goflux.Handler[T] {
		if d <= 0 {
			return next
		}

		return func(ctx context.Context, msg goflux.Message[T]) error {
			ctx, cancel := context.WithTimeoutCause(ctx, d, over)
			defer cancel()

			return over.mark(ctx, next(ctx, msg))
		}
	}
}

// timeoutError is the cause with which a handler's context ends here. Each
// middleware has one of its own, made once, so that it knows its own deadline
// from others.
type timeoutError struct{ text string }

func (e *timeoutError) Error() string     { return e.text }
func (e *timeoutError) Unwrap() error     { return context.DeadlineExceeded }
func (e *timeoutError) ErrorType() string { return "timeout" }

// mark adds e to the error of a handler whose context it ended.
func (e *timeoutError) mark(ctx context.Context, err error) error {
	if err == nil || context.Cause(ctx) != error(e) || goflux.OutcomeOf(err).Chosen() { //nolint:errorlint // this very one
		return err
	}

	return fmt.Errorf("%w: %w", e, err)
}
