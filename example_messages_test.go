package goflux_test

import (
	"context"
	"fmt"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// A loop instead of a handler. Leaving it ends the subscription.
func ExampleMessages() {
	ctx := context.Background()

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

		for _, text := range []string{"first", "last", "too late"} {
			if err := pub.Publish(ctx, "orders.created", text); err != nil {
				fmt.Println(err)
			}
		}
	}

	sub, err := goflux.NewSubscriber(t, raw.String(), goflux.WithManualAck(), goflux.WithReady(func() { go publish() }))
	if err != nil {
		fmt.Println(err)

		return
	}

	// region loop
	for msg, err := range goflux.Messages(ctx, sub, "orders.*") {
		if err != nil {
			fmt.Println(err) // the subscription has ended

			break
		}

		fmt.Println(msg.Payload)

		if err := msg.Ack(); err != nil {
			fmt.Println(err)
		}

		if msg.Payload == "last" {
			break
		}
	}
	// endregion

	// Output:
	// first
	// last
}
