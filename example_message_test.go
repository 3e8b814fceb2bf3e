package goflux_test

import (
	"context"
	"fmt"

	json "github.com/foomo/goencode/json/v1"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// An id names one message. Where the broker de-duplicates, it stores the id once,
// and the receipt tells which of two was stored.
func ExampleWithMessageID() {
	ctx := context.Background()

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	type Order struct{ ID string }

	// region id
	pub, err := goflux.NewPublisher(t, json.NewCodec[Order]())
	if err != nil {
		fmt.Println(err)

		return
	}

	for range 2 {
		receipt, err := pub.Send(goflux.WithMessageID(ctx, "order-7"), "orders.created", Order{ID: "7"})
		fmt.Println(receipt.Stream, receipt.Sequence, receipt.Duplicate, err)
	}
	// endregion

	// Output:
	// memory 1 false <nil>
	// memory 1 true <nil>
}

// Headers of the context go out with each message. The receiver finds them in
// the message, and the id of the message in its context as well. Neither goes out
// again by itself.
func ExampleWithHeader() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	pub, err := goflux.NewPublisher(t, raw.String())
	if err != nil {
		fmt.Println(err)

		return
	}

	publish := func() {
		// region send
		ctx := goflux.WithHeader(ctx, goflux.Header{"Tenant": {"acme"}})
		ctx = goflux.WithMessageID(ctx, "order-7")

		if err := pub.Publish(ctx, "orders.created", "an order"); err != nil {
			fmt.Println(err)
		}
		// endregion
	}

	sub, err := goflux.NewSubscriber(t, raw.String(), goflux.WithReady(func() { go publish() }))
	if err != nil {
		fmt.Println(err)

		return
	}

	err = sub.Subscribe(ctx, "orders.*", func(ctx context.Context, msg goflux.Message[string]) error {
		defer cancel()

		// region receive
		fmt.Println("tenant:", msg.Header.Get("Tenant"))
		fmt.Println("id:", msg.ID(), "and in the context:", goflux.MessageID(ctx))
		fmt.Println("to be sent with what this handler publishes:", goflux.HeaderFromContext(ctx))

		meta := msg.Metadata()
		fmt.Println("attempt", meta.Attempt, "of number", meta.Sequence, "in", meta.Stream)
		// endregion

		return nil
	})
	if err != nil {
		fmt.Println(err)
	}

	// Output:
	// tenant: acme
	// id: order-7 and in the context: order-7
	// to be sent with what this handler publishes: map[]
	// attempt 1 of number 1 in memory
}
