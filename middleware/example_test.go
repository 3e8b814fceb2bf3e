package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/transport"
)

// Order is what the examples handle.
type Order struct{ ID string }

// order is a message as a subscription hands it to a handler.
func order(id string) goflux.Message[Order] {
	return goflux.Message[Order]{
		Subject: "orders.created",
		Header:  goflux.Header{transport.HeaderMessageID: {id}},
		Payload: Order{id},
	}
}

// A chain is made once. It wraps the handler that Subscribe is given.
func Example() {
	chain := goflux.Chain(
		middleware.Idempotent[Order](middleware.NewMemoryStore(time.Hour, 10_000), "billing"),
		middleware.Retry[Order](3, goflux.ConstantRetry(time.Millisecond)),
		middleware.Timeout[Order](5*time.Second),
		middleware.Recover[Order](),
	)

	tries := 0
	handler := chain(func(_ context.Context, msg goflux.Message[Order]) error {
		tries++
		if tries == 1 {
			panic("a conflict")
		}

		fmt.Println("charged", msg.Payload.ID, "at try", tries)

		return nil
	})

	// The second one is a redelivery.
	fmt.Println(handler(context.Background(), order("A-1")))
	fmt.Println(handler(context.Background(), order("A-1")))
	// Output:
	// charged A-1 at try 2
	// <nil>
	// <nil>
}

func ExampleRecover() {
	handler := middleware.Recover[Order]()(func(context.Context, goflux.Message[Order]) error {
		panic("no price for A-1")
	})

	err := handler(context.Background(), order("A-1"))
	fmt.Println(errors.Is(err, goflux.ErrPanic), err)
	// Output: true panic: no price for A-1
}

func ExampleTimeout() {
	handler := middleware.Timeout[Order](10 * time.Millisecond)(func(ctx context.Context, _ goflux.Message[Order]) error {
		<-ctx.Done() // a call that never returns, but takes a context

		return ctx.Err()
	})

	err := handler(context.Background(), order("A-1"))
	fmt.Println(errors.Is(err, context.DeadlineExceeded), err)
	// Output: true the handler did not return within 10ms: context deadline exceeded
}

func ExampleRetry() {
	try := 0
	handler := middleware.Retry[Order](3, goflux.ConstantRetry(time.Millisecond))(func(context.Context, goflux.Message[Order]) error {
		try++
		if try < 3 {
			return errors.New("serialization failure")
		}

		fmt.Println("committed at try", try)

		return nil
	})

	fmt.Println(handler(context.Background(), order("A-1")))
	// Output:
	// committed at try 3
	// <nil>
}

func ExampleLog() {
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "duration" {
				return slog.Attr{} // another one each time
			}

			return a
		},
	}))

	log := middleware.Log[Order](logger)
	_ = log(func(context.Context, goflux.Message[Order]) error { return nil })(context.Background(), order("A-1"))
	_ = log(func(context.Context, goflux.Message[Order]) error {
		return goflux.Reject(errors.New("no such customer"))
	})(context.Background(), order("A-2"))
	// Output:
	// level=INFO msg="goflux: handler returned" subject=orders.created id=A-1 outcome=ok
	// level=ERROR msg="goflux: handler returned" subject=orders.created id=A-2 outcome=rejected error="rejected: no such customer"
}

func ExampleIdempotent() {
	// In production: a store of middleware/kvstore, which all replicas share.
	store := middleware.NewMemoryStore(time.Hour, 10_000)

	handler := middleware.Idempotent[Order](store, "billing")(func(_ context.Context, msg goflux.Message[Order]) error {
		fmt.Println("charged", msg.Payload.ID)

		return nil
	})

	for _, id := range []string{"A-1", "A-2", "A-1"} {
		if err := handler(context.Background(), order(id)); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// charged A-1
	// charged A-2
}

// The store is for more than Idempotent: whoever has it can ask.
func ExampleMemoryStore() {
	ctx, store := context.Background(), middleware.NewMemoryStore(time.Hour, 10_000)
	key := middleware.Key{Scope: "billing", ID: "A-1"}

	r, _ := store.Reserve(ctx, key, time.Minute)
	fmt.Println(r.Status == middleware.Reserved)

	_ = store.Record(ctx, key, r.Token)

	r, _ = store.Reserve(ctx, key, time.Minute)
	fmt.Println(r.Status == middleware.Handled)
	// Output:
	// true
	// true
}
