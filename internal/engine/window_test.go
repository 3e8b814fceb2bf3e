package engine_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// What is fetched ahead of the handlers is bounded in bytes: 16 MiB.
func TestFetchedAheadIsBoundedInBytes(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ size, atLeast, atMost int }{
		{1 << 20, 14, 18},
		{256 << 10, 60, 70},
		{64 << 20, 1, 1},
		{1, 400, 600},
	} {
		t.Run(fmt.Sprint(c.size), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := newBroker(2000, transport.Info{AckWait: 30 * time.Second})
				b.data = make([]byte, c.size)
				result := start(ctx, b, config(func(_ context.Context, job *engine.Job) { ack(job) }))

				synctest.Wait()
				cancel()

				if err := <-result; err != nil {
					t.Fatal(err)
				}

				if b.maxAhead < c.atLeast || b.maxAhead > c.atMost {
					t.Errorf("%d messages were out at once, want %d to %d", b.maxAhead, c.atLeast, c.atMost)
				}
			})
		})
	}
}

// Messages behind a stuck one of their key do not count against the window, up
// to a bound in number and one in bytes: so many are held, others of other keys
// go on, and no more.
func TestParkedIsBounded(t *testing.T) {
	t.Parallel()

	const stuck = 20_000

	for _, c := range []struct {
		name string
		size int
		held int // before they count
		more int // are fetched then: the window
	}{
		{"in number", 1, 8192, 512 + 4},
		{"in bytes", 1 << 20, 64, 16 + 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := newBroker(0, transport.Info{AckWait: time.Hour})
				b.data = make([]byte, c.size)

				var handled atomic.Int32

				release := make(chan struct{})
				cfg := config(func(_ context.Context, job *engine.Job) {
					if job.Delivery.Token == 0 {
						<-release
					} else {
						handled.Add(1)
					}

					ack(job)
				})
				cfg.Concurrency = 4
				cfg.Lane = func(job *engine.Job) string {
					if n, _ := job.Delivery.Token.(int); n > c.held-16 && n < c.held-8 {
						return "another key"
					}

					return "the stuck one"
				}
				result := start(ctx, b, cfg)

				more := func(total int) {
					b.mu.Lock()
					b.backlog = total
					b.mu.Unlock()
					b.Request(0)
					synctest.Wait()
				}

				more(c.held - 8)

				if handled.Load() != 7 {
					t.Errorf("%d of 7 of another key were handled behind %d of the stuck one", handled.Load(), c.held-16)
				}

				more(stuck)

				if held := b.open; held < c.held || held > c.held+c.more {
					t.Errorf("%d are held, want %d to %d", held, c.held, c.held+c.more)
				}

				close(release)
				synctest.Wait()

				if n := b.count(transport.Ack); n != stuck {
					t.Errorf("%d of %d were handled in the end", n, stuck)
				}

				cancel()

				if err := <-result; err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// 8 handlers do 8 times as much as one where nothing else bounds them. In virtual
// time that is exact; the benchmark tells what is left of it in real time.
func TestHandlersRunSideBySide(t *testing.T) {
	t.Parallel()

	const (
		n     = 4000
		sleep = time.Millisecond
	)

	for _, concurrency := range []int{1, 2, 8} {
		t.Run(fmt.Sprint(concurrency), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := newBroker(n, transport.Info{AckWait: 30 * time.Second})
				done := make(chan struct{})

				var handled atomic.Int32

				began := time.Now()
				cfg := config(func(_ context.Context, job *engine.Job) {
					time.Sleep(sleep)
					ack(job)

					if handled.Add(1) == n {
						close(done)
					}
				})
				cfg.Concurrency = concurrency
				result := start(ctx, b, cfg)
				<-done

				if took, want := time.Since(began), n*sleep/time.Duration(concurrency); took != want {
					t.Errorf("it took %v, want %v", took, want)
				}

				cancel()

				if err := <-result; err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// BenchmarkHandlersThatSleep tells how many times as much handlers that sleep for
// a millisecond do as one of them does: at least 7 times with 8.
func BenchmarkHandlersThatSleep(b *testing.B) {
	rate := func(concurrency, n int) float64 {
		ctx, cancel := context.WithCancel(b.Context())
		source := newBroker(n, transport.Info{AckWait: 30 * time.Second})
		done := make(chan struct{})

		var handled atomic.Int64

		began := time.Now()
		cfg := config(func(_ context.Context, job *engine.Job) {
			time.Sleep(time.Millisecond)
			ack(job)

			if handled.Add(1) == int64(n) {
				close(done)
			}
		})
		cfg.Concurrency = concurrency
		result := start(ctx, source, cfg)
		<-done

		took := time.Since(began)

		cancel()

		if err := <-result; err != nil {
			b.Fatal(err)
		}

		return float64(n) / took.Seconds()
	}

	one := rate(1, 300)

	for _, concurrency := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(concurrency), func(b *testing.B) {
			r := rate(concurrency, max(b.N, 100))
			b.ReportMetric(r, "msg/s")
			b.ReportMetric(r/one, "times-one")
		})
	}
}

// BenchmarkDeliver is the way of a message through the engine.
func BenchmarkDeliver(b *testing.B) {
	for name, c := range map[string]struct {
		watches bool // the handler waits for its context, as what does I/O does
	}{"plain": {}, "watching": {watches: true}} {
		b.Run(name, func(b *testing.B) {
			source := newBroker(0, transport.Info{AckWait: time.Minute})
			handled := make(chan struct{}, 1)
			quiet := &silent{broker: source}
			ctx, cancel := context.WithCancel(b.Context())
			result := start(ctx, source, config(func(ctx context.Context, _ *engine.Job) {
				if c.watches {
					_ = ctx.Done()
				}

				handled <- struct{}{}
			}))
			d := transport.Delivery{Token: quiet, Settler: quiet}

			b.ReportAllocs()

			for b.Loop() {
				source.sink(d)
				<-handled
			}

			cancel()
			<-result
		})
	}
}
