package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
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
	"github.com/foomo/goflux/transport/memory"
	corenats "github.com/foomo/goflux/transport/nats"
)

// looped is where loops are tried: a broker with a group of consumers.
type looped struct {
	sub     *goflux.BoundSubscriber[string]
	publish func(texts ...string)

	// lost returns how many messages the broker has given up.
	lost func() int
}

// wait is the ack wait of the brokers that loops are tried on.
const wait = time.Second

// onBrokers runs a test with a subscriber in memory and one on JetStream.
func onBrokers(t *testing.T, maxDeliver int, test func(t *testing.T, on looped), opts ...goflux.SubscriberOption) {
	t.Helper()

	opts = append([]goflux.SubscriberOption{goflux.WithManualAck(), silent()}, opts...)

	t.Run("memory", func(t *testing.T) {
		t.Parallel()

		tr := inMemory(t, memory.WithMaxDeliver(maxDeliver), memory.WithAckWait(wait))

		sub, err := goflux.NewSubscriber(tr, raw.String(), append(opts, goflux.WithQueueGroup("workers"))...)
		if err != nil {
			t.Fatal(err)
		}

		// The group keeps messages from its beginning on.
		group, err := tr.Subscribe(t.Context(), transport.SubscribeConfig{Subject: "orders", Group: "workers", Sink: func(transport.Delivery) {}})
		if err != nil {
			t.Fatal(err)
		}

		if err := group.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		test(t, looped{
			sub:     sub,
			publish: func(texts ...string) { send(t, tr, "orders", texts...) },
			lost:    func() int { return int(tr.GivenUp()) },
		})
	})

	t.Run("JetStream", func(t *testing.T) {
		t.Parallel()

		nc := natstest.Connect(t, natstest.Run(t))
		js := natstest.JetStream(t, nc)
		consumer := natstest.Consumer(t, natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}),
			natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: wait, MaxDeliver: max(maxDeliver, -1)})
		told := listen(t, nc)

		sub, err := goflux.NewSubscriber(jetstream.Bind(consumer), raw.String(), opts...)
		if err != nil {
			t.Fatal(err)
		}

		test(t, looped{
			sub: sub,
			publish: func(texts ...string) {
				for _, text := range texts {
					if _, err := js.Publish(t.Context(), "orders", []byte(text)); err != nil {
						t.Fatal(err)
					}
				}
			},
			lost: func() int {
				n, _ := told("ORDERS")

				return n
			},
		})
	})
}

// loopOver acks n messages in a loop, and returns what they say and how often they
// were delivered.
func loopOver(t *testing.T, on looped, n int) (got []string) {
	t.Helper()

	ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
	defer cancel()

	for msg, err := range goflux.Messages(ctx, on.sub, "orders") {
		if err != nil {
			t.Fatal(err)
		}

		got = append(got, fmt.Sprintf("%s %d", msg.Payload, msg.Attempt()))

		if err := msg.Ack(); err != nil {
			t.Error(err)
		}

		if len(got) == n {
			return got
		}
	}

	t.Errorf("%d of %d messages came", len(got), n)

	return got
}

// ended reports whether nothing is served any more.
func (l looped) ended(t *testing.T) {
	t.Helper()

	if err := l.sub.Health(t.Context()); !errors.Is(err, goflux.ErrNotServing) {
		t.Errorf("the loop was left, and health is %v, want ErrNotServing", err)
	}
}

// The loop yields messages in order, one at a time and each once, and ends without
// an error when its context does.
func TestMessages(t *testing.T) {
	t.Parallel()
	onBrokers(t, 0, func(t *testing.T, on looped) {
		t.Helper()
		on.publish("1", "2", "3")

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()

		var got []string

		for msg, err := range goflux.Messages(ctx, on.sub, "orders") {
			if err != nil {
				t.Fatal(err)
			}

			got = append(got, msg.Payload)

			if err := msg.Ack(); err != nil {
				t.Error(err)
			}

			if len(got) == 3 {
				cancel()
			}
		}

		if want := []string{"1", "2", "3"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}

		on.ended(t)
	}, goflux.WithConcurrency(4))
}

// Breaking settles nothing. The message at hand comes again when its lease runs
// out, unless the loop has settled it; what was fetched ahead is handed back at
// once.
func TestMessagesBreak(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		settle func(goflux.Message[string]) error
		want   []string // which come then, in no order
	}{
		"unsettled": {func(goflux.Message[string]) error { return nil }, []string{"1 2", "2", "3", "4"}},
		"acked":     {goflux.Message[string].Ack, []string{"2", "3", "4"}},
		"naked":     {goflux.Message[string].Nak, []string{"1", "2", "3", "4"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBrokers(t, 0, func(t *testing.T, on looped) {
				t.Helper()

				on.publish("quick", "quick", "1", "2", "3", "4")

				var left time.Time

				for msg, err := range goflux.Messages(t.Context(), on.sub, "orders") {
					if err != nil {
						t.Fatal(err)
					}

					// After some quick ones more is fetched ahead.
					if msg.Payload == "quick" {
						_ = msg.Ack()

						continue
					}

					if err := c.settle(msg); err != nil {
						t.Error(err)
					}

					left = time.Now()

					break
				}

				on.ended(t)

				got := loopOver(t, on, len(c.want))

				for i, text := range got {
					switch {
					case text == "1 2" && name == "unsettled":
						if time.Since(left) < wait/2 {
							t.Errorf("the message at hand came again at once")
						}
					default:
						// Handing back counts, once.
						payload, attempt, _ := strings.Cut(text, " ")
						if got[i] = payload; len(attempt) > 1 || attempt > "3" {
							t.Errorf("%q is at attempt %s: it went back and forth", payload, attempt)
						}
					}
				}

				slices.Sort(got)

				if !slices.Equal(got, c.want) {
					t.Errorf("then came %v, want %v", got, c.want)
				}
			})
		})
	}
}

// Where deliveries are limited, breaking uses none up: what the loop has not seen
// comes as if there had been no loop.
func TestMessagesBreakOnTheLastAttempt(t *testing.T) {
	t.Parallel()

	// quick acks, and reports whether the message is one after which more may be
	// fetched ahead.
	quick := func(msg goflux.Message[string]) bool {
		_ = msg.Ack()

		return msg.Payload == "quick"
	}

	for name, leave := range map[string]func(on looped){
		"break": func(on looped) {
			for msg := range goflux.Messages(context.Background(), on.sub, "orders") {
				if !quick(msg) {
					break
				}
			}
		},
		"panic": func(on looped) {
			defer func() { _ = recover() }()

			for msg := range goflux.Messages(context.Background(), on.sub, "orders") {
				if !quick(msg) {
					panic("in the loop")
				}
			}
		},
		"Goexit": func(on looped) {
			gone := make(chan struct{})

			go func() {
				defer close(gone)

				for msg := range goflux.Messages(context.Background(), on.sub, "orders") {
					if !quick(msg) {
						runtime.Goexit()
					}
				}
			}()

			<-gone
		},
		"the end of its context": func(on looped) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()

			for msg := range goflux.Messages(ctx, on.sub, "orders") {
				if !quick(msg) {
					cancel()
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBrokers(t, 1, func(t *testing.T, on looped) {
				t.Helper()

				on.publish("quick", "quick", "1", "2", "3", "4")
				leave(on)
				on.ended(t)

				if got, want := loopOver(t, on, 3), []string{"2 1", "3 1", "4 1"}; !slices.Equal(got, want) {
					t.Errorf("then came %v, want %v", got, want)
				}

				if n := on.lost(); n != 0 {
					t.Errorf("%d messages were given up", n)
				}
			}, goflux.WithConcurrency(4))
		})
	}
}

// What arrives when the context has ended, and would be given up if it were handed
// back, is yielded.
func TestMessagesYieldsTheLastAttemptAtTheEnd(t *testing.T) {
	t.Parallel()

	tr := inMemory(t, memory.WithMaxDeliver(1))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	late := &closing{Transport: tr, asked: cancel, before: func() { send(t, tr, "orders", "late") }}

	sub, err := goflux.NewSubscriber(late, raw.String(), goflux.WithManualAck(), goflux.WithQueueGroup("workers"))
	if err != nil {
		t.Fatal(err)
	}

	var got []string

	for msg, err := range goflux.Messages(ctx, sub, "orders") {
		if err != nil {
			t.Fatal(err)
		}

		got = append(got, msg.Payload)

		if err := msg.Ack(); err != nil {
			t.Error(err)
		}
	}

	if want := []string{"late"}; !slices.Equal(got, want) || tr.GivenUp() != 0 {
		t.Errorf("got %v and %d given up, want %v", got, tr.GivenUp(), want)
	}
}

// closing is a transport on which something happens when a subscription is asked
// for messages, and before it is closed.
type closing struct {
	*memory.Transport

	asked, before func()
}

func (c *closing) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	sub, err := c.Transport.Subscribe(ctx, cfg)

	return &closingSubscription{Subscription: sub, asked: c.asked, before: sync.OnceFunc(c.before)}, err
}

type closingSubscription struct {
	transport.Subscription

	asked, before func()
}

func (c *closingSubscription) Request(n int) {
	c.Subscription.Request(n)
	c.asked()
}

func (c *closingSubscription) Close(ctx context.Context) error {
	c.before()

	return c.Subscription.Close(ctx)
}

// A panic in the loop goes on, when the subscription has ended.
func TestMessagesPanic(t *testing.T) {
	t.Parallel()
	onBrokers(t, 0, func(t *testing.T, on looped) {
		t.Helper()
		on.publish("1", "2")

		func() {
			defer func() {
				if v := recover(); v != "in the loop" {
					t.Errorf("recovered %v", v)
				}
			}()

			for range goflux.Messages(t.Context(), on.sub, "orders") {
				panic("in the loop")
			}
		}()

		on.ended(t)

		got := loopOver(t, on, 2)
		slices.Sort(got)

		if got[0] != "1 2" || !strings.HasPrefix(got[1], "2 ") {
			t.Errorf("then came %v", got)
		}
	})
}

// While the loop has a message its lease is kept.
func TestMessagesKeepsTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := inMemory(t)

		sub, err := goflux.NewSubscriber(tr, raw.String(), goflux.WithManualAck(), goflux.WithQueueGroup("workers"), silent())
		if err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()

		go func() {
			synctest.Wait()
			send(t, tr, "orders", "1", "2")
		}()

		var got []string

		for msg, err := range goflux.Messages(ctx, sub, "orders") {
			if err != nil {
				t.Fatal(err)
			}

			got = append(got, fmt.Sprint(msg.Payload, " ", msg.Attempt()))

			time.Sleep(time.Hour)

			if err := msg.Ack(); err != nil {
				t.Error(err)
			}

			if len(got) == 2 {
				cancel()
			}
		}

		if want := []string{"1 1", "2 1"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// An error comes last, once, with an empty message.
func TestMessagesErrors(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}})
	consumer := natstest.Consumer(t, stream, natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy})
	tr := inMemory(t)

	build := func(tr transport.Subscriber, opts ...goflux.SubscriberOption) *goflux.BoundSubscriber[string] {
		sub, err := goflux.NewSubscriber(tr, raw.String(), append(opts, silent())...)
		if err != nil {
			t.Fatal(err)
		}

		return sub
	}

	closed := build(tr, goflux.WithManualAck())
	closed.Close()

	for name, c := range map[string]struct {
		sub     goflux.Subscriber[string]
		subject string
		want    error
	}{
		"automatic acks": {build(tr), "orders", goflux.ErrInvalidOption},
		"a bad subject":  {build(tr, goflux.WithManualAck()), "orders..", goflux.ErrInvalidSubject},
		"closed":         {closed, "orders", goflux.ErrClosed},
		"never made":     {goflux.BindSubscriber[string](nil, errCannot, raw.String()), "orders", errCannot},
		"consumer deleted": {build(jetstream.Bind(consumer), goflux.WithManualAck(), goflux.WithReady(func() {
			if err := stream.DeleteConsumer(context.Background(), "workers"); err != nil {
				t.Error(err)
			}
		})), "", goflux.ErrConsumerNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			var errs []error

			for msg, err := range goflux.Messages(t.Context(), c.sub, c.subject) {
				if msg.Subject != "" || err == nil {
					t.Errorf("yielded %+v", msg)
				}

				errs = append(errs, err)
			}

			if len(errs) != 1 || !errors.Is(errs[0], c.want) {
				t.Errorf("got %v, want %v", errs, c.want)
			}
		})
	}
}

// A subscriber that is not ours may offer several messages at once: those which
// the loop has not taken are handed back.
func TestMessagesOfAnotherSubscriber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := inMemory(t)
		w := &witness{Subscriber: tr}

		sub, err := goflux.NewSubscriber(w, raw.String(), goflux.WithManualAck(), goflux.WithQueueGroup("workers"),
			goflux.WithConcurrency(4), silent())
		if err != nil {
			t.Fatal(err)
		}

		other := struct{ goflux.Subscriber[string] }{sub}

		go func() {
			synctest.Wait()
			send(t, tr, "orders", "1", "2", "3", "4")
		}()

		for msg, err := range goflux.Messages(t.Context(), other, "orders") {
			if err != nil {
				t.Fatal(err)
			}

			synctest.Wait() // all are offered

			if err := msg.Ack(); err != nil {
				t.Error(err)
			}

			break
		}

		if got, want := w.seen(), []transport.Action{transport.Ack, transport.Nak, transport.Nak, transport.Nak}; !slices.Equal(got, want) {
			t.Errorf("the verdicts are %v, want %v", got, want)
		}

		n := 0

		for msg, err := range goflux.Messages(t.Context(), other, "orders") {
			if err != nil {
				t.Fatal(err)
			}

			if _ = msg.Ack(); msg.Attempt() < 2 {
				t.Errorf("%q comes for the first time", msg.Payload)
			}

			if n++; n == 3 {
				break
			}
		}
	})
}

// Where nothing is redelivered a loop that is left loses what the client had
// received, and says so.
func TestMessagesWithoutRedelivery(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))

	tr, err := corenats.New(nc)
	if err != nil {
		t.Fatal(err)
	}

	var log lockedBuffer

	sub, err := goflux.NewSubscriber(tr, raw.String(), goflux.WithLogger(slog.New(slog.NewTextHandler(&log, nil))),
		goflux.WithReady(func() {
			for range 5 {
				if err := nc.Publish("orders", []byte("one")); err != nil {
					t.Error(err)
				}
			}

			if err := nc.Flush(); err != nil {
				t.Error(err)
			}
		}))
	if err != nil {
		t.Fatal(err)
	}

	for msg, err := range goflux.Messages(t.Context(), sub, "orders") {
		if err != nil {
			t.Fatal(err)
		}

		if err := msg.Ack(); !errors.Is(err, goflux.ErrUnsupported) {
			t.Errorf("Ack returned %v", err)
		}

		break
	}

	if !strings.Contains(log.String(), "a loop was left") || !strings.Contains(log.String(), "count=4") {
		t.Errorf("the log has %q, want 4 lost messages", log.String())
	}
}
