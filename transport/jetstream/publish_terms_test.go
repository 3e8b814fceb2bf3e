package jetstream_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

func publisher(t *testing.T, tr transport.Publisher, opts ...goflux.PublisherOption) *goflux.BoundPublisher[string] {
	t.Helper()

	pub, err := goflux.NewPublisher(tr, raw.String(), opts...)
	must(t, err)
	t.Cleanup(func() { must(t, pub.Close()) })

	return pub
}

func within(t *testing.T) context.Context {
	t.Helper()

	ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
	t.Cleanup(cancel)

	return ctx
}

// forgetful loses the outcome of what it publishes, as a network does: the
// message is stored and nobody hears of it.
type forgetful struct {
	*jetstream.Transport

	mu    sync.Mutex
	loses int // how many more outcomes it loses
}

func (f *forgetful) lost() bool {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.loses--

	return f.loses >= 0
}

var errLost = transport.Mark(transport.ErrPublishUnknown, context.DeadlineExceeded)

func (f *forgetful) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	r, err := f.Transport.Publish(ctx, msg)
	if err == nil && f.lost() {
		return transport.Receipt{}, errLost
	}

	return r, err
}

func (f *forgetful) PublishAtomic(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	r, err := f.Transport.PublishAtomic(ctx, msgs)
	if err == nil && f.lost() {
		return transport.Receipt{}, errLost
	}

	return r, err
}

// streams are the kinds of streams that treat ids and expectations differently
// (nats-server v2.15.2): a stream with replicas looks at the id first.
func streams(t *testing.T) map[string]natsjs.JetStream {
	t.Helper()

	one := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	cluster := natstest.JetStream(t, natstest.Connect(t, natstest.RunCluster(t, 3)))

	cfg := natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, AllowAtomicPublish: true}
	natstest.Stream(t, one, cfg)
	natstest.Stream(t, cluster, natsjs.StreamConfig{Name: "REPLICATED", Subjects: []string{"orders.>"}, AllowAtomicPublish: true, Replicas: 3})
	natstest.Stream(t, cluster, natsjs.StreamConfig{Name: "SINGLE", Subjects: []string{"single.>"}, AllowAtomicPublish: true})

	return map[string]natsjs.JetStream{"orders": one, "orders.replicated": cluster, "single": cluster}
}

func TestExpectedSequence(t *testing.T) {
	t.Parallel()

	for subject, js := range streams(t) {
		t.Run(subject, func(t *testing.T) {
			t.Parallel()

			tr, err := jetstream.New(js)
			must(t, err)

			ctx := within(t)
			pub := publisher(t, tr)
			subject, other := subject+".a", subject+".b"

			first, err := pub.Send(ctx, subject, "1", goflux.ExpectLastSubjectSequence(0), goflux.ExpectLastSequence(0))
			must(t, err)

			second, err := pub.Send(ctx, other, "2", goflux.ExpectLastSequence(first.Sequence))
			must(t, err)

			third, err := pub.Send(ctx, subject, "3", goflux.ExpectLastSubjectSequence(first.Sequence))
			must(t, err)

			for name, test := range map[string]struct {
				subject string
				opt     goflux.SendOption
				want    goflux.ConflictError
			}{
				"stream":        {subject, goflux.ExpectLastSequence(second.Sequence), goflux.ConflictError{Expected: second.Sequence, Last: third.Sequence, Known: true}},
				"subject":       {subject, goflux.ExpectLastSubjectSequence(first.Sequence), goflux.ConflictError{Expected: first.Sequence, Last: third.Sequence, Known: true}},
				"other subject": {other, goflux.ExpectLastSubjectSequence(0), goflux.ConflictError{Last: second.Sequence, Known: true}},
				"new subject":   {other + ".new", goflux.ExpectLastSubjectSequence(7), goflux.ConflictError{Expected: 7, Known: true}},
			} {
				for _, id := range []string{"", "new-" + name} {
					_, err := pub.Send(goflux.WithMessageID(ctx, id), test.subject, "x", test.opt)

					var conflict *goflux.ConflictError
					if !errors.As(err, &conflict) || !errors.Is(err, goflux.ErrConflict) || errors.Is(err, goflux.ErrPublishUnknown) {
						t.Fatalf("%s: got %v", name, err)
					}

					got := *conflict
					got.Err = nil

					if got != test.want {
						t.Errorf("%s: got %+v, want %+v", name, got, test.want)
					}

					if transport.ErrorType(err) != "conflict" || !strings.Contains(err.Error(), "conflict") {
						t.Errorf("%s: %v of type %q", name, err, transport.ErrorType(err))
					}
				}
			}

			// The id of a conflict is free: nothing of it is left at the server.
			r, err := pub.Send(goflux.WithMessageID(ctx, "new-subject"), subject, "4", goflux.ExpectLastSubjectSequence(third.Sequence))
			must(t, err)

			if r.Duplicate {
				t.Error("a message that was never stored is a duplicate")
			}
		})
	}
}

// A message whose first attempt was stored, though nobody heard of it, does not
// conflict with itself: also where others have followed.
func TestExpectedSequenceAndRetries(t *testing.T) {
	t.Parallel()

	for subject, js := range streams(t) {
		t.Run(subject, func(t *testing.T) {
			t.Parallel()

			tr, err := jetstream.New(js)
			must(t, err)

			ctx := within(t)
			lossy := &forgetful{Transport: tr, loses: 2}
			pub := publisher(t, lossy, goflux.WithPublishRetry(0))
			subject := subject + ".a"

			r, err := pub.Send(goflux.WithMessageID(ctx, "m-1"), subject, "1", goflux.ExpectLastSubjectSequence(0))
			must(t, err)

			if !r.Duplicate || r.Sequence != 1 {
				t.Errorf("receipt %+v", r)
			}

			next, err := pub.Send(ctx, subject, "2", goflux.ExpectLastSequence(r.Sequence))
			must(t, err)

			// The caller's own retry, later on.
			r, err = pub.Send(goflux.WithMessageID(ctx, "m-1"), subject, "1", goflux.ExpectLastSubjectSequence(0))
			must(t, err)

			if !r.Duplicate || r.Sequence != 1 {
				t.Errorf("receipt %+v", r)
			}

			// Somebody else's message is a conflict, after a lost outcome, too.
			lossy.mu.Lock()
			lossy.loses = 0
			lossy.mu.Unlock()

			_, err = pub.Send(goflux.WithMessageID(ctx, "m-2"), subject, "2", goflux.ExpectLastSubjectSequence(1))
			if !errors.Is(err, goflux.ErrConflict) || errors.Is(err, goflux.ErrPublishUnknown) {
				t.Errorf("got %v", err)
			}

			s, err := js.StreamNameBySubject(ctx, subject)
			must(t, err)

			stream, err := js.Stream(ctx, s)
			must(t, err)

			if info := stream.CachedInfo(); info.State.Msgs != 2 || info.State.LastSeq != next.Sequence {
				t.Errorf("state %+v", info.State)
			}
		})
	}
}

func TestTTL(t *testing.T) {
	t.Parallel()

	e := setup(t)
	pub := publisher(t, e.transport(t))
	ctx := within(t)

	_, err := pub.Send(ctx, "events.a", "x", goflux.TTL(time.Minute))
	if !errors.Is(err, goflux.ErrUnsupported) || !strings.Contains(err.Error(), "AllowMsgTTL") {
		t.Errorf("got %v", err)
	}

	s := natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "TTL", Subjects: []string{"ttl"}, AllowMsgTTL: true})

	for d, want := range map[time.Duration]string{time.Millisecond: "1", time.Minute: "60", 90*time.Second + 1: "91", math.MaxInt64: "3153600000"} {
		r, err := pub.Send(ctx, "ttl", "x", goflux.TTL(d))
		must(t, err)

		msg, err := s.GetMsg(ctx, r.Sequence)
		must(t, err)

		if got := msg.Header.Get("Nats-TTL"); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}

	natstest.Eventually(t, func() bool {
		info, err := s.Info(ctx)

		return err == nil && info.State.Msgs == 3
	}, "the end of the message that is kept for a second")
}

func TestSendOptionsRefused(t *testing.T) {
	t.Parallel()

	e := setup(t)
	pub := publisher(t, e.transport(t))

	for name, opt := range map[string]goflux.SendOption{"no TTL": goflux.TTL(0), "negative": goflux.TTL(-1), "nil": nil} {
		_, err := pub.Send(t.Context(), "events.a", "x", opt)
		if d := details(t, err, goflux.ErrInvalidOption); d.Subject != "events.a" {
			t.Errorf("%s: %+v", name, d)
		}
	}

	if info, err := e.stream.Info(t.Context()); err != nil || info.State.Msgs != 0 {
		t.Errorf("%+v, error %v", info, err)
	}
}

func TestAtomic(t *testing.T) {
	t.Parallel()

	for subject, js := range streams(t) {
		t.Run(subject, func(t *testing.T) {
			t.Parallel()

			tr, err := jetstream.New(js)
			must(t, err)

			ctx := within(t)
			pub := publisher(t, tr)

			name, err := js.StreamNameBySubject(ctx, subject+".a")
			must(t, err)

			stream, err := js.Stream(ctx, name)
			must(t, err)

			stored := func() uint64 {
				t.Helper()

				info, err := stream.Info(ctx)
				must(t, err)

				return info.State.Msgs
			}

			batch := func(n int, id string) []goflux.Item[string] {
				items := make([]goflux.Item[string], n)
				for i := range items {
					items[i] = goflux.Item[string]{Subject: subject + ".a", Payload: string(rune('a' + i%26))}
				}

				items[n-1].ID = id

				return items
			}

			var total uint64

			for _, n := range []int{1, 2, 3, 1000} {
				r, err := pub.PublishAtomic(ctx, batch(n, "")...)
				must(t, err)

				if total += uint64(n); r.Sequence != total || r.Stream != name || stored() != total {
					t.Errorf("batch of %d: receipt %+v, %d are stored", n, r, stored())
				}
			}

			msg, err := stream.GetMsg(ctx, 5)
			must(t, err)

			if string(msg.Data) != "b" {
				t.Errorf("message 5 is %q", msg.Data)
			}

			_, err = pub.PublishAtomic(ctx, batch(1001, "")...)
			_ = details(t, err, goflux.ErrTooLarge)

			r, err := pub.PublishAtomic(ctx, batch(2, "m-1")...)
			must(t, err)

			total += 2

			if _, err := pub.PublishAtomic(ctx, batch(2, "m-1")...); !errors.Is(err, goflux.ErrDuplicate) || errors.Is(err, goflux.ErrPublishUnknown) {
				t.Errorf("got %v", err)
			}

			// A batch of which all is stored already is a duplicate.
			again, err := pub.PublishAtomic(ctx, batch(1, "m-1")...)
			must(t, err)

			if r.Duplicate = true; again != r {
				t.Errorf("receipt %+v, want %+v", again, r)
			}

			// So is one whose outcome was lost.
			safe := publisher(t, &forgetful{Transport: tr, loses: 1}, goflux.WithPublishRetry(0))

			r, err = safe.PublishAtomic(ctx, batch(3, "")...)
			must(t, err)

			if total += 3; !r.Duplicate || r.Sequence != total || stored() != total {
				t.Errorf("receipt %+v, %d are stored, want %d", r, stored(), total)
			}

			if r, err := pub.PublishAtomic(ctx); err != nil || r != (goflux.Receipt{}) {
				t.Errorf("an empty batch: receipt %+v, error %v", r, err)
			}

			if _, err := pub.PublishAtomic(ctx, append(batch(2, ""), goflux.Item[string]{Subject: "a.*"})...); !errors.Is(err, goflux.ErrInvalidSubject) {
				t.Errorf("got %v", err)
			}

			if stored() != total {
				t.Errorf("%d are stored, want %d", stored(), total)
			}
		})
	}
}

func TestAtomicErrors(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "A", Subjects: []string{"a"}, AllowAtomicPublish: true})
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "B", Subjects: []string{"b"}, AllowAtomicPublish: true})

	pub := publisher(t, e.transport(t), goflux.WithRetryAttempts(0))
	ctx := within(t)

	on := func(subjects ...string) []goflux.Item[string] {
		var items []goflux.Item[string]
		for _, s := range subjects {
			items = append(items, goflux.Item[string]{Subject: s})
		}

		return items
	}

	for name, test := range map[string]struct {
		items []goflux.Item[string]
		want  error
		text  string
	}{
		"not allowed":       {on("events.a", "events.a"), goflux.ErrUnsupported, "AllowAtomicPublish"},
		"one not allowed":   {on("events.a"), goflux.ErrUnsupported, "AllowAtomicPublish"},
		"no stream":         {on("nowhere", "nowhere"), goflux.ErrNoStream, "stream"},
		"one no stream":     {on("nowhere"), goflux.ErrNoStream, "stream"},
		"two streams":       {on("a", "b"), goflux.ErrUnavailable, "incomplete"},
		"end in no stream":  {on("a", "nowhere"), goflux.ErrNoStream, "stream"},
		"too large to send": {[]goflux.Item[string]{{Subject: "a"}, {Subject: "a", Payload: strings.Repeat("x", 2<<20)}}, goflux.ErrTooLarge, ""},
	} {
		_, err := pub.PublishAtomic(ctx, test.items...)
		if d := details(t, err, test.want); !strings.Contains(err.Error(), test.text) || d.Op != "publish" {
			t.Errorf("%s: got %v", name, err)
		}

		if errors.Is(err, goflux.ErrPublishUnknown) {
			t.Errorf("%s: it is known that nothing is stored: %v", name, err)
		}
	}

	for _, name := range []string{"A", "B", "EVENTS"} {
		s, err := e.js.Stream(ctx, name)
		must(t, err)

		if n := s.CachedInfo().State.Msgs; n != 0 {
			t.Errorf("%d messages in %s", n, name)
		}
	}
}
