package goflux_test

import (
	"context"
	"fmt"

	json "github.com/foomo/goencode/json/v1"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
	_ "github.com/foomo/goflux/transport/memory"
)

// A type, a subject and a handler. With another URL, and the package that knows
// its scheme imported, the same program runs over NATS.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	type Order struct{ ID string }

	t, err := transport.Open(ctx, "memory:")
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	publish := func() {
		pub, err := goflux.NewPublisher(t, json.NewCodec[Order]())
		if err == nil {
			err = pub.Publish(ctx, "orders.created", Order{ID: "7"})
		}

		if err != nil {
			fmt.Println(err)
		}
	}

	sub, err := goflux.NewSubscriber(t, json.NewCodec[Order](), goflux.WithReady(func() { go publish() }))
	if err != nil {
		fmt.Println(err)

		return
	}

	err = sub.Subscribe(ctx, "orders.*", func(_ context.Context, msg goflux.Message[Order]) error {
		fmt.Println(msg.Subject, msg.Payload.ID)
		cancel() // one is enough here

		return nil
	})
	fmt.Println(err)

	// Output:
	// orders.created 7
	// <nil>
}
