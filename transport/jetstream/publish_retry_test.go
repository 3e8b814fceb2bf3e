package jetstream_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/jetstream"
)

// counted counts what is published on a subject of a stream; a plain subscriber
// would keep the server from saying that nobody is there.
func counted(t *testing.T, e *env, subject string) func() int { //nolint:revive // named for the reader
	t.Helper()

	before := e.nc.Stats().OutMsgs

	return func() int { return int(e.nc.Stats().OutMsgs - before) }
}

// The retries of ADR-22.
func TestPublishRetries(t *testing.T) {
	t.Parallel()

	for name, test := range map[string]struct {
		opts     []goflux.PublisherOption
		deadline time.Duration
		min, max int // publishes
		took     time.Duration
		want     []error
	}{
		"default": {
			min: 3, max: 3, took: 500 * time.Millisecond,
			want: []error{goflux.ErrNoStream, natsjs.ErrNoStreamResponse},
		},
		"none": {
			opts: []goflux.PublisherOption{goflux.WithRetryAttempts(0)},
			min:  1, max: 1, want: []error{goflux.ErrNoStream},
		},
		"others": {
			opts: []goflux.PublisherOption{goflux.WithRetryAttempts(4), goflux.WithRetryWait(20 * time.Millisecond)},
			min:  5, max: 5, took: 80 * time.Millisecond, want: []error{goflux.ErrNoStream},
		},
		"until the deadline": {
			opts:     []goflux.PublisherOption{goflux.WithRetryAttempts(-1), goflux.WithRetryWait(50 * time.Millisecond)},
			deadline: 400 * time.Millisecond,
			min:      4, max: 9, took: 400 * time.Millisecond,
			want: []error{goflux.ErrNoStream, natsjs.ErrNoStreamResponse, context.DeadlineExceeded},
		},
		"until the ack wait": {
			opts: []goflux.PublisherOption{
				goflux.WithRetryAttempts(-1), goflux.WithRetryWait(50 * time.Millisecond), goflux.WithAckWait(300 * time.Millisecond),
			},
			min: 3, max: 7, took: 300 * time.Millisecond,
			want: []error{goflux.ErrNoStream, context.DeadlineExceeded},
		},
		"deadline before the retries": {
			deadline: 300 * time.Millisecond,
			min:      2, max: 2, took: 300 * time.Millisecond,
			want: []error{goflux.ErrNoStream, context.DeadlineExceeded},
		},
		"safe": {
			opts:     []goflux.PublisherOption{goflux.WithPublishRetry(0)},
			deadline: 400 * time.Millisecond,
			min:      3, max: 30, took: 400 * time.Millisecond,
			want: []error{goflux.ErrNoStream, context.DeadlineExceeded},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			pub := publisher(t, e.transport(t), test.opts...)

			ctx := t.Context()
			if test.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, test.deadline)
				defer cancel()
			}

			sent := counted(t, e, "nowhere")
			began := time.Now()
			err := pub.Publish(ctx, "nowhere", "x")

			if took := time.Since(began); took < test.took || took > test.took+natstest.Limit/4 {
				t.Errorf("it took %v, want %v", took, test.took)
			}

			if n := sent(); n < test.min || n > test.max {
				t.Errorf("%d attempts, want %d to %d", n, test.min, test.max)
			}

			for _, want := range test.want {
				_ = details(t, err, want)
			}

			// What ended with an answer is not stored; at a deadline an attempt
			// may have been under way.
			if errors.Is(err, goflux.ErrPublishUnknown) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A stream that comes in time gets the message.
func TestPublishRetriesUntilThereIsAStream(t *testing.T) {
	t.Parallel()

	for name, opt := range map[string]goflux.PublisherOption{
		"until the deadline": goflux.WithRetryAttempts(-1),
		"safe":               goflux.WithPublishRetry(0),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			pub := publisher(t, e.transport(t), opt)
			sent := counted(t, e, "late")
			published, batch := make(chan error, 1), make(chan error, 1)

			go func() { published <- pub.Publish(within(t), "late", "x") }()
			go func() {
				_, err := pub.PublishBatch(within(t), batchOf("late", 10)...)
				batch <- err
			}()

			natstest.Eventually(t, func() bool { return sent() > 11 }, "attempts")

			s := natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "LATE", Subjects: []string{"late"}})

			must(t, <-published)
			must(t, <-batch)

			if info, err := s.Info(t.Context()); err != nil || info.State.Msgs != 11 {
				t.Errorf("%+v, error %v", info, err)
			}
		})
	}
}

// An attempt that nobody answered to is repeated under the same id, so that it
// is stored once, and the receipt tells of it.
func TestPublishRetryStoresOnce(t *testing.T) {
	t.Parallel()

	for name, id := range map[string]string{"made up": "", "the caller's": "m-1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			lossy := &forgetful{Transport: e.transport(t), loses: 3}
			pub := publisher(t, lossy, goflux.WithPublishRetry(0))

			r, err := pub.Send(goflux.WithMessageID(within(t), id), "events.a", "x")
			must(t, err)

			if want := (goflux.Receipt{Stream: "EVENTS", Sequence: 1, Duplicate: true}); r != want {
				t.Errorf("receipt %+v, want %+v", r, want)
			}

			msg, err := e.stream.GetMsg(t.Context(), 1)
			must(t, err)

			got := msg.Header.Get("Nats-Msg-Id")
			if got == "" || got != msg.Header.Get("X-Message-ID") || (id != "" && got != id) {
				t.Errorf("headers %v", msg.Header)
			}

			if n := len(bodies(t, e)); n != 1 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

// A stream that takes a message and says nothing leaves the outcome open.
func TestPublishUnknown(t *testing.T) {
	t.Parallel()

	for name, opts := range map[string][]goflux.PublisherOption{
		"plain": nil, "safe": {goflux.WithPublishRetry(100 * time.Millisecond)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "MUTE", Subjects: []string{"mute"}, NoAck: true})

			pub := publisher(t, e.transport(t), opts...)

			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()

			err := pub.Publish(ctx, "mute", "x")
			if _ = details(t, err, goflux.ErrPublishUnknown); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}

			results, err := pub.PublishBatch(ctx, batchOf("mute", 1)...)
			if err == nil || !errors.Is(results[0].Err, context.DeadlineExceeded) {
				t.Errorf("results %v", results)
			}

			if n := responses(e.nc); n != 0 {
				t.Errorf("the connection waits for %d replies", n)
			}
		})
	}
}

// A drain is the orderly end of a connection: handlers publish while it drains
// its subscriptions.
func TestPublishWhileDraining(t *testing.T) {
	t.Parallel()

	for name, opts := range map[string][]goflux.PublisherOption{"plain": nil, "safe": {goflux.WithPublishRetry(0)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			used, fresh := publisher(t, e.transport(t), opts...), publisher(t, e.transport(t), opts...)
			published := make(chan error, 1)

			must(t, used.Publish(within(t), "events.a", "x"))

			_, err := used.PublishBatch(within(t), batchOf("events.a", 1)...)
			must(t, err)

			_, err = e.nc.Subscribe("in", func(*nats.Msg) {
				published <- errors.Join(e.nc.Drain(),
					used.Publish(t.Context(), "events.a", "x"), fresh.Publish(t.Context(), "events.a", "x"), used.Close())
			})
			must(t, err)
			must(t, e.nc.Publish("in", nil))
			must(t, <-published)

			natstest.Eventually(t, e.nc.IsClosed, "the end of the drain")

			for _, pub := range []*goflux.BoundPublisher[string]{used, fresh} {
				_ = details(t, pub.Publish(within(t), "events.a", "x"), goflux.ErrClosed)
			}

			s, err := natstest.JetStream(t, natstest.Connect(t, e.server)).Stream(t.Context(), "EVENTS")
			must(t, err)

			if n := s.CachedInfo().State.Msgs; n != 4 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

// What is under way when the connection, or the transport, is closed ends then,
// rather than at its deadline.
func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	t.Parallel()

	for name, end := range map[string]func(t *testing.T, e *env, tr *jetstream.Transport){
		"the connection": func(_ *testing.T, e *env, _ *jetstream.Transport) { e.nc.Close() },
		"the transport": func(t *testing.T, _ *env, tr *jetstream.Transport) {
			t.Helper()
			must(t, tr.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "MUTE", Subjects: []string{"mute"}, NoAck: true})

			tr, err := jetstream.New(e.js)
			must(t, err)

			pub := publisher(t, tr, goflux.WithPublishRetry(time.Minute))
			sent := counted(t, e, "mute")
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			t.Cleanup(cancel)

			pending, err := pub.PublishAsync(ctx, "mute", "x")
			must(t, err)

			batch := make(chan error, 1)

			go func() {
				_, err := pub.PublishBatch(ctx, batchOf("mute", 1)...)
				batch <- err
			}()

			natstest.Eventually(t, func() bool { return sent() == 2 }, "what is under way")
			end(t, e, tr)

			_, err = pending.Wait(within(t))
			for what, err := range map[string]error{"asynchronously": err, "in a batch": await(t, batch)} {
				if !errors.Is(err, goflux.ErrClosed) || !errors.Is(err, goflux.ErrPublishUnknown) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}
