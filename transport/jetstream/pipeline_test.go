package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// batchOf returns a batch of n on a subject; the payloads count from 0.
func batchOf(subject string, n int) []goflux.Item[string] {
	items := make([]goflux.Item[string], n)
	for i := range items {
		items[i] = goflux.Item[string]{Subject: subject, Payload: fmt.Sprint(i)}
	}

	return items
}

// bodies returns the payloads of a stream, in their order.
func bodies(t *testing.T, e *env) []string {
	t.Helper()

	info, err := e.stream.Info(t.Context())
	must(t, err)

	consumer, err := e.stream.OrderedConsumer(t.Context(), natsjs.OrderedConsumerConfig{})
	must(t, err)

	var all []string

	for len(all) < int(info.State.Msgs) {
		got, err := consumer.Fetch(int(info.State.Msgs)-len(all), natsjs.FetchMaxWait(natstest.Limit))
		must(t, err)

		for msg := range got.Messages() {
			all = append(all, string(msg.Data()))
		}

		must(t, got.Error())
	}

	return all
}

func TestPublishBatch(t *testing.T) {
	t.Parallel()

	for name, opts := range map[string][]goflux.PublisherOption{
		"plain": nil, "safe": {goflux.WithPublishRetry(0)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			const n = 10_000

			e := setup(t)
			results, err := publisher(t, e.transport(t), opts...).PublishBatch(within(t), batchOf("events.a", n)...)
			must(t, err)

			for i, r := range results {
				if want := (goflux.Receipt{Stream: "EVENTS", Sequence: uint64(i + 1)}); r.Receipt != want || r.Err != nil {
					t.Fatalf("result %d: %+v, want %+v", i, r, want)
				}
			}

			for i, body := range bodies(t, e) {
				if body != fmt.Sprint(i) {
					t.Fatalf("message %d is %s", i, body)
				}
			}
		})
	}
}

func TestPublishBatchResults(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "SMALL", Subjects: []string{"small"}, MaxMsgSize: 100})

	// Somebody who answers, and is no stream.
	sub, err := e.nc.Subscribe("else", func(m *nats.Msg) { _ = m.Respond([]byte("hello")) })
	must(t, err)

	t.Cleanup(func() { must(t, sub.Unsubscribe()) })

	pub := publisher(t, e.transport(t))
	large := strings.Repeat("x", 200)

	results, err := pub.PublishBatch(within(t),
		goflux.Item[string]{Subject: "events.a", ID: "m-1"},
		goflux.Item[string]{Subject: "nowhere"},
		goflux.Item[string]{Subject: "small", Payload: large},
		goflux.Item[string]{Subject: "events.a", Payload: strings.Repeat("x", 2<<20)},
		goflux.Item[string]{Subject: "events.a", Header: goflux.Header{"K": {strings.Repeat("x", 1<<16)}}},
		goflux.Item[string]{Subject: "else"},
		goflux.Item[string]{Subject: "events.a", ID: "m-1"},
		goflux.Item[string]{Subject: "events.b", Payload: large},
	)

	var failed *goflux.BatchError
	if !errors.As(err, &failed) || failed.Failed != 5 || !errors.Is(err, goflux.ErrNoStream) {
		t.Errorf("got %v", err)
	}

	for i, want := range []error{nil, goflux.ErrNoStream, goflux.ErrTooLarge, goflux.ErrTooLarge, goflux.ErrTooLarge, goflux.ErrNoStream, nil, nil} {
		if r := results[i]; !errors.Is(r.Err, want) {
			t.Errorf("result %d: %+v, want %v", i, r, want)
		}

		if unknown := errors.Is(results[i].Err, goflux.ErrPublishUnknown); unknown != (i == 5) {
			t.Errorf("result %d: %v", i, results[i].Err)
		}
	}

	if r := results[6].Receipt; !r.Duplicate || r.Sequence != 1 {
		t.Errorf("receipt of a duplicate: %+v", r)
	}

	if r := results[7].Receipt; r.Duplicate || r.Sequence != 2 {
		t.Errorf("receipt after a duplicate: %+v", r)
	}
}

// A pipeline by itself, as package goflux uses it.
func TestPipelineContract(t *testing.T) {
	t.Parallel()

	e := setup(t)
	tr := e.transport(t)

	type outcome struct {
		token uint64
		r     transport.Receipt
		err   error
	}

	outcomes := make(chan outcome, 10)

	p, err := tr.OpenPipeline(t.Context(), func(token uint64, r transport.Receipt, err error) {
		outcomes <- outcome{token, r, err}
	}, func(err error) { t.Errorf("ended: %v", err) })
	must(t, err)

	header := transport.Header{"K": {"v"}}

	for _, step := range []struct {
		token uint64
		msg   transport.Message
		want  transport.Receipt
		err   error
	}{
		{1<<64 - 1, transport.Message{Subject: "events.a"}, transport.Receipt{Stream: "EVENTS", Sequence: 1}, nil},
		{0, transport.Message{Subject: "nowhere"}, transport.Receipt{}, transport.ErrNoStream},
		{7, transport.Message{Subject: "events.a", Header: header, ID: "m"}, transport.Receipt{Stream: "EVENTS", Sequence: 2}, nil},
		{7, transport.Message{Subject: "events.a", Header: header, ID: "m"}, transport.Receipt{Stream: "EVENTS", Sequence: 2, Duplicate: true}, nil},
	} {
		must(t, p.Send(step.token, step.msg))

		got := await(t, outcomes)
		if got.token != step.token || got.r != step.want || !errors.Is(got.err, step.err) {
			t.Errorf("outcome %+v, want %+v", got, step)
		}
	}

	one := uint64(1)

	for _, msg := range []transport.Message{
		{Subject: "events.a", Reply: "inbox"},
		{Subject: "events.a", Terms: &transport.Terms{LastSequence: &one}},
	} {
		mustBe(t, p.Send(1, msg), transport.ErrUnsupported)
	}

	must(t, p.Close())
	must(t, p.Close())

	if e.nc.NumSubscriptions() > 1 { // that of requests stays
		t.Errorf("%d subscriptions are left", e.nc.NumSubscriptions())
	}

	must(t, tr.Close())
	mustBe(t, p.Send(1, transport.Message{Subject: "events.a"}), transport.ErrClosed)

	_, err = tr.OpenPipeline(t.Context(), nil, nil)
	mustBe(t, err, transport.ErrClosed)
}

// While the server restarts, a batch waits, and everything is stored once and,
// but for what was under way, in order.
func TestBatchOverRestart(t *testing.T) {
	t.Parallel()

	const n = 20_000

	e := setup(t)
	pub := publisher(t, e.transport(t), goflux.WithPublishRetry(300*time.Millisecond))

	ctx, cancel := context.WithTimeout(t.Context(), 3*natstest.Limit)
	defer cancel()

	restarted := make(chan error, 1)

	go func() {
		err := natstest.Poll(ctx, func() bool {
			info, err := e.stream.Info(ctx)

			return err == nil && info.State.Msgs > n/10
		}, "a tenth of the batch")
		restarted <- errors.Join(err, e.server.Restart())
	}()

	results, err := pub.PublishBatch(ctx, batchOf("events.a", n)...)
	must(t, err)
	must(t, <-restarted)

	seen := make(map[string]bool, n)

	for _, body := range bodies(t, e) {
		if seen[body] {
			t.Errorf("%s is stored twice", body)
		}

		seen[body] = true
	}

	if len(seen) != n || len(results) != n {
		t.Errorf("%d of %d are stored", len(seen), n)
	}
}

// Publish waits for a connection, and stores what it publishes then.
func TestPublishOverRestart(t *testing.T) {
	t.Parallel()

	e := setup(t)
	pub := publisher(t, e.transport(t), goflux.WithAckWait(natstest.Limit))

	e.server.Stop()
	natstest.Eventually(t, func() bool { return !e.nc.IsConnected() }, "the connection to break")

	published := make(chan error, 1)

	go func() {
		_, err := pub.Send(t.Context(), "events.a", "x")
		published <- err
	}()

	must(t, e.server.Start())
	must(t, <-published)

	if got := bodies(t, e); len(got) != 1 {
		t.Errorf("stored %q", got)
	}
}

// responses is how many replies the connection waits for.
func responses(nc *nats.Conn) int {
	return reflect.ValueOf(nc).Elem().FieldByName("respMap").Len()
}

// A publisher whose server is gone for good returns at its deadline, holds no
// memory afterwards, and leaves no goroutine.
//
//nolint:paralleltest // the heap and the goroutines of the process are looked at
func TestServerGoneForGood(t *testing.T) {
	for name, opts := range map[string][]goflux.PublisherOption{
		"plain":          nil,
		"safe":           {goflux.WithPublishRetry(0)},
		"until deadline": {goflux.WithRetryAttempts(-1)},
	} {
		t.Run(name, func(t *testing.T) {
			e := setup(t)
			pub, err := goflux.NewPublisher(e.transport(t), constant(), opts...)
			must(t, err)

			// Everything that stays is there before.
			_, err = pub.PublishBatch(within(t), goflux.Item[string]{Subject: "events.a"})
			must(t, err)
			must(t, pub.Publish(within(t), "events.a", ""))

			e.server.Stop()
			natstest.Eventually(t, func() bool { return !e.nc.IsConnected() }, "the connection to break")

			const each, limit = 2000, 300 * time.Millisecond

			before := goleak.IgnoreCurrent()
			kept := heap()

			for range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				began := time.Now()

				failed := make(chan error, each)

				for range each {
					go func() { failed <- pub.Publish(ctx, "events.a", "") }()
				}

				results, err := pub.PublishBatch(ctx, batchOf("events.a", 2*each)...)
				if err == nil || len(results) != 2*each {
					t.Fatalf("%d results, error %v", len(results), err)
				}

				for range each {
					err := <-failed
					if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, goflux.ErrPublishUnknown) {
						t.Fatalf("got %v", err)
					}
				}

				if took := time.Since(began); took < limit || took > limit+natstest.Limit/4 {
					t.Errorf("it took %v", took)
				}

				cancel()
			}

			if n := responses(e.nc); n != 0 {
				t.Errorf("the connection waits for %d replies", n)
			}

			if n, err := e.nc.Buffered(); err != nil || n > 1000 { // the protocol's own
				t.Errorf("%d bytes are buffered, error %v", n, err)
			}

			// 6,000 messages of 4 KB were published each time.
			if grown := int64(heap()) - int64(kept); grown > 4<<20 {
				t.Errorf("the heap grew by %d bytes", grown)
			}

			must(t, pub.Close())
			must(t, goleak.Find(before, goleak.IgnoreAnyFunction("github.com/nats-io/nats.go.(*Conn).doReconnect")))
		})
	}
}

// constant encodes everything as 4 KB of its own.
func constant() goflux.Codec[string] {
	return goflux.Codec[string]{
		Encode: func(string) ([]byte, error) { return make([]byte, 4<<10), nil },
		Decode: func([]byte, *string) error { return nil },
	}
}

func heap() uint64 {
	var m runtime.MemStats

	for range 2 {
		runtime.GC()
	}

	runtime.ReadMemStats(&m)

	return m.HeapAlloc
}

// Publishing on a connection that was closed, or what is too large, leaves
// nothing in it (nats.go v1.55.0 would keep an entry for each).
func TestFailedPublishLeavesNothing(t *testing.T) {
	t.Parallel()

	e := setup(t)
	pub := publisher(t, e.transport(t))
	large := strings.Repeat("x", 2<<20)

	for range 10 {
		_ = details(t, pub.Publish(within(t), "events.a", large), goflux.ErrTooLarge)
	}

	if n := responses(e.nc); n != 0 {
		t.Errorf("the connection waits for %d replies", n)
	}

	e.nc.Close()

	for range 10 {
		_ = details(t, pub.Publish(within(t), "events.a", ""), goflux.ErrClosed)
	}

	_, err := pub.PublishAsync(within(t), "events.a", "")
	if !errors.Is(err, goflux.ErrClosed) {
		t.Errorf("got %v", err)
	}

	if n := responses(e.nc); n != 0 {
		t.Errorf("the connection waits for %d replies", n)
	}
}

// Where the connection breaks under a publish the outcome is unknown.
func TestPublishWhenConnectionBreaks(t *testing.T) {
	t.Parallel()

	e := setup(t)

	// Takes the message and says nothing, as a stream does that has lost its
	// leader.
	taken := make(chan struct{}, 1)
	sub, err := e.nc.Subscribe("silent", func(*nats.Msg) { taken <- struct{}{} })
	must(t, err)

	t.Cleanup(func() { _ = sub.Unsubscribe() })

	pub := publisher(t, e.transport(t), goflux.WithAckWait(natstest.Limit))
	ctx, cancel := context.WithCancel(t.Context())
	published := make(chan error, 2)

	go func() { published <- pub.Publish(ctx, "silent", "x") }()

	await(t, taken)
	e.server.Stop()
	cancel()

	if err = <-published; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}

	_ = details(t, err, goflux.ErrPublishUnknown)

	// The same where the connection is closed for good.
	natstest.Eventually(t, func() bool { return !e.nc.IsConnected() }, "the connection to break")
	must(t, e.server.Start())
	natstest.Eventually(t, e.nc.IsConnected, "a connection")

	go func() { published <- pub.Publish(t.Context(), "silent", "x") }()

	await(t, taken)
	e.nc.Close()

	if err = <-published; !errors.Is(err, goflux.ErrClosed) {
		t.Errorf("got %v", err)
	}

	_ = details(t, err, goflux.ErrPublishUnknown)
}

// await returns what comes from c.
func await[T any](t *testing.T, c <-chan T) T {
	t.Helper()

	select {
	case v := <-c:
		return v
	case <-time.After(natstest.Limit):
		t.Fatal("nothing came")

		panic("unreachable")
	}
}

// stalled returns a transport over a connection that takes no more, and a
// publisher that has published before.
func stalled(t *testing.T) (*jetstream.Transport, *goflux.BoundPublisher[string]) {
	t.Helper()

	s := natstest.RunTCP(t)
	natstest.Stream(t, natstest.JetStream(t, natstest.Connect(t, s)), natsjs.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}})

	proxy, err := chaos.NewProxy(s.URL(), 1)
	must(t, err)
	t.Cleanup(func() { must(t, proxy.Close()) })

	nc := natstest.Connect(t, natstest.URL(proxy.URL()))

	tr, err := jetstream.New(natstest.JetStream(t, nc))
	must(t, err)

	// What was opened before does not have to be opened then.
	open := publisher(t, tr)
	must(t, open.Publish(within(t), "events.a", "x"))

	_, err = open.PublishBatch(within(t), batchOf("events.a", 1)...)
	must(t, err)

	proxy.Stall(chaos.Both)

	filled := make(chan struct{})

	go func() {
		defer close(filled)

		for nc.Publish("other", make([]byte, 512<<10)) == nil {
			if nc.Stats().OutMsgs > 1000 {
				return
			}
		}
	}()

	t.Cleanup(func() {
		proxy.Resume()
		nc.Close()
		<-filled
	})

	// It takes no more when a call that does nothing blocks.
	natstest.Eventually(t, func() bool {
		blocked := make(chan struct{})

		go func() {
			defer close(blocked)

			_ = nc.Publish("other", nil)
		}()

		select {
		case <-blocked:
			return false
		case <-time.After(300 * time.Millisecond):
			return true
		}
	}, "the connection to take no more")

	return tr, open
}

// A connection that takes no more holds up nobody who has a deadline, and not
// Close.
func TestPipelineOverAStalledConnection(t *testing.T) {
	t.Parallel()

	tr, open := stalled(t)

	fresh, err := goflux.NewPublisher(tr, raw.String())
	must(t, err)

	for _, pub := range []*goflux.BoundPublisher[string]{fresh, open} {
		for what, publish := range map[string]func(ctx context.Context) error{
			"PublishBatch": func(ctx context.Context) error {
				_, err := pub.PublishBatch(ctx, batchOf("events.a", 2)...)

				return err
			},
			"PublishAsync": func(ctx context.Context) error {
				p, err := pub.PublishAsync(ctx, "events.a", "x")
				if err != nil {
					return err
				}

				_, err = p.Wait(ctx)

				return err
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			began := time.Now()
			err := publish(ctx)

			cancel()

			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > natstest.Limit/4 {
				t.Errorf("%s: %v after %v", what, err, took)
			}
		}
	}

	for what, end := range map[string]func() error{"the publisher": open.Close, "the new publisher": fresh.Close, "the transport": tr.Close} {
		began := time.Now()
		must(t, end())

		if took := time.Since(began); took > natstest.Limit/4 {
			t.Errorf("closing %s took %v", what, took)
		}
	}
}

// A closed transport leaves nothing on the caller's connection, also where the
// publishers are still open.
func TestCloseEndsPipelines(t *testing.T) {
	t.Parallel()

	e := setup(t)

	tr, err := jetstream.New(e.js)
	must(t, err)

	before := e.nc.NumSubscriptions()
	pub := publisher(t, tr)

	_, err = pub.PublishBatch(within(t), batchOf("events.a", 10)...)
	must(t, err)

	if n := e.nc.NumSubscriptions(); n != before+1 {
		t.Errorf("%d subscriptions, want %d", n, before+1)
	}

	must(t, tr.Close())

	if n := e.nc.NumSubscriptions(); n != before {
		t.Errorf("%d subscriptions are left, want %d", n, before)
	}

	_, err = pub.PublishBatch(within(t), batchOf("events.a", 1)...)
	mustBe(t, err, goflux.ErrClosed)
}
