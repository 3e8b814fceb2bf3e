package jetstream_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/crash"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

func TestMain(m *testing.M) {
	crash.Main(map[string]crash.Role{roleResponder: answerRequests, roleAwaiter: awaitTicket})
	goleak.VerifyTestMain(m)
}

// env is a server with the stream EVENTS on events.>.
type env struct {
	server *natstest.Server
	nc     *nats.Conn
	js     natsjs.JetStream
	stream natsjs.Stream
}

func setup(t *testing.T) *env {
	t.Helper()

	s := natstest.Run(t)
	nc := natstest.Connect(t, s)
	js := natstest.JetStream(t, nc)

	return &env{s, nc, js, natstest.Stream(t, js, natsjs.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}})}
}

func (e *env) transport(t *testing.T, opts ...jetstream.TransportOption) *jetstream.Transport {
	t.Helper()

	tr, err := jetstream.New(e.js, opts...)
	must(t, err)
	t.Cleanup(func() { must(t, tr.Close()) })

	return tr
}

// publish stores n messages on events.created with the bodies from, from+1...
func (e *env) publish(t *testing.T, from, n int) {
	t.Helper()

	futures, ids := make([]natsjs.PubAckFuture, n), make([]string, n)

	for i := range n {
		var err error

		ids[i] = rand.Text()

		futures[i], err = e.js.PublishAsync("events.created", []byte(fmt.Sprint(from+i)),
			natsjs.WithMsgID(ids[i]), natsjs.WithStallWait(natstest.Limit))
		if err != nil {
			t.Fatal(err)
		}
	}

	for i, future := range futures {
		select {
		case <-future.Ok():
			continue
		case err := <-future.Err():
			t.Logf("message %d is published again: %v", from+i, err)
		case <-time.After(natstest.Limit):
			t.Fatal("publishing took too long")
		}

		// A server that restarts takes what it has not confirmed with it, or
		// has stored it all the same.
		_, err := e.js.Publish(t.Context(), "events.created", []byte(fmt.Sprint(from+i)),
			natsjs.WithMsgID(ids[i]), natsjs.WithRetryAttempts(20))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// consumer creates a durable consumer of events.created.
func (e *env) consumer(t *testing.T, cfg natsjs.ConsumerConfig) natsjs.Consumer {
	t.Helper()

	if cfg.FilterSubject == "" && len(cfg.FilterSubjects) == 0 {
		cfg.FilterSubject = "events.created"
	}

	if cfg.Durable == "" {
		cfg.Durable = "worker"
	}

	return natstest.Consumer(t, e.stream, cfg)
}

// inbox is a sink that keeps what it gets.
type inbox struct {
	mu      sync.Mutex
	got     []transport.Delivery
	notices []error
	arrived chan struct{}
}

func newInbox() *inbox { return &inbox{arrived: make(chan struct{}, 1)} }

func (b *inbox) config(subject string) transport.SubscribeConfig {
	return transport.SubscribeConfig{
		Subject: subject,
		Sink: func(d transport.Delivery) {
			b.mu.Lock()
			b.got = append(b.got, d)
			b.mu.Unlock()

			select {
			case b.arrived <- struct{}{}:
			default:
			}
		},
		Notify: func(err error) {
			b.mu.Lock()
			defer b.mu.Unlock()

			b.notices = append(b.notices, err)
		},
	}
}

func (b *inbox) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()

	return len(b.got)
}

func (b *inbox) noticed(target error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()

	for _, err := range b.notices {
		if errors.Is(err, target) {
			return true
		}
	}

	return false
}

// wait returns the deliveries when there are n or more.
func (b *inbox) wait(t *testing.T, n int) []transport.Delivery {
	t.Helper()

	deadline := time.After(natstest.Limit)

	for b.len() < n {
		select {
		case <-b.arrived:
		case <-deadline:
			t.Fatalf("%d of %d messages arrived", b.len(), n)
		}
	}

	b.mu.Lock()
	defer b.mu.Unlock()

	return append([]transport.Delivery(nil), b.got...)
}

// subscribe opens a subscription and closes it when the test ends.
func subscribe(t *testing.T, s transport.Subscriber, cfg transport.SubscribeConfig) transport.Subscription {
	t.Helper()

	sub, err := s.Subscribe(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), natstest.Limit)
		defer cancel()

		must(t, sub.Close(ctx))
	})

	return sub
}

func settle(t *testing.T, d transport.Delivery, v transport.Verdict) {
	t.Helper()
	must(t, d.Settler.Settle(t.Context(), d.Token, v))
}

func ack(t *testing.T, ds ...transport.Delivery) {
	t.Helper()

	for _, d := range ds {
		settle(t, d, transport.Verdict{Action: transport.Ack})
	}
}

// ended waits for the end of a subscription and returns why.
func ended(t *testing.T, sub transport.Subscription) error {
	t.Helper()

	select {
	case <-sub.Done():
		return sub.Err()
	case <-time.After(natstest.Limit):
		t.Fatal("the subscription did not end")

		return nil
	}
}

func must(t *testing.T, err error) {
	t.Helper()

	if err != nil {
		t.Fatal(err)
	}
}

// mustBe checks that err is a *transport.Error around target.
func mustBe(t *testing.T, err, target error) {
	t.Helper()
	_ = details(t, err, target)
}

// details is mustBe, and returns the error.
func details(t *testing.T, err, target error) *transport.Error {
	t.Helper()

	var e *transport.Error
	if !errors.As(err, &e) || !errors.Is(err, target) {
		t.Fatalf("got error %v, want a *transport.Error around %v", err, target)
	}

	return e
}
