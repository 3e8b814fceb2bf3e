package goflux_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	json "github.com/foomo/goencode/json/v1"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
)

const broken = `{"id":` // no order

// record keeps what is logged.
type record struct {
	mu   sync.Mutex
	text strings.Builder
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()

	return r.text.Write(p)
}

func (r *record) has(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	return strings.Contains(r.text.String(), text)
}

func (r *record) option() goflux.CommonOption {
	return goflux.WithLogger(slog.New(slog.NewTextHandler(r, nil)))
}

// group makes the group "workers" of subject, with which publishing begins, and
// returns its consumer.
func group[T any](
	t *testing.T, tr transport.Transport, codec goflux.Codec[T], subject string, opts ...goflux.ConsumerOption,
) *goflux.BoundConsumer[T] {
	t.Helper()

	sub, err := tr.Subscribe(t.Context(), transport.SubscribeConfig{
		Subject: subject, Group: "workers", Sink: func(transport.Delivery) {},
	})
	if err != nil {
		t.Fatal(err)
	}

	if err := sub.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	c, err := goflux.NewConsumer(tr, codec, subject, append(opts, goflux.WithQueueGroup("workers"))...)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(c.Close)

	return c
}

func publishAll(t *testing.T, pub transport.Publisher, subject string, payloads ...string) {
	t.Helper()

	for _, data := range payloads {
		if _, err := pub.Publish(t.Context(), transport.Message{Subject: subject, Data: []byte(data)}); err != nil {
			t.Fatal(err)
		}
	}
}

// fetchWithin fetches and acks, and returns what it got: nothing, if there was
// nothing in time.
func fetchWithin(t *testing.T, c *goflux.BoundConsumer[order], d time.Duration) []string {
	t.Helper()

	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()

	msgs, err := c.Fetch(ctx, 10)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}

	var ids []string

	for _, msg := range msgs {
		ids = append(ids, msg.Payload.ID)

		if err := msg.Ack(); err != nil {
			t.Error(err)
		}
	}

	return ids
}

// What does not decode goes to the dead letters once and in one piece, and
// without these is terminated; what does decode is returned.
func TestFetchOfWhatDoesNotDecode(t *testing.T) {
	t.Parallel()

	for _, letters := range []bool{true, false} {
		t.Run(map[bool]string{true: "dead letters", false: "none"}[letters], func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var logged record

				tr, store := inMemory(t, memory.WithMaxDeliver(3)), newMorgue()
				opts := []goflux.ConsumerOption{logged.option()}
				if letters {
					opts = append(opts, goflux.WithDeadLetterPublisher(store, "dead.orders"))
				}

				c := group(t, tr, json.NewCodec[order](), "orders.*", opts...)
				sent := goflux.Header{"X-Message-ID": {"o-1"}, "Kind": {"a", "b"}}
				before := time.Now()

				publishAll(t, tr, "orders.created", `{"id":"1"}`)

				if _, err := tr.Publish(t.Context(), transport.Message{
					Subject: "orders.created", Header: sent, Data: []byte(broken), ID: "o-1",
				}); err != nil {
					t.Fatal(err)
				}

				publishAll(t, tr, "orders.created", `{"id":"2"}`)

				if got := fetchWithin(t, c, time.Minute); !slices.Equal(got, []string{"1", "2"}) {
					t.Errorf("fetched %q", got)
				}

				if got := fetchWithin(t, c, time.Hour); len(got) != 0 || tr.GivenUp() != 0 {
					t.Errorf("%q came back, %d given up: want what does not decode to be terminated", got, tr.GivenUp())
				}

				if logged.has("id\\\":") {
					t.Error("a payload was logged")
				}

				dead := store.dead()

				if !letters {
					if len(dead) != 0 || !logged.has("a message was terminated: undecodable") {
						t.Errorf("%d dead letters, want none and a word in the log", len(dead))
					}

					return
				}

				if len(dead) != 1 || store.tried() != 1 {
					t.Fatalf("%d dead letters in %d tries, want 1", len(dead), store.tried())
				}

				d := dead[0]
				if string(d.Raw) != broken || !reflect.DeepEqual(d.Header, sent) || d.ID() != "o-1" {
					t.Errorf("the message was altered: %q %v", d.Raw, d.Header)
				}

				if d.Reason != goflux.ReasonUndecodable || d.Error == "" || d.Attempts != 1 || d.Subject != "orders.created" ||
					d.Stream != memory.Stream || d.Sequence != 2 || d.Consumer != "workers" || !d.Stored.Equal(before) {
					t.Errorf("the dead letter tells %+v", d)
				}
			})
		})
	}
}

// The dead letter of a message has one id, whoever makes it.
func TestFetchedDeadLetterHasTheIDOfASubscriber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newMorgue()
		bury := goflux.WithDeadLetterPublisher(store, "dead.orders")

		// The same message of two brokers, of which one stands for the
		// other after a crash between storing and terminating.
		first, second := inMemory(t), inMemory(t)
		c := group(t, first, json.NewCodec[order](), "orders", bury, silent())

		sub, err := goflux.NewSubscriber(second, json.NewCodec[order](), goflux.WithQueueGroup("workers"), bury, silent())
		if err != nil {
			t.Fatal(err)
		}

		stop := serveDead(t, sub, "orders", func(context.Context, goflux.Message[order]) error { return nil })
		synctest.Wait()

		publishAll(t, first, "orders", broken)
		publishAll(t, second, "orders", broken)
		synctest.Wait()
		fetchWithin(t, c, time.Second)

		if err := stop(); err != nil {
			t.Error(err)
		}

		if n := len(store.dead()); n != 1 || store.tried() != 2 {
			t.Errorf("%d dead letters in %d tries, want one id in both", n, store.tried())
		}
	})
}

// While a dead letter cannot be stored its message goes back to the broker, with
// a growing delay, and holds up no other.
func TestFetchTriesDeadLettersAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, store := inMemory(t), newMorgue()
		store.failWith(transport.ErrNoStream)

		c := group(t, tr, json.NewCodec[order](), "orders", goflux.WithDeadLetterPublisher(store, "dead.orders"), silent())
		publishAll(t, tr, "orders", broken, `{"id":"1"}`)

		if got := fetchWithin(t, c, time.Minute); !slices.Equal(got, []string{"1"}) {
			t.Errorf("fetched %q", got)
		}

		fetchWithin(t, c, 5*time.Minute)

		if n := store.tried(); n < 10 || n > 25 {
			t.Errorf("%d tries in five minutes, want 100 ms, doubling to 30 s", n)
		}

		// Another one has it, should this one be gone.
		c.Close()
		store.failWith(nil)

		other := group(t, tr, json.NewCodec[order](), "orders", goflux.WithDeadLetterPublisher(store, "dead.orders"), silent())
		fetchWithin(t, other, time.Minute)

		dead := store.dead()
		if len(dead) != 1 || string(dead[0].Raw) != broken || dead[0].Attempts < 10 {
			t.Errorf("got %+v, want one dead letter after many attempts", dead)
		}

		tried := store.tried()
		if fetchWithin(t, other, time.Hour); store.tried() != tried || tr.GivenUp() != 0 {
			t.Error("the message was not terminated")
		}
	})
}

// Nobody would deliver a message again after its last attempt: it is kept, with
// its lease, by the fetches that go on with others.
func TestFetchKeepsTheLastAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, store := inMemory(t, memory.WithMaxDeliver(2), memory.WithAckWait(3*time.Second)), newMorgue()
		store.failWith(transport.ErrDisconnected)

		c := group(t, tr, json.NewCodec[order](), "orders", goflux.WithDeadLetterPublisher(store, "dead.orders"), silent())
		publishAll(t, tr, "orders", broken)
		fetchWithin(t, c, time.Minute)

		publishAll(t, tr, "orders", `{"id":"1"}`, `{"id":"2"}`)

		if got := fetchWithin(t, c, time.Minute); !slices.Equal(got, []string{"1", "2"}) {
			t.Errorf("fetched %q: want no message held up", got)
		}

		fetched := make(chan []string)
		go func() { fetched <- fetchWithin(t, c, time.Hour) }()

		time.Sleep(time.Minute)

		// At least three tries an ack wait, and no hot loop.
		if n := store.tried(); n < 2*60 || n > 2*60+20 {
			t.Errorf("%d tries in two minutes", n)
		}

		store.failWith(nil)
		time.Sleep(time.Second)

		dead := store.dead()
		if len(dead) != 1 || string(dead[0].Raw) != broken || dead[0].Attempts != 2 {
			t.Errorf("got %+v, want the dead letter without another fetch", dead)
		}

		publishAll(t, tr, "orders", `{"id":"3"}`)

		if got := <-fetched; !slices.Equal(got, []string{"3"}) {
			t.Errorf("fetched %q", got)
		}

		if got := fetchWithin(t, c, time.Hour); len(got) != 0 || tr.GivenUp() != 0 {
			t.Errorf("%q came back, %d were given up", got, tr.GivenUp())
		}
	})
}

// Close is the last chance of what could not be stored, and tells of its failure.
func TestCloseOfAConsumerBuriesTheRest(t *testing.T) {
	t.Parallel()

	for name, recovers := range map[string]bool{"stored": true, "given up": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var logged record

				tr, store := inMemory(t, memory.WithMaxDeliver(1)), newMorgue()
				store.failWith(transport.ErrDisconnected)

				c := group(t, tr, json.NewCodec[order](), "orders",
					goflux.WithDeadLetterPublisher(store, "dead.orders"), logged.option())
				publishAll(t, tr, "orders", broken)
				fetchWithin(t, c, 10*time.Second)

				if recovers {
					store.failWith(nil)
				}

				c.Close()
				c.Close()

				stored, givenUp := len(store.dead()), tr.GivenUp()
				if recovers && (stored != 1 || givenUp != 0) || !recovers && (stored != 0 || givenUp != 1) {
					t.Errorf("%d stored, %d given up", stored, givenUp)
				}

				if logged.has("a message was given up") == recovers {
					t.Errorf("the log has %q", logged.text.String())
				}
			})
		})
	}
}

// stuck is a morgue that does not answer.
type stuck struct{ *morgue }

func (s stuck) Publish(ctx context.Context, _ transport.Message) (transport.Receipt, error) {
	<-ctx.Done()

	return transport.Receipt{}, ctx.Err()
}

// Dead letters that hang hold up the others for half their lease at the most.
func TestFetchIsNotHeldUpByDeadLetters(t *testing.T) {
	t.Parallel()

	for _, lease := range []time.Duration{time.Second, time.Minute} {
		t.Run(lease.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr := inMemory(t, memory.WithAckWait(lease))
				c := group(t, tr, json.NewCodec[order](), "orders",
					goflux.WithDeadLetterPublisher(stuck{newMorgue()}, "dead.orders"), silent())
				publishAll(t, tr, "orders", broken, broken, `{"id":"1"}`, broken)

				before := time.Now()
				got := fetchWithin(t, c, time.Hour)

				if took := time.Since(before); !slices.Equal(got, []string{"1"}) || took > min(lease/2, 5*time.Second) {
					t.Errorf("fetched %q after %v", got, took)
				}
			})
		})
	}
}

// Where nobody else keeps the message, storing is tried six times.
func TestFetchWithoutRedelivery(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	cons := natstest.Consumer(t, natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}),
		natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckNonePolicy})

	var logged record

	store := newMorgue()
	store.failWith(transport.ErrDisconnected)

	c := jetstream.NewConsumer(cons, json.NewCodec[order](),
		goflux.WithDeadLetterPublisher(store, "dead.orders"), logged.option())
	defer c.Close()

	for _, data := range []string{broken, `{"id":"1"}`} {
		if _, err := js.Publish(t.Context(), "orders", []byte(data)); err != nil {
			t.Fatal(err)
		}
	}

	if msgs, err := c.Fetch(t.Context(), 2); err != nil || len(msgs) != 1 || msgs[0].Payload.ID != "1" {
		t.Fatalf("fetched %v: %v", msgs, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)

	go func() {
		_, err := c.Fetch(ctx, 1)
		ended <- err
	}()

	natstest.Eventually(t, func() bool { return logged.has("a message was lost") }, "the message to be lost")
	cancel()

	if err := <-ended; !errors.Is(err, context.Canceled) || store.tried() != 6 {
		t.Errorf("%d tries, and %v", store.tried(), err)
	}
}

// door is a publisher that can be shut.
type door struct {
	transport.Publisher
	*morgue // what was tried while it was shut
}

func (d door) Capabilities() transport.Capabilities { return d.Publisher.Capabilities() }

func (d door) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	if r, err := d.morgue.Publish(ctx, msg); err != nil {
		return r, err
	}

	return d.Publisher.Publish(ctx, msg)
}

// On JetStream, over the whole way: handed back, kept beyond its lease on the last
// attempt, stored once in one piece, and gone from the work queue.
func TestFetchBuriesOnJetStream(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: natsjs.WorkQueuePolicy, Storage: natsjs.MemoryStorage,
	})
	dead := natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}, Storage: natsjs.MemoryStorage})
	cons := natstest.Consumer(t, orders, natsjs.ConsumerConfig{
		Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 2, AckWait: 2 * time.Second,
	})

	tr, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	advisories, err := js.Conn().SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>")
	if err != nil {
		t.Fatal(err)
	}

	poison := []byte{0xff, 0, '\r', '\n', '{'}
	shut := newMorgue()
	shut.failWith(transport.ErrNoStream)

	c := jetstream.NewConsumer(cons, json.NewCodec[order](), silent(),
		goflux.WithDeadLetterPublisher(door{tr, shut}, "dead.orders"))
	defer c.Close()

	if _, err := tr.Publish(t.Context(), transport.Message{
		Subject: "orders.created", Header: goflux.Header{"Kind": {"bad"}}, Data: poison, ID: "the poison",
	}); err != nil {
		t.Fatal(err)
	}

	fetched := make(chan []goflux.Message[order], 1)

	go func() {
		msgs, err := c.Fetch(t.Context(), 10)
		if err != nil {
			t.Error(err)
		}

		fetched <- msgs
	}()

	// A third of the ack wait apart in the end.
	natstest.Eventually(t, func() bool { return shut.tried() >= 8 }, "tries for longer than the lease")
	shut.failWith(nil)

	state := func(s natsjs.Stream) uint64 {
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		return info.State.Msgs
	}

	natstest.Eventually(t, func() bool { return state(dead) == 1 && state(orders) == 0 }, "the poison to die")
	publishAll(t, tr, "orders.created", `{"id":"1"}`)

	if msgs := <-fetched; len(msgs) != 1 || msgs[0].Payload.ID != "1" || msgs[0].AckSync(t.Context()) != nil {
		t.Errorf("fetched %v", msgs)
	}

	if n := state(dead); n != 1 {
		t.Errorf("%d dead letters", n)
	}

	if n, _, err := advisories.Pending(); err != nil || n != 0 {
		t.Errorf("the server gave up %d messages: its lease was not kept (%v)", n, err)
	}

	for d, err := range tr.Browse(t.Context(), "dead.>") {
		if err != nil {
			t.Fatal(err)
		}

		letter := goflux.ParseDeadLetter(goflux.Message[[]byte]{Header: d.Header, Payload: d.Data}, raw.Bytes())
		if !bytes.Equal(letter.Raw, poison) || letter.ID() != "the poison" || letter.Header.Get("Kind") != "bad" ||
			letter.Attempts != 2 || letter.Sequence != 1 || letter.Consumer != "workers" || letter.Reason != goflux.ReasonUndecodable {
			t.Errorf("got %+v", letter)
		}
	}
}

// What subscribers refuse, consumers do.
func TestDeadLetterOptionsOfConsumersRefuse(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	all := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ALL", Subjects: []string{"orders.>"}})
	consumer := func(name string, filters ...string) transport.Subscriber {
		return jetstream.Bind(natstest.Consumer(t, all, natsjs.ConsumerConfig{
			Durable: name, AckPolicy: natsjs.AckExplicitPolicy, FilterSubjects: filters,
		}))
	}

	whole, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	mem := inMemory(t)
	created := "orders.created"

	for _, tt := range []struct {
		name    string
		t       transport.Subscriber
		subject string
		opt     goflux.ConsumerOption
		want    error
		says    string
		fetch   bool // only Fetch can know
	}{
		{"no subject", mem, created, goflux.WithDeadLetter(""), goflux.ErrInvalidSubject, "empty", false},
		{"a wildcard", mem, created, goflux.WithDeadLetter("dead.*"), goflux.ErrInvalidSubject, "wildcard", false},
		{"no publisher", mem, created, goflux.WithDeadLetterPublisher(nil, "dead"), goflux.ErrInvalidOption, "nil", false},
		{"a bare consumer", consumer("a", created), created, goflux.WithDeadLetter("dead"), goflux.ErrInvalidOption, "WithDeadLetterPublisher", false},
		{"nobody confirms", mem, created, goflux.WithDeadLetterPublisher(&morgue{}, "dead"), goflux.ErrUnsupported, "receipts", false},
		{"a loop", mem, "orders.*", goflux.WithDeadLetter("orders.dead"), goflux.ErrInvalidOption, "endless loop", false},
		{"a loop on JetStream", whole, "orders.>", goflux.WithDeadLetter("orders.dead"), goflux.ErrInvalidOption, "endless loop", false},
		{
			"a loop of a consumer", consumer("workers", created, "orders.dead"), "orders.*",
			goflux.WithDeadLetterPublisher(whole, "orders.dead"), goflux.ErrInvalidOption, "endless loop", true,
		},
		{"no loop", mem, created, goflux.WithDeadLetter("orders.dead"), nil, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			c, err := goflux.NewConsumer(tt.t, raw.Bytes(), tt.subject, goflux.WithQueueGroup("workers"), tt.opt)
			if tt.fetch {
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()

				_, err = c.Fetch(t.Context(), 1)
			}

			if !errors.Is(err, tt.want) || tt.want != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.says)
			}
		})
	}

	t.Run("bound", func(t *testing.T) {
		t.Parallel()

		bound := goflux.BindConsumer(consumer("b", created), nil, raw.Bytes(), goflux.WithDeadLetter("dead"))
		if _, err := bound.Fetch(t.Context(), 1); !errors.Is(err, goflux.ErrInvalidOption) {
			t.Errorf("got %v", err)
		}
	})

	// Nobody knows beforehand what such a consumer delivers.
	t.Run("comes round", func(t *testing.T) {
		t.Parallel()

		var logged record

		c := goflux.BindConsumer(consumer("c"), nil, json.NewCodec[order](),
			goflux.WithDeadLetterPublisher(whole, "orders.dead"), logged.option())
		defer c.Close()

		publishAll(t, whole, created, broken)

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)

		go func() {
			_, err := c.Fetch(ctx, 10)
			ended <- err
		}()

		natstest.Eventually(t, func() bool { return logged.has("endless loop") }, "the dead letter to come round")
		cancel()

		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}

		info, err := all.Info(t.Context())
		if err != nil || info.State.Msgs != 2 {
			t.Errorf("%d messages, want the one that died and its dead letter: %v", info.State.Msgs, err)
		}
	})
}

// What a worker buries by hand is as complete as what goflux does.
func TestDeadLetterOf(t *testing.T) {
	t.Parallel()

	for name, open := range map[string]func(t *testing.T) transport.Transport{
		"memory": func(t *testing.T) transport.Transport {
			t.Helper()

			return inMemory(t, memory.WithHistory(10))
		},
		"jetstream": func(t *testing.T) transport.Transport {
			t.Helper()

			js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
			natstest.Stream(t, js, natsjs.StreamConfig{Name: "ALL", Subjects: []string{"orders.>", "dead.>"}})

			tr, err := jetstream.New(js)
			if err != nil {
				t.Fatal(err)
			}

			return tr
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			tr := open(t)
			sent := goflux.Header{"X-Message-ID": {"o-1"}, "Kind": {"a", "b"}, "Goflux-Redriven": {"2"}}
			data := `{ "id": "7" }`
			c := group(t, tr, raw.Bytes(), "orders.>")

			if _, err := tr.Publish(t.Context(), transport.Message{
				Subject: "orders.created", Header: sent, Data: []byte(data),
			}); err != nil {
				t.Fatal(err)
			}

			// Twice: the first time the worker dies before it terminates.
			for attempt := 1; attempt <= 2; attempt++ {
				msgs, err := c.Fetch(t.Context(), 10)
				if err != nil || len(msgs) != 1 {
					t.Fatalf("fetched %v: %v", msgs, err)
				}

				msg := msgs[0]
				clear(msg.Payload) // the worker's, to do with as it likes

				dead := goflux.DeadLetterOf(msg, goflux.ReasonRejected, errCannot)
				if dead.Attempts != attempt || dead.Redriven != 2 || dead.Consumer != "workers" || dead.Sequence != 1 {
					t.Errorf("got %+v", dead)
				}

				if err := goflux.StoreDeadLetter(t.Context(), tr, "dead.orders", dead); err != nil {
					t.Fatal(err)
				}

				end := msg.Nak
				if attempt == 2 {
					end = msg.Term
				}

				if err := end(); err != nil {
					t.Error(err)
				}
			}

			letters, err := goflux.NewConsumer(tr, raw.Bytes(), "dead.*", goflux.WithQueueGroup("letters"))
			if err != nil {
				t.Fatal(err)
			}
			defer letters.Close()

			msgs, err := letters.Fetch(t.Context(), 10)
			if err != nil || len(msgs) != 1 {
				t.Fatalf("%d dead letters, want 1: %v", len(msgs), err)
			}

			d := goflux.ParseDeadLetter(msgs[0], json.NewCodec[order]())
			if d.Subject != "orders.created" || !reflect.DeepEqual(d.Header, sent) || string(d.Raw) != data || d.Payload.ID != "7" ||
				d.DecodeErr != nil || d.Reason != goflux.ReasonRejected || d.Error != "cannot" || d.Attempts != 1 ||
				d.Sequence != 1 || d.Stored.IsZero() || d.Time.Before(d.Stored.Add(-time.Minute)) || d.Redriven != 2 {
				t.Errorf("got %+v", d)
			}
		})
	}

	t.Run("composed", func(t *testing.T) {
		t.Parallel()

		d := goflux.DeadLetterOf(goflux.Message[string]{Subject: "s", Payload: "x"}, goflux.ReasonRejected, nil)
		if d.Subject != "s" || d.Raw != nil || d.Error != "" || d.Attempts != 1 || d.Time.IsZero() {
			t.Errorf("got %+v", d)
		}
	})

	// Handlers that settle by hand have it, too.
	t.Run("subscribed", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			tr, store := inMemory(t), newMorgue()

			sub, err := goflux.NewSubscriber(tr, json.NewCodec[order](), goflux.WithManualAck(), silent())
			if err != nil {
				t.Fatal(err)
			}

			stop := serveDead(t, sub, "orders", func(ctx context.Context, msg goflux.Message[order]) error {
				if err := goflux.StoreDeadLetter(ctx, store, "dead", goflux.DeadLetterOf(msg, "odd", errCannot)); err != nil {
					return err
				}

				return msg.Term()
			})
			synctest.Wait()
			publishAll(t, tr, "orders", `{"id":"7"}`)
			synctest.Wait()

			if err := stop(); err != nil {
				t.Error(err)
			}

			if dead := store.dead(); len(dead) != 1 || string(dead[0].Raw) != `{"id":"7"}` || dead[0].Reason != "odd" {
				t.Errorf("got %+v", dead)
			}
		})
	})
}

// Why a batch has to end within the ack wait: afterwards an ack says nothing.
func TestAckAfterTheLease(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	cons := natstest.Consumer(t, natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}),
		natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 200 * time.Millisecond})

	c := jetstream.NewConsumer(cons, raw.String())
	defer c.Close()

	if _, err := js.Publish(t.Context(), "orders", []byte("once")); err != nil {
		t.Fatal(err)
	}

	var copies []goflux.Message[string]

	for attempt := 1; attempt <= 2; attempt++ {
		msgs, err := c.Fetch(t.Context(), 10)
		if err != nil || len(msgs) != 1 || msgs[0].Attempt() != attempt {
			t.Fatalf("fetched %v: %v", msgs, err)
		}

		copies = append(copies, msgs...)
	}

	for _, msg := range copies {
		if err := msg.AckSync(t.Context()); err != nil {
			t.Errorf("attempt %d: %v", msg.Attempt(), err)
		}
	}

	if info, err := cons.Info(t.Context()); err != nil || info.NumAckPending != 0 {
		t.Errorf("%d messages are pending: %v", info.NumAckPending, err)
	}
}
