package goflux_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
)

// healthy is what a probe would find; the error is that of the last look.
func healthy(sub interface {
	Health(ctx context.Context) error
}, err *error,
) func() bool {
	return func() bool {
		*err = sub.Health(context.Background())

		return *err == nil
	}
}

// A subscription is seen to lose its server, to come back, and to end.
func TestHealthOfConsumer(t *testing.T) {
	t.Parallel()

	server := natstest.RunTCP(t)
	nc := natstest.Connect(t, server, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	js := natstest.JetStream(t, nc)
	stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	consumer := natstest.Consumer(t, stream, natsjs.ConsumerConfig{Durable: "w"})
	ready := make(chan struct{})
	sub := jetstream.NewSubscriber(consumer, raw.String(), goflux.WithReady(func() { close(ready) }))

	if err := sub.Health(t.Context()); !errors.Is(err, goflux.ErrNotServing) {
		t.Errorf("before: %v", err)
	}

	ended := make(chan error, 1)

	go func() {
		ended <- sub.Subscribe(context.Background(), "orders.>", func(context.Context, goflux.Message[string]) error { return nil })
	}()

	<-ready

	var err error

	natstest.Eventually(t, healthy(sub, &err), "health with a server")

	server.Stop()

	if err := sub.Health(t.Context()); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, goflux.ErrDisconnected) {
		t.Errorf("without a server: %v", err)
	}

	if err := server.Start(); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, healthy(sub, &err), "health when the server is back")

	if err := stream.DeleteConsumer(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}

	if err := <-ended; !errors.Is(err, goflux.ErrConsumerNotFound) {
		t.Fatal(err)
	}

	if err := sub.Health(t.Context()); !errors.Is(err, goflux.ErrNotServing) || !errors.Is(err, goflux.ErrConsumerNotFound) {
		t.Errorf("without a consumer: %v", err)
	}
}

// One that drains gets no more messages, whatever its handlers still do.
func TestHealthWhileDraining(t *testing.T) {
	t.Parallel()

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()

	sub, err := goflux.NewSubscriber(tr, raw.String())
	if err != nil {
		t.Fatal(err)
	}

	pub, err := goflux.NewPublisher(tr, raw.String())
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()

	handling, release := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)

	go func() {
		ended <- sub.Subscribe(ctx, "a", func(context.Context, goflux.Message[string]) error {
			close(handling)
			<-release

			return nil
		})
	}()

	natstest.Eventually(t, healthy(sub, &err), "health while serving")

	if err := pub.Publish(t.Context(), "a", "x"); err != nil {
		t.Fatal(err)
	}

	<-handling
	stop()

	natstest.Eventually(t, func() bool { return errors.Is(sub.Health(t.Context()), goflux.ErrNotServing) }, "the end of health")
	close(release)

	if err := <-ended; err != nil {
		t.Error(err)
	}

	if err := sub.Health(t.Context()); !errors.Is(err, goflux.ErrNotServing) {
		t.Error(err)
	}
}

// What was wrong from the beginning is told, and what kept Subscribe from
// beginning.
func TestHealthNeverBegun(t *testing.T) {
	t.Parallel()

	bad := jetstream.NewSubscriber(nil, raw.String())
	if err := bad.Health(t.Context()); !errors.Is(err, goflux.ErrInvalidOption) {
		t.Error(err)
	}

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()

	sub, err := goflux.NewSubscriber(tr, raw.String())
	if err != nil {
		t.Fatal(err)
	}

	none := func(context.Context, goflux.Message[string]) error { return nil }
	if err := sub.Subscribe(t.Context(), "a..b", none); err == nil {
		t.Fatal("an invalid subject was subscribed to")
	}

	if err := sub.Health(t.Context()); !errors.Is(err, goflux.ErrNotServing) || !errors.Is(err, goflux.ErrInvalidSubject) {
		t.Error(err)
	}
}
