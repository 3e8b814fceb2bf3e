package transporttest

import (
	"context"
	"sync"
	"testing"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport"
)

// ahead bounds what a benchmark has published and not yet handled, so that no
// broker drops any of it.
const ahead = 1024

// body is what the benchmarks send.
var body = make([]byte, 128)

// Benchmark measures the transport of h, as sub-benchmarks of b: publishing one
// after the other and in parallel, publishing and handling, fetching. An
// operation is a message of 128 bytes; each reports msgs/s as well. There is no
// Fetch where the transport has no fetching.
func Benchmark(b *testing.B, h Harness) {
	b.Helper()

	type benchmark struct {
		name string
		run  func(b *testing.B, br *broker)
	}

	benchmarks := []benchmark{
		{"Publish", benchmarkPublish},
		{"PublishParallel", benchmarkPublishParallel},
		{"PublishHandle", func(b *testing.B, br *broker) { benchmarkHandle(b, br, 1) }},
		{"PublishHandleConcurrent", func(b *testing.B, br *broker) { benchmarkHandle(b, br, 16) }},
	}

	if newEnv(b, h).start(Config{}).has(transport.Fetching) {
		benchmarks = append(benchmarks, benchmark{"Fetch", benchmarkFetch})
	}

	for _, bench := range benchmarks {
		b.Run(bench.name, func(b *testing.B) {
			br := newEnv(b, h).start(Config{})

			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			bench.run(b, br)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}

func benchmarkPublish(b *testing.B, br *broker) {
	b.Helper()

	p := newPublisher(br.e, br.open(), raw.Bytes())
	ctx, subject := b.Context(), br.subject("p")

	for b.Loop() {
		if err := p.Publish(ctx, subject, body); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkPublishParallel(b *testing.B, br *broker) {
	b.Helper()

	p := newPublisher(br.e, br.open(), raw.Bytes())
	ctx, subject := b.Context(), br.subject("p")

	b.SetParallelism(16)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := p.Publish(ctx, subject, body); err != nil {
				b.Error(err)

				return
			}
		}
	})
}

func benchmarkHandle(b *testing.B, br *broker, concurrency int) {
	b.Helper()

	var (
		e       = br.e
		p       = newPublisher(e, br.open(), raw.Bytes())
		subject = br.subject("h")
		room    = make(chan struct{}, ahead)
		handled sync.WaitGroup
	)

	subscribe(e, br.open(), raw.Bytes(), subject, func(context.Context, goflux.Message[[]byte]) error {
		<-room
		handled.Done()

		return nil
	}, goflux.WithConcurrency(concurrency))
	handled.Add(b.N)
	b.ResetTimer()

	var publishing sync.WaitGroup

	for i := range concurrency {
		publishing.Go(func() {
			for n := i; n < b.N; n += concurrency {
				room <- struct{}{}

				if err := p.Publish(b.Context(), subject, body); err != nil {
					b.Error(err)
				}
			}
		})
	}

	publishing.Wait()
	handled.Wait()
	b.StopTimer()
}

func benchmarkFetch(b *testing.B, br *broker) {
	b.Helper()

	const batch = 100

	e, t := br.e, br.open()
	p, subject := newPublisher(e, t, raw.Bytes()), br.subject("f")

	c, err := goflux.NewConsumer(t, raw.Bytes(), subject, goflux.WithQueueGroup(fetchers))
	e.ok(err, "make a consumer")
	e.Cleanup(c.Close)

	// The group is there before the messages.
	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: fetchers, Sink: func(transport.Delivery) {}})
	e.ok(s.Close(e.within()), "close")
	b.ResetTimer()

	for n := 0; n < b.N; {
		b.StopTimer()

		waiting := min(ahead, b.N-n)
		for range waiting {
			e.ok(p.Publish(b.Context(), subject, body), "publish")
		}

		b.StartTimer()

		for waiting > 0 {
			msgs, err := c.Fetch(b.Context(), batch)
			if err != nil {
				b.Fatal(err)
			}

			for _, msg := range msgs {
				if err := msg.Ack(); err != nil {
					b.Fatal(err)
				}
			}

			waiting -= len(msgs)
			n += len(msgs)
		}
	}
}
