package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	json "github.com/foomo/goencode/json/v1"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport"
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

// A loop of Fetch ends with its context: with an error nothing was fetched.
func ExampleBoundConsumer_Fetch() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	t, err := memory.New(memory.WithHistory(100))
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

	for _, text := range []string{"first", "second", "last"} {
		if err := pub.Publish(ctx, "orders.created", text); err != nil {
			fmt.Println(err)
		}
	}

	consumer, err := goflux.NewConsumer(t, raw.String(), "orders.*", goflux.WithQueueGroup("billing"))
	if err != nil {
		fmt.Println(err)

		return
	}

	handle := func(msg goflux.Message[string]) error {
		fmt.Println(msg.Payload)

		if msg.Payload == "last" {
			cancel() // as a signal would
		}

		return msg.Ack()
	}

	// region loop
	loop := func(ctx context.Context) error {
		defer consumer.Close()

		for {
			msgs, err := consumer.Fetch(ctx, 10)

			switch {
			case err != nil && ctx.Err() != nil:
				return nil // told to stop; nothing was fetched
			case err != nil:
				return err
			}

			// They are finished, whatever becomes of ctx meanwhile.
			for _, msg := range msgs {
				if err := handle(msg); err != nil {
					return err
				}
			}
		}
	}

	err = goflux.Run(ctx, loop)
	// endregion
	fmt.Println(err)

	// Output:
	// first
	// second
	// last
	// <nil>
}

// A worker that writes in batches, ends with its context, and keeps what does
// not fit among the dead letters.
func ExampleDeadLetterOf() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	t, err := memory.New(memory.WithHistory(100))
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	for _, text := range []string{`{"id":"1"}`, `{"id":""}`, `no JSON`, `{"id":"2"}`} {
		if _, err := t.Publish(ctx, transport.Message{Subject: "orders.created", Data: []byte(text)}); err != nil {
			fmt.Println(err)
		}
	}

	insert := func(_ context.Context, rows []goflux.Message[order]) error {
		for _, row := range rows {
			fmt.Println("order", row.Payload.ID)
		}

		cancel() // as a signal would

		return nil
	}

	// region worker
	work := func(ctx context.Context) error {
		consumer, err := goflux.NewConsumer(t, json.NewCodec[order](), "orders.*",
			goflux.WithQueueGroup("billing"),
			goflux.WithDeadLetter("dead.orders")) // what does not decode
		if err != nil {
			return err
		}
		defer consumer.Close()

		// Nobody renews the leases of a batch: it has to be done with before
		// the ack wait (30 s) is over, also when ctx ends meanwhile.
		batch := func(msgs []goflux.Message[order]) error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
			defer cancel()

			rows := make([]goflux.Message[order], 0, len(msgs))

			for _, msg := range msgs {
				if msg.Payload.ID != "" {
					rows = append(rows, msg)

					continue
				}

				// It will never fit. It ends when its dead letter is stored.
				dead := goflux.DeadLetterOf(msg, goflux.ReasonRejected, errors.New("an order without an id"))
				if err := goflux.StoreDeadLetter(ctx, t, "dead.orders", dead); err != nil {
					return err
				}

				if err := msg.Term(); err != nil {
					return err
				}
			}

			if err := insert(ctx, rows); err != nil {
				return err
			}

			for _, row := range rows {
				if err := row.Ack(); err != nil {
					return err
				}
			}

			return nil
		}

		for {
			msgs, err := consumer.Fetch(ctx, 500)

			switch {
			case err != nil && ctx.Err() != nil:
				return nil // told to stop; nothing was fetched
			case err != nil:
				return err
			}

			if err := batch(msgs); err != nil {
				// What is settled stays settled; the rest comes again.
				slog.Warn("a batch failed", "error", err)

				for _, msg := range msgs {
					_ = msg.NakWithDelay(5 * time.Second)
				}
			}
		}
	}
	// endregion

	if err := work(ctx); err != nil {
		fmt.Println(err)
	}

	dead, err := goflux.NewConsumer(t, raw.Bytes(), "dead.*", goflux.WithQueueGroup("letters"))
	if err != nil {
		fmt.Println(err)

		return
	}
	defer dead.Close()

	letters, err := dead.Fetch(context.Background(), 10)
	if err != nil {
		fmt.Println(err)
	}

	for _, letter := range letters {
		d := goflux.ParseDeadLetter(letter, json.NewCodec[order]())
		fmt.Printf("%s: %s\n", d.Reason, d.Raw)
	}

	// Unordered output:
	// order 1
	// order 2
	// rejected: {"id":""}
	// undecodable: no JSON
}
