// Command durable publishes to a stream, and handles what a durable consumer
// delivers.
package main

import (
	"context"
	"fmt"
	"log"

	json "github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	gofluxjs "github.com/foomo/goflux/transport/jetstream"
)

type User struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	nc, err := nats.Connect(nats.DefaultURL)
	if err != nil {
		return err
	}
	defer nc.Close()

	js, err := gofluxjs.NewStream(ctx, nc, jetstream.StreamConfig{
		Name:     "USERS",
		Subjects: []string{"users.>"},
	})
	if err != nil {
		return err
	}

	consumer, err := js.CreateOrUpdateConsumer(ctx, "USERS", jetstream.ConsumerConfig{
		Durable:       "welcome",
		FilterSubject: "users.created",
	})
	if err != nil {
		return err
	}

	codec := json.NewCodec[User]()

	pub := gofluxjs.NewPublisher(js, codec)
	if err := pub.Publish(ctx, "users.created", User{ID: "1", Name: "Ann"}); err != nil {
		return err
	}

	sub := gofluxjs.NewSubscriber(consumer, codec)

	return sub.Subscribe(ctx, "users.created", func(_ context.Context, msg goflux.Message[User]) error {
		fmt.Println("welcome,", msg.Payload.Name)
		cancel() // one is enough; a service would serve until it is told to stop

		return nil // acknowledged
	})
}
