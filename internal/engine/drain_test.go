package engine_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// Once the drain timeout is over no handler is started, be it in the moment that
// running ones have to return, or when one returns after the end: by lanes, for
// want of workers, after a wait, or because it came then. What was not started
// is counted.
func TestNothingIsStartedAfterTheDrainTimeout(t *testing.T) {
	t.Parallel()

	lane := func(*engine.Job) string { return "" }

	for name, c := range map[string]struct {
		info       transport.Info
		redelivery bool
		lane       func(*engine.Job) string
		heeds      bool // the first handler ends with its context
		again      bool // and asks to be called again
		abandoned  int
	}{
		"last attempts":            {info: transport.Info{AckWait: time.Minute, MaxDeliver: 1}, redelivery: true, heeds: true, abandoned: 3},
		"last attempts, deaf":      {info: transport.Info{AckWait: time.Minute, MaxDeliver: 1}, redelivery: true, abandoned: 4},
		"last attempts of one key": {info: transport.Info{AckWait: time.Minute, MaxDeliver: 1}, redelivery: true, lane: lane, abandoned: 4},
		"no redelivery":            {heeds: true, abandoned: 3},
		"no redelivery, one key":   {lane: lane, abandoned: 4},
		"tried again":              {info: transport.Info{AckWait: time.Minute, MaxDeliver: 1}, redelivery: true, heeds: true, again: true, abandoned: 4},
		"tried again, one key":     {heeds: true, again: true, lane: lane, abandoned: 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := newBroker(0, c.info)

				var started []int

				cfg := config(nil)
				cfg.Redelivery, cfg.Lane, cfg.DrainTimeout = c.redelivery, c.lane, 5*time.Second
				cfg.Handle = func(ctx context.Context, job *engine.Job) (time.Duration, bool) {
					n, _ := job.Delivery.Token.(int)

					started = append(started, n)

					if c.heeds {
						<-ctx.Done()
					} else {
						time.Sleep(time.Minute)
					}

					if c.again {
						return 10 * time.Millisecond, true
					}

					ack(job)

					return 0, false
				}
				result := start(ctx, b, cfg)

				// One more arrives while the subscription is being closed.
				b.onClose = func() { b.push(1) }
				b.push(3)
				synctest.Wait()
				cancel()

				began := time.Now()

				var drain *engine.DrainError
				if err := <-result; !errors.As(err, &drain) || drain.Abandoned != c.abandoned {
					t.Errorf("got %v, want %d abandoned", err, c.abandoned)
				}

				if took := time.Since(began); took > 6*time.Second || (c.heeds && !c.again && took != 5*time.Second) {
					t.Errorf("it took %v", took)
				}

				time.Sleep(time.Hour)
				synctest.Wait()

				if !slices.Equal(started, []int{0}) {
					t.Errorf("started: %v, want the first one alone", started)
				}
			})
		})
	}
}

// What has lost its lease is not handed back: it has been given to somebody else
// already, and a nak would make one more delivery.
func TestDrainLeavesLostLeasesAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: 10 * time.Second})
		b.flushErr = transport.ErrDisconnected
		result := start(ctx, b, config(func(_ context.Context, job *engine.Job) {
			time.Sleep(20 * time.Second)
			ack(job)
		}))

		b.push(2)
		time.Sleep(15 * time.Second)
		b.push(1)
		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if len(b.verdicts[1]) != 0 || len(b.verdicts[2]) != 1 {
			t.Errorf("the one that was lost got %v, the other one %v", b.verdicts[1], b.verdicts[2])
		}
	})
}

// Nobody needs time to return where nothing runs.
func TestDrainOfWhatOnlyWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(1, transport.Info{AckWait: time.Minute, MaxDeliver: 1})
		cfg := config(nil)
		cfg.DrainTimeout = 5 * time.Second
		cfg.Handle = func(context.Context, *engine.Job) (time.Duration, bool) { return time.Hour, true }
		result := start(ctx, b, cfg)

		synctest.Wait()
		cancel()

		began := time.Now()

		var drain *engine.DrainError
		if err := <-result; !errors.As(err, &drain) || drain.Abandoned != 1 {
			t.Errorf("got %v, want one abandoned", err)
		}

		if took := time.Since(began); took != cfg.DrainTimeout {
			t.Errorf("it took %v", took)
		}
	})
}

// The drain timeout is no longer because the broker does not answer.
func TestDrainTimeoutIsThatOfSlowBrokersToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(1, transport.Info{AckWait: time.Minute})
		b.onClose = func() { time.Sleep(5 * time.Second) }

		told := make(chan time.Time, 1)
		cfg := config(func(ctx context.Context, job *engine.Job) {
			<-ctx.Done()
			told <- time.Now()

			ack(job)
		})
		cfg.DrainTimeout = 2 * time.Second
		result := start(ctx, b, cfg)

		synctest.Wait()

		began := time.Now()

		cancel()

		if took := (<-told).Sub(began); took != cfg.DrainTimeout {
			t.Errorf("the handler was told after %v", took)
		}

		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

// Of what waits for the end of a handler's context nothing is left when the
// handler has returned, though the messages share one as long as nobody does.
func TestContextEndsWithTheHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: time.Minute})

		var (
			seen    = map[context.Context]bool{}
			watched []context.Context
		)

		ended := make(chan struct{}, 20)
		result := start(ctx, b, config(func(ctx context.Context, job *engine.Job) {
			n, _ := job.Delivery.Token.(int)

			seen[ctx] = true

			if err := ctx.Err(); err != nil {
				t.Errorf("handler %d begins with %v", n, err)
			}

			if n%2 == 0 {
				child, forgotten := context.WithCancel(ctx)
				t.Cleanup(forgotten)

				watched = append(watched, child)

				context.AfterFunc(ctx, func() { ended <- struct{}{} })
			}

			ack(job)
		}))

		b.push(20)
		synctest.Wait()

		if len(ended) != 10 {
			t.Errorf("%d of 10 waiting functions were called", len(ended))
		}

		for i, c := range watched {
			if !errors.Is(context.Cause(c), context.Canceled) {
				t.Errorf("context %d: %v", i, context.Cause(c))
			}
		}

		if len(seen) != 11 {
			t.Errorf("%d contexts for 20 messages, want 11", len(seen))
		}

		cancel()
		<-result
	})
}
