package middleware_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/transport"
)

// counting counts its calls, and returns what it is told.
func counting(n *atomic.Int64, err error) goflux.Handler[int] {
	return func(context.Context, goflux.Message[int]) error {
		n.Add(1)

		return err
	}
}

// broken is a store whose methods fail as told.
type broken struct {
	middleware.Store

	reserve, record, release error
	status                   middleware.Status
}

func (b *broken) Reserve(ctx context.Context, key middleware.Key, lease time.Duration) (middleware.Reservation, error) {
	if b.reserve != nil || b.status != 0 {
		return middleware.Reservation{Status: b.status}, b.reserve
	}

	return b.Store.Reserve(ctx, key, lease)
}

func (b *broken) Record(ctx context.Context, key middleware.Key, token uint64) error {
	if b.record != nil {
		return b.record
	}

	return b.Store.Record(ctx, key, token)
}

func (b *broken) Release(ctx context.Context, key middleware.Key, token uint64) error {
	return errors.Join(b.release, b.Store.Release(ctx, key, token))
}

func TestIdempotent(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, store middleware.Store) {
		t.Helper()

		var calls atomic.Int64

		h := middleware.Idempotent[int](store, "billing")(counting(&calls, nil))

		for range 3 {
			must(t, h(t.Context(), message("id-1")))
		}

		must(t, h(t.Context(), message("id-2")))

		if n := calls.Load(); n != 2 {
			t.Errorf("handled %d times", n)
		}

		// Another handler has handled neither.
		must(t, middleware.Idempotent[int](store, "shipping")(counting(&calls, nil))(t.Context(), message("id-1")))

		if n := calls.Load(); n != 3 {
			t.Errorf("handled %d times", n)
		}
	})
}

func TestIdempotentFailureIsNotRecorded(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, store middleware.Store) {
		t.Helper()

		boom := errors.New("boom")

		for _, outcome := range []error{boom, goflux.RetryAfter(time.Second, boom), goflux.Reject(boom), goflux.Drop(boom)} {
			var calls atomic.Int64

			h := middleware.Idempotent[int](store, "billing")(counting(&calls, outcome))

			for range 2 {
				if err := h(t.Context(), message("id-1")); err != outcome { //nolint:errorlint // unchanged
					t.Errorf("%v became %v", outcome, err)
				}
			}

			if n := calls.Load(); n != 2 {
				t.Errorf("%v: handled %d times", outcome, n)
			}
		}
	})
}

func TestIdempotentPanicEndsReservation(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, store middleware.Store) {
		t.Helper()

		h := middleware.Recover[int]()(middleware.Idempotent[int](store, "billing")(explode))

		for range 2 {
			if err := h(t.Context(), message("id-1")); !errors.Is(err, goflux.ErrPanic) {
				t.Errorf("got %v", err)
			}
		}
	})
}

// Two replicas have the message at once: one handles it, the other one is told
// when to come back, and by then it is handled.
func TestIdempotentOneAtATime(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, store middleware.Store) {
		t.Helper()

		entered, leave, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		replica := middleware.Idempotent[int](store, "billing", middleware.WithLease(time.Minute))

		go func() {
			done <- replica(func(context.Context, goflux.Message[int]) error {
				close(entered)
				<-leave

				return nil
			})(t.Context(), message("id-1"))
		}()

		<-entered

		var calls atomic.Int64

		other := replica(counting(&calls, nil))

		err := other(t.Context(), message("id-1"))
		if !errors.Is(err, middleware.ErrInProgress) || !strings.Contains(err.Error(), "retry after") {
			t.Errorf("got %v", err)
		}

		close(leave)
		must(t, <-done)
		must(t, other(t.Context(), message("id-1")))

		if n := calls.Load(); n != 0 {
			t.Errorf("handled %d times by the other one", n)
		}
	})
}

// The handler has until the end of the reservation; then another one may begin.
func TestIdempotentLease(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		opts  []middleware.IdempotentOption
		lease time.Duration
	}{
		"default":  {nil, middleware.DefaultLease},
		"zero":     {[]middleware.IdempotentOption{middleware.WithLease(0), nil}, middleware.DefaultLease},
		"negative": {[]middleware.IdempotentOption{middleware.WithLease(-1)}, middleware.DefaultLease},
		"an hour":  {[]middleware.IdempotentOption{middleware.WithLease(time.Hour)}, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				wrap := middleware.Idempotent[int](middleware.NewMemoryStore(0, 0), "billing", c.opts...)

				err := wrap(func(ctx context.Context, _ goflux.Message[int]) error {
					<-ctx.Done()

					if got := time.Since(start); got != c.lease {
						t.Errorf("the context ended after %v", got)
					}

					// At this very moment the message is free for another one.
					must(t, wrap(returning(nil))(t.Context(), message("id-1")))

					return ctx.Err()
				})(t.Context(), message("id-1"))

				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "WithLease") {
					t.Errorf("got %v", err)
				}

				// The failure of the first one changes nothing about that.
				var calls atomic.Int64

				must(t, wrap(counting(&calls, nil))(t.Context(), message("id-1")))

				if calls.Load() != 0 {
					t.Error("handled after it was recorded")
				}
			})
		})
	}
}

// A handler that ignores the end of its reservation and succeeds has handled
// the message.
func TestIdempotentLateSuccess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		wrap := middleware.Idempotent[int](middleware.NewMemoryStore(0, 0), "billing", middleware.WithLease(time.Second))

		must(t, wrap(func(context.Context, goflux.Message[int]) error {
			time.Sleep(time.Minute)

			return nil
		})(t.Context(), message("id-1")))

		var calls atomic.Int64

		must(t, wrap(counting(&calls, nil))(t.Context(), message("id-1")))

		if calls.Load() != 0 {
			t.Error("handled after it was recorded")
		}
	})
}

// What was handled is recorded though the subscription gave up on the handler.
func TestIdempotentRecordsAfterCancel(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, store middleware.Store) {
		t.Helper()

		boom := errors.New("boom")

		for _, outcome := range []error{nil, boom} {
			ctx, cancel := context.WithCancel(t.Context())

			err := middleware.Idempotent[int](store, "billing")(func(context.Context, goflux.Message[int]) error {
				cancel()

				return outcome
			})(ctx, message("id-1"))
			if err != outcome { //nolint:errorlint // unchanged
				t.Errorf("%v became %v", outcome, err)
			}

			want := middleware.Handled
			if outcome != nil {
				want = middleware.Reserved
			}

			reserve(t, store, middleware.Key{Scope: "billing", ID: "id-1"}, time.Nanosecond, want)
			store = middleware.NewMemoryStore(0, 0)
		}
	})
}

func TestIdempotentStoreFails(t *testing.T) {
	t.Parallel()

	down, boom := errors.New("the store is down"), errors.New("boom")

	for name, c := range map[string]struct {
		store   *broken
		handler error
		calls   int64
		is      []error // of the returned error; none means nil
		logs    bool
	}{
		"before":                 {&broken{reserve: down}, nil, 0, []error{down}, false},
		"before, without status": {&broken{status: 9}, nil, 0, []error{}, false},
		"after success":          {&broken{record: down}, nil, 1, nil, true},
		"after failure":          {&broken{release: down}, boom, 1, []error{boom, down}, false},
		"after rejection":        {&broken{release: down}, goflux.Reject(boom), 1, []error{boom, down}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			var (
				calls atomic.Int64
				log   bytes.Buffer
			)

			c.store.Store = middleware.NewMemoryStore(0, 0)

			err := middleware.Idempotent[int](c.store, "billing", middleware.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))(
				counting(&calls, c.handler))(t.Context(), message("id-1"))

			if (err == nil) != (c.is == nil) {
				t.Errorf("got %v", err)
			}

			for _, want := range c.is {
				if !errors.Is(err, want) {
					t.Errorf("%v is not %v", err, want)
				}
			}

			if n := calls.Load(); n != c.calls {
				t.Errorf("%d calls", n)
			}

			if c.logs != strings.Contains(log.String(), "level=ERROR") || c.logs != strings.Contains(log.String(), "id=id-1") {
				t.Errorf("logged %q", log.String())
			}
		})
	}
}

// What the handler decided survives that the store failed after it.
func TestIdempotentStoreFailureKeepsOutcome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64

		tr := open(t)
		store := &broken{Store: middleware.NewMemoryStore(0, 0), release: errors.New("down")}

		stop := serve(t, tr, middleware.Idempotent[int](store, "billing")(counting(&calls, goflux.Reject(nil))),
			goflux.WithLogger(slog.New(slog.DiscardHandler)))
		publish(t, tr, "id-1", 1)
		time.Sleep(time.Hour)
		stop()

		if n := calls.Load(); n != 1 {
			t.Errorf("a rejected message was handled %d times", n)
		}
	})
}

func TestIdempotentWithoutStore(t *testing.T) {
	t.Parallel()

	var calls atomic.Int64

	err := middleware.Idempotent[int](nil, "billing")(counting(&calls, nil))(t.Context(), message("id-1"))
	if !errors.Is(err, goflux.ErrInvalidOption) || calls.Load() != 0 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
}

// Without id and stream there is nothing to know a message by.
func TestIdempotentUnknownMessage(t *testing.T) {
	t.Parallel()

	var calls atomic.Int64

	store := middleware.NewMemoryStore(0, 0)
	h := middleware.Idempotent[int](store, "billing")(counting(&calls, nil))

	must(t, h(t.Context(), message("")))
	must(t, h(t.Context(), message("")))

	if calls.Load() != 2 || store.Len() != 0 {
		t.Errorf("%d calls, %d entries", calls.Load(), store.Len())
	}
}

// Without an id, its place in the stream tells a message from others, but not
// its number alone: another stream of the name counts from 1 too.
func TestIdempotentByPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64

		store := middleware.NewMemoryStore(0, 0)
		once := middleware.Idempotent[int](store, "billing")
		quiet := goflux.WithLogger(slog.New(slog.DiscardHandler))

		// Recorded, but its ack is lost.
		lost := func(next goflux.Handler[int]) goflux.Handler[int] {
			return func(ctx context.Context, msg goflux.Message[int]) error {
				err := next(ctx, msg)
				if msg.Attempt() < 3 {
					return errors.New("the process dies here")
				}

				return err
			}
		}

		for range 2 {
			tr := open(t)
			stop := serve(t, tr, lost(once(counting(&calls, nil))), quiet)
			publish(t, tr, "", 1)
			publish(t, tr, "", 1)
			time.Sleep(time.Minute)
			stop()
		}

		if n := calls.Load(); n != 4 || store.Len() != 4 {
			t.Errorf("4 messages were handled %d times, with %d entries", n, store.Len())
		}
	})
}

// What comes again because its ack was lost is acked as the subscription acks, and with manual acks
// by the middleware, since nobody else would.
func TestIdempotentAcksDuplicates(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		opt  goflux.SubscriberOption
		do   goflux.Handler[int]
		want transport.Action
	}{
		"automatic": {goflux.WithConcurrency(1), returning(nil), transport.Ack},
		"confirmed": {goflux.WithAckSync(), returning(nil), transport.AckSync},
		"manual": {goflux.WithManualAck(), func(_ context.Context, msg goflux.Message[int]) error {
			return msg.Ack()
		}, transport.Ack},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64

				w := &watched{Transport: open(t), lose: true}
				stop := serve(t, w, middleware.Idempotent[int](middleware.NewMemoryStore(0, 0), "billing")(
					func(ctx context.Context, msg goflux.Message[int]) error {
						calls.Add(1)

						return c.do(ctx, msg)
					}), c.opt)

				publish(t, w, "id-1", 1)
				time.Sleep(time.Hour)
				stop()

				if calls.Load() != 1 || !slices.Equal(w.verdicts, []transport.Action{c.want}) {
					t.Errorf("handled %d times, with the verdicts %v, want once and %v", calls.Load(), w.verdicts, c.want)
				}
			})
		})
	}
}

// The first verb of a handler says whether the message was handled, whatever the
// handler returns, and whenever it is called.
func TestIdempotentVerbs(t *testing.T) {
	t.Parallel()

	type message = goflux.Message[int]

	ack, nak, term := message.Ack, message.Nak, message.Term
	later := func(msg message) error { return msg.NakWithDelay(time.Minute) }
	sync := func(msg message) error { return msg.AckSync(context.Background()) }
	both := func(msg message) error { return errors.Join(msg.InProgress(), msg.Ack(), msg.Nak()) }
	boom := errors.New("boom")

	for name, c := range map[string]struct {
		verb     func(message) error
		fails    bool // after the verb
		panics   bool // after the verb
		recorded bool
		calls    int64 // of the one message that was sent
	}{
		"Ack":                     {verb: ack, recorded: true, calls: 1},
		"AckSync":                 {verb: sync, recorded: true, calls: 1},
		"Nak":                     {verb: nak, calls: 2},
		"NakWithDelay":            {verb: later, calls: 2},
		"Term":                    {verb: term, calls: 1},
		"Ack and an error":        {verb: ack, fails: true, recorded: true, calls: 1},
		"Nak and an error":        {verb: nak, fails: true, calls: 2},
		"Ack and a panic":         {verb: ack, panics: true, recorded: true, calls: 1},
		"Nak and a panic":         {verb: nak, panics: true, calls: 2},
		"InProgress, Ack and Nak": {verb: both, recorded: true, calls: 1},
	} {
		for _, acks := range []string{"automatic", "manual", "manual, after it has returned"} {
			late := strings.Contains(acks, "after")
			if late && c.panics {
				continue
			}

			t.Run(name+", "+acks, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var calls atomic.Int64

					store, tr := middleware.NewMemoryStore(0, 0), open(t)
					key := middleware.Key{Scope: "billing", ID: "id-1"}

					opts := []goflux.SubscriberOption{goflux.WithLogger(slog.New(slog.DiscardHandler))}
					if acks != "automatic" {
						opts = append(opts, goflux.WithManualAck())
					}

					stop := serve(t, tr, middleware.Idempotent[int](store, "billing")(func(_ context.Context, msg message) error {
						if calls.Add(1) > 1 {
							return msg.Ack()
						}

						switch {
						case late:
							time.AfterFunc(time.Second, func() { _ = c.verb(msg) })
						default:
							_ = c.verb(msg)
						}

						if c.panics {
							panic("boom")
						}

						if c.fails {
							return boom
						}

						return nil
					}), opts...)

					publish(t, tr, "id-1", 1)
					time.Sleep(2 * time.Second)

					// What was sent back is handled by now, and recorded by that.
					want := middleware.Reserved
					if c.recorded || (c.calls == 2 && name != "NakWithDelay") {
						want = middleware.Handled
					}

					reserve(t, store, key, time.Nanosecond, want)
					time.Sleep(time.Hour)
					stop()

					if n := calls.Load(); n != c.calls {
						t.Errorf("handled %d times, want %d", n, c.calls)
					}
				})
			})
		}
	}
}

// A verb that comes too late changes nothing: the message was given back.
func TestIdempotentLateVerb(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64

		tr := open(t)
		stop := serve(t, tr, middleware.Idempotent[int](middleware.NewMemoryStore(0, 0), "billing")(
			func(_ context.Context, msg goflux.Message[int]) error {
				if calls.Add(1) > 1 {
					return nil
				}

				time.AfterFunc(time.Second, func() {
					if err := msg.Ack(); !errors.Is(err, goflux.ErrSettled) {
						t.Errorf("the late Ack returned %v", err)
					}
				})

				return goflux.RetryAfter(time.Minute, errors.New("not yet"))
			}), goflux.WithLogger(slog.New(slog.DiscardHandler)))

		publish(t, tr, "id-1", 1)
		time.Sleep(time.Hour)
		stop()

		if n := calls.Load(); n != 2 {
			t.Errorf("handled %d times, want 2", n)
		}
	})
}

// A message that nobody settles is handled again, once its reservation is over.
func TestIdempotentNeverSettled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64

		tr := open(t)
		stop := serve(t, tr, middleware.Idempotent[int](middleware.NewMemoryStore(0, 0), "billing")(
			func(_ context.Context, msg goflux.Message[int]) error {
				if calls.Add(1) == 1 {
					return nil
				}

				return msg.Ack()
			}), goflux.WithManualAck())

		publish(t, tr, "id-1", 1)
		time.Sleep(time.Hour)
		stop()

		if n := calls.Load(); n != 2 {
			t.Errorf("handled %d times, want 2", n)
		}
	})
}
