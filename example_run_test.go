package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// What others rely on is named first, and stops last.
func ExampleRun() {
	// region run
	task := func(name string) goflux.Task {
		return func(ctx context.Context) error {
			<-ctx.Done()
			fmt.Println("stopped:", name)

			return nil
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()

	err := goflux.Run(ctx, task("the database"), task("orders"), task("invoices"))
	fmt.Println(err)
	// endregion

	// Output:
	// stopped: invoices
	// stopped: orders
	// stopped: the database
	// <nil>
}

// The first task that fails stops the others, and Run returns its error.
func ExampleRun_failing() {
	err := goflux.Run(context.Background(),
		func(ctx context.Context) error {
			<-ctx.Done()

			return nil
		},
		func(context.Context) error { return errors.New("the consumer was deleted") },
	)
	fmt.Println(err)

	// Output:
	// the consumer was deleted
}

// When Subscribe's context ends, the handler that runs goes on with a context that
// lives, and its outcome counts. What was not started goes to other replicas.
func ExampleWithDrainTimeout() {
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

		for _, text := range []string{"first", "second"} {
			if err := pub.Publish(context.Background(), "orders.created", text); err != nil {
				fmt.Println(err)
			}
		}
	}

	// region subscribe
	sub, err := goflux.NewSubscriber(t, raw.String(),
		goflux.WithQueueGroup("shipping"),
		goflux.WithDrainTimeout(10*time.Second),
		goflux.WithReady(sync.OnceFunc(func() { go publish() })),
	)
	// endregion
	if err != nil {
		fmt.Println(err)

		return
	}

	replica := func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()

		err := sub.Subscribe(ctx, "orders.*", func(_ context.Context, msg goflux.Message[string]) error {
			fmt.Println("another replica has", msg.Payload)
			cancel()

			return nil
		})
		if err != nil {
			fmt.Println(err)
		}
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	err = sub.Subscribe(ctx, "orders.*", func(handling context.Context, msg goflux.Message[string]) error {
		cancel() // as a signal would

		replica()
		fmt.Println("finished", msg.Payload, "with a context that lives:", handling.Err() == nil)

		return nil
	})
	fmt.Println("drained:", err)

	// Output:
	// another replica has second
	// finished first with a context that lives: true
	// drained: <nil>
}
