package goflux_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	json "github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
	corenats "github.com/foomo/goflux/transport/nats"
)

var errCannot = errors.New("cannot")

// silent drops what is logged about messages that fail on purpose.
func silent() goflux.CommonOption { return goflux.WithLogger(slog.New(slog.DiscardHandler)) }

// morgue is a place for dead letters that can be out of order.
type morgue struct {
	caps  transport.Capabilities
	limit int // of bytes in headers; 0 is none

	mu      sync.Mutex
	fail    error // of the next tries
	tries   int
	letters []transport.Message
	ids     map[string]bool
}

func newMorgue() *morgue {
	return &morgue{caps: transport.Of(transport.Receipts, transport.Deduplication)}
}

func (m *morgue) Capabilities() transport.Capabilities { return m.caps }

func (m *morgue) Publish(_ context.Context, msg transport.Message) (transport.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	m.tries++

	size := 0
	for k, vs := range msg.Header {
		size += (len(k) + 4) * len(vs)
		for _, v := range vs {
			size += len(v)
		}
	}

	switch {
	case m.fail != nil:
		return transport.Receipt{}, m.fail
	case m.limit > 0 && size > m.limit:
		return transport.Receipt{}, transport.ErrTooLarge
	case m.ids[msg.ID]:
		return transport.Receipt{Duplicate: true}, nil
	}

	if m.ids == nil {
		m.ids = map[string]bool{}
	}

	m.ids[msg.ID] = true
	msg.Header, msg.Data = msg.Header.Clone(), bytes.Clone(msg.Data)
	m.letters = append(m.letters, msg)

	return transport.Receipt{}, nil
}

func (m *morgue) failWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	m.fail = err
}

func (m *morgue) tried() int {
	m.mu.Lock()
	defer m.mu.Unlock()

	return m.tries
}

func (m *morgue) dead() []goflux.DeadLetter[[]byte] {
	m.mu.Lock()
	defer m.mu.Unlock()

	dead := make([]goflux.DeadLetter[[]byte], 0, len(m.letters))
	for _, msg := range m.letters {
		dead = append(dead, goflux.ParseDeadLetter(goflux.Message[[]byte]{Header: msg.Header, Payload: msg.Data}, raw.Bytes()))
	}

	return dead
}

func inMemory(t *testing.T, opts ...memory.Option) *memory.Transport {
	t.Helper()

	tr, err := memory.New(opts...)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})

	return tr
}

// serveDead subscribes in the background; the function it returns ends that and
// returns the error of Subscribe.
func serveDead[T any](t *testing.T, sub *goflux.BoundSubscriber[T], subject string, h goflux.Handler[T]) (stop func() error) {
	t.Helper()

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)

	go func() { ended <- sub.Subscribe(ctx, subject, h) }()

	return sync.OnceValue(func() error {
		cancel()

		return <-ended
	})
}

// What each outcome makes of a message that is tried three times at the most.
func TestDeadLetterOfEachOutcome(t *testing.T) {
	t.Parallel()

	for _, tt := range []struct {
		name     string
		payload  string
		fail     func() error
		reason   string // empty: no dead letter
		text     string
		attempts int
	}{
		{"success", `{"id":"1"}`, func() error { return nil }, "", "", 1},
		{"reject", `{"id":"1"}`, func() error { return goflux.Reject(errCannot) }, goflux.ReasonRejected, "rejected: cannot", 1},
		{"wrapped reject", `{"id":"1"}`, func() error { return fmt.Errorf("ship: %w", goflux.Reject(nil)) }, goflux.ReasonRejected, "ship: rejected", 1},
		{"drop", `{"id":"1"}`, func() error { return goflux.Drop(errCannot) }, "", "", 1},
		{"undecodable", `{"id":`, nil, goflux.ReasonUndecodable, "decoded", 1},
		{"error", `{"id":"1"}`, func() error { return errCannot }, goflux.ReasonExhausted, "cannot", 3},
		{"retry after", `{"id":"1"}`, func() error { return goflux.RetryAfter(time.Hour, errCannot) }, goflux.ReasonExhausted, "cannot", 3},
		{"panic", `{"id":"1"}`, func() error { panic("oops") }, goflux.ReasonExhausted, "panic: oops", 3},
		{"many lines", `{"id":"1"}`, func() error { return errors.New(" a\r\n\tb\x00\xff ") }, goflux.ReasonExhausted, "a   b \ufffd", 3},
		{"a long text", `{"id":"1"}`, func() error { return errors.New(strings.Repeat("é", 5000)) }, goflux.ReasonExhausted, strings.Repeat("é", 512), 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr, store := inMemory(t, memory.WithMaxDeliver(3)), newMorgue()

				sub, err := goflux.NewSubscriber(tr, json.NewCodec[order](),
					goflux.WithQueueGroup("workers"), goflux.WithDeadLetterPublisher(store, "dead.orders"), silent())
				if err != nil {
					t.Fatal(err)
				}

				calls := 0
				stop := serveDead(t, sub, "orders.*", func(context.Context, goflux.Message[order]) error {
					calls++

					return tt.fail()
				})
				synctest.Wait()

				sent := goflux.Header{"X-Message-ID": {"o-1"}, "Kind": {"a", "b"}, "traceparent": {"00-1-2-03"}}
				before := time.Now()

				if _, err := tr.Publish(t.Context(), transport.Message{
					Subject: "orders.created", Header: sent, Data: []byte(tt.payload), ID: "o-1",
				}); err != nil {
					t.Fatal(err)
				}

				time.Sleep(5 * time.Hour)

				if err := stop(); err != nil {
					t.Error(err)
				}

				if want := tt.attempts; tt.fail != nil && calls != want {
					t.Errorf("%d calls of the handler, want %d", calls, want)
				}

				if n := tr.GivenUp(); n != 0 {
					t.Errorf("the transport gave %d messages up, want each terminated", n)
				}

				dead := store.dead()
				if tt.reason == "" {
					if len(dead) != 0 {
						t.Errorf("dead letters without reason: %+v", dead)
					}

					return
				}

				if len(dead) != 1 {
					t.Fatalf("%d dead letters, want 1", len(dead))
				}

				d := dead[0]
				if string(d.Raw) != tt.payload || !reflect.DeepEqual(d.Header, sent) || d.ID() != "o-1" {
					t.Errorf("the message was altered: %q %v", d.Raw, d.Header)
				}

				if !strings.Contains(d.Error, tt.text) || len(d.Error) > 1024 || !utf8.ValidString(d.Error) {
					t.Errorf("the error is %q, want %q in it", d.Error, tt.text)
				}

				if d.Reason != tt.reason || d.Attempts != tt.attempts || d.Subject != "orders.created" || d.Stream != memory.Stream ||
					d.Sequence != 1 || d.Consumer != "workers" || !d.Stored.Equal(before) || d.Time.Before(before) || d.Redriven != 0 {
					t.Errorf("the dead letter tells %+v", d)
				}
			})
		})
	}
}

// While a dead letter cannot be stored, its message is neither terminated nor
// handled again, and others are not held back.
func TestDeadLetterIsStoredBeforeTheMessageEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, store := inMemory(t, memory.WithAckWait(time.Second)), newMorgue()
		store.failWith(transport.ErrNoStream)

		sub, err := goflux.NewSubscriber(tr, raw.String(),
			goflux.WithQueueGroup("workers"), goflux.WithDeadLetterPublisher(store, "dead.orders"), silent())
		if err != nil {
			t.Fatal(err)
		}

		var handled []string

		stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
			handled = append(handled, msg.Payload)

			if msg.Payload == "poison" {
				return goflux.Reject(errCannot)
			}

			return nil
		})
		synctest.Wait()

		for _, data := range []string{"poison", "a", "b"} {
			if _, err := tr.Publish(t.Context(), transport.Message{Subject: "orders", Data: []byte(data)}); err != nil {
				t.Fatal(err)
			}
		}

		died := time.Now()

		// Long past the lease.
		time.Sleep(5 * time.Minute)
		synctest.Wait()

		if want := []string{"poison", "a", "b"}; !slices.Equal(handled, want) {
			t.Fatalf("handled %q, want %q", handled, want)
		}

		// 100 ms, doubling to 30 s: no hot loop.
		if n := store.tried(); n < 10 || n > 25 {
			t.Errorf("%d tries in five minutes", n)
		}

		store.failWith(nil)
		time.Sleep(time.Minute)

		dead := store.dead()
		if len(dead) != 1 || string(dead[0].Raw) != "poison" || dead[0].Attempts != 1 || !dead[0].Time.Equal(died) {
			t.Fatalf("got %+v, want the one poison, as it was at %v", dead, died)
		}

		if err := stop(); err != nil {
			t.Error(err)
		}

		// Terminated: the group has nothing left.
		if _, err := left(goflux.NewConsumer(tr, raw.String(), "orders", goflux.WithQueueGroup("workers"))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("something is left: %v", err)
		}
	})
}

// left fetches what is left, and waits an hour for it.
func left[T any](c *goflux.BoundConsumer[T], err error) ([]goflux.Message[T], error) {
	if err != nil {
		return nil, err
	}
	defer c.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()

	return c.Fetch(ctx, 100)
}

// A subscription that stops leaves what it could not bury to others.
func TestDeadLetterThatCannotBeStoredSurvivesTheSubscription(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, store := inMemory(t), newMorgue()
		store.failWith(transport.ErrDisconnected)

		opts := []goflux.SubscriberOption{
			goflux.WithQueueGroup("workers"), goflux.WithDeadLetterPublisher(store, "dead.orders"), silent(),
		}
		reject := func(context.Context, goflux.Message[string]) error { return goflux.Reject(errCannot) }

		for range 3 {
			sub, err := goflux.NewSubscriber(tr, raw.String(), opts...)
			if err != nil {
				t.Fatal(err)
			}

			stop := serveDead(t, sub, "orders", reject)
			synctest.Wait()

			if store.tried() == 0 {
				if _, err := tr.Publish(t.Context(), transport.Message{Subject: "orders", Data: []byte("poison")}); err != nil {
					t.Fatal(err)
				}
			}

			time.Sleep(time.Second)

			if err := stop(); err != nil {
				t.Errorf("Subscribe returned %v though the message was handed back", err)
			}
		}

		store.failWith(nil)

		sub, err := goflux.NewSubscriber(tr, raw.String(), opts...)
		if err != nil {
			t.Fatal(err)
		}

		stop := serveDead(t, sub, "orders", reject)

		time.Sleep(time.Second)

		if err := stop(); err != nil {
			t.Error(err)
		}

		if dead := store.dead(); len(dead) != 1 || string(dead[0].Raw) != "poison" || dead[0].Attempts != 4 {
			t.Errorf("got %+v, want one dead letter, after an attempt in each subscription", dead)
		}
	})
}

// The first verdict wins: what a handler has settled does not die.
func TestDeadLetterOfNothingThatIsSettled(t *testing.T) {
	t.Parallel()

	for name, opts := range map[string][]goflux.SubscriberOption{
		"automatic": nil,
		"manual":    {goflux.WithManualAck()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr, store := inMemory(t), newMorgue()
				opts := append(opts, goflux.WithDeadLetterPublisher(store, "dead.orders"), silent())

				sub, err := goflux.NewSubscriber(tr, raw.String(), opts...)
				if err != nil {
					t.Fatal(err)
				}

				stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
					if err := msg.Ack(); err != nil {
						t.Error(err)
					}

					if msg.Payload == "panic" {
						panic("after the ack")
					}

					return goflux.Reject(errCannot)
				})
				synctest.Wait()

				for _, data := range []string{"panic", "reject"} {
					if _, err := tr.Publish(t.Context(), transport.Message{Subject: "orders", Data: []byte(data)}); err != nil {
						t.Fatal(err)
					}
				}

				time.Sleep(time.Minute)

				if err := stop(); err != nil {
					t.Error(err)
				}

				if n := store.tried(); n != 0 {
					t.Errorf("%d dead letters of messages that were acked", n)
				}
			})
		})
	}
}

// Where nobody else keeps the message, storing is tried six times.
func TestDeadLetterWithoutRedelivery(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))

	tr, err := corenats.New(nc)
	if err != nil {
		t.Fatal(err)
	}

	store := newMorgue()
	store.failWith(transport.ErrNoStream)

	ready := make(chan struct{})

	sub, err := goflux.NewSubscriber(tr, raw.String(), silent(), goflux.WithQueueGroup("workers"),
		goflux.WithDeadLetterPublisher(store, "dead.orders"), goflux.WithReady(func() { close(ready) }))
	if err != nil {
		t.Fatal(err)
	}

	stop := serveDead(t, sub, "orders", func(context.Context, goflux.Message[string]) error { return errCannot })
	<-ready

	publish := func(data string) {
		if _, err := tr.Publish(t.Context(), transport.Message{Subject: "orders", Data: []byte(data)}); err != nil {
			t.Fatal(err)
		}
	}

	publish("lost")
	natstest.Eventually(t, func() bool { return store.tried() == 6 }, "the last try")
	store.failWith(nil)
	publish("kept")
	publish("kept") // the same once more is another message
	natstest.Eventually(t, func() bool { return len(store.dead()) == 2 }, "two dead letters")

	if err := stop(); err != nil {
		t.Error(err)
	}

	for _, d := range store.dead() {
		if string(d.Raw) != "kept" || d.Reason != goflux.ReasonExhausted || d.Attempts != 1 || d.Consumer != "workers" {
			t.Errorf("got %+v", d)
		}
	}
}

// A dead letter is as complete as there is room for: only the text of the error
// can be left out.
func TestDeadLetterWithLittleRoom(t *testing.T) {
	t.Parallel()

	dead := goflux.DeadLetter[[]byte]{
		Subject: "orders", Header: goflux.Header{"Kind": {"a"}}, Raw: []byte("bytes"), Reason: goflux.ReasonRejected,
		Error: strings.Repeat("x", 1000), Attempts: 1, Stream: "ORDERS", Sequence: 7, Consumer: "workers", Time: time.Now(),
	}

	for _, tt := range []struct {
		name  string
		limit int
		want  error
		text  int
	}{
		{"enough", 4000, nil, 1000},
		{"without the text", 500, nil, 0},
		{"not even that", 100, goflux.ErrTooLarge, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			store := newMorgue()
			store.limit = tt.limit

			err := goflux.StoreDeadLetter(t.Context(), store, "dead.orders", dead)
			if !errors.Is(err, tt.want) {
				t.Fatal(err)
			}

			if tt.want != nil {
				if !strings.Contains(err.Error(), "max_payload") {
					t.Errorf("%v does not tell what to do", err)
				}

				return
			}

			got := store.dead()[0]
			if len(got.Error) != tt.text || string(got.Raw) != "bytes" || got.Header.Get("Kind") != "a" || got.Sequence != 7 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// The headers of a message come back as they were, and do not act on the way.
func TestDeadLetterHeaders(t *testing.T) {
	t.Parallel()

	for name, h := range map[string]goflux.Header{
		"none":            nil,
		"of the user":     {"Kind": {"a", "", "b"}, "kind": {"c"}},
		"of the server":   {"Nats-Msg-Id": {"id"}, "Nats-Expected-Last-Sequence": {"5"}, "nats-rollup": {"all"}, "Nats-TTL": {"1h"}},
		"a status":        {"Status": {"503"}, "status": {"503"}},
		"a dead letter":   {"Goflux-Dead-Subject": {"x"}, "Goflux-Dead-Encoded": {"YQ==:Yg=="}, "goflux-dead-reason": {"y"}},
		"one of those":    {"Goflux-Original-Nats-Msg-Id": {"id"}, "Goflux-Original-Foo": {"x"}},
		"not sendable":    {"a(b)": {"c"}, "ümlaut": {"x"}, "Trailing": {"x ", "y"}, "Break": {"a\nb"}},
		"of goflux":       {"Goflux-Reply-To": {"inbox"}, "X-Message-ID": {"id"}},
		"of a trace":      {"traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}},
		"of any encoding": {"Bytes": {"\xff\x00\x01"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			store := newMorgue()
			dead := goflux.DeadLetter[[]byte]{
				Subject: "orders", Header: h, Raw: []byte("bytes"), Reason: goflux.ReasonRejected, Stream: "S", Sequence: 1, Consumer: "C",
			}

			// A dead letter that dies, and again.
			for range 3 {
				if err := goflux.StoreDeadLetter(t.Context(), store, "dead", dead); err != nil {
					t.Fatal(err)
				}

				sent := store.letters[len(store.letters)-1]
				if err := sent.Header.Validate(); err != nil {
					t.Fatal(err)
				}

				for key := range sent.Header {
					if strings.HasPrefix(strings.ToLower(key), "nats-") || strings.EqualFold(key, "status") {
						t.Errorf("%q would act again", key)
					}
				}

				dead = goflux.DeadLetter[[]byte]{Subject: "dead", Header: sent.Header, Raw: sent.Data, Stream: "D", Consumer: "C"}
				dead.Sequence = uint64(len(store.letters))
			}

			for range 3 {
				msg := goflux.Message[[]byte]{Header: store.letters[len(store.letters)-1].Header, Payload: []byte("bytes")}
				store.letters = append(store.letters, transport.Message{Header: goflux.ParseDeadLetter(msg, raw.Bytes()).Header})
			}

			if got := store.letters[len(store.letters)-1].Header; !maps.EqualFunc(got, h, slices.Equal) {
				t.Errorf("got %q, want %q", got, h)
			}
		})
	}
}

// One death has one id, whoever stores it; another one has another.
func TestDeadLetterIDs(t *testing.T) {
	t.Parallel()

	now := time.Now()
	base := goflux.DeadLetter[[]byte]{
		Subject: "orders", Raw: []byte("a"), Stream: "S", Sequence: 1, Consumer: "C", Stored: now, Time: now, Reason: goflux.ReasonRejected,
	}
	with := func(change func(*goflux.DeadLetter[[]byte])) goflux.DeadLetter[[]byte] {
		d := base
		change(&d)

		return d
	}
	loose := with(func(d *goflux.DeadLetter[[]byte]) { d.Stream, d.Sequence, d.Stored = "", 0, time.Time{} })

	for _, tt := range []struct {
		name string
		a, b goflux.DeadLetter[[]byte]
		same bool
	}{
		{"told otherwise", base, with(func(d *goflux.DeadLetter[[]byte]) {
			d.Reason, d.Error, d.Time, d.Attempts, d.Stored = goflux.ReasonExhausted, "x", now.Add(time.Second), 9, now.UTC()
		}), true},
		{"another sequence", base, with(func(d *goflux.DeadLetter[[]byte]) { d.Sequence = 2 }), false},
		{"another consumer", base, with(func(d *goflux.DeadLetter[[]byte]) { d.Consumer = "D" }), false},
		{"another stream", base, with(func(d *goflux.DeadLetter[[]byte]) { d.Stream = "T" }), false},
		{"a stream that was created anew", base, with(func(d *goflux.DeadLetter[[]byte]) { d.Stored = now.Add(1) }), false},
		{"without a sequence", loose, loose, true},
		{"without a sequence, later", loose, func() goflux.DeadLetter[[]byte] {
			d := loose
			d.Time = now.Add(1)

			return d
		}(), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			store := newMorgue()
			for _, d := range []goflux.DeadLetter[[]byte]{tt.a, tt.b} {
				if err := goflux.StoreDeadLetter(t.Context(), store, "dead", d); err != nil {
					t.Fatal(err)
				}
			}

			if same := len(store.dead()) == 1; same != tt.same {
				t.Errorf("stored as one: %v, want %v", same, tt.same)
			}
		})
	}
}

func TestParseDeadLetterIsTyped(t *testing.T) {
	t.Parallel()

	store := newMorgue()
	for _, data := range []string{`{"id":"1"}`, `{"id":`} {
		if err := goflux.StoreDeadLetter(t.Context(), store, "dead", goflux.DeadLetter[[]byte]{Subject: "orders", Raw: []byte(data)}); err != nil {
			t.Fatal(err)
		}
	}

	parse := func(i int) goflux.DeadLetter[order] {
		msg := goflux.Message[[]byte]{Header: store.letters[i].Header, Payload: store.letters[i].Data}

		return goflux.ParseDeadLetter(msg, json.NewCodec[order]())
	}

	if d := parse(0); d.DecodeErr != nil || d.Payload.ID != "1" {
		t.Errorf("got %+v", d)
	}

	if d := parse(1); !errors.Is(d.DecodeErr, goflux.ErrDecode) || string(d.Raw) != `{"id":` || d.Payload != (order{}) {
		t.Errorf("got %+v", d)
	}

	h := goflux.Header{"Goflux-Dead-Reason": {"x"}, "Kind": {"a"}}
	if d := goflux.ParseDeadLetter(goflux.Message[[]byte]{Header: h, Payload: []byte("x")}, raw.String()); d.Subject != "" || d.Reason != "" ||
		d.Payload != "x" || len(d.Header) != 2 {
		t.Errorf("no dead letter, and yet %+v", d)
	}
}

func TestDeadLetterOptionsRefuse(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	cons := natstest.Consumer(t, natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}),
		natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy})
	tr := inMemory(t)
	fleeting := &morgue{}

	for _, tt := range []struct {
		name string
		t    transport.Subscriber
		opt  goflux.SubscriberOption
		want error
		says string
	}{
		{"no subject", tr, goflux.WithDeadLetter(""), goflux.ErrInvalidSubject, "empty"},
		{"a wildcard", tr, goflux.WithDeadLetter("dead.*"), goflux.ErrInvalidSubject, "wildcard"},
		{"no publisher", tr, goflux.WithDeadLetterPublisher(nil, "dead"), goflux.ErrInvalidOption, "nil"},
		{"a bare consumer", jetstream.Bind(cons), goflux.WithDeadLetter("dead"), goflux.ErrInvalidOption, "WithDeadLetterPublisher"},
		{"nobody confirms", tr, goflux.WithDeadLetterPublisher(fleeting, "dead"), goflux.ErrUnsupported, "receipts"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			_, err := goflux.NewSubscriber(tt.t, raw.Bytes(), tt.opt)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.says)
			}
		})
	}

	for name, err := range map[string]error{
		"publisher": goflux.StoreDeadLetter(t.Context(), nil, "dead", goflux.DeadLetter[[]byte]{}),
		"subject":   goflux.StoreDeadLetter(t.Context(), tr, "dead.", goflux.DeadLetter[[]byte]{}),
		"header":    goflux.StoreDeadLetter(t.Context(), tr, "dead", goflux.DeadLetter[[]byte]{Consumer: "a\nb"}),
	} {
		if _, told := errors.AsType[*goflux.Error](err); !told {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A subscription that would receive its own dead letters is refused, or at
// least does not go round.
func TestDeadLetterLoop(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	all := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ALL", Subjects: []string{"orders.>"}})
	consumer := func(name string, filters ...string) transport.Subscriber {
		return jetstream.Bind(natstest.Consumer(t, all, natsjs.ConsumerConfig{
			Durable: name, AckPolicy: natsjs.AckExplicitPolicy, FilterSubjects: filters,
		}))
	}

	pub, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	mem := inMemory(t)

	for _, tt := range []struct {
		name    string
		t       transport.Subscriber
		pub     transport.Publisher
		subject string
		refused bool
	}{
		{"memory", mem, mem, "orders.>", true},
		{"memory, less", mem, mem, "orders.created", false},
		{"a consumer", consumer("a", "orders.*"), pub, "", true},
		{"a consumer, wider subject", consumer("b", "orders.created"), pub, "orders.>", false},
		{"one of several filters", consumer("c", "orders.created", "orders.dead"), pub, "orders.*", true},
		{"all of a stream", consumer("d"), pub, "orders.>", true},
		{"who knows", consumer("e"), pub, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()

			sub, err := goflux.NewSubscriber(tt.t, raw.Bytes(), silent(),
				goflux.WithDeadLetterPublisher(tt.pub, "orders.dead"), goflux.WithReady(cancel))
			if err != nil {
				t.Fatal(err)
			}

			err = sub.Subscribe(ctx, tt.subject, func(context.Context, goflux.Message[[]byte]) error { return nil })
			if refused := errors.Is(err, goflux.ErrInvalidOption); refused != tt.refused || (!refused && err != nil) {
				t.Errorf("got %v, want refused: %v", err, tt.refused)
			}
		})
	}

	t.Run("comes round", func(t *testing.T) {
		t.Parallel()

		sub, err := goflux.NewSubscriber(consumer("f"), raw.Bytes(), silent(), goflux.WithDeadLetterPublisher(pub, "orders.dead"))
		if err != nil {
			t.Fatal(err)
		}

		seen := make(chan string, 10)
		stop := serveDead(t, sub, "", func(_ context.Context, msg goflux.Message[[]byte]) error {
			seen <- msg.Subject

			return goflux.Reject(errCannot)
		})

		if _, err := js.Publish(t.Context(), "orders.created", nil); err != nil {
			t.Fatal(err)
		}

		if a, b := <-seen, <-seen; a != "orders.created" || b != "orders.dead" {
			t.Errorf("got %q, %q", a, b)
		}

		if err := stop(); err != nil {
			t.Error(err)
		}

		info, err := all.Info(t.Context())
		if err != nil || info.State.Msgs != 2 {
			t.Errorf("%d messages, want the one that died and its dead letter: %v", info.State.Msgs, err)
		}
	})
}

// One poison message among 10,000, and no stream for the dead letters: all
// others are handled, and it dies once, in one piece, when there is a stream.
func TestDeadLetterOfPoisonAmongMany(t *testing.T) {
	t.Parallel()

	const many = 10_000

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: natsjs.WorkQueuePolicy, Storage: natsjs.MemoryStorage,
	})
	cons := natstest.Consumer(t, orders, natsjs.ConsumerConfig{
		Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 3, MaxAckPending: -1,
	})

	tr, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	poison := []byte{0xff, 0, '\r', '\n', '{'}

	for i := range many {
		msg := &nats.Msg{Subject: "orders.created", Data: []byte(strconv.Itoa(i))}
		if i == many/2 {
			msg.Data, msg.Header = poison, nats.Header{"Nats-Msg-Id": {"the poison"}, "Kind": {"bad"}}
		}

		if _, err := js.PublishMsgAsync(msg); err != nil {
			t.Fatal(err)
		}
	}

	<-js.PublishAsyncComplete()

	var handled, poisoned atomic.Int64

	all := make(chan struct{})

	sub := jetstream.NewSubscriber(cons, raw.Bytes(), silent(), goflux.WithConcurrency(8),
		goflux.WithDeadLetterPublisher(tr, "dead.orders"))
	stop := serveDead(t, sub, "orders.>", func(_ context.Context, msg goflux.Message[[]byte]) error {
		if bytes.Equal(msg.Payload, poison) {
			poisoned.Add(1)

			return errCannot
		}

		if handled.Add(1) == many-1 {
			close(all)
		}

		return nil
	})

	<-all

	dead := natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})
	state := func(s natsjs.Stream) uint64 {
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		return info.State.Msgs
	}

	natstest.Eventually(t, func() bool { return state(dead) > 0 && state(orders) == 0 }, "the poison to die")

	if err := stop(); err != nil {
		t.Error(err)
	}

	if n := state(dead); n != 1 || poisoned.Load() != 3 || handled.Load() != many-1 {
		t.Errorf("%d dead letters, %d attempts of the poison, %d others; want 1, 3, %d", n, poisoned.Load(), handled.Load(), many-1)
	}

	for d, err := range tr.Browse(t.Context(), "dead.>") {
		if err != nil {
			t.Fatal(err)
		}

		letter := goflux.ParseDeadLetter(goflux.Message[[]byte]{Header: d.Header, Payload: d.Data}, raw.Bytes())
		if !bytes.Equal(letter.Raw, poison) || letter.ID() != "the poison" || letter.Header.Get("Kind") != "bad" ||
			letter.Attempts != 3 || letter.Sequence != many/2+1 || letter.Consumer != "workers" {
			t.Errorf("got %+v", letter)
		}
	}
}

func ExampleWithDeadLetter() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	t, err := memory.New(memory.WithMaxDeliver(3))
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	var ready sync.WaitGroup
	ready.Add(2)

	// Dead letters are messages like all others. They are received as bytes,
	// since they may be what does not decode.
	dead, err := goflux.NewSubscriber(t, raw.Bytes(), goflux.WithReady(ready.Done))
	if err != nil {
		fmt.Println(err)

		return
	}

	orders, err := goflux.NewSubscriber(t, json.NewCodec[order](), goflux.WithReady(ready.Done),
		goflux.WithDeadLetter("dead.orders"), silent())
	if err != nil {
		fmt.Println(err)

		return
	}

	bury := func(_ context.Context, msg goflux.Message[[]byte]) error {
		defer cancel()

		d := goflux.ParseDeadLetter(msg, json.NewCodec[order]())
		fmt.Printf("%s, order %s: %s after %d attempts: %s\n", d.Subject, d.Payload.ID, d.Reason, d.Attempts, d.Error)

		return nil
	}
	ship := func(_ context.Context, msg goflux.Message[order]) error {
		return fmt.Errorf("no address for order %s", msg.Payload.ID)
	}
	publish := func(ctx context.Context) error {
		ready.Wait()

		pub, err := goflux.NewPublisher(t, json.NewCodec[order]())
		if err != nil {
			return err
		}

		return pub.Publish(ctx, "orders.created", order{ID: "7"})
	}

	err = goflux.Run(ctx,
		goflux.SubscribeTask(dead, "dead.orders", bury),
		goflux.SubscribeTask(orders, "orders.*", ship),
		publish)
	if err != nil {
		fmt.Println(err)
	}

	// Output:
	// orders.created, order 7: attempts exhausted after 3 attempts: no address for order 7
}

// Whatever is in the headers: no panic, and what is stored comes back.
func FuzzDeadLetter(f *testing.F) {
	f.Add("Goflux-Dead-Subject", "a", "Goflux-Dead-Sequence", "-1", []byte("x"))
	f.Add("Goflux-Dead-Time", "yesterday", "Goflux-Dead-Attempts", "99999999999999999999", []byte{})
	f.Add("Goflux-Dead-Encoded", "YQ==:", "Goflux-Original-Nats-Msg-Id", "\xff", []byte("\x00"))
	f.Add("goflux-original-goflux-original-x", "", "Nats-Rollup", "all", []byte("{"))
	f.Add("Goflux-Redriven", "-5", "", "", []byte("{}"))

	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string, data []byte) {
		h := goflux.Header{k1: {v1}, k2: {v2, v1}}
		parsed := goflux.ParseDeadLetter(goflux.Message[[]byte]{Header: h, Payload: data}, json.NewCodec[order]())

		if !bytes.Equal(parsed.Raw, data) || parsed.Attempts < 0 || parsed.Redriven < 0 {
			t.Errorf("got %+v", parsed)
		}

		h["Goflux-Dead-Subject"] = []string{"s"}
		_ = goflux.ParseDeadLetter(goflux.Message[[]byte]{Header: h}, raw.Bytes())

		delete(h, "") // nothing is ever received under no name

		store := newMorgue()
		if err := goflux.StoreDeadLetter(t.Context(), store, "dead", goflux.DeadLetter[[]byte]{
			Subject: "orders", Header: h, Raw: data, Error: v1, Sequence: 1,
		}); err != nil {
			t.Fatal(err)
		}

		if err := store.letters[0].Header.Validate(); err != nil {
			t.Error(err)
		}

		if got := store.dead()[0]; !maps.EqualFunc(got.Header, h, slices.Equal) || !bytes.Equal(got.Raw, data) || !utf8.ValidString(got.Error) {
			t.Errorf("got %q, want %q", got.Header, h)
		}
	})
}
