package jetstream_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// In a cluster the consumer's leader changes, and goes away. The subscription
// goes on: everything arrives, and never more is handed out than was granted.
func TestClusterLeaderChanges(t *testing.T) {
	t.Parallel()

	c := natstest.RunCluster(t, 3)
	js := natstest.JetStream(t, natstest.Connect(t, c))
	stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Replicas: 3})
	consumer := natstest.Consumer(t, stream, natsjs.ConsumerConfig{Durable: "worker", AckWait: 2 * time.Second})

	ctx, cancel := context.WithTimeout(t.Context(), 3*natstest.Limit)
	defer cancel()

	tr, err := jetstream.New(js)
	must(t, err)

	const window = 10

	var (
		mu   sync.Mutex
		seen = map[string]bool{}
		work = make(chan transport.Delivery, window)
	)

	sub := subscribe(t, jetstream.Bind(consumer), transport.SubscribeConfig{
		Subject: "events.>",
		Sink: func(d transport.Delivery) {
			select {
			case work <- d:
			default:
				t.Error("more than the credit was delivered")
			}
		},
	})

	var worker sync.WaitGroup

	working, stop := context.WithCancel(ctx)

	worker.Go(func() {
		for {
			select {
			case d := <-work:
				mu.Lock()
				seen[string(d.Data)] = true
				mu.Unlock()

				_ = d.Settler.Settle(working, d.Token, transport.Verdict{Action: transport.Ack})

				sub.Request(1)
			case <-working.Done():
				return
			}
		}
	})

	sub.Request(window)

	published := 0
	publish := func(n int) {
		t.Helper()

		for range n {
			published++
			body := []byte(fmt.Sprint(published))

			for {
				try, cancel := context.WithTimeout(ctx, time.Second)
				_, err := tr.Publish(try, transport.Message{Subject: "events.a", Data: body, ID: string(body)})

				cancel()

				if err == nil {
					break
				}

				must(t, ctx.Err())
			}
		}
	}
	arrived := func() {
		t.Helper()
		must(t, natstest.Poll(ctx, func() bool {
			mu.Lock()
			defer mu.Unlock()

			return len(seen) == published
		}, "all %d messages", published))
	}

	for range 3 {
		publish(50)
		must(t, c.StepDownConsumer(ctx, "EVENTS", "worker"))
		publish(20)
		arrived()
	}

	leader := c.ConsumerLeader("EVENTS", "worker")
	c.StopNode(leader)
	publish(50)
	arrived()

	must(t, c.StartNode(ctx, leader))
	must(t, c.WaitReady(ctx))
	publish(50)
	arrived()

	stop()
	worker.Wait()
}
