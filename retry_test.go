package goflux_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// Where no policy is configured, a message that fails and fails comes again at
// once, then after 100 ms doubling to 30 s, each time a little more or less.
func TestDefaultRetries(t *testing.T) {
	t.Parallel()

	want := []time.Duration{
		0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond,
		1600 * time.Millisecond, 3200 * time.Millisecond, 6400 * time.Millisecond, 12800 * time.Millisecond,
		25600 * time.Millisecond, 30 * time.Second, 30 * time.Second, 30 * time.Second,
	}

	for name, opt := range map[string]goflux.SubscriberOption{
		"handed back":        goflux.WithQueueGroup("workers"),
		"held, strict order": goflux.WithStrictOrder(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr := inMemory(t)

				sub, err := goflux.NewSubscriber(tr, raw.String(), opt, silent())
				if err != nil {
					t.Fatal(err)
				}

				var deliveries []time.Time

				stop := serveDead(t, sub, "orders", func(context.Context, goflux.Message[string]) error {
					if deliveries = append(deliveries, time.Now()); len(deliveries) > len(want) {
						return nil
					}

					return errCannot
				})
				synctest.Wait()
				send(t, tr, "orders", "one")
				time.Sleep(time.Hour)

				if err := stop(); err != nil {
					t.Error(err)
				}

				if len(deliveries) != len(want)+1 {
					t.Fatalf("%d deliveries, want %d", len(deliveries), len(want)+1)
				}

				checkDelays(t, want, func(attempt int) time.Duration { return deliveries[attempt].Sub(deliveries[attempt-1]) })
			})
		})
	}
}

// checkDelays reports whether the delays are those that are wanted, a fifth more
// or less, and not all of them alike.
func checkDelays(t *testing.T, want []time.Duration, delay func(attempt int) time.Duration) {
	t.Helper()

	exact := true

	for i, want := range want {
		got := delay(i + 1)
		if got < want-want/5 || got > want+want/5 {
			t.Errorf("%v after attempt %d, want %v and a fifth more or less", got, i+1, want)
		}

		exact = exact && got == want
	}

	if exact {
		t.Error("the delays have no jitter: messages that failed together come back together")
	}
}

func TestExponentialRetry(t *testing.T) {
	t.Parallel()

	const s = time.Second

	checkDelays(t, []time.Duration{0, s, 2 * s, 4 * s, 5 * s, 5 * s}, goflux.ExponentialRetry(s, 5*s))
	checkDelays(t, []time.Duration{0, 2 * s, 2 * s}, goflux.ExponentialRetry(3*s, 2*s))

	huge := goflux.ExponentialRetry(1, 1<<62)
	for _, attempt := range []int{-1, 0, 1, 63, 64, 1000, 1 << 40} {
		if d := huge(attempt); d < 0 || (attempt < 2) != (d == 0) {
			t.Errorf("attempt %d: %v", attempt, d)
		}
	}

	for _, initial := range []time.Duration{0, -s} {
		if d := goflux.ExponentialRetry(initial, s)(5); d != 0 {
			t.Errorf("an initial wait of %v: %v", initial, d)
		}
	}

	// All of the range is used, and nothing else.
	spread := map[time.Duration]int{}
	ten := goflux.ExponentialRetry(10, 10)

	for range 1000 {
		spread[ten(2)]++
	}

	for d := range spread {
		if d < 8 || d > 12 {
			t.Errorf("%d is more than a fifth off 10", d)
		}
	}

	if len(spread) != 5 {
		t.Errorf("1000 times around 10: %v, want 8 to 12", spread)
	}

	if d := goflux.ConstantRetry(s)(7); d != s {
		t.Errorf("got %v", d)
	}
}

// The broker counts the attempts, so the policy goes on where the process that
// died had been.
func TestRetryPolicySurvivesRestarts(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	consumer := natstest.Consumer(t,
		natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}),
		natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy})

	onJetStream, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	inProcess := inMemory(t)

	for name, on := range map[string]struct {
		source transport.Subscriber
		target transport.Publisher
		group  []goflux.SubscriberOption
	}{
		"memory":    {inProcess, inProcess, []goflux.SubscriberOption{goflux.WithQueueGroup("workers")}},
		"JetStream": {jetstream.Bind(consumer), onJetStream, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			const restarts = 4

			var (
				mu       sync.Mutex
				attempts []int
			)

			policy := goflux.WithRetryPolicy(func(attempt int) time.Duration {
				mu.Lock()
				defer mu.Unlock()

				attempts = append(attempts, attempt)

				return 0
			})

			for i := range restarts {
				ready, failed := make(chan struct{}), make(chan struct{})

				sub, err := goflux.NewSubscriber(on.source, raw.String(),
					append(on.group, policy, silent(), goflux.WithReady(func() { close(ready) }))...)
				if err != nil {
					t.Fatal(err)
				}

				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)

				go func() {
					ended <- sub.Subscribe(ctx, "orders", func(context.Context, goflux.Message[string]) error {
						cancel() // one attempt each
						close(failed)

						return errCannot
					})
				}()

				<-ready

				if i == 0 {
					send(t, on.target, "orders", "one")
				}

				<-failed

				if err := <-ended; err != nil {
					t.Fatal(err)
				}
			}

			if want := []int{1, 2, 3, 4}; !slices.Equal(attempts, want) {
				t.Errorf("the policy was asked for the attempts %v, want %v", attempts, want)
			}
		})
	}
}

// The list of a consumer wins over the policy of the subscriber.
func TestBackOffWinsOverRetryPolicy(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	backOff := []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 600 * time.Millisecond}

	for name, policy := range map[string]time.Duration{"shorter": 0, "longer": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			consumer := natstest.Consumer(t, natstest.Stream(t, js, natsjs.StreamConfig{Name: name, Subjects: []string{name}}),
				natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, BackOff: backOff, MaxDeliver: 10})

			sub, err := goflux.NewSubscriber(jetstream.Bind(consumer), raw.String(), silent(),
				goflux.WithRetryPolicy(goflux.ConstantRetry(policy)))
			if err != nil {
				t.Fatal(err)
			}

			deliveries := make(chan time.Time, 10)
			stop := serveDead(t, sub, name, func(_ context.Context, msg goflux.Message[string]) error {
				deliveries <- time.Now()

				if msg.Attempt() > len(backOff) {
					return nil
				}

				return errCannot
			})

			if _, err := js.Publish(t.Context(), name, nil); err != nil {
				t.Fatal(err)
			}

			last := receive(t, deliveries)
			for i, want := range backOff {
				at := receive(t, deliveries)
				if got := at.Sub(last); got < want-want/10 {
					t.Errorf("%v after attempt %d, want %v at the least", got, i+1, want)
				}

				last = at
			}

			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// receive waits for an event.
func receive[T any](t *testing.T, events <-chan T) (event T) {
	t.Helper()

	select {
	case event = <-events:
	case <-time.After(natstest.Limit):
		t.Fatal("nothing comes")
	}

	return event
}

// send publishes texts.
func send(t *testing.T, tr transport.Publisher, subject string, texts ...string) {
	t.Helper()

	for _, text := range texts {
		if _, err := tr.Publish(t.Context(), transport.Message{Subject: subject, Data: []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
}
