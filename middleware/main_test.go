package middleware_test

import (
	"context"
	"sync"
	"testing"

	"github.com/foomo/goencode/json/v1"
	"go.uber.org/goleak"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// message makes a message as a handler gets it, with an id unless that is "".
// It has no transport behind it.
func message(id string) goflux.Message[int] {
	msg := goflux.Message[int]{Subject: "orders"}
	if id != "" {
		msg.Header = goflux.Header{transport.HeaderMessageID: {id}}
	}

	return msg
}

// returning is a handler that returns what it is told.
func returning(err error) goflux.Handler[int] {
	return func(context.Context, goflux.Message[int]) error { return err }
}

// open makes a memory transport that is closed with the test.
func open(t *testing.T, opts ...memory.Option) *memory.Transport {
	t.Helper()

	tr, err := memory.New(opts...)
	must(t, err)
	t.Cleanup(func() { must(t, tr.Close()) })

	return tr
}

// watched notes the verdicts on the deliveries of its transport. With lose, the
// acks of first deliveries do not arrive.
type watched struct {
	*memory.Transport

	lose bool

	mu       sync.Mutex
	verdicts []transport.Action
}

func (w *watched) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	sink := cfg.Sink
	cfg.Sink = func(d transport.Delivery) {
		d.Settler = watchedSettler{d.Settler, w}
		sink(d)
	}

	return w.Transport.Subscribe(ctx, cfg)
}

type watchedSettler struct {
	transport.Settler

	w *watched
}

func (s watchedSettler) Settle(ctx context.Context, token any, v transport.Verdict) error {
	acks := v.Action == transport.Ack || v.Action == transport.AckSync

	if s.w.lose && acks && s.Metadata(token).Attempt == 1 {
		return nil
	}

	err := s.Settler.Settle(ctx, token, v)

	if err == nil && v.Action != transport.Extend {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()

		s.w.verdicts = append(s.w.verdicts, v.Action)
	}

	return err
}

// publish sends n with the id, or without one where that is "".
func publish(t *testing.T, tr transport.Publisher, id string, n int) {
	t.Helper()

	pub, err := goflux.NewPublisher(tr, json.NewCodec[int]())
	must(t, err)

	ctx := t.Context()
	if id != "" {
		ctx = goflux.WithMessageID(ctx, id)
	}

	must(t, pub.Publish(ctx, "orders", n))
	must(t, pub.Close())
}

// serve subscribes until the returned function is called, which waits for the
// end.
func serve(t *testing.T, tr transport.Subscriber, h goflux.Handler[int], opts ...goflux.SubscriberOption) (stop func()) {
	t.Helper()

	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)

	sub, err := goflux.NewSubscriber(tr, json.NewCodec[int](), append([]goflux.SubscriberOption{
		goflux.WithQueueGroup("workers"), goflux.WithReady(func() { close(ready) }),
	}, opts...)...)
	must(t, err)

	go func() { done <- sub.Subscribe(ctx, "orders", h) }()

	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("the subscription ended: %v", err)
	}

	return func() {
		cancel()

		if err := <-done; err != nil {
			t.Errorf("the subscription ended: %v", err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()

	if err != nil {
		t.Fatal(err)
	}
}
