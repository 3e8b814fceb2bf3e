package jetstream_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// quiet drops what is logged about messages that fail on purpose.
func quiet() goflux.CommonOption { return goflux.WithLogger(slog.New(slog.DiscardHandler)) }

// orphan publishes a message and lets a client fetch it for the last time and
// vanish.
func orphan(t *testing.T, js natsjs.JetStream, cons natsjs.Consumer, header nats.Header, data []byte) natsjs.Msg {
	t.Helper()

	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "orders.created", Header: header, Data: data}); err != nil {
		t.Fatal(err)
	}

	msg, err := cons.Next()
	if err != nil {
		t.Fatal(err)
	}

	return msg
}

// sweep runs a sweeper until the test ends.
func sweep(t *testing.T, js natsjs.JetStream, cons natsjs.Consumer) {
	t.Helper()

	s, err := jetstream.NewSweeper(t.Context(), js, cons, "dead.orders", quiet())
	if err != nil {
		t.Fatal(err)
	}

	run(t, s)
}

func run(t *testing.T, s *jetstream.Sweeper) {
	t.Helper()

	ctx, cancel := context.WithCancel(context.Background())

	var (
		wg  sync.WaitGroup
		err error
	)

	wg.Go(func() { err = s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()

		if err != nil {
			t.Error(err)
		}
	})
}

// letters waits for n dead letters of orders and returns all there are.
func letters(t *testing.T, js natsjs.JetStream, n int) []goflux.DeadLetter[[]byte] {
	t.Helper()

	tr, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	var dead []goflux.DeadLetter[[]byte]

	natstest.Eventually(t, func() bool {
		dead = nil

		for d, err := range tr.Browse(t.Context(), "dead.orders") {
			if err != nil {
				return false
			}

			dead = append(dead, goflux.ParseDeadLetter(goflux.Message[[]byte]{Header: d.Header, Payload: d.Data}, raw.Bytes()))
		}

		return len(dead) >= n
	}, "%d dead letters", n)

	return dead
}

func messages(t *testing.T, stream natsjs.Stream) uint64 {
	t.Helper()

	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	return info.State.Msgs
}

// A message whose handler died on the last attempt becomes a dead letter, and
// its stream lets go of it where it waits for acks.
func TestSweeperStoresWhatDiedOnTheLastAttempt(t *testing.T) {
	t.Parallel()

	for _, tt := range []struct {
		name      string
		retention natsjs.RetentionPolicy
		replicas  int
		direct    bool
		left      uint64 // in the stream, when all is done
	}{
		{"work queue", natsjs.WorkQueuePolicy, 1, false, 0},
		{"work queue, direct access", natsjs.WorkQueuePolicy, 1, true, 0},
		{"work queue, three replicas", natsjs.WorkQueuePolicy, 3, true, 0},
		{"interest", natsjs.InterestPolicy, 1, false, 0},
		{"interest, three replicas", natsjs.InterestPolicy, 3, false, 0},
		{"limits", natsjs.LimitsPolicy, 1, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			var target natstest.Target
			if tt.replicas > 1 {
				target = natstest.RunCluster(t, tt.replicas)
			} else {
				target = natstest.Run(t)
			}

			js := natstest.JetStream(t, natstest.Connect(t, target))
			orders := natstest.Stream(t, js, natsjs.StreamConfig{
				Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: tt.retention, Replicas: tt.replicas, AllowDirect: tt.direct,
			})
			natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})

			cons := natstest.Consumer(t, orders, natsjs.ConsumerConfig{
				Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 200 * time.Millisecond, MaxDeliver: 1,
			})
			sweep(t, js, cons)

			body := bytes.Repeat([]byte{0, 1, 0xff, '\r', '\n'}, 100_000)
			msg := orphan(t, js, cons, nats.Header{"X-Message-ID": {"o-1"}, "Kind": {"a", "b"}}, body)

			dead := letters(t, js, 1)[0]
			m, err := msg.Metadata()

			if err != nil {
				t.Fatal(err)
			}

			if !bytes.Equal(dead.Raw, body) || dead.ID() != "o-1" || len(dead.Header) != 2 || len(dead.Header.Values("Kind")) != 2 {
				t.Errorf("the message is not what it was: %d bytes, %v", len(dead.Raw), dead.Header)
			}

			if dead.Reason != goflux.ReasonExhausted || dead.Error == "" || dead.Attempts != 1 || dead.Subject != "orders.created" ||
				dead.Stream != "ORDERS" || dead.Consumer != "workers" || dead.Sequence != m.Sequence.Stream ||
				!dead.Stored.Equal(m.Timestamp) || dead.Time.Before(m.Timestamp) {
				t.Errorf("the dead letter tells %+v, the message has %+v", dead, m)
			}

			natstest.Eventually(t, func() bool { return messages(t, orders) == tt.left }, "%d messages left in the stream", tt.left)
		})
	}
}

// What one consumer gave up, another one still gets.
func TestSweeperTakesNothingFromOtherConsumers(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: natsjs.InterestPolicy})
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})

	cfg := natsjs.ConsumerConfig{Durable: "failing", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 100 * time.Millisecond, MaxDeliver: 1}
	cons := natstest.Consumer(t, orders, cfg)
	other := natstest.Consumer(t, orders, natsjs.ConsumerConfig{Durable: "other", AckPolicy: natsjs.AckExplicitPolicy})

	sweep(t, js, cons)

	msg := orphan(t, js, cons, nil, []byte("1"))
	m, err := msg.Metadata()

	if err != nil {
		t.Fatal(err)
	}

	letters(t, js, 1)

	// The sweeper is done with it when its advisory is.
	natstest.Eventually(t, func() bool {
		s, err := js.Stream(t.Context(), "GOFLUX_SWEEPER_ORDERS")

		return err == nil && messages(t, s) == 0
	}, "the advisory to be settled")

	got, err := other.Next()
	if err != nil {
		t.Fatal("the other consumer misses the message:", err)
	}

	if om, err := got.Metadata(); err != nil || om.Sequence.Stream != m.Sequence.Stream {
		t.Fatal(om, err)
	}

	if err := got.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, func() bool { return messages(t, orders) == 0 }, "an empty stream")
}

// A process that died between storing the dead letter and terminating the
// message leaves one dead letter, not two.
func TestSweeperStoresOnceWhatWasStoredBefore(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: natsjs.WorkQueuePolicy})
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})
	cons := natstest.Consumer(t, orders, natsjs.ConsumerConfig{
		Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 500 * time.Millisecond, MaxDeliver: 1,
	})

	pub, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	if _, err := js.Publish(t.Context(), "orders.created", []byte("poison")); err != nil {
		t.Fatal(err)
	}

	// A subscriber whose verdicts do not get through stores the dead letter.
	stored, process := make(chan struct{}), &dying{Subscriber: jetstream.Bind(cons)}
	spy := &spyPublisher{Publisher: pub, published: func() { close(stored) }}

	sub, err := goflux.NewSubscriber(process, raw.Bytes(), goflux.WithDeadLetterPublisher(spy, "dead.orders"), quiet())
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())

	var wg sync.WaitGroup

	wg.Go(func() {
		err := sub.Subscribe(ctx, "orders.>", func(context.Context, goflux.Message[[]byte]) error {
			return errors.New("cannot")
		})
		if err != nil {
			t.Error(err)
		}
	})

	<-stored
	cancel()
	wg.Wait()

	if n := messages(t, orders); n != 1 {
		t.Fatalf("%d messages are in the stream, want the one that was not terminated", n)
	}

	sweep(t, js, cons)
	natstest.Eventually(t, func() bool { return messages(t, orders) == 0 }, "the message to be terminated")

	dead := letters(t, js, 1)
	if len(dead) != 1 || dead[0].Error != "cannot" {
		t.Fatalf("want the one dead letter of the subscriber, got %+v", dead)
	}
}

// dying is the transport of a process whose verdicts do not get through.
type dying struct{ transport.Subscriber }

func (d *dying) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	sink := cfg.Sink
	cfg.Sink = func(d transport.Delivery) {
		d.Settler = mute{d.Settler}
		sink(d)
	}

	return d.Subscriber.Subscribe(ctx, cfg)
}

type mute struct{ transport.Settler }

func (mute) Settle(context.Context, any, transport.Verdict) error { return nil }

type spyPublisher struct {
	transport.Publisher
	published func()
}

func (s *spyPublisher) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	receipt, err := s.Publisher.Publish(ctx, msg)
	if err == nil {
		s.published()
	}

	return receipt, err
}

// Advisories wait while no sweeper runs, and while there is no stream for the
// dead letters.
func TestSweeperIsLate(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: natsjs.WorkQueuePolicy})
	cons := natstest.Consumer(t, orders, natsjs.ConsumerConfig{
		Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 100 * time.Millisecond, MaxDeliver: 1,
	})

	s, err := jetstream.NewSweeper(t.Context(), js, cons, "dead.orders", quiet())
	if err != nil {
		t.Fatal(err)
	}

	orphan(t, js, cons, nil, []byte("1"))

	advisories, err := js.Stream(t.Context(), "GOFLUX_SWEEPER_ORDERS")
	if err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, func() bool { return messages(t, advisories) == 1 }, "the advisory")

	run(t, s)

	sweeper, err := advisories.Consumer(t.Context(), "GOFLUX_SWEEPER_workers")
	if err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, func() bool {
		info, err := sweeper.Info(t.Context())

		return err == nil && info.NumRedelivered > 0
	}, "a sweep that failed")

	if n := messages(t, orders); n != 1 {
		t.Fatalf("%d messages are left, want 1: its dead letter is not stored", n)
	}

	natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})

	letters(t, js, 1)
	natstest.Eventually(t, func() bool { return messages(t, orders) == 0 && messages(t, advisories) == 0 }, "all to be settled")
}

// Advisories are dealt with when what they are about is gone.
func TestSweeperOutlivesItsConsumer(t *testing.T) {
	t.Parallel()

	for _, tt := range []struct {
		name string
		drop func(ctx context.Context, js natsjs.JetStream) error
		dead int
	}{
		{"consumer", func(ctx context.Context, js natsjs.JetStream) error {
			return js.DeleteConsumer(ctx, "ORDERS", "workers")
		}, 1},
		{"stream", func(ctx context.Context, js natsjs.JetStream) error { return js.DeleteStream(ctx, "ORDERS") }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
			orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
			natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})
			cons := natstest.Consumer(t, orders, natsjs.ConsumerConfig{
				Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 100 * time.Millisecond, MaxDeliver: 1,
			})

			s, err := jetstream.NewSweeper(t.Context(), js, cons, "dead.orders", quiet())
			if err != nil {
				t.Fatal(err)
			}

			orphan(t, js, cons, nil, []byte("1"))

			advisories, err := js.Stream(t.Context(), "GOFLUX_SWEEPER_ORDERS")
			if err != nil {
				t.Fatal(err)
			}

			natstest.Eventually(t, func() bool { return messages(t, advisories) == 1 }, "the advisory")

			if err := tt.drop(t.Context(), js); err != nil {
				t.Fatal(err)
			}

			run(t, s)
			natstest.Eventually(t, func() bool { return messages(t, advisories) == 0 }, "the advisory to be settled")

			if dead := letters(t, js, 0); len(dead) != tt.dead {
				t.Errorf("%d dead letters, want %d", len(dead), tt.dead)
			}
		})
	}
}

// What is not there any more, or is about something else, is left alone.
func TestSweeperIgnoresWhatDoesNotConcernIt(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: natsjs.WorkQueuePolicy})
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})
	cons := natstest.Consumer(t, orders, natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 1})

	if _, err := js.Publish(t.Context(), "orders.created", []byte("1")); err != nil {
		t.Fatal(err)
	}

	s, err := jetstream.NewSweeper(t.Context(), js, cons, "dead.orders", quiet())
	if err != nil {
		t.Fatal(err)
	}

	for _, text := range []string{
		`no JSON`,
		`{"stream":"OTHER","consumer":"workers","stream_seq":1,"deliveries":1,"timestamp":"2999-01-01T00:00:00Z"}`,
		`{"stream":"ORDERS","consumer":"other","stream_seq":1,"deliveries":1,"timestamp":"2999-01-01T00:00:00Z"}`,
		`{"stream":"ORDERS","consumer":"workers","stream_seq":1,"deliveries":1,"timestamp":"1999-01-01T00:00:00Z"}`,
		`{"stream":"ORDERS","consumer":"workers","stream_seq":99,"deliveries":1,"timestamp":"2999-01-01T00:00:00Z"}`,
	} {
		if _, err := js.Publish(t.Context(), "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.workers", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}

	run(t, s)

	advisories, err := js.Stream(t.Context(), "GOFLUX_SWEEPER_ORDERS")
	if err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, func() bool { return messages(t, advisories) == 0 }, "all advisories to be settled")

	if n := messages(t, orders); n != 1 {
		t.Errorf("%d messages are left, want the 1 that was published", n)
	}

	if dead := letters(t, js, 0); len(dead) != 0 {
		t.Errorf("dead letters of nothing: %+v", dead)
	}
}

func TestNewSweeperRefuses(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})

	good := natsjs.ConsumerConfig{Durable: "good", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 3, FilterSubject: "orders.>"}
	unlimited := natsjs.ConsumerConfig{Durable: "unlimited", AckPolicy: natsjs.AckExplicitPolicy}
	ephemeral := natsjs.ConsumerConfig{
		Name: "ephemeral", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 3, InactiveThreshold: time.Minute,
	}

	deleted := natstest.Consumer(t, orders, natsjs.ConsumerConfig{Durable: "deleted", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 3})
	if err := orders.DeleteConsumer(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name     string
		js       natsjs.JetStream
		consumer natsjs.Consumer
		subject  string
		want     error
		says     string
	}{
		{"no handle", nil, natstest.Consumer(t, orders, good), "dead.orders", transport.ErrInvalidOption, "nil"},
		{"no consumer", js, nil, "dead.orders", transport.ErrInvalidOption, "nil"},
		{"wildcard", js, natstest.Consumer(t, orders, good), "dead.*", transport.ErrInvalidSubject, "wildcard"},
		{"no limit", js, natstest.Consumer(t, orders, unlimited), "dead.orders", transport.ErrInvalidOption, "MaxDeliver"},
		{"not durable", js, natstest.Consumer(t, orders, ephemeral), "dead.orders", transport.ErrInvalidOption, "durable"},
		{"loop", js, natstest.Consumer(t, orders, good), "orders.dead", transport.ErrInvalidOption, "endless"},
		{"deleted", js, deleted, "dead.orders", transport.ErrConsumerNotFound, "consumer"},
	} {
		// Here, since an ephemeral consumer does not wait for a parallel test.
		_, err := jetstream.NewSweeper(context.Background(), tt.js, tt.consumer, tt.subject)

		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			_, told := errors.AsType[*transport.Error](err)
			if !errors.Is(err, tt.want) || !told || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.says)
			}
		})
	}
}
