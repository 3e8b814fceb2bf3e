// Package middleware has middlewares for goflux handlers. Each is a
// [goflux.Middleware]; [goflux.Chain] makes one of several, and what it returns
// wraps a handler once, before the subscription starts:
//
//	chain := goflux.Chain(
//		middleware.Log[Order](logger),
//		ratelimit.Middleware[Order](limiter),
//		breaker.Middleware[Order](payments),
//		middleware.Idempotent[Order](store, "billing"),
//		middleware.Retry[Order](3, goflux.ConstantRetry(50*time.Millisecond)),
//		middleware.Timeout[Order](5*time.Second),
//		middleware.Recover[Order](),
//	)
//	err := sub.Subscribe(ctx, "orders.created", chain(charge))
//
// That is also the order in which they fit together, the outermost first: Log
// sees what the subscription sees; what holds messages back comes before what
// holds a reservation; every try of Retry has its own Timeout; and Recover is
// next to the handler, so that all others see a panic as an error.
//
// What brings a dependency or a broker with it is in a package of its own, so
// that a program links only what it uses:
//
//   - middleware/ratelimit: golang.org/x/time/rate
//   - middleware/breaker: github.com/sony/gobreaker/v2
//   - middleware/kvstore: ids of handled messages in a NATS key-value bucket
//
// All middlewares are safe for concurrent use, and none has a goroutine of its
// own. A middleware may wrap several handlers; what they then share, a limiter,
// a breaker or a store, is shared on purpose.
//
// # Outcomes
//
// A handler that returns [goflux.RetryAfter], [goflux.Reject] or [goflux.Drop]
// has decided, and middlewares respect that: Retry does not try again, a
// circuit breaker does not count it. They wrap errors only so that errors.Is
// and errors.As find what the handler returned.
package middleware
