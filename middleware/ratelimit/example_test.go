package ratelimit_test

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware/ratelimit"
)

type Order struct{ ID string }

// Two orders at once, and then none for longer than a message may wait here.
func ExampleMiddleware() {
	limiter := rate.NewLimiter(rate.Limit(1.0/60), 2)

	handler := ratelimit.Middleware[Order](limiter, ratelimit.WithMaxWait(0))(
		func(_ context.Context, msg goflux.Message[Order]) error {
			fmt.Println("shipped", msg.Payload.ID)

			return nil
		})

	for _, id := range []string{"A-1", "A-2", "A-3"} {
		if err := handler(context.Background(), goflux.Message[Order]{Payload: Order{id}}); err != nil {
			fmt.Println(id, "comes again later")
		}
	}
	// Output:
	// shipped A-1
	// shipped A-2
	// A-3 comes again later
}
