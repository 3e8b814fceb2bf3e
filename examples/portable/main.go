// Command portable runs the same program over several transports: only the URL
// differs. Others can be given as arguments:
//
//	go run ./examples/portable nats://localhost:4222
package main

import (
	"context"
	"fmt"
	"os"

	json "github.com/foomo/goencode/json/v1"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
	_ "github.com/foomo/goflux/transport/embedded"
	_ "github.com/foomo/goflux/transport/memory"
	_ "github.com/foomo/goflux/transport/nats"
)

func main() {
	urls := os.Args[1:]
	if len(urls) == 0 {
		urls = []string{"memory:", "embedded:?stream=ORDERS&subjects=orders.>"}
	}

	for _, url := range urls {
		if err := run(context.Background(), url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// region whole

type Order struct {
	ID string `json:"id"`
}

// run handles one order, which it publishes itself.
func run(ctx context.Context, url string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	// region program
	t, err := transport.Open(ctx, url)
	if err != nil {
		return err
	}
	defer t.Close()

	sub, err := goflux.NewSubscriber(t, json.NewCodec[Order](), goflux.WithReady(func() { go publish(ctx, t) }))
	if err != nil {
		return err
	}

	return sub.Subscribe(ctx, "orders.created", func(ctx context.Context, msg goflux.Message[Order]) error {
		fmt.Printf("%s: order %s\n", url, msg.Payload.ID)
		cancel() // one is enough; a service would serve until it is told to stop

		return nil
	})
	// endregion
}

// publish sends an order once the subscription is there.
func publish(ctx context.Context, t transport.Transport) {
	// region publish
	pub, err := goflux.NewPublisher(t, json.NewCodec[Order]())
	if err == nil {
		err = pub.Publish(goflux.WithMessageID(ctx, "order-1"), "orders.created", Order{ID: "1"})
	}
	// endregion

	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// endregion
