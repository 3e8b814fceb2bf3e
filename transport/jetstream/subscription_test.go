package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// pending returns how many messages the server has handed out and not seen
// settled.
func pending(t *testing.T, c natsjs.Consumer) int {
	t.Helper()

	info, err := c.Info(t.Context())
	must(t, err)

	return info.NumAckPending
}

// unsettled waits until the server has processed the settlements, so that n
// messages are left to be settled.
func unsettled(t *testing.T, c natsjs.Consumer, n int) {
	t.Helper()
	natstest.Eventually(t, func() bool { return pending(t, c) == n }, "%d messages to be unsettled", n)
}

// The server hands out what was requested and no more, whatever the pattern of
// requests, and in order.
func TestCreditIsExact(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.publish(t, 0, 1000)

	for name, limit := range map[string]int{"whole": 0, "limited": 7} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			c := e.consumer(t, natsjs.ConsumerConfig{Durable: name, MaxRequestBatch: limit})
			in := newInbox()
			sub := subscribe(t, jetstream.Bind(c), in.config("events.created"))

			sub.Request(0)
			sub.Request(-5)

			granted := 0

			for _, n := range []int{1, 1, 5, 20, 3, 200, 100} {
				sub.Request(n)

				granted += n
				in.wait(t, granted)

				if unsettled := pending(t, c); unsettled != granted || in.len() != granted {
					t.Fatalf("granted %d: the server handed out %d, the sink got %d", granted, unsettled, in.len())
				}
			}

			// Requests that pile up while a batch is under way.
			for range 67 {
				sub.Request(10)
			}

			for i, d := range in.wait(t, 1000) {
				if string(d.Data) != fmt.Sprint(i) {
					t.Fatalf("message %d came in place of %d", i, i)
				}
			}
		})
	}
}

// Credit may be as large as it likes.
func TestCreditIsUnbounded(t *testing.T) {
	t.Parallel()

	e := setup(t)
	c := e.consumer(t, natsjs.ConsumerConfig{MaxAckPending: -1})
	in := newInbox()
	sub := subscribe(t, jetstream.Bind(c), in.config("events.created"))

	for range 4 {
		sub.Request(math.MaxInt)
	}

	e.publish(t, 0, 6000)
	in.wait(t, 6000)
}

// A sink may grant credit, from which the next batch begins.
func TestCreditFromTheSink(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.publish(t, 0, 500)

	var (
		sub     transport.Subscription
		inside  atomic.Int32
		got     atomic.Int32
		began   = make(chan struct{})
		done    = make(chan struct{})
		overlap atomic.Bool
	)

	sub = subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{})), transport.SubscribeConfig{
		Subject: "events.created",
		Sink: func(transport.Delivery) {
			<-began

			if inside.Add(1) > 1 {
				overlap.Store(true)
			}

			sub.Request(1)

			if got.Add(1) == 500 {
				close(done)
			}

			inside.Add(-1)
		},
	})

	close(began)
	sub.Request(3)

	select {
	case <-done:
	case <-time.After(natstest.Limit):
		t.Fatalf("%d of 500 arrived", got.Load())
	}

	if overlap.Load() {
		t.Error("the sink was called concurrently")
	}
}

// Pausing takes the rest of the credit back: what the server was sending
// arrives, everything else stays with it and is there at once: no message waits
// for its ack wait of 30 s, which would exceed the test's patience.
func TestPause(t *testing.T) {
	t.Parallel()

	e := setup(t)

	const stored = 20_000

	e.publish(t, 0, stored)

	c := e.consumer(t, natsjs.ConsumerConfig{MaxAckPending: -1})
	seen := make([]int, stored)
	got := 0
	in := newInbox()
	cfg := in.config("events.created")
	keep := cfg.Sink

	cfg.Sink = func(d transport.Delivery) {
		var i int
		if _, err := fmt.Sscan(string(d.Data), &i); err != nil {
			t.Error(err)
		}

		seen[i]++

		keep(d)
	}

	sub := subscribe(t, jetstream.Bind(c), cfg)

	for got < stored {
		sub.Request(1 + rand.IntN(stored/5))
		in.wait(t, got+1)
		must(t, sub.Pause(t.Context()))

		// Nothing is on its way: the server agrees on what was delivered.
		got = in.len()
		if handedOut := pending(t, c); in.len() != got || handedOut < got {
			t.Fatalf("%d arrived, then %d; the server counts %d", got, in.len(), handedOut)
		}
	}

	for i, n := range seen {
		if n != 1 {
			t.Errorf("message %d arrived %d times", i, n)
		}
	}
}

// While a subscription is paused, others get the messages.
func TestPauseLeavesMessagesToOthers(t *testing.T) {
	t.Parallel()

	e := setup(t)
	c := e.consumer(t, natsjs.ConsumerConfig{})
	one, two := newInbox(), newInbox()
	first := subscribe(t, jetstream.Bind(c), one.config("events.created"))
	second := subscribe(t, jetstream.Bind(c), two.config("events.created"))

	must(t, first.Pause(t.Context()))
	first.Request(10)
	must(t, first.Pause(t.Context()))
	must(t, first.Pause(t.Context()))

	second.Request(5)
	e.publish(t, 0, 5)
	two.wait(t, 5)

	first.Request(1)
	e.publish(t, 5, 3)
	one.wait(t, 1)
	must(t, first.Flush(t.Context()))

	if handedOut := pending(t, c); one.len() != 1 || handedOut != 6 {
		t.Errorf("%d arrived, %d are handed out; want 1 and 6", one.len(), handedOut)
	}
}

// A pause that is not waited for goes on, and takes nothing of what is granted
// after it.
func TestPauseInterrupted(t *testing.T) {
	t.Parallel()

	e := setup(t)
	in := newInbox()
	sub := subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{})), in.config("events.created"))

	canceled, cancel := context.WithCancel(t.Context())
	cancel()

	for range 50 {
		sub.Request(100)

		if err := sub.Pause(canceled); err != nil {
			mustBe(t, err, context.Canceled)
		}

		sub.Request(1)
	}

	must(t, sub.Pause(t.Context()))
	sub.Request(2)
	e.publish(t, 0, 5)
	in.wait(t, 2)
	must(t, sub.Pause(t.Context()))

	if in.len() != 2 {
		t.Errorf("%d messages arrived, want 2", in.len())
	}

	sub.Request(3)
	in.wait(t, 5)
}

// Whatever happens at the same time, no credit is lost for good.
func TestCreditUnderStress(t *testing.T) {
	t.Parallel()

	e := setup(t)

	const stored = 3000

	e.publish(t, 0, stored)

	in := newInbox()
	sub := subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{MaxAckPending: -1})), in.config("events.created"))

	var wg sync.WaitGroup

	for range 4 {
		wg.Go(func() {
			for range 100 {
				sub.Request(1 + rand.IntN(4))

				if rand.IntN(20) == 0 {
					if err := sub.Pause(t.Context()); err != nil {
						t.Error(err)
					}
				}

				_ = sub.Info()
				_ = sub.Err()
			}
		})
	}

	wg.Wait()
	must(t, sub.Pause(t.Context()))

	left := stored - in.len()
	sub.Request(left)

	seen := map[string]bool{}
	for _, d := range in.wait(t, stored) {
		seen[string(d.Data)] = true
	}

	if len(seen) != stored || in.len() != stored {
		t.Errorf("%d messages arrived, %d of them different, want %d", in.len(), len(seen), stored)
	}
}

// Closing hands over what is on its way; the rest goes to others at once. Late
// settlements count.
func TestClose(t *testing.T) {
	t.Parallel()

	e := setup(t)

	const stored = 5000

	e.publish(t, 0, stored)

	c := e.consumer(t, natsjs.ConsumerConfig{MaxAckPending: -1})
	in, rest := newInbox(), newInbox()

	sub, err := jetstream.Bind(c).Subscribe(t.Context(), in.config("events.created"))
	must(t, err)
	sub.Request(stored)
	in.wait(t, 10)

	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := sub.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}

	wg.Wait()

	got := in.len()
	sub.Request(1000)
	ack(t, in.wait(t, got)...)
	must(t, sub.Flush(t.Context()))
	must(t, sub.Pause(t.Context()))

	other := subscribe(t, jetstream.Bind(c), rest.config("events.created"))
	other.Request(stored)

	rest.wait(t, stored-got)

	if in.len() != got || rest.len() != stored-got {
		t.Errorf("%d and %d messages arrived after Close, want %d and %d", in.len(), rest.len(), got, stored-got)
	}

	select {
	case <-sub.Done():
		t.Error("Close ended the subscription as if by itself")
	default:
	}
}

// After a Close that was not waited for nothing reaches the sink.
func TestCloseInterrupted(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.publish(t, 0, 2000)

	c := e.consumer(t, natsjs.ConsumerConfig{MaxAckPending: -1})
	in := newInbox()

	sub, err := jetstream.Bind(c).Subscribe(t.Context(), in.config("events.created"))
	must(t, err)
	sub.Request(2000)
	in.wait(t, 1)

	canceled, cancel := context.WithCancel(t.Context())
	cancel()

	if err := sub.Close(canceled); err != nil {
		mustBe(t, err, context.Canceled)
	}

	got := in.len()

	must(t, sub.Close(t.Context()))

	if in.len() != got {
		t.Errorf("%d messages arrived after Close", in.len()-got)
	}

	// What came too late was given back, and is there without delay.
	rest := newInbox()
	subscribe(t, jetstream.Bind(c), rest.config("events.created")).Request(2000)
	rest.wait(t, 2000-got)
}

func TestConsumerDeleted(t *testing.T) {
	t.Parallel()

	for name, tc := range map[string]struct {
		vanish func(*env) error
		want   error
	}{
		"consumer": {func(e *env) error { return e.stream.DeleteConsumer(context.Background(), "worker") }, transport.ErrConsumerNotFound},
		"stream":   {func(e *env) error { return e.js.DeleteStream(context.Background(), "EVENTS") }, transport.ErrStreamNotFound},
	} {
		for _, while := range []string{"waiting", "busy"} {
			t.Run(name+" while "+while, func(t *testing.T) {
				t.Parallel()

				e := setup(t)
				e.publish(t, 0, 1)

				in := newInbox()
				sub := subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{})), in.config("events.created"))
				sub.Request(1)
				in.wait(t, 1)

				if while == "waiting" {
					// The server has the request before the deletion.
					sub.Request(5)
					must(t, sub.Flush(t.Context()))
				}

				must(t, tc.vanish(e))

				if while == "busy" {
					sub.Request(1)
				}

				err := ended(t, sub)
				if e := details(t, err, tc.want); e.Stream != "EVENTS" || e.Consumer != "worker" || e.Subject != "events.created" {
					t.Errorf("circumstances %+v", e)
				}

				mustBe(t, sub.Flush(t.Context()), tc.want)
				must(t, sub.Pause(t.Context()))
			})
		}
	}
}

// Nobody says that a consumer is gone with the memory of its server.
func TestConsumerForgotten(t *testing.T) {
	t.Parallel()

	e := setup(t)
	stream := natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "MEMORY", Subjects: []string{"memory"}, Storage: natsjs.MemoryStorage})
	in := newInbox()
	sub := subscribe(t, jetstream.Bind(natstest.Consumer(t, stream, natsjs.ConsumerConfig{Durable: "worker"})), in.config(">"))
	sub.Request(5)
	must(t, sub.Flush(t.Context()))

	must(t, e.server.Restart())
	mustBe(t, ended(t, sub), transport.ErrStreamNotFound)
}

// A consumer that was removed for its inactivity has no request to tell of.
func TestConsumerExpired(t *testing.T) {
	t.Parallel()

	e := setup(t)
	c := natstest.Consumer(t, e.stream, natsjs.ConsumerConfig{InactiveThreshold: 100 * time.Millisecond})
	in := newInbox()
	sub := subscribe(t, jetstream.Bind(c), in.config(""))

	natstest.Eventually(t, func() bool {
		_, err := e.stream.Consumer(t.Context(), c.CachedInfo().Name)

		return err != nil
	}, "the consumer's end")

	sub.Request(1)
	mustBe(t, ended(t, sub), transport.ErrConsumerNotFound)

	if !in.noticed(transport.ErrNoResponders) {
		t.Errorf("notices: %v", in.notices)
	}
}

func TestConnectionClosed(t *testing.T) {
	t.Parallel()

	for name, end := range map[string]func(*env) error{
		"close": func(e *env) error { e.nc.Close(); return nil },
		"drain": func(e *env) error { return e.nc.Drain() },
	} {
		for _, while := range []string{"waiting", "busy"} {
			t.Run(name+" while "+while, func(t *testing.T) {
				t.Parallel()

				e := setup(t)
				sub := subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{})), newInbox().config(""))

				if while == "waiting" {
					sub.Request(5)
				}

				must(t, end(e))

				if while == "busy" {
					sub.Request(1)
				}

				mustBe(t, ended(t, sub), transport.ErrClosed)
				natstest.Eventually(t, func() bool { return errors.Is(sub.Flush(t.Context()), transport.ErrClosed) }, "the connection to be closed")
			})
		}
	}
}

// A server may go and come back: what was granted arrives, no more, and nothing
// is lost.
func TestRestart(t *testing.T) {
	t.Parallel()

	e := setup(t)
	c := e.consumer(t, natsjs.ConsumerConfig{AckWait: time.Second})
	in := newInbox()
	sub := subscribe(t, e.transport(t), func() transport.SubscribeConfig {
		cfg := in.config("events.created")
		cfg.Group = "worker"

		return cfg
	}())

	sub.Request(10)
	e.publish(t, 0, 4)
	ack(t, in.wait(t, 4)...)

	for round := range 3 {
		unsettled(t, c, 0) // a server that stops may forget acks it has only received
		must(t, e.server.Restart())
		e.publish(t, 4+round, 1)
		ack(t, in.wait(t, 5+round)[4+round])
	}

	must(t, sub.Flush(t.Context()))

	// 3 are left of the credit.
	e.publish(t, 7, 10)
	in.wait(t, 10)
	must(t, sub.Flush(t.Context()))

	unsettled(t, c, 3)

	if in.len() != 10 {
		t.Errorf("%d messages arrived, want 10", in.len())
	}
}

// Credit that is granted while the server is away is asked for once, however
// long that takes. The consumer's limit makes requests expire every second, so
// that missing heartbeats show soon.
func TestRequestWhileDisconnected(t *testing.T) {
	t.Parallel()

	for _, outage := range []string{"short", "long"} {
		t.Run(outage, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			c := e.consumer(t, natsjs.ConsumerConfig{MaxRequestExpires: time.Second})
			in := newInbox()
			sub := subscribe(t, jetstream.Bind(c), in.config(""))

			sub.Request(2)
			e.publish(t, 0, 2)
			ack(t, in.wait(t, 2)...)
			unsettled(t, c, 0)
			e.server.Stop()
			natstest.Eventually(t, e.nc.IsReconnecting, "the client's noticing")

			sub.Request(5)

			if outage == "long" {
				natstest.Eventually(t, func() bool { return in.noticed(natsjs.ErrNoHeartbeat) }, "missing heartbeats")
			}

			must(t, e.server.Start())
			e.publish(t, 2, 20)
			in.wait(t, 7)
			must(t, sub.Flush(t.Context()))

			unsettled(t, c, 5)

			if in.len() != 7 {
				t.Errorf("%d messages arrived, want 7", in.len())
			}
		})
	}
}

// Pausing and closing work while the server is away.
func TestCloseWhileDisconnected(t *testing.T) {
	t.Parallel()

	e := setup(t)
	c := e.consumer(t, natsjs.ConsumerConfig{})

	sub, err := jetstream.Bind(c).Subscribe(t.Context(), newInbox().config(""))
	must(t, err)
	sub.Request(5)
	must(t, sub.Flush(t.Context()))

	e.server.Stop()
	natstest.Eventually(t, e.nc.IsReconnecting, "the client's noticing")

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()

	if err := sub.Pause(ctx); err != nil {
		mustBe(t, err, context.DeadlineExceeded)
	}

	if err := sub.Close(ctx); err != nil {
		mustBe(t, err, context.DeadlineExceeded)
	}

	must(t, e.server.Start())
	must(t, sub.Close(t.Context()))
}
