// Command quickstart sends typed messages through JetStream and says what
// happens to them.
//
// Without arguments it runs a NATS server in this process, on a temporary
// store; with -url nats://host:4222 it uses that server. Ctrl-C ends it.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	json "github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport/embedded"
	gofluxjs "github.com/foomo/goflux/transport/jetstream"
)

// Order is the message: any type that the codec can encode.
type Order struct {
	ID     string  `json:"id"`
	Amount float64 `json:"amount"`
}

func main() {
	url := flag.String("url", "", "the NATS server to use, for instance nats://localhost:4222; empty runs one in this process")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	switch err := run(ctx, os.Stdout, *url); {
	case ctx.Err() != nil:
		fmt.Println("interrupted")
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, url string) error {
	nc, closeAll, err := connect(ctx, out, url)
	if err != nil {
		return err
	}
	defer closeAll()

	// A name of its own, so that a server may be used twice at once.
	name := "QUICKSTART_" + rand.Text()[:8]
	prefix := strings.ToLower(name)

	js, err := gofluxjs.NewStream(ctx, nc, jetstream.StreamConfig{Name: name, Subjects: []string{prefix + ".>"}})
	if err != nil {
		return err
	}

	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()

		_ = js.DeleteStream(ctx, name)
	}()

	fmt.Fprintln(out, "created a stream")

	if err := publish(ctx, out, js, prefix+".created"); err != nil {
		return err
	}

	if err := handle(ctx, out, js, name, prefix+".created"); err != nil {
		return err
	}

	return fetch(ctx, out, js, name, prefix+".created")
}

// connect returns a connection to the server at url, or to one that it starts.
func connect(ctx context.Context, out io.Writer, url string) (*nats.Conn, func(), error) {
	if url != "" {
		nc, err := nats.Connect(url, nats.Name("goflux quickstart"))
		if err != nil {
			return nil, nil, fmt.Errorf("connecting: %w", err)
		}

		fmt.Fprintln(out, "connected to", nc.ConnectedUrlRedacted())

		return nc, nc.Close, nil
	}

	server, err := embedded.Start(ctx)
	if err != nil {
		return nil, nil, err
	}

	nc, err := server.Connect()
	if err != nil {
		server.Shutdown()

		return nil, nil, err
	}

	fmt.Fprintln(out, "started a NATS server with JetStream in this process")

	return nc, func() {
		nc.Close()
		server.Shutdown()
	}, nil
}

// publish sends three orders, each with an id and a header.
func publish(ctx context.Context, out io.Writer, js jetstream.JetStream, subject string) error {
	pub := gofluxjs.NewPublisher(js, json.NewCodec[Order]())

	for i := 1; i <= 3; i++ {
		order := Order{ID: fmt.Sprintf("order-%d", i), Amount: 9.5 * float64(i)}

		ctx := goflux.WithMessageID(ctx, order.ID)
		ctx = goflux.WithHeader(ctx, goflux.Header{"Tenant": {"acme"}})

		if err := pub.Publish(ctx, subject, order); err != nil {
			return err
		}

		fmt.Fprintf(out, "published %s\n", order.ID)
	}

	return nil
}

// handle serves the orders with automatic acks. The second one fails the first
// time, and is delivered again.
func handle(ctx context.Context, out io.Writer, js jetstream.JetStream, stream, subject string) error {
	consumer, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: "shipping", FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		return fmt.Errorf("creating a consumer: %w", err)
	}

	quiet := slog.New(slog.DiscardHandler) // a failing handler is logged otherwise
	sub := gofluxjs.NewSubscriber(consumer, json.NewCodec[Order](), goflux.WithLogger(quiet))

	ctx, done := context.WithCancel(ctx)
	defer done()

	shipped := 0

	return sub.Subscribe(ctx, subject, func(ctx context.Context, msg goflux.Message[Order]) error {
		if msg.Payload.ID == "order-2" && msg.Attempt() == 1 {
			fmt.Fprintf(out, "handling %s failed; it will come again\n", msg.Payload.ID)

			return errors.New("the carrier is out to lunch")
		}

		fmt.Fprintf(out, "shipped %s, amount %.2f, tenant %s, attempt %d\n",
			goflux.MessageID(ctx), msg.Payload.Amount, msg.Header.Get("Tenant"), msg.Attempt())

		if shipped++; shipped == 3 {
			done() // Subscribe acks this message, then returns
		}

		return nil
	})
}

// fetch reads the same orders as another service would, in a batch, and acks
// them by hand.
func fetch(ctx context.Context, out io.Writer, js jetstream.JetStream, stream, subject string) error {
	billing, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: "billing", FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		return fmt.Errorf("creating a consumer: %w", err)
	}

	consumer := gofluxjs.NewConsumer(billing, json.NewCodec[Order]())
	defer consumer.Close()

	for billed := 0; billed < 3; {
		msgs, err := consumer.Fetch(ctx, 10)
		if err != nil {
			return err
		}

		for _, msg := range msgs {
			fmt.Fprintf(out, "billed %s from a batch\n", msg.Payload.ID)

			if err := msg.AckSync(ctx); err != nil {
				return err
			}

			billed++
		}
	}

	info, err := billing.Info(ctx)
	if err != nil {
		return fmt.Errorf("asking for the consumer: %w", err)
	}

	fmt.Fprintf(out, "done: %d messages wait for billing, %d for an ack\n", info.NumPending, info.NumAckPending)

	return nil
}
