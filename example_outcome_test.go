package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// The error of a handler says what becomes of its message.
func Example_outcomes() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	// region handler
	errBusy := errors.New("the database is busy")

	handle := func(_ context.Context, msg goflux.Message[string]) error {
		switch {
		case msg.Payload == "nonsense":
			return goflux.Reject(errors.New("no such customer")) // never again; a dead letter, where these are configured
		case msg.Payload == "old":
			return goflux.Drop(nil) // never again, and no dead letter
		case msg.Payload == "early" && msg.Attempt() == 1:
			return goflux.RetryAfter(0, errBusy) // again after that time
		case msg.Payload == "unlucky" && msg.Attempt() == 1:
			return errBusy // again, when the retry policy says so
		default:
			return nil // done
		}
	}
	// endregion

	var (
		mu   sync.Mutex
		done int
	)

	log := func(ctx context.Context, msg goflux.Message[string]) error {
		err := handle(ctx, msg)
		outcome := goflux.OutcomeOf(err)

		mu.Lock()
		defer mu.Unlock()

		fmt.Printf("%s, attempt %d: %s\n", msg.Payload, msg.Attempt(), outcome)

		if outcome != goflux.OutcomeFailed && outcome != goflux.OutcomeDelayed {
			if done++; done == 5 {
				cancel()
			}
		}

		return err
	}

	publish := func() {
		pub, err := goflux.NewPublisher(t, raw.String())
		if err != nil {
			fmt.Println(err)

			return
		}

		for _, text := range []string{"good", "nonsense", "old", "early", "unlucky"} {
			if err := pub.Publish(ctx, "orders.created", text); err != nil {
				fmt.Println(err)
			}
		}
	}

	sub, err := goflux.NewSubscriber(t, raw.String(),
		goflux.WithLogger(slog.New(slog.DiscardHandler)), goflux.WithReady(func() { go publish() }))
	if err != nil {
		fmt.Println(err)

		return
	}

	if err := sub.Subscribe(ctx, "orders.*", log); err != nil {
		fmt.Println(err)
	}

	// Unordered output:
	// good, attempt 1: ok
	// nonsense, attempt 1: rejected
	// old, attempt 1: dropped
	// early, attempt 1: delayed
	// early, attempt 2: ok
	// unlucky, attempt 1: failed
	// unlucky, attempt 2: ok
}
