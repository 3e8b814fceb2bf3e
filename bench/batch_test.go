package bench_test

import (
	"context"
	"encoding/json"
	"strconv"
	"testing"
	"time"

	gojson "github.com/foomo/goencode/json/v1"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport/embedded"
	gofluxjs "github.com/foomo/goflux/transport/jetstream"
)

// batchSize is how many messages each run of a batch benchmark publishes.
const batchSize = 100_000

// BenchmarkPublishMany publishes 100,000 small messages a run, in all the ways
// there are, over one server. The rates are in messages per second.
func BenchmarkPublishMany(b *testing.B) {
	js := stream(b, connectTCP(b))

	many := func(name string, n int, publish func(b *testing.B, n int)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()

			for b.Loop() {
				publish(b, n)

				b.StopTimer()
				purge(b, js)
				b.StartTimer()
			}

			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n)/float64(b.N), "ns/msg")
		})
	}

	items := make([]goflux.Item[Event], batchSize)
	for i := range items {
		items[i] = goflux.Item[Event]{Subject: "b.e", Payload: event}
	}

	batch := func(opts ...goflux.Option) func(b *testing.B, n int) {
		pub := gofluxjs.NewPublisher(js, gojson.NewCodec[Event](), opts...)
		b.Cleanup(func() { _ = pub.Close() })

		return func(b *testing.B, n int) {
			b.Helper()

			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()

			if _, err := pub.PublishBatch(ctx, items[:n]...); err != nil {
				b.Fatal(err)
			}
		}
	}

	many("raw-async", batchSize, func(b *testing.B, n int) { rawAsync(b, js, n, false) })
	many("goflux-batch", batchSize, batch())
	many("raw-async-id", batchSize, func(b *testing.B, n int) { rawAsync(b, js, n, true) })
	many("goflux-batch-retry", batchSize, batch(goflux.WithPublishRetry(0)))

	pub := gofluxjs.NewPublisher(js, gojson.NewCodec[Event]())
	b.Cleanup(func() { _ = pub.Close() })

	many("goflux-async", batchSize, func(b *testing.B, n int) {
		b.Helper()

		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()

		for range n {
			if _, err := pub.PublishAsync(ctx, "b.e", event); err != nil {
				b.Fatal(err)
			}
		}

		if err := pub.Flush(ctx); err != nil {
			b.Fatal(err)
		}
	})

	many("goflux-single", batchSize/10, func(b *testing.B, n int) {
		b.Helper()

		for range n {
			if err := pub.Publish(context.Background(), "b.e", event); err != nil {
				b.Fatal(err)
			}
		}
	})

	many("raw-single", batchSize/10, func(b *testing.B, n int) {
		b.Helper()

		for range n {
			data, err := json.Marshal(event)
			if err != nil {
				b.Fatal(err)
			}

			if _, err := js.Publish(context.Background(), "b.e", data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// connectTCP connects by way of the network, as services do.
func connectTCP(b *testing.B) *natsgo.Conn {
	b.Helper()

	server, err := embedded.Start(b.Context(), embedded.WithListen("127.0.0.1", 0))
	if err != nil {
		b.Fatal(err)
	}

	b.Cleanup(func() { _ = server.Shutdown() })

	nc, err := natsgo.Connect(server.ClientURL())
	if err != nil {
		b.Fatal(err)
	}

	b.Cleanup(nc.Close)

	return nc
}

// rawAsync publishes as a careful program without goflux does: it keeps the
// futures, and looks at each.
func rawAsync(b *testing.B, js jetstream.JetStream, n int, id bool) {
	b.Helper()

	futures := make([]jetstream.PubAckFuture, n)
	run := strconv.FormatInt(time.Now().UnixNano(), 36) + "-"

	for i := range futures {
		data, err := json.Marshal(event)
		if err != nil {
			b.Fatal(err)
		}

		msg := &natsgo.Msg{Subject: "b.e", Data: data}
		if id {
			msg.Header = natsgo.Header{jetstream.MsgIDHeader: {run + strconv.Itoa(i)}}
		}

		if futures[i], err = js.PublishMsgAsync(msg); err != nil {
			b.Fatal(err)
		}
	}

	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			b.Fatal(err)
		}
	}
}

func purge(b *testing.B, js jetstream.JetStream) {
	b.Helper()

	s, err := js.Stream(b.Context(), "B")
	if err != nil {
		b.Fatal(err)
	}

	if err := s.Purge(b.Context()); err != nil {
		b.Fatal(err)
	}
}
