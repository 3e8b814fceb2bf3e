package goflux_test

import (
	"context"
	"fmt"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// With manual acks the verbs of the message settle it, and the error of the
// handler does not.
func ExampleWithManualAck() {
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
		if err == nil {
			err = pub.Publish(ctx, "orders.created", "order 7")
		}

		if err != nil {
			fmt.Println(err)
		}
	}

	sub, err := goflux.NewSubscriber(t, raw.String(), goflux.WithManualAck(), goflux.WithReady(func() { go publish() }))
	if err != nil {
		fmt.Println(err)

		return
	}

	// region handler
	handle := func(ctx context.Context, msg goflux.Message[string]) error {
		switch msg.Attempt() {
		case 1:
			fmt.Println("not now")

			return msg.NakWithDelay(10 * time.Millisecond)
		default:
			defer cancel()

			fmt.Println("handled", msg.Payload, "at attempt", msg.Attempt())

			// The broker has confirmed it when this returns nil.
			return msg.AckSync(ctx)
		}
	}
	// endregion

	if err := sub.Subscribe(ctx, "orders.*", handle); err != nil {
		fmt.Println(err)
	}

	// Output:
	// not now
	// handled order 7 at attempt 2
}
