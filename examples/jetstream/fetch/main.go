// Command fetch pulls a batch and acks every message of it.
package main

import (
	"context"
	"fmt"
	"log"

	json "github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	_ "github.com/foomo/goflux/examples/internal/defaultserver"
	gofluxjs "github.com/foomo/goflux/transport/jetstream"
)

type Event struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func main() {
	ctx := context.Background()

	nc, err := nats.Connect(nats.DefaultURL)
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()

	js, err := gofluxjs.NewStream(ctx, nc, jetstream.StreamConfig{
		Name:     "READINGS",
		Subjects: []string{"readings.>"},
	})
	if err != nil {
		log.Fatal(err)
	}

	cons, err := js.CreateOrUpdateConsumer(ctx, "READINGS", jetstream.ConsumerConfig{Durable: "reader"})
	if err != nil {
		log.Fatal(err)
	}

	codec := json.NewCodec[Event]()

	pub := gofluxjs.NewPublisher[Event](js, codec)
	for i := range 3 {
		if err := pub.Publish(ctx, "readings.taken", Event{ID: fmt.Sprint(i + 1), Name: "reading"}); err != nil {
			log.Fatal(err)
		}
	}

	consumer := gofluxjs.NewConsumer[Event](cons, codec)
	// Pull up to 10 messages.
	msgs, err := consumer.Fetch(ctx, 10)
	if err != nil {
		log.Fatal(err)
	}

	for _, msg := range msgs {
		fmt.Printf("pulled: %s %s\n", msg.Payload.ID, msg.Payload.Name)
		// Each message must be explicitly acked.
		if err := msg.Ack(); err != nil {
			log.Printf("ack failed: %v", err)
		}
	}
}
