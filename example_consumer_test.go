package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// A consumer fetches what its group has kept. Each message has to be settled.
func ExampleNewConsumer() {
	ctx := context.Background()

	t, err := memory.New(memory.WithHistory(100)) // so that the group begins with what was published before it
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

	for _, text := range []string{"first", "second", "third"} {
		if err := pub.Publish(ctx, "orders.created", text); err != nil {
			fmt.Println(err)
		}
	}

	// region fetch
	consumer, err := goflux.NewConsumer(t, raw.String(), "orders.*", goflux.WithQueueGroup("billing"))
	if err != nil {
		fmt.Println(err)

		return
	}
	defer consumer.Close()

	// It waits for the first message, not for ten.
	msgs, err := consumer.Fetch(ctx, 10)
	if err != nil {
		fmt.Println(err)
	}

	for _, msg := range msgs {
		fmt.Println(msg.Payload)

		if err := msg.Ack(); err != nil {
			fmt.Println(err)
		}
	}

	// Nothing is left: it waits as long as its context allows.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()

	_, err = consumer.Fetch(ctx, 10)
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// endregion

	// Output:
	// first
	// second
	// third
	// true
}
