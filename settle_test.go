package goflux_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
	corenats "github.com/foomo/goflux/transport/nats"
)

// failure is an error type as there are many: its methods need a value.
type failure struct{ cause error }

func (f *failure) Error() string { return f.cause.Error() }
func (f *failure) Unwrap() error { return f.cause }

// typedNil is the classic: not nil, and nothing can be done with it.
func typedNil() error {
	var f *failure

	return f
}

// explosive is what users supply, and panics.
type explosive struct {
	slog.Handler
	trace.TracerProvider
	transport.Publisher
}

func (explosive) Enabled(context.Context, slog.Level) bool          { panic("logger: enabled") }
func (explosive) Tracer(string, ...trace.TracerOption) trace.Tracer { panic("tracer") }
func (explosive) Capabilities() transport.Capabilities              { return transport.Of(transport.Receipts) }

func (explosive) Publish(context.Context, transport.Message) (transport.Receipt, error) {
	panic("publisher")
}

// explosiveLog panics when it gets as far as to log.
type explosiveLog struct{ slog.Handler }

func (explosiveLog) Handle(context.Context, slog.Record) error { panic("logger: handle") }

// Whatever users supply may panic, and errors may be such that looking at them
// panics: the message has failed, that is logged, and nothing else happens.
func TestPanicsOfWhatUsersSupply(t *testing.T) {
	t.Parallel()

	traced := func(tp trace.TracerProvider) goflux.SubscriberOption {
		tel, err := goflux.NewTelemetry(goflux.WithTracerProvider(tp))
		if err != nil {
			t.Fatal(err)
		}

		return goflux.WithTelemetry(tel)
	}

	logged := func(h slog.Handler) goflux.SubscriberOption { return goflux.WithLogger(slog.New(h)) }
	key := goflux.WithOrderingKey(func(goflux.Message[string]) string { panic("key") })
	policy := goflux.WithRetryPolicy(func(int) time.Duration { panic("policy") })
	buried := goflux.WithDeadLetterPublisher(newMorgue(), "dead")
	explodes := goflux.WithDeadLetterPublisher(explosive{}, "dead")
	isTyped := "*goflux_test.failure"

	for name, c := range map[string]struct {
		opts  []goflux.SubscriberOption
		fails func(msg goflux.Message[string]) error // the first delivery
		calls int                                    // of the handler; 2 where it is not said
		log   string                                 // is in the log
	}{
		"policy":                    {opts: []goflux.SubscriberOption{policy}, log: "policy"},
		"policy, strict":            {opts: []goflux.SubscriberOption{policy, goflux.WithStrictOrder()}, log: "policy"},
		"key":                       {opts: []goflux.SubscriberOption{key}, calls: -1, log: "panic: key"},
		"tracer":                    {opts: []goflux.SubscriberOption{traced(explosive{})}, calls: -1, log: "tracer"},
		"typed nil":                 {fails: func(goflux.Message[string]) error { return typedNil() }, log: isTyped},
		"typed nil, dead letters":   {fails: func(goflux.Message[string]) error { return typedNil() }, opts: []goflux.SubscriberOption{buried}, log: isTyped},
		"typed nil, traced":         {fails: func(goflux.Message[string]) error { return typedNil() }, opts: []goflux.SubscriberOption{traced(sdktrace.NewTracerProvider())}, log: isTyped},
		"typed nil, joined":         {fails: func(goflux.Message[string]) error { return errors.Join(errCannot, typedNil()) }, log: "panic"},
		"typed nil, a panic of it":  {fails: func(goflux.Message[string]) error { panic(typedNil()) }, log: "panic"},
		"typed nil, rejected":       {fails: func(goflux.Message[string]) error { return goflux.Reject(typedNil()) }, opts: []goflux.SubscriberOption{buried}, calls: 1, log: "rejected"},
		"typed nil, dropped":        {fails: func(goflux.Message[string]) error { return goflux.Drop(typedNil()) }, calls: 1, log: "dropped"},
		"typed nil, manual acks":    {fails: func(msg goflux.Message[string]) error { _ = msg.Nak(); return typedNil() }, opts: []goflux.SubscriberOption{goflux.WithManualAck()}, log: "after it had settled"},
		"logger that is not asked":  {opts: []goflux.SubscriberOption{logged(explosive{})}},
		"logger":                    {opts: []goflux.SubscriberOption{logged(explosiveLog{slog.DiscardHandler})}},
		"logger that does not":      {opts: []goflux.SubscriberOption{logged(explosiveLog{slog.NewTextHandler(&bytes.Buffer{}, nil)})}},
		"publisher of dead letters": {fails: func(goflux.Message[string]) error { return goflux.Reject(nil) }, opts: []goflux.SubscriberOption{explodes}, calls: 1, log: "panic: publisher"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var log lockedBuffer

				tr := inMemory(t)
				opts := append([]goflux.SubscriberOption{logged(slog.NewTextHandler(&log, nil)), goflux.WithQueueGroup("workers")}, c.opts...)

				sub, err := goflux.NewSubscriber(tr, raw.String(), opts...)
				if err != nil {
					t.Fatal(err)
				}

				var (
					calls, others atomic.Int64
					first         time.Time
				)

				stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
					if msg.Payload == "another" {
						others.Add(1)

						return msg.Ack()
					}

					if calls.Add(1) > 1 {
						// By policy, not because the lease ran out.
						if took := time.Since(first); took > time.Second {
							t.Errorf("it came again after %v", took)
						}

						return msg.Ack()
					}

					first = time.Now()

					if c.fails != nil {
						return c.fails(msg)
					}

					return errCannot
				})
				synctest.Wait()
				send(t, tr, "orders", "one")
				time.Sleep(time.Second)
				send(t, tr, "orders", "another")
				time.Sleep(time.Minute)

				if err := stop(); err != nil {
					t.Error(err)
				}

				switch want := int64(max(c.calls, 0)); {
				case c.calls == 0:
					if calls.Load() != 2 || others.Load() != 1 {
						t.Errorf("handled %d times, and another one %d times, want 2 and 1", calls.Load(), others.Load())
					}
				case calls.Load() != want || (want > 0 && others.Load() != 1):
					t.Errorf("handled %d times, and another one %d times, want %d", calls.Load(), others.Load(), want)
				}

				if !strings.Contains(log.String(), c.log) {
					t.Errorf("%q is not in the log:\n%s", c.log, log.String())
				}
			})
		})
	}
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.buf.String()
}

// The default panics may be of a request's handler, too: its caller is told that
// it failed.
func TestPanicsOfWhatUsersSupplyInRequests(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))

	onCore, err := corenats.New(nc)
	if err != nil {
		t.Fatal(err)
	}

	tel, err := goflux.NewTelemetry(goflux.WithTracerProvider(explosive{}))
	if err != nil {
		t.Fatal(err)
	}

	for on, tr := range map[string]transport.Transport{"memory": inMemory(t), "core NATS": onCore} {
		for name, opt := range map[string]goflux.ResponderOption{"typed nil": goflux.WithConcurrency(1), "tracer": goflux.WithTelemetry(tel)} {
			t.Run(on+"/"+name, func(t *testing.T) {
				t.Parallel()

				ready := make(chan struct{})
				subject := strings.ReplaceAll(name, " ", ".")

				r, err := goflux.NewResponder(tr, raw.String(), raw.String(), silent(), opt, goflux.WithReady(func() { close(ready) }))
				if err != nil {
					t.Fatal(err)
				}

				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)

				go func() {
					ended <- r.Serve(ctx, subject, func(context.Context, string) (string, error) { return "", typedNil() })
				}()

				<-ready

				q, err := goflux.NewRequester(tr, raw.String(), raw.String(), silent())
				if err != nil {
					t.Fatal(err)
				}
				defer q.Close()

				for range 2 {
					asking, stop := context.WithTimeout(t.Context(), natstest.Limit)
					defer stop()

					if _, err := q.Request(asking, subject, "?"); !isRemote(err, 500) {
						t.Errorf("got %v, want code 500", err)
					}
				}

				cancel()

				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func isRemote(err error, code int) bool {
	remote, told := errors.AsType[*goflux.RemoteError](err)

	return told && remote.Code == code
}

// witness is a transport that notes the verdicts on its deliveries.
type witness struct {
	transport.Subscriber

	mu       sync.Mutex
	verdicts []transport.Verdict
}

func (w *witness) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	sink := cfg.Sink
	cfg.Sink = func(d transport.Delivery) {
		d.Settler = witnessSettler{d.Settler, w}
		sink(d)
	}

	return w.Subscriber.Subscribe(ctx, cfg)
}

// seen returns the verdicts that settled something.
func (w *witness) seen() []transport.Action {
	w.mu.Lock()
	defer w.mu.Unlock()

	var actions []transport.Action

	for _, v := range w.verdicts {
		actions = append(actions, v.Action)
	}

	return actions
}

type witnessSettler struct {
	transport.Settler

	w *witness
}

func (s witnessSettler) Settle(ctx context.Context, token any, v transport.Verdict) error {
	err := s.Settler.Settle(ctx, token, v)

	if err == nil && v.Action != transport.Extend {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()

		s.w.verdicts = append(s.w.verdicts, v)
	}

	return err
}

// WithAckSync is what it says: the broker has confirmed the ack when the next
// message is handled. The verb of a handler stands, whichever it is.
func TestAckSync(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		opts []goflux.SubscriberOption
		do   goflux.Handler[string]
		want transport.Action
	}{
		"without":             {nil, answers(nil), transport.Ack},
		"with":                {[]goflux.SubscriberOption{goflux.WithAckSync()}, answers(nil), transport.AckSync},
		"with, and a verb":    {[]goflux.SubscriberOption{goflux.WithAckSync()}, settles(goflux.Message[string].Ack, nil), transport.Ack},
		"without, and a verb": {nil, settles(func(msg goflux.Message[string]) error { return msg.AckSync(context.Background()) }, nil), transport.AckSync},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr := inMemory(t)
				w := &witness{Subscriber: tr}

				sub, err := goflux.NewSubscriber(w, raw.String(), c.opts...)
				if err != nil {
					t.Fatal(err)
				}

				stop := serveDead(t, sub, "orders", c.do)
				synctest.Wait()
				send(t, tr, "orders", "one", "two")
				synctest.Wait()

				if err := stop(); err != nil {
					t.Error(err)
				}

				if got, want := w.seen(), []transport.Action{c.want, c.want}; !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		})
	}
}

// On JetStream, what is acked is acked on the server when the handler of the next
// message begins.
func TestAckSyncOnJetStream(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	consumer := natstest.Consumer(t, natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}),
		natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy})

	sub, err := goflux.NewSubscriber(jetstream.Bind(consumer), raw.String(), goflux.WithAckSync())
	if err != nil {
		t.Fatal(err)
	}

	const many = 20

	floors := make(chan uint64, many)
	stop := serveDead(t, sub, "", func(ctx context.Context, _ goflux.Message[string]) error {
		info, err := consumer.Info(ctx)
		if err != nil {
			return err
		}

		floors <- info.AckFloor.Stream

		return nil
	})

	for range many {
		if _, err := js.Publish(t.Context(), "orders", nil); err != nil {
			t.Fatal(err)
		}
	}

	for i := range uint64(many) {
		if floor := receive(t, floors); floor != i {
			t.Errorf("message %d began when %d were acked", i+1, floor)
		}
	}

	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Tries that are made here count as attempts: the limit of the broker ends them.
func TestStrictTriesCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, store := inMemory(t, memory.WithMaxDeliver(4)), newMorgue()
		w := &witness{Subscriber: tr}

		var attempts []int

		sub, err := goflux.NewSubscriber(w, raw.String(), goflux.WithStrictOrder(), silent(),
			goflux.WithDeadLetterPublisher(store, "dead"),
			goflux.WithRetryPolicy(func(attempt int) time.Duration {
				attempts = append(attempts, attempt)

				return time.Minute // longer than the lease, which is kept
			}))
		if err != nil {
			t.Fatal(err)
		}

		var handled []string

		stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
			handled = append(handled, msg.Payload)

			if msg.Payload == "bad" {
				return errCannot
			}

			return nil
		})
		synctest.Wait()
		send(t, tr, "orders", "bad", "good")
		time.Sleep(time.Hour)

		if err := stop(); err != nil {
			t.Error(err)
		}

		if want := []string{"bad", "bad", "bad", "bad", "good"}; !slices.Equal(handled, want) {
			t.Errorf("handled %v, want %v", handled, want)
		}

		if want := []int{1, 2, 3}; !slices.Equal(attempts, want) {
			t.Errorf("the policy was asked for %v, want %v", attempts, want)
		}

		if dead := store.dead(); len(dead) != 1 || dead[0].Attempts != 4 || dead[0].Reason != goflux.ReasonExhausted {
			t.Errorf("got %+v", dead)
		}

		if got, want := w.seen(), []transport.Action{transport.Term, transport.Ack}; !slices.Equal(got, want) {
			t.Errorf("the verdicts are %v, want %v", got, want)
		}
	})
}

// A verb stands in strict order too: what was acked is not tried again.
func TestStrictVerbsStand(t *testing.T) {
	t.Parallel()

	ack := goflux.Message[string].Ack

	for name, do := range map[string]goflux.Handler[string]{
		"an error":   settles(ack, errCannot),
		"RetryAfter": settles(ack, goflux.RetryAfter(0, nil)),
		"a panic":    settlesAndPanics(ack),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr := inMemory(t)

				sub, err := goflux.NewSubscriber(tr, raw.String(), goflux.WithStrictOrder(), silent())
				if err != nil {
					t.Fatal(err)
				}

				var handled []string

				stop := serveDead(t, sub, "orders", func(ctx context.Context, msg goflux.Message[string]) error {
					handled = append(handled, msg.Payload)

					return do(ctx, msg)
				})
				synctest.Wait()
				send(t, tr, "orders", "one", "two")
				time.Sleep(time.Hour)

				if err := stop(); err != nil {
					t.Error(err)
				}

				if want := []string{"one", "two"}; !slices.Equal(handled, want) {
					t.Errorf("handled %v, want %v", handled, want)
				}
			})
		})
	}
}

func TestStrictOrderIsForAutomaticAcks(t *testing.T) {
	t.Parallel()

	_, err := goflux.NewSubscriber(inMemory(t), raw.String(), goflux.WithStrictOrder(), goflux.WithManualAck())
	if !errors.Is(err, goflux.ErrInvalidOption) || !strings.Contains(err.Error(), "WithStrictOrder") {
		t.Errorf("got %v", err)
	}
}

// What waits for its next try when the subscription ends goes to another replica
// at once, and those behind it after it: a delay would let them pass.
func TestStrictOrderOverAShutdown(t *testing.T) {
	t.Parallel()

	for name, err := range map[string]error{"by policy": errCannot, "RetryAfter": goflux.RetryAfter(time.Hour, errCannot)} {
		for _, when := range []string{"while it waits", "while it is handled"} {
			t.Run(name+", "+when, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					tr := inMemory(t)

					sub, serr := goflux.NewSubscriber(tr, raw.String(), goflux.WithQueueGroup("workers"), goflux.WithStrictOrder(),
						goflux.WithRetryPolicy(goflux.ConstantRetry(time.Hour)), silent())
					if serr != nil {
						t.Fatal(serr)
					}

					stop := serveDead(t, sub, "orders", func(context.Context, goflux.Message[string]) error {
						time.Sleep(time.Second)

						return err
					})
					synctest.Wait()
					send(t, tr, "orders", "1", "2", "3")

					if when == "while it waits" {
						time.Sleep(2 * time.Second)
					}

					if err := stop(); err != nil {
						t.Error(err)
					}

					var handled []string

					began := time.Now()
					stop = serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
						handled = append(handled, msg.Payload)

						return nil
					})

					time.Sleep(time.Second)

					if err := stop(); err != nil {
						t.Error(err)
					}

					if want := []string{"1", "2", "3"}; !slices.Equal(handled, want) {
						t.Errorf("%v after the shutdown %v were handled, want %v", time.Since(began), handled, want)
					}
				})
			})
		}
	}
}

// A message that does not decode has no key: it holds nobody back that has one,
// not even while its dead letter cannot be stored.
func TestUndecodableHoldsNoKey(t *testing.T) {
	t.Parallel()

	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict %v", strict), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr, store := inMemory(t), newMorgue()
				store.failWith(transport.ErrNoStream)

				opts := []goflux.SubscriberOption{
					goflux.WithQueueGroup("workers"), goflux.WithConcurrency(2), silent(), goflux.WithDeadLetterPublisher(store, "dead"),
					goflux.WithOrderingKey(func(goflux.Message[string]) string { return "" }),
				}
				if strict {
					opts = append(opts, goflux.WithStrictOrder())
				}

				sub, err := goflux.NewSubscriber(tr, picky(), opts...)
				if err != nil {
					t.Fatal(err)
				}

				var handled []string

				stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
					handled = append(handled, msg.Payload)

					return nil
				})
				synctest.Wait()
				send(t, tr, "orders", undecodable, "1", undecodable, "2", undecodable, "3")
				time.Sleep(time.Minute)
				synctest.Wait()

				if want := []string{"1", "2", "3"}; !slices.Equal(handled, want) {
					t.Errorf("handled %v, want %v", handled, want)
				}

				store.failWith(nil)
				time.Sleep(time.Minute)

				if n := len(store.dead()); n != 3 {
					t.Errorf("%d dead letters, want 3", n)
				}

				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The error of a subscription that abandons handlers tells which one it is, and
// what to do.
func TestDrainErrorTellsWhere(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	consumer := natstest.Consumer(t, natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}),
		natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, FilterSubject: "orders.created"})

	sub, err := goflux.NewSubscriber(jetstream.Bind(consumer), raw.String(), goflux.WithDrainTimeout(0), silent())
	if err != nil {
		t.Fatal(err)
	}

	stuck, release := make(chan struct{}), make(chan struct{})
	returned := make(chan struct{})
	stop := serveDead(t, sub, "", func(context.Context, goflux.Message[string]) error {
		defer close(returned)

		close(stuck)
		<-release

		return nil
	})

	if _, err := js.Publish(t.Context(), "orders.created", nil); err != nil {
		t.Fatal(err)
	}

	<-stuck

	err = stop()

	close(release)
	<-returned

	if drain, ok := errors.AsType[*goflux.DrainError](err); !ok || drain.Abandoned != 1 {
		t.Errorf("got %v, want one abandoned message", err)
	}

	e, ok := errors.AsType[*goflux.Error](err)
	if !ok || e.Stream != "ORDERS" || e.Consumer != "workers" || e.Subject != "orders.created" {
		t.Errorf("got %+v", e)
	}

	for _, want := range []string{`"orders.created"`, `"ORDERS"`, `"workers"`, "1 message", "WithDrainTimeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell %s", err, want)
		}
	}
}

// The causes with which contexts of handlers end tell what to do.
func TestCausesTellTheRemedy(t *testing.T) {
	t.Parallel()

	for cause, want := range map[error]string{
		goflux.ErrLeaseLost:       "ack wait",
		goflux.ErrMaxHandlingTime: "WithMaxHandlingTime",
	} {
		if !strings.Contains(cause.Error(), want) {
			t.Errorf("%q does not name %s", cause, want)
		}
	}
}

// What could not be handled because its lease ran out before a handler was free
// is counted, and comes again.
func TestExpired(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := inMemory(t, memory.WithAckWait(inBubble.lease))
		way := &cuttable{Subscriber: tr, cut: new(atomic.Bool)}

		var log lockedBuffer

		sub, err := goflux.NewSubscriber(way, raw.String(), goflux.WithQueueGroup("workers"),
			goflux.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		if err != nil {
			t.Fatal(err)
		}

		handled := map[string]int{}
		stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
			if handled[msg.Payload]++; msg.Payload == "slow" {
				way.cut.Store(true)
				time.Sleep(2 * inBubble.lease)
				way.cut.Store(false)
			}

			return nil
		})
		synctest.Wait()
		send(t, tr, "orders", "warm up", "warm up") // now something is fetched ahead
		synctest.Wait()
		send(t, tr, "orders", "slow", "behind")
		time.Sleep(time.Hour)

		if err := stop(); err != nil {
			t.Error(err)
		}

		if handled["behind"] != 1 {
			t.Errorf("what was behind a slow one was handled %d times, want once", handled["behind"])
		}

		if n := sub.Expired(); n == 0 || !strings.Contains(log.String(), "lease ran out before") {
			t.Errorf("%d expired, and the log has:\n%s", n, log.String())
		}
	})
}

// What a client drops is counted, and logged.
func TestDropped(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))

	tr, err := corenats.New(nc, corenats.WithPendingLimits(10, -1))
	if err != nil {
		t.Fatal(err)
	}

	var (
		log     lockedBuffer
		handled atomic.Uint64
	)

	ready, release := make(chan struct{}), make(chan struct{})

	sub, err := goflux.NewSubscriber(tr, raw.String(), goflux.WithReady(func() { close(ready) }),
		goflux.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	if err != nil {
		t.Fatal(err)
	}

	stop := serveDead(t, sub, "orders", func(context.Context, goflux.Message[string]) error {
		<-release
		handled.Add(1)

		return nil
	})

	<-ready

	const many = 100

	for range many {
		if err := nc.Publish("orders", nil); err != nil {
			t.Fatal(err)
		}
	}

	natstest.Eventually(t, func() bool { return sub.Dropped() > 0 && strings.Contains(log.String(), "dropped") }, "messages to be dropped")
	close(release)
	natstest.Eventually(t, func() bool { return handled.Load()+sub.Dropped() == many }, "all to be handled or dropped")

	if err := stop(); err != nil {
		t.Error(err)
	}

	if handled.Load() < 10 {
		t.Errorf("%d were handled, want what there is room for at the least", handled.Load())
	}
}

// direct is a transport that hands its sink to the test.
type direct struct {
	sink func(transport.Delivery)
	info transport.Info
}

func (d *direct) Capabilities() transport.Capabilities {
	return transport.Of(transport.Acks, transport.Redelivery)
}

func (d *direct) Subscribe(_ context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	d.sink = cfg.Sink

	return d, nil
}

func (d *direct) Info() transport.Info                                 { return d.info }
func (d *direct) Request(int)                                          {}
func (d *direct) Pause(context.Context) error                          { return nil }
func (d *direct) Flush(context.Context) error                          { return nil }
func (d *direct) Close(context.Context) error                          { return nil }
func (d *direct) Done() <-chan struct{}                                { return nil }
func (d *direct) Err() error                                           { return nil }
func (d *direct) Settle(context.Context, any, transport.Verdict) error { return nil }
func (d *direct) Metadata(any) transport.Metadata                      { return transport.Metadata{Attempt: 1} }

// Between the transport and the handler, and back, one thing is allocated: the
// message, since the codec gets the address of its payload.
//
//nolint:paralleltest // AllocsPerRun counts the allocations of the whole process
func TestHandlingAllocatesTheMessage(t *testing.T) {
	ready, handled := make(chan struct{}), make(chan struct{}, 1)
	tr := &direct{info: transport.Info{AckWait: time.Minute}}
	codec := goflux.Codec[struct{}]{Decode: func([]byte, *struct{}) error { return nil }}

	sub, err := goflux.NewSubscriber(tr, codec, goflux.WithReady(func() { close(ready) }))
	if err != nil {
		t.Fatal(err)
	}

	stop := serveDead(t, sub, "orders", func(context.Context, goflux.Message[struct{}]) error {
		handled <- struct{}{}

		return nil
	})

	<-ready

	d := transport.Delivery{Subject: "orders", Token: tr, Settler: tr}
	run := func() {
		tr.sink(d)
		<-handled
	}

	for range 100 { // jobs are recycled
		run()
	}

	if n := testing.AllocsPerRun(1000, run); n > 1 {
		t.Errorf("%v allocations per message", n)
	}

	if err := stop(); err != nil {
		t.Error(err)
	}
}
