package goflux_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	json "github.com/foomo/goencode/json/v1"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
)

// The ways to test a handler that docs/testing.md shows.

// region handler

type Shipper struct {
	Carrier func(ctx context.Context, id string) error
}

func (s *Shipper) Handle(ctx context.Context, msg goflux.Message[order]) error {
	if msg.Payload.ID == "" {
		return goflux.Reject(errors.New("an order without an id"))
	}

	return s.Carrier(ctx, msg.Payload.ID)
}

// endregion

// region alone

func TestDocsHandlerAlone(t *testing.T) {
	t.Parallel()

	s := &Shipper{}

	err := s.Handle(t.Context(), goflux.Message[order]{Subject: "orders.created"})
	if got := goflux.OutcomeOf(err); got != goflux.OutcomeRejected {
		t.Errorf("an order without an id is %s, want %s", got, goflux.OutcomeRejected)
	}
}

// endregion

// region memory

func TestDocsHandlerInMemory(t *testing.T) {
	t.Parallel()

	// In a bubble time passes when everybody waits: retries take no time.
	synctest.Test(t, func(t *testing.T) {
		tr, err := memory.New(memory.WithMaxDeliver(5))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tr.Close() }()

		calls := 0
		s := &Shipper{Carrier: func(context.Context, string) error {
			if calls++; calls < 4 {
				return errors.New("the carrier is out to lunch")
			}

			return nil
		}}

		sub, err := goflux.NewSubscriber(tr, json.NewCodec[order](), silent())
		if err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)

		go func() { done <- sub.Subscribe(ctx, "orders.*", s.Handle) }()

		synctest.Wait() // the subscription is there

		pub, err := goflux.NewPublisher(tr, json.NewCodec[order]())
		if err != nil {
			t.Fatal(err)
		}

		if err := pub.Publish(ctx, "orders.created", order{ID: "7"}); err != nil {
			t.Fatal(err)
		}

		time.Sleep(time.Minute) // longer than the retry policy takes
		cancel()

		if err := <-done; err != nil {
			t.Error(err)
		}

		if calls != 4 || tr.GivenUp() != 0 {
			t.Errorf("%d calls, %d messages given up; want 4 and 0", calls, tr.GivenUp())
		}
	})
}

// endregion

// region manual

func TestDocsManualAck(t *testing.T) {
	t.Parallel()

	var attempts []int

	handle := func(_ context.Context, msg goflux.Message[order]) error {
		attempts = append(attempts, msg.Attempt())
		if msg.Attempt() == 1 {
			return msg.NakWithDelay(10 * time.Second)
		}

		return msg.Ack()
	}

	synctest.Test(t, func(t *testing.T) {
		tr, err := memory.New()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tr.Close() }()

		sub, err := goflux.NewSubscriber(tr, json.NewCodec[order](), goflux.WithManualAck())
		if err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)

		go func() { done <- sub.Subscribe(ctx, "orders.*", handle) }()

		synctest.Wait() // the subscription is there

		pub, err := goflux.NewPublisher(tr, json.NewCodec[order]())
		if err != nil {
			t.Fatal(err)
		}

		if err := pub.Publish(ctx, "orders.created", order{ID: "7"}); err != nil {
			t.Fatal(err)
		}

		time.Sleep(5 * time.Minute) // what nobody settled would come again after the ack wait of 30 s
		cancel()

		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	if !slices.Equal(attempts, []int{1, 2}) {
		t.Errorf("attempts %v, want the first to be put off and the second to be acked", attempts)
	}
}

// endregion

// region embedded

func TestDocsHandlerOnJetStream(t *testing.T) {
	t.Parallel()

	server, err := embedded.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Shutdown() }()

	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()

	js, err := jetstream.NewStream(t.Context(), nc, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		t.Fatal(err)
	}

	consumer, err := js.CreateConsumer(t.Context(), "ORDERS", natsjs.ConsumerConfig{
		Durable: "shipping", AckPolicy: natsjs.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}

	if err := jetstream.NewPublisher(js, json.NewCodec[order]()).Publish(t.Context(), "orders.created", order{ID: "7"}); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	var shipped string

	s := &Shipper{Carrier: func(_ context.Context, id string) error {
		shipped = id
		cancel() // Subscribe acks this message, then returns

		return nil
	}}

	// With AckSync the server has counted the ack when Subscribe returns.
	sub := jetstream.NewSubscriber(consumer, json.NewCodec[order](), goflux.WithAckSync())
	if err := sub.Subscribe(ctx, "", s.Handle); err != nil {
		t.Fatal(err)
	}

	info, err := consumer.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if shipped != "7" || info.NumAckPending != 0 {
		t.Errorf("shipped %q, %d messages not acked", shipped, info.NumAckPending)
	}
}

// endregion
