package memory_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

func publisher(t *testing.T, tr transport.Publisher) *goflux.BoundPublisher[string] {
	t.Helper()

	pub, err := goflux.NewPublisher(tr, raw.String())
	if err != nil {
		t.Fatal(err)
	}

	return pub
}

func TestExpectedSequence(t *testing.T) {
	t.Parallel()

	pub := publisher(t, open(t, memory.WithHistory(3)))

	// The history holds the last three: the message on "a" is no more in it at
	// the end.
	for i, step := range []struct {
		subject  string
		opt      goflux.SendOption
		conflict *goflux.ConflictError
	}{
		{"a", goflux.ExpectLastSequence(0), nil},
		{"a", goflux.ExpectLastSequence(0), &goflux.ConflictError{Last: 1, Known: true}},
		{"b", goflux.ExpectLastSubjectSequence(0), nil},
		{"a", goflux.ExpectLastSubjectSequence(2), &goflux.ConflictError{Expected: 2, Last: 1, Known: true}},
		{"b", goflux.ExpectLastSequence(2), nil},
		{"b", goflux.ExpectLastSubjectSequence(2), &goflux.ConflictError{Expected: 2, Last: 3, Known: true}},
		{"b", goflux.ExpectLastSubjectSequence(3), nil},
		{"a", goflux.ExpectLastSubjectSequence(1), &goflux.ConflictError{Expected: 1, Known: true}},
		{"a", goflux.ExpectLastSubjectSequence(0), nil},
	} {
		_, err := pub.Send(t.Context(), step.subject, "", step.opt)

		var conflict *goflux.ConflictError
		if errors.As(err, &conflict) != (step.conflict != nil) || errors.Is(err, goflux.ErrConflict) != (step.conflict != nil) {
			t.Fatalf("step %d: got %v", i, err)
		}

		if conflict != nil && *conflict != *step.conflict {
			t.Errorf("step %d: got %+v, want %+v", i, conflict, step.conflict)
		}
	}

	// A message that is stored already does not conflict with itself.
	ctx := goflux.WithMessageID(t.Context(), "m-1")

	for i := range 2 {
		r, err := pub.Send(ctx, "c", "", goflux.ExpectLastSequence(5))
		if err != nil || r.Sequence != 6 || r.Duplicate != (i == 1) {
			t.Errorf("receipt %+v, error %v", r, err)
		}
	}
}

func TestTermsThatAreNotSupported(t *testing.T) {
	t.Parallel()

	pub := publisher(t, open(t))

	for needs, opt := range map[transport.Capability]goflux.SendOption{
		transport.ExpectedSequence: goflux.ExpectLastSequence(0),
		transport.MessageTTL:       goflux.TTL(time.Second),
	} {
		r, err := pub.Send(t.Context(), "a", "", opt)
		if !errors.Is(err, goflux.ErrUnsupported) || !strings.Contains(err.Error(), needs.String()) || r != (goflux.Receipt{}) {
			t.Errorf("%s: got %v", opt, err)
		}
	}

	if r, err := pub.Send(t.Context(), "a", ""); err != nil || r.Sequence != 1 {
		t.Errorf("something was stored before: %+v, error %v", r, err)
	}
}

func TestPublishLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t)
		pub := publisher(t, tr)

		var box inbox

		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: box.sink})
		sub.Request(100)

		began := time.Now()
		ctx := goflux.WithMessageID(t.Context(), "m-1")

		for range 2 {
			if err := pub.PublishAfter(ctx, "a", "second", 2*time.Second); err != nil {
				t.Fatal(err)
			}
		}

		for _, step := range []struct {
			after time.Duration
			body  string
		}{{3 * time.Second, "third"}, {time.Second, "first"}, {0, "now"}, {-time.Hour, "past"}} {
			if err := pub.PublishAfter(t.Context(), "a", step.body, step.after); err != nil {
				t.Fatal(err)
			}
		}

		synctest.Wait()
		ack(t, box.want(t, "now", "past")...)

		for i, body := range []string{"first", "second", "third"} {
			time.Sleep(time.Until(began.Add(time.Duration(i+1)*time.Second - 1)))
			synctest.Wait()
			box.want(t)

			time.Sleep(time.Nanosecond)
			synctest.Wait()

			got := box.want(t, body)
			if m := got[0].Settler.Metadata(got[0].Token); !m.Timestamp.Equal(began.Add(time.Duration(i+1) * time.Second)) {
				t.Errorf("stored at %v", m.Timestamp.Sub(began))
			}

			ack(t, got...)
		}
	})
}

// What waits is bounded, and gone with the transport.
func TestLaterIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t, memory.WithMaxPending(2))
		pub := publisher(t, tr)

		var box inbox

		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: box.sink})

		publish(t, tr, "a", "0", "1") // the queue is full

		for i := range 3 {
			err := pub.PublishAfter(t.Context(), "a", fmt.Sprint(2+i), time.Second)
			if errors.Is(err, goflux.ErrBufferFull) != (i == 2) {
				t.Errorf("message %d: %v", i, err)
			}
		}

		time.Sleep(time.Second)
		synctest.Wait()
		sub.Request(10)
		synctest.Wait()
		ack(t, box.want(t, "0", "1", "2", "3")...)

		// There is room again, for those that nobody will see.
		for range 2 {
			if err := pub.PublishAfter(t.Context(), "a", "", time.Hour); err != nil {
				t.Error(err)
			}
		}

		if err := tr.Close(); err != nil {
			t.Error(err)
		}

		time.Sleep(2 * time.Hour)
		box.want(t)
	})
}

func TestAtomicBatch(t *testing.T) {
	t.Parallel()

	tr := open(t, memory.WithMaxPending(4))
	pub := publisher(t, tr)

	var all, b inbox

	subscribe(t, tr, transport.SubscribeConfig{Subject: ">", Sink: all.sink}).Request(100)
	subscribe(t, tr, transport.SubscribeConfig{Subject: "b", Group: "g", Sink: b.sink}).Request(100)

	batch := func(specs ...string) []goflux.Item[string] {
		var items []goflux.Item[string]

		for _, spec := range specs {
			subject, id, _ := strings.Cut(spec, " ")
			items = append(items, goflux.Item[string]{Subject: subject, Payload: spec, ID: id})
		}

		return items
	}

	want := func(receipt goflux.Receipt, err error, sequence uint64, duplicate bool) {
		t.Helper()

		if err != nil || receipt != (goflux.Receipt{Stream: memory.Stream, Sequence: sequence, Duplicate: duplicate}) {
			t.Errorf("receipt %+v, error %v", receipt, err)
		}
	}

	r, err := pub.PublishAtomic(t.Context(), batch("a", "b", "a m-1")...)
	want(r, err, 3, false)
	ack(t, all.want(t, "a", "b", "a m-1")...)
	ack(t, b.want(t, "b")...)

	r, err = pub.PublishAtomic(t.Context(), batch("a m-2", "a m-3")...)
	want(r, err, 5, false)
	ack(t, all.want(t, "a m-2", "a m-3")...)

	r, err = pub.PublishAtomic(t.Context(), batch("a m-2", "a m-3")...)
	want(r, err, 5, true)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()

	for name, test := range map[string]struct {
		ctx   context.Context
		items []goflux.Item[string]
		want  error
	}{
		"one is known":    {t.Context(), batch("a", "a m-1"), goflux.ErrDuplicate},
		"some are known":  {t.Context(), batch("a m-1", "a m-9"), goflux.ErrDuplicate},
		"twice":           {t.Context(), batch("a m-9", "a m-9"), goflux.ErrDuplicate},
		"too many":        {t.Context(), batch("a", "a", "a", "a", "b"), goflux.ErrBufferFull},
		"too large":       {t.Context(), []goflux.Item[string]{{Subject: "a"}, {Subject: "a", Payload: strings.Repeat("x", 2<<20)}}, goflux.ErrTooLarge},
		"invalid subject": {t.Context(), batch("a", "*"), goflux.ErrInvalidSubject},
		"cancelled":       {cancelled, batch("a"), context.Canceled},
	} {
		_, err := pub.PublishAtomic(test.ctx, test.items...)

		var told *goflux.Error
		if !errors.Is(err, test.want) || !errors.As(err, &told) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}

	all.want(t)
	b.want(t)

	r, err = pub.PublishAtomic(t.Context())
	if err != nil || r != (goflux.Receipt{}) {
		t.Errorf("receipt %+v, error %v", r, err)
	}

	r, err = pub.PublishAtomic(t.Context(), batch("b")...)
	want(r, err, 6, false)

	if err := tr.Close(); err != nil {
		t.Error(err)
	}

	if _, err := pub.PublishAtomic(t.Context(), batch("b")...); !errors.Is(err, goflux.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestBatchInMemory(t *testing.T) {
	t.Parallel()

	tr := open(t)

	var box inbox

	subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: box.sink}).Request(100)

	results, err := publisher(t, tr).PublishBatch(t.Context(),
		goflux.Item[string]{Subject: "a", Payload: "1", ID: "m-1"},
		goflux.Item[string]{Subject: "*"},
		goflux.Item[string]{Subject: "a", Payload: "2", ID: "m-1"},
		goflux.Item[string]{Subject: "a", Payload: "3"},
	)

	var failed *goflux.BatchError
	if !errors.As(err, &failed) || failed.Failed != 1 || results[1].Err == nil || !results[2].Receipt.Duplicate || results[3].Receipt.Sequence != 2 {
		t.Errorf("results %+v, error %v", results, err)
	}

	box.want(t, "1", "3")
}
