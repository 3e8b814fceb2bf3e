package middleware

import (
	"context"
	"runtime/debug"

	"github.com/foomo/goflux"
)

// Recover turns a panic of the handler into a [*goflux.PanicError] with its
// stack.
//
// A subscription does that by itself: without Recover no panic ends the
// program, and the message is retried. Recover is for the middlewares around
// it, which otherwise see a panic pass by and no error: with it, [Log] has the
// panic's value, [Retry] tries again, and [Idempotent] hands the error on. So
// it goes innermost.
//
// It cannot catch a panic in a goroutine that the handler started.
func Recover[T any]() goflux.Middleware[T] {
	return func(next goflux.Handler[T]) goflux.Handler[T] {
		return func(ctx context.Context, msg goflux.Message[T]) (err error) {
			defer func() {
				if v := recover(); v != nil {
					err = &goflux.PanicError{Value: v, Stack: debug.Stack()}
				}
			}()

			return next(ctx, msg)
		}
	}
}
