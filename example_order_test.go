package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// Eight handlers at once, and the messages of one customer in order. With
// WithStrictOrder a message that fails is not overtaken by those behind it.
func ExampleWithOrderingKey() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	t, err := memory.New()
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

		for _, step := range []string{"created", "paid", "shipped"} {
			for _, customer := range []string{"ann", "bob"} {
				if err := pub.Publish(ctx, "orders."+customer, step); err != nil {
					fmt.Println(err)
				}
			}
		}
	}

	// region options
	customer := func(msg goflux.Message[string]) string { return msg.Subject }

	sub, err := goflux.NewSubscriber(t, raw.String(),
		goflux.WithConcurrency(8),
		goflux.WithOrderingKey(customer),
		goflux.WithStrictOrder(),
		goflux.WithRetryPolicy(goflux.ConstantRetry(10*time.Millisecond)),
		goflux.WithLogger(slog.New(slog.DiscardHandler)),
		goflux.WithReady(func() { go publish() }),
	)
	// endregion
	if err != nil {
		fmt.Println(err)

		return
	}

	var (
		mu      sync.Mutex
		seen    = map[string][]string{}
		handled int
		failed  bool
	)

	err = sub.Subscribe(ctx, "orders.*", func(_ context.Context, msg goflux.Message[string]) error {
		mu.Lock()
		defer mu.Unlock()

		if msg.Subject == "orders.ann" && msg.Payload == "paid" && !failed {
			failed = true

			return errors.New("the bank does not answer")
		}

		seen[msg.Subject] = append(seen[msg.Subject], msg.Payload)

		if handled++; handled == 6 {
			cancel()
		}

		return nil
	})
	if err != nil {
		fmt.Println(err)
	}

	fmt.Println("ann:", seen["orders.ann"])
	fmt.Println("bob:", seen["orders.bob"])

	// Output:
	// ann: [created paid shipped]
	// bob: [created paid shipped]
}
