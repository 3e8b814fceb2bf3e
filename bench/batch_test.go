package bench_test

import (
	"context"
	"encoding/json"
	"slices"
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

// batchSize is how many messages each turn publishes; one at a time, a tenth.
const batchSize = 100_000

// BenchmarkPublishMany publishes 100,000 small messages in all the ways there
// are, over one server. They take turns, and of each round of turns the quotient
// of the times is one sample, so that what the machine does otherwise does not
// count. Reported are the medians: "batch/raw" is the rate of PublishBatch as a
// part of that of a program that publishes asynchronously by hand, "retry/raw-id"
// compares what stores each message once, "async/raw" PublishAsync, and
// "batch/single" says how much more a batch is than single publishes. The others
// are rates, in messages per second.
//
// batch/raw is to be 0.9 or more, batch/single 10 or more.
func BenchmarkPublishMany(b *testing.B) {
	js := stream(b, connectTCP(b))
	codec := gojson.NewCodec[Event]()
	plain := gofluxjs.NewPublisher(js, codec)
	safe := gofluxjs.NewPublisher(js, codec, goflux.WithPublishRetry(0))

	b.Cleanup(func() { _, _ = plain.Close(), safe.Close() })

	ways := []way{
		{"batch", batchSize, func(ctx context.Context, n int) error { return inBatch(ctx, plain, n) }},
		{"raw", batchSize, func(_ context.Context, n int) error { return rawAsync(js, n, false) }},
		{"retry", batchSize, func(ctx context.Context, n int) error { return inBatch(ctx, safe, n) }},
		{"raw-id", batchSize, func(_ context.Context, n int) error { return rawAsync(js, n, true) }},
		{"async", batchSize, func(ctx context.Context, n int) error { return async(ctx, plain, n) }},
		{"single", batchSize / 10, func(ctx context.Context, n int) error { return single(ctx, plain, n) }},
		{"raw-single", batchSize / 10, func(ctx context.Context, n int) error { return rawSingle(ctx, js, n) }},
	}
	took := map[string][]float64{} // for a message

	for round := 0; b.Loop(); round++ {
		// Each finds what another one left behind.
		for i := range ways {
			w := ways[(round+i)%len(ways)]
			took[w.name] = append(took[w.name], w.turn(b, js))
		}
	}

	b.ReportMetric(0, "ns/op")

	for _, w := range ways {
		b.ReportMetric(float64(time.Second)/median(took[w.name]), w.name+"-msg/s")
	}

	for _, of := range [][2]string{{"batch", "raw"}, {"retry", "raw-id"}, {"async", "raw"}, {"batch", "single"}} {
		ratios := make([]float64, len(took["raw"]))
		for i := range ratios {
			ratios[i] = took[of[1]][i] / took[of[0]][i]
		}

		b.ReportMetric(median(ratios), of[0]+"/"+of[1])
	}
}

// way is a way to publish n messages.
type way struct {
	name    string
	n       int
	publish func(ctx context.Context, n int) error
}

// turn returns what a message took, in nanoseconds.
func (w *way) turn(b *testing.B, js jetstream.JetStream) float64 {
	b.Helper()

	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()

	start := time.Now()

	if err := w.publish(ctx, w.n); err != nil {
		b.Fatalf("%s: %v", w.name, err)
	}

	took := time.Since(start)

	purge(b, js)

	return float64(took) / float64(w.n)
}

func median(samples []float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))

	return sorted[len(sorted)/2]
}

func inBatch(ctx context.Context, pub *gofluxjs.Publisher[Event], n int) error {
	items := make([]goflux.Item[Event], n)
	for i := range items {
		items[i] = goflux.Item[Event]{Subject: "b.e", Payload: event}
	}

	_, err := pub.PublishBatch(ctx, items...)

	return err
}

func async(ctx context.Context, pub *gofluxjs.Publisher[Event], n int) error {
	pending := make([]*goflux.Pending, n)

	for i := range pending {
		var err error
		if pending[i], err = pub.PublishAsync(ctx, "b.e", event); err != nil {
			return err
		}
	}

	for _, p := range pending {
		if _, err := p.Wait(ctx); err != nil {
			return err
		}
	}

	return nil
}

func single(ctx context.Context, pub *gofluxjs.Publisher[Event], n int) error {
	for range n {
		if err := pub.Publish(ctx, "b.e", event); err != nil {
			return err
		}
	}

	return nil
}

func rawSingle(ctx context.Context, js jetstream.JetStream, n int) error {
	for range n {
		data, err := json.Marshal(event)
		if err != nil {
			return err
		}

		if _, err := js.Publish(ctx, "b.e", data); err != nil {
			return err
		}
	}

	return nil
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
func rawAsync(js jetstream.JetStream, n int, id bool) error {
	futures := make([]jetstream.PubAckFuture, n)
	run := strconv.FormatInt(time.Now().UnixNano(), 36) + "-"

	for i := range futures {
		data, err := json.Marshal(event)
		if err != nil {
			return err
		}

		msg := &natsgo.Msg{Subject: "b.e", Data: data}
		if id {
			msg.Header = natsgo.Header{jetstream.MsgIDHeader: {run + strconv.Itoa(i)}}
		}

		if futures[i], err = js.PublishMsgAsync(msg, jetstream.WithStallWait(time.Minute)); err != nil {
			return err
		}
	}

	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			return err
		}
	}

	return nil
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
