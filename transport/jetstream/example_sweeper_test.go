package jetstream_test

import (
	"context"
	"fmt"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/jetstream"
)

// A process dies while it handles a message for the last time. The sweeper
// stores the dead letter that it could not store.
func ExampleNewSweeper() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	server, err := embedded.Start(ctx)
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = server.Shutdown() }()

	nc, err := server.Connect()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer nc.Close()

	js, err := jetstream.NewStream(ctx, nc, natsjs.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: natsjs.WorkQueuePolicy,
	})
	if err != nil {
		fmt.Println(err)

		return
	}

	if _, err := jetstream.NewStream(ctx, nc, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}}); err != nil {
		fmt.Println(err)

		return
	}

	workers, err := js.CreateConsumer(ctx, "ORDERS", natsjs.ConsumerConfig{
		Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 100 * time.Millisecond, MaxDeliver: 1,
	})
	if err != nil {
		fmt.Println(err)

		return
	}

	sweeper, err := jetstream.NewSweeper(ctx, js, workers, "dead.orders")
	if err != nil {
		fmt.Println(err)

		return
	}

	dead, err := js.CreateConsumer(ctx, "DEAD", natsjs.ConsumerConfig{Durable: "reader", AckPolicy: natsjs.AckExplicitPolicy})
	if err != nil {
		fmt.Println(err)

		return
	}

	read := func(_ context.Context, msg goflux.Message[[]byte]) error {
		defer cancel()

		d := goflux.ParseDeadLetter(msg, raw.String())
		fmt.Printf("%q on %s, number %d for %s: %s\n", d.Payload, d.Subject, d.Sequence, d.Consumer, d.Reason)

		return nil
	}
	die := func(ctx context.Context) error {
		if _, err := js.Publish(ctx, "orders.created", []byte("order 7")); err != nil {
			return err
		}

		_, err := workers.Next() // and nobody settles it

		return err
	}

	if err := goflux.Run(ctx, sweeper.Run, goflux.SubscribeTask(jetstream.NewSubscriber(dead, raw.Bytes()), "", read), die); err != nil {
		fmt.Println(err)
	}

	// Output:
	// "order 7" on orders.created, number 1 for workers: attempts exhausted
}
