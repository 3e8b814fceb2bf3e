// Package bench_test measures what goflux costs over hand-written nats.go: both in
// one run, over the same server, with the same codec.
package bench_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	gojson "github.com/foomo/goencode/json/v1"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport/embedded"
	gofluxjs "github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/nats"
)

// Event is what both sides send.
type Event struct {
	ID     string `json:"id"`
	Amount int    `json:"amount"`
}

var event = Event{ID: "order-1", Amount: 42}

func connect(b *testing.B) *natsgo.Conn {
	b.Helper()

	server, err := embedded.Start(b.Context())
	if err != nil {
		b.Fatal(err)
	}

	b.Cleanup(func() { _ = server.Shutdown() })

	nc, err := server.Connect()
	if err != nil {
		b.Fatal(err)
	}

	b.Cleanup(nc.Close)

	return nc
}

func stream(b *testing.B, nc *natsgo.Conn) jetstream.JetStream {
	b.Helper()

	js, err := gofluxjs.NewStream(b.Context(), nc, jetstream.StreamConfig{
		Name: "B", Subjects: []string{"b.>"}, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		b.Fatal(err)
	}

	return js
}

func BenchmarkPublishCore(b *testing.B) {
	nc := connect(b)

	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()

		for b.Loop() {
			data, err := json.Marshal(event)
			if err != nil {
				b.Fatal(err)
			}

			if err := nc.Publish("c.e", data); err != nil {
				b.Fatal(err)
			}
		}
	})

	b.Run("goflux", func(b *testing.B) {
		pub := nats.NewPublisher(nc, gojson.NewCodec[Event]())
		ctx := context.Background()
		b.ReportAllocs()

		for b.Loop() {
			if err := pub.Publish(ctx, "c.e", event); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkPublishJetStream(b *testing.B) {
	js := stream(b, connect(b))

	b.Run("raw", func(b *testing.B) {
		ctx := context.Background()
		b.ReportAllocs()

		for b.Loop() {
			data, err := json.Marshal(event)
			if err != nil {
				b.Fatal(err)
			}

			if _, err := js.Publish(ctx, "b.e", data); err != nil {
				b.Fatal(err)
			}
		}
	})

	b.Run("goflux", func(b *testing.B) {
		pub := gofluxjs.NewPublisher(js, gojson.NewCodec[Event]())
		ctx := context.Background()
		b.ReportAllocs()

		for b.Loop() {
			if err := pub.Publish(ctx, "b.e", event); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPublishJetStreamTogether has 64 goroutines publish over one connection,
// each waiting for its receipt. "raw-id" and "retry" store each message under an
// id, once.
func BenchmarkPublishJetStreamTogether(b *testing.B) {
	js := stream(b, connectTCP(b))

	together := func(name string, publish func(ctx context.Context) error) {
		b.Run(name, func(b *testing.B) {
			ctx := context.Background()

			purge(b, js)
			b.ReportAllocs()
			b.ResetTimer()
			b.SetParallelism(64 / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := publish(ctx); err != nil {
						b.Error(err)

						return
					}
				}
			})
		})
	}

	together("raw", func(ctx context.Context) error {
		data, err := json.Marshal(event)
		if err == nil {
			_, err = js.Publish(ctx, "b.e", data)
		}

		return err
	})

	plain := gofluxjs.NewPublisher(js, gojson.NewCodec[Event]())
	together("goflux", func(ctx context.Context) error { return plain.Publish(ctx, "b.e", event) })

	var (
		run = strconv.FormatInt(time.Now().UnixNano(), 36) + "-"
		ids atomic.Int64
	)

	together("raw-id", func(ctx context.Context) error {
		data, err := json.Marshal(event)
		if err == nil {
			_, err = js.Publish(ctx, "b.e", data, jetstream.WithMsgID(run+strconv.FormatInt(ids.Add(1), 36)))
		}

		return err
	})

	safe := gofluxjs.NewPublisher(js, gojson.NewCodec[Event](), goflux.WithPublishRetry(0))
	together("retry", func(ctx context.Context) error { return safe.Publish(ctx, "b.e", event) })

	b.Cleanup(func() { _, _ = plain.Close(), safe.Close() })
}

// BenchmarkConsumeJetStream measures messages that wait in the stream already.
func BenchmarkConsumeJetStream(b *testing.B) {
	js := stream(b, connect(b))

	fill := func(b *testing.B, n int) jetstream.Consumer {
		b.Helper()

		s, err := js.Stream(b.Context(), "B")
		if err != nil {
			b.Fatal(err)
		}

		if err := s.Purge(b.Context()); err != nil {
			b.Fatal(err)
		}

		data, err := json.Marshal(event)
		if err != nil {
			b.Fatal(err)
		}

		for range n {
			for {
				if _, err = js.PublishAsync("b.e", data); err == nil {
					break
				}
			}
		}

		<-js.PublishAsyncComplete()

		cons, err := js.CreateConsumer(b.Context(), "B", jetstream.ConsumerConfig{
			AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 10_000, InactiveThreshold: time.Minute,
		})
		if err != nil {
			b.Fatal(err)
		}

		return cons
	}

	b.Run("raw", func(b *testing.B) {
		cons := fill(b, b.N)
		done := make(chan struct{})

		var handled atomic.Int64

		b.ReportAllocs()
		b.ResetTimer()

		cc, err := cons.Consume(func(msg jetstream.Msg) {
			var e Event
			if err := json.Unmarshal(msg.Data(), &e); err != nil {
				b.Error(err)
			}

			if err := msg.Ack(); err != nil {
				b.Error(err)
			}

			if handled.Add(1) == int64(b.N) {
				close(done)
			}
		})
		if err != nil {
			b.Fatal(err)
		}

		<-done
		b.StopTimer()
		cc.Stop()
		<-cc.Closed()
	})

	for _, concurrency := range []int{1, 8} {
		b.Run(fmt.Sprintf("goflux-%d", concurrency), func(b *testing.B) {
			sub := gofluxjs.NewSubscriber(fill(b, b.N), gojson.NewCodec[Event](),
				goflux.WithConcurrency(concurrency), goflux.WithLogger(slog.New(slog.DiscardHandler)))

			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()

			var handled atomic.Int64

			b.ReportAllocs()
			b.ResetTimer()

			err := sub.Subscribe(ctx, "b.>", func(context.Context, goflux.Message[Event]) error {
				if handled.Add(1) == int64(b.N) {
					b.StopTimer()
					cancel()
				}

				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
