package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware/breaker"
)

type Order struct{ ID string }

// After two failures in a row the handler is left in peace, and messages come
// again when it is worth another try.
func ExampleMiddleware() {
	payments := breaker.New(gobreaker.Settings{
		Name:        "payments",
		Timeout:     30 * time.Second,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= 2 },
	})

	handler := breaker.Middleware[Order](payments)(func(_ context.Context, msg goflux.Message[Order]) error {
		fmt.Println("charging", msg.Payload.ID)

		return errors.New("connection refused")
	})

	for _, id := range []string{"A-1", "A-2", "A-3"} {
		if err := handler(context.Background(), goflux.Message[Order]{Payload: Order{id}}); errors.Is(err, gobreaker.ErrOpenState) {
			fmt.Println(id, "comes again later")
		}
	}

	fmt.Println("payments:", payments.State())
	// Output:
	// charging A-1
	// charging A-2
	// A-3 comes again later
	// payments: open
}
