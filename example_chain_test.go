package goflux_test

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/transport/memory"
)

// Middlewares wrap a handler once, the first one outermost. Idempotent lets each
// message be handled once, though it was sent twice.
func ExampleChain() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	// So that both are stored: a broker that de-duplicates would store one.
	t, err := memory.New(memory.WithDuplicateWindow(time.Nanosecond))
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	publish := func() {
		pub, err := goflux.NewPublisher(t, raw.String())
		if err != nil {
			fmt.Println(err)

			return
		}

		for _, id := range []string{"order-7", "order-7", "order-8"} {
			if err := pub.Publish(goflux.WithMessageID(ctx, id), "orders.created", id); err != nil {
				fmt.Println(err)
			}
		}
	}

	sub, err := goflux.NewSubscriber(t, raw.String(),
		goflux.WithReady(func() { go publish() }), goflux.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		fmt.Println(err)

		return
	}

	charge := func(_ context.Context, msg goflux.Message[string]) error {
		fmt.Println("charged", msg.Payload)

		if msg.Payload == "order-8" {
			cancel()
		}

		return nil
	}

	// region chain
	// Replicas need a store that they share: see middleware/kvstore.
	store := middleware.NewMemoryStore(time.Hour, 10_000)

	once := goflux.Chain(
		middleware.Log[string](slog.New(slog.DiscardHandler)),
		middleware.Idempotent[string](store, "billing"),
		middleware.Timeout[string](5*time.Second),
	)

	err = sub.Subscribe(ctx, "orders.*", once(charge))
	// endregion
	fmt.Println(err)

	// Output:
	// charged order-7
	// charged order-8
	// <nil>
}
