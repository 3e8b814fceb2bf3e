package jetstream_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// fill stores n messages on subject "bench".
func fill(b *testing.B, js natsjs.JetStream, n, size int) {
	b.Helper()

	data := make([]byte, size)

	for i := range n {
		if _, err := js.PublishAsync("bench", data); err != nil {
			b.Fatal(err)
		}

		if i%1000 == 999 {
			<-js.PublishAsyncComplete()
		}
	}

	<-js.PublishAsyncComplete()
}

// BenchmarkConsume compares the seam with what one would write by hand, with as
// many messages in flight, acks included. Handlers take no time, so that the
// difference is what the seam costs.
func BenchmarkConsume(b *testing.B) {
	s := natstest.Run(b)
	js := natstest.JetStream(b, natstest.Connect(b, s))
	stream := natstest.Stream(b, js, natsjs.StreamConfig{Name: "BENCH", Subjects: []string{"bench"}, Storage: natsjs.MemoryStorage})

	const stored = 200_000

	fill(b, js, stored, 128)

	var names int

	consumer := func(b *testing.B) natsjs.Consumer {
		b.Helper()

		names++

		return natstest.Consumer(b, stream, natsjs.ConsumerConfig{
			Durable: fmt.Sprint("c", names), FilterSubject: "bench", MaxAckPending: -1, MemoryStorage: true,
		})
	}

	for _, window := range []int{1, 16, 64, 256, 500, 1000} {
		b.Run(fmt.Sprint("hand-written/max=", window), func(b *testing.B) {
			for done := 0; done < b.N; done += stored {
				c := consumer(b)
				left := min(stored, b.N-done)
				end := make(chan struct{})

				cc, err := c.Consume(func(msg natsjs.Msg) {
					_ = msg.Ack()

					left--
					if left == 0 {
						close(end)
					}
				}, natsjs.PullMaxMessages(window))
				if err != nil {
					b.Fatal(err)
				}

				<-end
				cc.Stop()
			}
		})

		b.Run(fmt.Sprint("seam/credit=", window), func(b *testing.B) {
			for done := 0; done < b.N; done += stored {
				var (
					left atomic.Int64
					sub  transport.Subscription
				)

				left.Store(int64(min(stored, b.N-done)))

				end, began := make(chan struct{}), make(chan struct{})

				sub, err := jetstream.Bind(consumer(b)).Subscribe(b.Context(), transport.SubscribeConfig{
					Subject: "bench",
					Sink: func(d transport.Delivery) {
						<-began

						_ = d.Settler.Settle(b.Context(), d.Token, transport.Verdict{Action: transport.Ack})

						switch left.Add(-1) {
						case 0:
							close(end)
						default:
							sub.Request(1)
						}
					},
				})
				if err != nil {
					b.Fatal(err)
				}

				close(began)
				sub.Request(window)
				<-end

				if err := sub.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
