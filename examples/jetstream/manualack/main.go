// Command manualack settles by hand: it acks, puts off what may work later, and
// terminates what never will.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	json "github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	_ "github.com/foomo/goflux/examples/internal/defaultserver"
	gofluxjs "github.com/foomo/goflux/transport/jetstream"
)

type Event struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

var errBusy = errors.New("busy")

// process fails for now the first time it sees "later", and always for "poison".
func process() func(Event) error {
	seen := map[string]bool{}

	return func(e Event) error {
		first := !seen[e.Name]
		seen[e.Name] = true

		switch {
		case e.Name == "poison":
			return errors.New("malformed")
		case e.Name == "later" && first:
			return errBusy
		default:
			return nil
		}
	}
}

func isRetryable(err error) bool { return errors.Is(err, errBusy) }

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	nc, err := nats.Connect(nats.DefaultURL)
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()

	js, err := gofluxjs.NewStream(ctx, nc, jetstream.StreamConfig{
		Name:     "TASKS",
		Subjects: []string{"tasks.>"},
	})
	if err != nil {
		log.Fatal(err)
	}

	cons, err := js.CreateOrUpdateConsumer(ctx, "TASKS", jetstream.ConsumerConfig{
		Durable:       "task-processor",
		FilterSubject: "tasks.created",
	})
	if err != nil {
		log.Fatal(err)
	}

	codec := json.NewCodec[Event]()
	process := process()

	pub := gofluxjs.NewPublisher[Event](js, codec)
	for i, name := range []string{"now", "later", "poison"} {
		if err := pub.Publish(ctx, "tasks.created", Event{ID: fmt.Sprint(i + 1), Name: name}); err != nil {
			log.Fatal(err)
		}
	}

	settled := make(chan struct{}, 3)
	done := func(what string, e Event) {
		fmt.Println(what, e.Name)

		settled <- struct{}{}
	}

	sub := gofluxjs.NewSubscriber[Event](cons, codec, gofluxjs.WithManualAck())

	go func() {
		_ = sub.Subscribe(ctx, "tasks.created", func(ctx context.Context, msg goflux.Message[Event]) error {
			if err := process(msg.Payload); err != nil {
				if isRetryable(err) {
					fmt.Println("put off:", msg.Payload.Name)
					// Redeliver after 5 seconds.
					return msg.NakWithDelay(5 * time.Second)
				}

				defer done("terminated:", msg.Payload)
				// Poison message -- terminate, no further redelivery.
				return msg.Term()
			}

			defer done("acked:", msg.Payload)

			return msg.Ack()
		})
	}()

	for range 3 {
		<-settled
	}
}
