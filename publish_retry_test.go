package goflux_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// reliable is what WithPublishRetry needs.
var reliable = transport.Of(transport.Receipts, transport.Deduplication)

// script is a transport that plays one step per attempt; the last one repeats.
type script struct {
	caps  transport.Capabilities
	steps []func(ctx context.Context) error

	mu    sync.Mutex
	tries []try
}

type try struct {
	msg transport.Message
	at  time.Time
}

func (s *script) Capabilities() transport.Capabilities { return s.caps }

func (s *script) Publish(ctx context.Context, m transport.Message) (transport.Receipt, error) {
	s.mu.Lock()
	n := len(s.tries)
	s.tries = append(s.tries, try{m, time.Now()})
	step := s.steps[min(n, len(s.steps)-1)]
	s.mu.Unlock()

	if err := step(ctx); err != nil {
		return transport.Receipt{}, &transport.Error{Op: "publish", Subject: m.Subject, Err: err}
	}

	return transport.Receipt{Stream: "S", Sequence: uint64(n + 1)}, nil
}

func (s *script) Flush(ctx context.Context) error { return s.steps[len(s.steps)-1](ctx) }

func accept(context.Context) error { return nil }

// silence lets an attempt end with its ctx, after the message was sent.
func silence(ctx context.Context) error {
	<-ctx.Done()

	return transport.Mark(transport.ErrPublishUnknown, ctx.Err())
}

// offline lets an attempt end with its ctx, and nothing was sent.
func offline(ctx context.Context) error {
	<-ctx.Done()

	return transport.Mark(ctx.Err(), transport.ErrDisconnected)
}

func fail(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

func publisher(t *testing.T, tr transport.Publisher, opts ...goflux.PublisherOption) *goflux.BoundPublisher[order] {
	t.Helper()

	pub, err := goflux.NewPublisher(tr, constant(), opts...)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		if err := pub.Close(); err != nil {
			t.Error(err)
		}
	})

	return pub
}

func TestPublisherOptionsRefused(t *testing.T) {
	t.Parallel()

	confirming := &script{caps: reliable}
	plain := &recorder{}

	for name, test := range map[string]struct {
		transport transport.Publisher
		opts      []goflux.PublisherOption
		want      error
	}{
		"no wait":           {confirming, []goflux.PublisherOption{goflux.WithRetryWait(0)}, goflux.ErrInvalidOption},
		"attempts":          {confirming, []goflux.PublisherOption{goflux.WithRetryAttempts(-2)}, goflux.ErrInvalidOption},
		"ack wait":          {confirming, []goflux.PublisherOption{goflux.WithAckWait(0)}, goflux.ErrInvalidOption},
		"attempt":           {confirming, []goflux.PublisherOption{goflux.WithPublishRetry(-1)}, goflux.ErrInvalidOption},
		"both retries":      {confirming, []goflux.PublisherOption{goflux.WithPublishRetry(0), goflux.WithRetryAttempts(1)}, goflux.ErrInvalidOption},
		"both, reversed":    {confirming, []goflux.PublisherOption{goflux.WithRetryWait(1), goflux.WithPublishRetry(0)}, goflux.ErrInvalidOption},
		"flush of receipts": {confirming, []goflux.PublisherOption{goflux.WithFlush()}, goflux.ErrInvalidOption},
		"no flush":          {plain, []goflux.PublisherOption{goflux.WithFlush()}, goflux.ErrUnsupported},
		"no receipts":       {plain, []goflux.PublisherOption{goflux.WithRetryAttempts(1)}, goflux.ErrUnsupported},
		"nothing to await":  {plain, []goflux.PublisherOption{goflux.WithAckWait(time.Second)}, goflux.ErrUnsupported},
		"no ids": {
			&recorder{caps: transport.Of(transport.Receipts)},
			[]goflux.PublisherOption{goflux.WithPublishRetry(0)}, goflux.ErrUnsupported,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			if _, err := goflux.NewPublisher(test.transport, constant(), test.opts...); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}

	_, err := goflux.NewPublisher(plain, constant(), goflux.WithRetryWait(time.Second))
	if !errors.Is(err, goflux.ErrUnsupported) || !strings.Contains(err.Error(), "WithRetryWait") {
		t.Errorf("got %v", err)
	}
}

func TestRetriesOfTheTransport(t *testing.T) {
	t.Parallel()

	for name, test := range map[string]struct {
		opts []goflux.PublisherOption
		want *transport.Retry
	}{
		"default":  {nil, nil},
		"wait":     {[]goflux.PublisherOption{goflux.WithRetryWait(time.Second)}, &transport.Retry{Wait: time.Second, Attempts: 2}},
		"attempts": {[]goflux.PublisherOption{goflux.WithRetryAttempts(-1)}, &transport.Retry{Wait: 250 * time.Millisecond, Attempts: -1}},
		"none":     {[]goflux.PublisherOption{goflux.WithRetryAttempts(0)}, &transport.Retry{Wait: 250 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			s := &script{caps: reliable, steps: []func(context.Context) error{accept}}
			if err := publisher(t, s, test.opts...).Publish(t.Context(), "a", order{}); err != nil {
				t.Fatal(err)
			}

			switch got := s.tries[0].msg.Retry; {
			case (got == nil) != (test.want == nil):
				t.Errorf("got %v, want %v", got, test.want)
			case got != nil && *got != *test.want:
				t.Errorf("got %v, want %v", *got, *test.want)
			}
		})
	}
}

func TestAckWait(t *testing.T) {
	t.Parallel()

	for name, test := range map[string]struct {
		opts     []goflux.PublisherOption
		deadline time.Duration // of ctx; zero means none
		want     time.Duration
	}{
		"set":                 {[]goflux.PublisherOption{goflux.WithAckWait(3 * time.Second)}, 0, 3 * time.Second},
		"not over a deadline": {[]goflux.PublisherOption{goflux.WithAckWait(3 * time.Second)}, 7 * time.Second, 7 * time.Second},
		"until the deadline":  {[]goflux.PublisherOption{goflux.WithRetryAttempts(-1)}, 0, 5 * time.Second},
		"of safe retries":     {[]goflux.PublisherOption{goflux.WithPublishRetry(0), goflux.WithAckWait(3 * time.Second)}, 0, 3 * time.Second},
		"default of them":     {[]goflux.PublisherOption{goflux.WithPublishRetry(0)}, 0, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				pub := publisher(t, &script{caps: reliable, steps: []func(context.Context) error{silence}}, test.opts...)
				ctx := t.Context()

				if test.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.deadline)
					defer cancel()
				}

				began := time.Now()
				err := pub.Publish(ctx, "a", order{})

				if took := time.Since(began); took != test.want {
					t.Errorf("it took %v, want %v", took, test.want)
				}

				if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, goflux.ErrPublishUnknown) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// punctual is a wire of a transport with a default timeout.
type punctual struct{ *wire }

func (punctual) DefaultTimeout() time.Duration { return 500 * time.Millisecond }

func (punctual) PublishAtomic(ctx context.Context, _ []transport.Message) (transport.Receipt, error) {
	return transport.Receipt{}, silence(ctx)
}

func (punctual) Publish(ctx context.Context, m transport.Message) (transport.Receipt, error) {
	if _, some := ctx.Deadline(); !some {
		ctx, cancel := context.WithTimeout(ctx, punctual{}.DefaultTimeout())
		defer cancel()

		return punctual{}.Publish(ctx, m)
	}

	return transport.Receipt{}, silence(ctx)
}

// Without a deadline there is one rule, whatever is called.
func TestTimeWithoutDeadline(t *testing.T) {
	t.Parallel()

	for name, test := range map[string]struct {
		opts []goflux.PublisherOption
		want time.Duration
	}{
		"the transport's": {nil, 500 * time.Millisecond},
		"with attempts":   {[]goflux.PublisherOption{goflux.WithRetryAttempts(1)}, 500 * time.Millisecond},
		"safe":            {[]goflux.PublisherOption{goflux.WithPublishRetry(0)}, 500 * time.Millisecond},
		"set":             {[]goflux.PublisherOption{goflux.WithAckWait(2 * time.Second)}, 2 * time.Second},
	} {
		for call, publish := range map[string]func(context.Context, *goflux.BoundPublisher[order]) error{
			"Publish": func(ctx context.Context, p *goflux.BoundPublisher[order]) error { return p.Publish(ctx, "a", order{}) },
			"PublishBatch": func(ctx context.Context, p *goflux.BoundPublisher[order]) error {
				_, err := p.PublishBatch(ctx, items(1)...)

				return err
			},
			"PublishAtomic": func(ctx context.Context, p *goflux.BoundPublisher[order]) error {
				_, err := p.PublishAtomic(ctx, items(1)...)

				return err
			},
		} {
			t.Run(name+"/"+call, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newWire()
					w.caps |= transport.Of(transport.AtomicBatches)

					began := time.Now()
					err := publish(t.Context(), publisher(t, punctual{w}, test.opts...))

					if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, goflux.ErrPublishUnknown) {
						t.Errorf("got %v", err)
					}

					if took := time.Since(began); took != test.want {
						t.Errorf("it took %v, want %v", took, test.want)
					}
				})
			})
		}
	}
}

func TestPublishRetryRepeatsUnderOneID(t *testing.T) {
	t.Parallel()

	for name, id := range map[string]string{"made up": "", "the caller's": "order-7"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{caps: reliable, steps: []func(context.Context) error{
					silence,
					offline,
					fail(goflux.ErrNoStream),
					fail(goflux.ErrUnavailable),
					fail(goflux.ErrDisconnected),
					fail(goflux.ErrBufferFull),
					fail(transport.Mark(goflux.ErrPublishUnknown, errNone)),
					accept,
				}}
				pub := publisher(t, s, goflux.WithPublishRetry(100*time.Millisecond))
				ctx, cancel := context.WithTimeout(goflux.WithMessageID(t.Context(), id), 10*time.Second)
				defer cancel()

				receipt, err := pub.Send(ctx, "a", order{})
				if err != nil || receipt.Sequence != uint64(len(s.steps)) {
					t.Fatalf("receipt %+v, error %v", receipt, err)
				}

				first := s.tries[0].msg
				if id != "" && first.ID != id || len(first.ID) < len(id) || first.ID == "" {
					t.Errorf("id %q", first.ID)
				}

				for i, try := range s.tries {
					if try.msg.ID != first.ID || try.msg.Header.Get("X-Message-ID") != first.ID {
						t.Errorf("attempt %d has the id %q, the first one %q", i, try.msg.ID, first.ID)
					}

					if try.msg.Retry == nil || *try.msg.Retry != (transport.Retry{}) {
						t.Errorf("attempt %d leaves retries to the transport", i)
					}
				}

				if gap := s.tries[1].at.Sub(s.tries[0].at); gap < 100*time.Millisecond || gap > 200*time.Millisecond {
					t.Errorf("the first attempt was given %v", gap)
				}
			})
		})
	}
}

func TestMadeUpIDsDiffer(t *testing.T) {
	t.Parallel()

	seen := map[string]bool{}

	for range 2 {
		s := &script{caps: reliable, steps: []func(context.Context) error{accept}}
		pub := publisher(t, s, goflux.WithPublishRetry(0))

		for range 100 {
			if err := pub.Publish(t.Context(), "a", order{}); err != nil {
				t.Fatal(err)
			}
		}

		for _, try := range s.tries {
			if len(try.msg.ID) < 26 || seen[try.msg.ID] {
				t.Fatalf("the id %q, twice or short", try.msg.ID)
			}

			seen[try.msg.ID] = true
		}
	}
}

// A broker that always takes a bit longer than an attempt is not asked in vain
// until the deadline.
func TestPublishRetryGivesMoreTime(t *testing.T) {
	t.Parallel()

	// lasting takes so long, or is given up before.
	lasting := func(d time.Duration) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-time.After(d):
				return nil
			case <-ctx.Done():
				return transport.Mark(transport.ErrPublishUnknown, ctx.Err())
			}
		}
	}

	for name, test := range map[string]struct {
		steps  []func(context.Context) error
		atomic bool
		took   time.Duration // at the most, without the pauses
	}{
		"a message":        {[]func(context.Context) error{lasting(700 * time.Millisecond)}, false, 1200 * time.Millisecond},
		"an atomic batch":  {[]func(context.Context) error{lasting(3 * time.Second)}, true, 6500 * time.Millisecond},
		"after being lost": {[]func(context.Context) error{offline, offline, offline, silence, lasting(0)}, false, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := &atomicRecorder{script: script{caps: reliable | transport.Of(transport.AtomicBatches), steps: test.steps}}
				pub := publisher(t, r, goflux.WithPublishRetry(0))
				began := time.Now()

				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()

				publish := func() error { return pub.Publish(ctx, "a", order{}) }
				if test.atomic {
					publish = func() error { return second(pub.PublishAtomic(ctx, items(2)...)) }
				}

				err := publish()

				if took := time.Since(began); err != nil || took > test.took+100*time.Millisecond {
					t.Errorf("error %v after %v", err, took)
				}
			})
		})
	}
}

func TestPublishRetryEnds(t *testing.T) {
	t.Parallel()

	refusal := errors.New("no")

	for name, test := range map[string]struct {
		steps   []func(context.Context) error
		terms   []goflux.SendOption
		want    []error
		unknown bool
		cancel  bool // the ctx, instead of its deadline
		tries   int  // zero means many
	}{
		"refused":               {steps: []func(context.Context) error{fail(refusal)}, want: []error{refusal}, tries: 1},
		"too large":             {steps: []func(context.Context) error{fail(goflux.ErrTooLarge)}, want: []error{goflux.ErrTooLarge}, tries: 1},
		"closed":                {steps: []func(context.Context) error{fail(goflux.ErrClosed)}, want: []error{goflux.ErrClosed}, tries: 1},
		"refused after silence": {steps: []func(context.Context) error{silence, fail(refusal)}, want: []error{refusal}, unknown: true, tries: 2},
		"conflict":              {steps: []func(context.Context) error{fail(&goflux.ConflictError{Expected: 1})}, want: []error{goflux.ErrConflict}, tries: 1},
		"conflict with a later one after silence": {
			steps: []func(context.Context) error{silence, fail(&goflux.ConflictError{Expected: 1, Last: 2, Known: true})},
			terms: []goflux.SendOption{goflux.ExpectLastSequence(1)},
			want:  []error{goflux.ErrConflict}, tries: 2,
		},
		"conflict with an earlier one after silence": {
			steps: []func(context.Context) error{silence, fail(&goflux.ConflictError{Expected: 3, Last: 2, Known: true})},
			terms: []goflux.SendOption{goflux.ExpectLastSequence(3)},
			want:  []error{goflux.ErrConflict}, tries: 2, unknown: true,
		},
		"conflict with something after silence": {
			steps: []func(context.Context) error{silence, fail(&goflux.ConflictError{Expected: 1})},
			terms: []goflux.SendOption{goflux.ExpectLastSequence(1)},
			want:  []error{goflux.ErrConflict}, tries: 2, unknown: true,
		},
		// What is last on a subject may be deleted, and then an attempt that is
		// still on its way is as expected.
		"conflict with a later one of the subject after silence": {
			steps: []func(context.Context) error{silence, fail(&goflux.ConflictError{Expected: 1, Last: 2, Known: true})},
			terms: []goflux.SendOption{goflux.ExpectLastSubjectSequence(1)},
			want:  []error{goflux.ErrConflict}, tries: 2, unknown: true,
		},
		"conflict with either after silence": {
			steps: []func(context.Context) error{silence, fail(&goflux.ConflictError{Expected: 1, Last: 2, Known: true})},
			terms: []goflux.SendOption{goflux.ExpectLastSubjectSequence(1), goflux.ExpectLastSequence(2)},
			want:  []error{goflux.ErrConflict}, tries: 2, unknown: true,
		},
		"no stream":               {steps: []func(context.Context) error{fail(goflux.ErrNoStream)}, want: []error{goflux.ErrNoStream, context.DeadlineExceeded}},
		"offline":                 {steps: []func(context.Context) error{offline}, want: []error{goflux.ErrDisconnected, context.DeadlineExceeded}},
		"silence":                 {steps: []func(context.Context) error{silence}, want: []error{context.DeadlineExceeded}, unknown: true},
		"no stream after silence": {steps: []func(context.Context) error{silence, fail(goflux.ErrNoStream)}, want: []error{goflux.ErrNoStream, context.DeadlineExceeded}, unknown: true},
		"cancelled":               {steps: []func(context.Context) error{silence}, want: []error{context.Canceled}, unknown: true, cancel: true},
		"cancelled offline":       {steps: []func(context.Context) error{offline}, want: []error{context.Canceled, goflux.ErrDisconnected}, cancel: true},
		"cancelled in a pause":    {steps: []func(context.Context) error{fail(goflux.ErrNoStream)}, want: []error{context.Canceled, goflux.ErrNoStream}, cancel: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{caps: reliable | transport.Of(transport.ExpectedSequence), steps: test.steps}
				pub := publisher(t, s, goflux.WithPublishRetry(100*time.Millisecond))

				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()

				if test.cancel {
					time.AfterFunc(3*time.Second-1, cancel)
				}

				began := time.Now()
				_, err := pub.Send(ctx, "a.b", order{}, test.terms...)

				for _, want := range test.want {
					if !errors.Is(err, want) {
						t.Errorf("got %v, want %v in it", err, want)
					}
				}

				if errors.Is(err, goflux.ErrPublishUnknown) != test.unknown {
					t.Errorf("got %v, want unknown: %v", err, test.unknown)
				}

				var told *goflux.Error
				if !errors.As(err, &told) || told.Subject != "a.b" || strings.Count(err.Error(), "goflux:") != 1 {
					t.Errorf("circumstances: %v", err)
				}

				switch took := time.Since(began); {
				case test.tries > 0 && len(s.tries) != test.tries:
					t.Errorf("%d attempts, want %d", len(s.tries), test.tries)
				case test.tries == 0 && (took > 3*time.Second || took < 3*time.Second-1):
					t.Errorf("it took %v", took)
				case test.tries == 0 && len(s.tries) < 3:
					t.Errorf("%d attempts only", len(s.tries))
				}
			})
		})
	}
}

func TestFlushingPublisher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []func(context.Context) error{accept, accept}}
		pub := publisher(t, s, goflux.WithFlush())

		if err := pub.Publish(t.Context(), "a", order{}); err != nil {
			t.Error(err)
		}

		// The publish succeeds, its flush does not; without a deadline it has
		// the time of the ack wait.
		s.steps = append(s.steps, offline)
		began := time.Now()

		err := pub.Publish(t.Context(), "a", order{})
		if !errors.Is(err, goflux.ErrDisconnected) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}

		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("it took %v", took)
		}

		// A batch is flushed once, at its end.
		s.steps, s.tries = []func(context.Context) error{accept, accept, fail(goflux.ErrClosed)}, nil

		results, err := pub.PublishBatch(t.Context(), items(2)...)
		if err == nil || len(results) != 2 || len(s.tries) != 2 {
			t.Fatalf("results %v, error %v", results, err)
		}

		for _, r := range results {
			if !errors.Is(r.Err, goflux.ErrClosed) {
				t.Errorf("got %v", r.Err)
			}
		}
	})
}
