package goflux_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// atomicRecorder is a transport with atomic batches.
type atomicRecorder struct {
	script

	batches [][]transport.Message
}

func (a *atomicRecorder) PublishAtomic(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	a.batches = append(a.batches, append([]transport.Message(nil), msgs...))

	return a.Publish(ctx, msgs[0])
}

func TestSendCarriesTerms(t *testing.T) {
	t.Parallel()

	all := transport.Of(transport.Receipts, transport.ExpectedSequence, transport.MessageTTL, transport.Scheduling)
	r := &recorder{caps: all}
	pub := publisher(t, r)

	if _, err := pub.Send(t.Context(), "a", order{}); err != nil || r.last.Terms != nil {
		t.Errorf("terms %v, error %v", r.last.Terms, err)
	}

	if _, err := pub.Send(t.Context(), "a", order{}, goflux.ExpectLastSequence(7), goflux.ExpectLastSubjectSequence(0), goflux.TTL(time.Minute)); err != nil {
		t.Fatal(err)
	}

	if terms := r.last.Terms; *terms.LastSequence != 7 || *terms.LastSubjectSequence != 0 || terms.TTL != time.Minute || !terms.At.IsZero() {
		t.Errorf("terms %+v", terms)
	}

	at := time.Now().Add(time.Hour)
	if err := pub.PublishAt(t.Context(), "a", order{}, at); err != nil || !r.last.Terms.At.Equal(at) {
		t.Errorf("terms %+v, error %v", r.last.Terms, err)
	}

	for _, past := range []time.Time{{}, time.Unix(0, 0), time.Now()} {
		if err := pub.PublishAt(t.Context(), "a", order{}, past); err != nil || r.last.Terms != nil {
			t.Errorf("terms %+v, error %v", r.last.Terms, err)
		}
	}

	synctest.Test(t, func(t *testing.T) {
		for _, d := range []time.Duration{time.Nanosecond, time.Hour} {
			if err := pub.PublishAfter(t.Context(), "a", order{}, d); err != nil || !r.last.Terms.At.Equal(time.Now().Add(d)) {
				t.Errorf("terms %+v, error %v", r.last.Terms, err)
			}
		}

		for _, d := range []time.Duration{0, -time.Hour} {
			if err := pub.PublishAfter(t.Context(), "a", order{}, d); err != nil || r.last.Terms != nil {
				t.Errorf("terms %+v, error %v", r.last.Terms, err)
			}
		}
	})
}

// What the transport does not have is refused before anything is sent, and the
// error names it; also where it would not have been needed this time.
func TestSendRefuses(t *testing.T) {
	t.Parallel()

	r := &recorder{caps: transport.Of(transport.Receipts)}
	pub := publisher(t, r)
	ctx := t.Context()

	for name, test := range map[string]struct {
		err   error
		want  error
		needs string
	}{
		"sequence":         {second(pub.Send(ctx, "a", order{}, goflux.ExpectLastSequence(1))), goflux.ErrUnsupported, transport.ExpectedSequence.String()},
		"subject sequence": {second(pub.Send(ctx, "a", order{}, goflux.ExpectLastSubjectSequence(1))), goflux.ErrUnsupported, transport.ExpectedSequence.String()},
		"ttl":              {second(pub.Send(ctx, "a", order{}, goflux.TTL(1))), goflux.ErrUnsupported, transport.MessageTTL.String()},
		"at":               {pub.PublishAt(ctx, "a", order{}, time.Now().Add(time.Hour)), goflux.ErrUnsupported, transport.Scheduling.String()},
		"at once":          {pub.PublishAfter(ctx, "a", order{}, 0), goflux.ErrUnsupported, transport.Scheduling.String()},
		"atomic":           {second(pub.PublishAtomic(ctx, items(2)...)), goflux.ErrUnsupported, transport.AtomicBatches.String()},
		"no ttl":           {second(pub.Send(ctx, "a", order{}, goflux.TTL(0))), goflux.ErrInvalidOption, "TTL"},
		"nil option":       {second(pub.Send(ctx, "a", order{}, nil)), goflux.ErrInvalidOption, "nil option"},
	} {
		var told *goflux.Error
		if !errors.Is(test.err, test.want) || !errors.As(test.err, &told) || !strings.Contains(test.err.Error(), test.needs) {
			t.Errorf("%s: got %v", name, test.err)
		}
	}

	if n := r.sent.Load(); n != 0 {
		t.Errorf("%d were sent", n)
	}

	// A publisher that is broken, or closed, says so.
	broken := goflux.BindPublisher(nil, errNone, constant())
	closed := publisher(t, &atomicRecorder{script: script{caps: transport.Of(transport.AtomicBatches)}})

	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}

	for name, err := range map[string]error{
		"send":   second(broken.Send(ctx, "a", order{}, goflux.TTL(1))),
		"at":     broken.PublishAt(ctx, "a", order{}, time.Now()),
		"atomic": second(broken.PublishAtomic(ctx, items(1)...)),
		"batch":  second(broken.PublishBatch(ctx, items(1)...)),
		"async":  second(broken.PublishAsync(ctx, "a", order{})),
		"flush":  broken.Flush(ctx),
	} {
		if !errors.Is(err, errNone) {
			t.Errorf("%s: got %v", name, err)
		}
	}

	if _, err := closed.PublishAtomic(ctx, items(1)...); !errors.Is(err, goflux.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// A batch is repeated as a whole, under the same ids.
func TestPublishAtomicRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &atomicRecorder{script: script{
			caps:  reliable | transport.Of(transport.AtomicBatches),
			steps: []func(context.Context) error{silence, fail(goflux.ErrUnavailable), fail(goflux.ErrNoStream), accept},
		}}
		pub := publisher(t, a, goflux.WithPublishRetry(0))

		batch := items(2)
		batch[1].ID = "m-2"

		r, err := pub.PublishAtomic(t.Context(), batch...)
		if err != nil || r.Sequence != 4 {
			t.Errorf("receipt %+v, error %v", r, err)
		}

		for i, msgs := range a.batches {
			if len(msgs) != 2 || msgs[0].ID == "" || msgs[0].ID != a.batches[0][0].ID || msgs[1].ID != "m-2" {
				t.Errorf("attempt %d: %+v", i, msgs)
			}
		}

		// Without safe retries there is one attempt, in the time of the ack wait.
		a.steps, a.tries, a.batches = []func(context.Context) error{silence}, nil, nil
		began := time.Now()

		_, err = publisher(t, a).PublishAtomic(t.Context(), batch...)
		if took := time.Since(began); took != 5*time.Second || !errors.Is(err, goflux.ErrPublishUnknown) || len(a.batches) != 1 {
			t.Errorf("it took %v, error %v, %d attempts", took, err, len(a.batches))
		}
	})
}

func TestSendOptionsAreOptions(t *testing.T) {
	t.Parallel()

	for want, opt := range map[string]goflux.Option{
		"ExpectLastSequence":        goflux.ExpectLastSequence(1),
		"ExpectLastSubjectSequence": goflux.ExpectLastSubjectSequence(1),
		"TTL":                       goflux.TTL(1),
	} {
		if opt.String() != want {
			t.Errorf("%q is called %q", want, opt)
		}

		// They say something about one message, not about a publisher.
		err := goflux.BindPublisher(&recorder{}, nil, constant(), opt).Publish(t.Context(), "a", order{})
		if !errors.Is(err, goflux.ErrInvalidOption) || !strings.Contains(err.Error(), want+" does not apply to a publisher") {
			t.Errorf("got %v", err)
		}
	}
}

//nolint:paralleltest // allocations are counted
func TestSendAddsNoAllocation(t *testing.T) {
	pub := publisher(t, &recorder{})
	ctx := t.Context()

	if n := testing.AllocsPerRun(1000, func() {
		if _, err := pub.Send(ctx, "orders.created", order{}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per message", n)
	}
}
