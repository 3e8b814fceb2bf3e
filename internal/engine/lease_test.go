package engine_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// near reports whether something happened when it should have, as far as the clock
// of the engine goes: it looks no more often than every millisecond.
func near(got, want time.Duration) bool { return got >= want && got <= want+10*time.Millisecond }

// The connection is away while an ack wait is over, and comes back before and
// after the clock looks. What came back too late is lost: the handler is told,
// what waits behind it is not handled here, and nothing of it is extended any
// more, since that would be the lease of whoever has it now.
func TestLeaseIsLostWithTheAckWait(t *testing.T) {
	t.Parallel()

	const ackWait = 10 * time.Second

	for _, c := range []struct {
		away time.Duration
		lost bool
	}{
		{9 * time.Second, false},
		{11 * time.Second, true},
		{12 * time.Second, true},
		{13*time.Second + 400*time.Millisecond, true},
		{time.Minute, true},
	} {
		t.Run(c.away.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := newBroker(0, transport.Info{AckWait: ackWait})
				b.flushErr = transport.ErrDisconnected

				var handled, expired atomic.Int32

				began := time.Now()
				cfg := config(func(ctx context.Context, job *engine.Job) {
					if handled.Add(1) > 1 {
						ack(job)

						return
					}

					select {
					case <-ctx.Done():
						if cause := context.Cause(ctx); !errors.Is(cause, engine.ErrLeaseLost) || !job.LeaseLost() {
							t.Errorf("cause %v, lease lost %v", cause, job.LeaseLost())
						}

						if took := time.Since(began); !near(took, ackWait) {
							t.Errorf("the handler was told after %v", took)
						}

						time.Sleep(2*time.Minute - ackWait) // nevertheless
					case <-time.After(2 * time.Minute):
						if c.lost {
							t.Error("the handler was not told that its lease was lost")
						}

						ack(job)
					}
				})
				cfg.Lane = func(*engine.Job) string { return "" } // two are parked behind the first one
				cfg.OnExpired = func(transport.Delivery) { expired.Add(1) }
				result := start(ctx, b, cfg)

				b.push(3)
				time.Sleep(c.away)
				b.failFlush(nil)

				extended := b.extended.Load()

				time.Sleep(time.Hour)

				if c.lost {
					if handled.Load() != 1 || expired.Load() != 2 {
						t.Errorf("handled %d, expired %d, want 1 and 2", handled.Load(), expired.Load())
					}

					if n := b.extended.Load(); n != extended {
						t.Errorf("leases that were lost were extended %d times", n-extended)
					}
				} else if handled.Load() != 3 || expired.Load() != 0 {
					t.Errorf("handled %d, expired %d, want 3 and 0", handled.Load(), expired.Load())
				}

				cancel()
				<-result
			})
		})
	}
}

// A lease begins when its extension is sent, however late the broker says that
// it has seen it.
func TestLeaseBeginsWhenItIsSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const ackWait = 12 * time.Second

		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: ackWait})

		var (
			flushes atomic.Int32
			sent    atomic.Int64
		)

		began := time.Now()
		b.onFlush = func(ctx context.Context) error {
			if flushes.Add(1) > 1 {
				<-ctx.Done()

				return ctx.Err()
			}

			sent.Store(int64(time.Since(began)))
			time.Sleep(2900 * time.Millisecond) // within the quarter that it has

			return nil
		}

		told := make(chan time.Duration, 1)
		result := start(ctx, b, config(func(ctx context.Context, _ *engine.Job) {
			<-ctx.Done()
			told <- time.Since(began)
		}))
		b.push(1)

		if got, want := <-told, time.Duration(sent.Load())+ackWait; !near(got, want) {
			t.Errorf("the lease was lost after %v, want %v", got, want)
		}

		cancel()
		<-result
	})
}

// A consumer that is gone delivers to nobody: its leases are lost at once.
func TestLeaseIsLostWithTheConsumer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(1, transport.Info{AckWait: 30 * time.Second})
		b.flushErr = fmt.Errorf("flush: %w", transport.ErrConsumerNotFound)

		began := time.Now()
		told := make(chan time.Duration, 1)
		result := start(ctx, b, config(func(ctx context.Context, _ *engine.Job) {
			<-ctx.Done()
			told <- time.Since(began)
		}))

		if took := <-told; took > 20*time.Second {
			t.Errorf("it took %v", took)
		}

		cancel()
		<-result
	})
}

// A broker that does not answer holds up neither the maximum handling time, nor
// what is due, nor the next sign of life.
func TestClockDoesNotWaitForTheBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 6 * time.Second

		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: 30 * time.Second})

		var flushing, most atomic.Int32

		b.onFlush = func(ctx context.Context) error {
			most.Store(max(most.Load(), flushing.Add(1)))
			defer flushing.Add(-1)

			<-ctx.Done()

			return ctx.Err()
		}

		var tries []time.Duration

		began := time.Now()
		cfg := config(nil)
		cfg.Concurrency, cfg.MaxHandlingTime = 8, limit
		cfg.Handle = func(ctx context.Context, job *engine.Job) (time.Duration, bool) {
			if job.Delivery.Token == 0 { // is tried again every 1.3 s
				tries = append(tries, time.Since(began))

				return 1300 * time.Millisecond, len(tries) < 10
			}

			start := time.Now()

			<-ctx.Done()

			if took := time.Since(start); !near(took, limit) || !errors.Is(context.Cause(ctx), engine.ErrMaxHandlingTime) {
				t.Errorf("it ended after %v: %v", took, context.Cause(ctx))
			}

			ack(job)

			return 0, false
		}
		result := start(ctx, b, cfg)

		for range 20 {
			b.push(1)
			time.Sleep(1100 * time.Millisecond)
		}

		time.Sleep(time.Minute)

		for i, at := range tries {
			if want := time.Duration(i) * 1300 * time.Millisecond; !near(at, want) {
				t.Errorf("try %d was after %v, want %v", i, at, want)
			}
		}

		if len(tries) != 10 || most.Load() != 1 {
			t.Errorf("%d tries of 10; %d signs of life at once", len(tries), most.Load())
		}

		cancel()
		<-result
	})
}

// A handler that exceeded its maximum and does not heed its context has its
// lease no longer: another replica gets the message.
func TestOverlongHandlerHasNoLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 10 * time.Second

		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(1, transport.Info{AckWait: 3 * time.Second})
		cfg := config(func(ctx context.Context, job *engine.Job) {
			time.Sleep(limit - time.Second)

			before := b.extended.Load()
			if before < 8 {
				t.Errorf("until its maximum the lease was renewed %d times", before)
			}

			time.Sleep(2 * time.Second)

			over := b.extended.Load() // one more may have been due in time
			if cause := context.Cause(ctx); !errors.Is(cause, engine.ErrMaxHandlingTime) || job.LeaseLost() {
				t.Errorf("cause %v, lease lost %v", cause, job.LeaseLost())
			}

			time.Sleep(time.Minute)

			if n := b.extended.Load(); n != over {
				t.Errorf("the lease was renewed %d times beyond the maximum", n-over)
			}

			if !errors.Is(context.Cause(ctx), engine.ErrMaxHandlingTime) || !job.LeaseLost() {
				t.Errorf("in the end: cause %v, lease lost %v", context.Cause(ctx), job.LeaseLost())
			}
		})
		cfg.MaxHandlingTime = limit
		result := start(ctx, b, cfg)

		time.Sleep(2 * time.Minute)
		cancel()
		<-result
	})
}

// The ack wait becomes shorter while a handler runs.
func TestLeaseFollowsTheConfiguration(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(2, transport.Info{AckWait: 30 * time.Second})

		cause := make(chan error, 2)
		cfg := config(func(ctx context.Context, job *engine.Job) {
			select {
			case <-ctx.Done():
			case <-time.After(15 * time.Second):
				ack(job)
			}

			cause <- context.Cause(ctx)
		})

		e := engine.New(ctx, cfg)
		b.sink = e.Deliver
		result := make(chan error, 1)

		go func() { result <- e.Run(ctx, b) }()

		time.Sleep(2 * time.Second)

		// It has been longer than that since the lease was renewed.
		b.reconfigure(func(info *transport.Info) { info.AckWait = time.Second })
		e.Wake()
		synctest.Wait()

		select {
		case err := <-cause:
			if !errors.Is(err, engine.ErrLeaseLost) {
				t.Errorf("the first handler ended with %v", err)
			}
		default:
			t.Error("the first handler was not told")
		}

		before := b.extended.Load()

		if err := <-cause; err != nil {
			t.Errorf("the second handler ended with %v", err)
		}

		if n := b.extended.Load() - before; n < 40 || n > 50 {
			t.Errorf("in 15 s the lease of 1 s was renewed %d times", n)
		}

		cancel()
		<-result
	})
}

// What a message that is handed back is delivered how often is asked for before,
// since it may be less than it was.
func TestDrainKnowsHowOftenTheBrokerDelivers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: time.Minute})
		b.onFlush = func(context.Context) error {
			b.reconfigure(func(info *transport.Info) { info.MaxDeliver = 1 })

			return nil
		}

		result := start(ctx, b, config(func(_ context.Context, job *engine.Job) {
			time.Sleep(time.Second)
			ack(job)
		}))
		b.push(3)
		synctest.Wait()
		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if acks, naks := b.count(transport.Ack), b.count(transport.Nak); acks != 3 || naks != 0 {
			t.Errorf("%d acked, %d handed back to be given up", acks, naks)
		}
	})
}
