package jetstream_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/jetstream"
)

// While a server shuts down it still answers. What it would be asked for then
// would stay unsettled until its ack wait is over.
func TestShutdownStrandsNothing(t *testing.T) {
	t.Parallel()

	server := natstest.RunTCP(t)
	nc := natstest.Connect(t, server)
	js := natstest.JetStream(t, nc)
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}})

	tr, err := jetstream.New(js, jetstream.WithStream("EVENTS"))
	must(t, err)
	t.Cleanup(func() { must(t, tr.Close()) })

	const n = 300 // messages; the ack wait is 30 s

	var (
		seen    [n]atomic.Bool
		handled atomic.Int64
	)

	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)

	sub, err := goflux.NewSubscriber(tr, raw.String(), goflux.WithQueueGroup("workers"), goflux.WithReady(func() { close(ready) }))
	must(t, err)

	go func() {
		ended <- sub.Subscribe(ctx, "events.>", func(_ context.Context, msg goflux.Message[string]) error {
			var i int
			if _, err := fmt.Sscan(msg.Payload, &i); err != nil {
				return err
			}

			if !seen[i].Swap(true) {
				handled.Add(1)
			}

			return nil
		})
	}()

	<-ready

	pub := publisher(t, tr, goflux.WithPublishRetry(0))
	restarted := make(chan error, 1)

	for i := range n {
		if i == n/2 {
			go func() { restarted <- server.Restart() }()
		}

		must(t, pub.Publish(within(t), "events.a", fmt.Sprint(i)))
	}

	must(t, <-restarted)
	natstest.Eventually(t, func() bool { return handled.Load() == n }, "all to be handled")

	cancel()
	must(t, <-ended)
}
