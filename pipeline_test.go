package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// window is how many messages of a publisher are under way at once.
const window = 4096

// wire is a transport with a pipeline. It keeps what is sent, and a test says
// what becomes of it.
type wire struct {
	recorder

	// send decides about the n-th Send, from 0; nil takes everything.
	send func(n int, s shipment) error

	mu      sync.Mutex
	done    func(token uint64, r transport.Receipt, err error)
	ended   func(err error)
	sent    []shipment
	closed  bool
	closes  int
	failing error         // of OpenPipeline
	opens   chan struct{} // OpenPipeline waits for it, unless nil
	opened  int
}

type shipment struct {
	token uint64
	msg   transport.Message
	at    time.Time
}

func newWire() *wire { return &wire{recorder: recorder{caps: reliable}} }

func (w *wire) OpenPipeline(
	_ context.Context, done func(uint64, transport.Receipt, error), ended func(error),
) (transport.Pipeline, error) {
	if w.opened++; w.opens != nil {
		<-w.opens
	}

	w.done, w.ended = done, ended

	return (*wirePipeline)(w), w.failing
}

type wirePipeline wire

func (p *wirePipeline) Send(token uint64, msg transport.Message) error {
	s := shipment{token, msg, time.Now()}

	p.mu.Lock()
	n := len(p.sent)
	p.sent = append(p.sent, s)
	p.mu.Unlock()

	if p.send != nil {
		return p.send(n, s)
	}

	return nil
}

func (p *wirePipeline) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.closed = true
	p.closes++

	return nil
}

// all returns what was sent, from the i-th on.
func (w *wire) all(i int) []shipment {
	w.mu.Lock()
	defer w.mu.Unlock()

	return append([]shipment(nil), w.sent[min(i, len(w.sent)):]...)
}

// confirm stores a shipment under its place in all.
func (w *wire) confirm(s shipment, seq uint64) {
	w.done(s.token, transport.Receipt{Stream: "S", Sequence: seq}, nil)
}

func (w *wire) refuse(s shipment, err error) {
	w.done(s.token, transport.Receipt{}, &transport.Error{Op: "publish", Err: err})
}

// items returns a batch of n, on subjects that tell them apart.
func items(n int) []goflux.Item[order] {
	batch := make([]goflux.Item[order], n)
	for i := range batch {
		batch[i].Subject = fmt.Sprint("a.", i)
	}

	return batch
}

// async publishes on a subject of its own.
func async(t *testing.T, ctx context.Context, pub *goflux.BoundPublisher[order], i int) *goflux.Pending { //nolint:revive // as in testing
	t.Helper()

	p, err := pub.PublishAsync(ctx, fmt.Sprint("a.", i), order{})
	if err != nil {
		t.Fatal(err)
	}

	return p
}

// outcome returns the end of a message that has ended.
func outcome(t *testing.T, p *goflux.Pending) (goflux.Receipt, error) {
	t.Helper()

	select {
	case <-p.Done():
	default:
		t.Error("it has not ended")
	}

	ended, cancel := context.WithCancel(context.Background())
	cancel()

	return p.Wait(ended)
}

// mustFail checks which of the sentinels are in err.
func mustFail(t *testing.T, err error, unknown bool, wants ...error) {
	t.Helper()

	for _, want := range wants {
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v in it", err, want)
		}
	}

	if _, told := errors.AsType[*goflux.Error](err); !told {
		t.Errorf("got %v, want an *Error", err)
	}

	if errors.Is(err, goflux.ErrPublishUnknown) != unknown {
		t.Errorf("got %v, want unknown: %v", err, unknown)
	}
}

func TestBatchIsSentInOrderAndConfirmedInAny(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 3*window + 17

		w := newWire()
		pub := publisher(t, w)

		go func() {
			for from := 0; from < n; {
				synctest.Wait()

				batch := w.all(from)
				from += len(batch)
				rand.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })

				if len(batch) > window {
					t.Errorf("%d messages were under way", len(batch))
				}

				for _, s := range batch {
					var i uint64
					if _, err := fmt.Sscanf(s.msg.Subject, "a.%d", &i); err != nil {
						t.Error(err)
					}

					w.confirm(s, i+1)
				}
			}
		}()

		results, err := pub.PublishBatch(t.Context(), items(n)...)
		if err != nil || len(results) != n {
			t.Fatalf("%d results, error %v", len(results), err)
		}

		for i, r := range results {
			if r.Err != nil || r.Receipt.Sequence != uint64(i+1) {
				t.Fatalf("result %d: %+v", i, r)
			}
		}

		for i, s := range w.all(0) {
			if s.msg.Subject != fmt.Sprint("a.", i) {
				t.Fatalf("%q was sent as number %d", s.msg.Subject, i)
			}
		}
	})
}

func TestBatchTellsWhatFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.send = func(_ int, s shipment) error {
			switch s.msg.Subject {
			case "a.large":
				return &transport.Error{Op: "publish", Subject: "a.large", Err: transport.ErrTooLarge}
			case "a.refused":
				w.refuse(s, errNone)
			default:
				w.confirm(s, 1) // before Send returns
			}

			return nil
		}

		batch := []goflux.Item[order]{
			{Subject: "a.good", ID: "m-1"},
			{Subject: "a.*"},
			{Subject: "a.large"},
			{Subject: "a.header", Header: goflux.Header{"a b": {"c"}}},
			{Subject: "a.refused"},
			{Subject: "a.own", Header: goflux.Header{"Tenant": {"own"}}},
		}

		results, err := publisher(t, w).PublishBatch(goflux.WithHeader(t.Context(), goflux.Header{"Tenant": {"ctx"}}), batch...)

		var failed *goflux.BatchError
		if !errors.As(err, &failed) || failed.Failed != 4 || failed.Total != 6 || !errors.Is(err, goflux.ErrInvalidSubject) {
			t.Errorf("got %v", err)
		}

		for i, want := range []error{nil, goflux.ErrInvalidSubject, goflux.ErrTooLarge, goflux.ErrInvalidHeader, errNone, nil} {
			if want == nil {
				if results[i].Err != nil {
					t.Errorf("result %d: %v", i, results[i].Err)
				}

				continue
			}

			mustFail(t, results[i].Err, false, want)

			if subject := batch[i].Subject; !strings.Contains(results[i].Err.Error(), subject) {
				t.Errorf("got %v, want %q in it", results[i].Err, subject)
			}

			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v in it, too", err, want)
			}
		}

		sent := w.all(0)
		if len(sent) != 4 || sent[0].msg.ID != "m-1" || sent[0].msg.Header.Get("Tenant") != "ctx" || sent[3].msg.Header.Get("Tenant") != "own" {
			t.Errorf("sent %+v", sent)
		}
	})
}

func TestEmptyBatch(t *testing.T) {
	t.Parallel()

	for _, tr := range []transport.Publisher{newWire(), &recorder{}} {
		if results, err := publisher(t, tr).PublishBatch(t.Context()); err != nil || len(results) != 0 {
			t.Errorf("results %v, error %v", results, err)
		}
	}
}

// A batch ends with its ctx: what was sent is unknown, what was not is not.
func TestBatchEndsWithContext(t *testing.T) {
	t.Parallel()

	for name, test := range map[string]struct {
		ctx  func(context.Context) (context.Context, context.CancelFunc)
		want error
	}{
		"deadline": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, context.DeadlineExceeded},
		"cancel": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)

			return ctx, cancel
		}, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				pub := publisher(t, w)

				ctx, cancel := test.ctx(t.Context())
				defer cancel()

				began := time.Now()
				results, err := pub.PublishBatch(ctx, items(window+10)...)

				if took := time.Since(began); took != time.Second {
					t.Errorf("it took %v", took)
				}

				var failed *goflux.BatchError
				if !errors.As(err, &failed) || failed.Failed != window+10 {
					t.Errorf("got %v", err)
				}

				for i, r := range results {
					mustFail(t, r.Err, i < window, test.want)
				}

				// Late receipts change nothing, and there is room again.
				for i, s := range w.all(0) {
					w.confirm(s, uint64(i))
				}

				if results[0].Err == nil {
					t.Error("a late receipt changed a result")
				}

				p := async(t, t.Context(), pub, 0)
				synctest.Wait()
				w.confirm(w.all(window)[0], 7)

				if r, err := outcome(t, p); err != nil || r.Sequence != 7 {
					t.Errorf("receipt %+v, error %v", r, err)
				}
			})
		})
	}
}

// Without a deadline each message has the ack wait, from when there was room
// for it.
func TestBatchWithoutDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pub := publisher(t, newWire(), goflux.WithAckWait(3*time.Second))

		began := time.Now()
		results, err := pub.PublishBatch(t.Context(), items(window+1)...)

		if took := time.Since(began); err == nil || took < 6*time.Second || took > 6100*time.Millisecond {
			t.Errorf("it took %v, error %v", took, err)
		}

		mustFail(t, results[window].Err, true, context.DeadlineExceeded)
	})
}

// Who waits for room is served when there is some, however little.
func TestWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		pub := publisher(t, w)

		for i := range window {
			async(t, t.Context(), pub, i)
		}

		synctest.Wait()

		if n := len(w.all(0)); n != window {
			t.Fatalf("%d were sent", n)
		}

		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		began := time.Now()
		_, err := pub.PublishAsync(short, "a.b", order{})

		if took := time.Since(began); took != time.Second {
			t.Errorf("it blocked for %v", took)
		}

		mustFail(t, err, false, context.DeadlineExceeded)

		took := make(chan time.Duration)

		go func() {
			began := time.Now()
			async(t, t.Context(), pub, window)
			took <- time.Since(began)
		}()

		synctest.Wait()
		w.confirm(w.all(0)[0], 1)

		if d := <-took; d > 10*time.Millisecond {
			t.Errorf("it blocked for %v more", d)
		}
	})
}

func TestPendingEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		pub := publisher(t, w)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		early := async(t, ctx, pub, 0)
		late := async(t, t.Context(), pub, 1)

		// That the ctx is cancelled does not matter to what was taken.
		cancel()

		waiting, stop := context.WithTimeout(t.Context(), time.Second/2)
		defer stop()

		if _, err := early.Wait(waiting); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, goflux.ErrPublishUnknown) {
			t.Errorf("waiting ended with %v", err)
		}

		began := time.Now()
		_, err := early.Wait(t.Context())

		if took := time.Since(began); took > time.Second/2+10*time.Millisecond {
			t.Errorf("it took %v", took)
		}

		mustFail(t, err, true, context.DeadlineExceeded)

		_, err = late.Wait(t.Context())
		if took := time.Since(began); took < 4*time.Second || took > 4600*time.Millisecond {
			t.Errorf("it took %v", took)
		}

		mustFail(t, err, true, context.DeadlineExceeded)
	})
}

// Outcomes count once, and only for the message they belong to.
func TestStrayOutcomes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		pub := publisher(t, w)

		first := async(t, t.Context(), pub, 0)
		synctest.Wait()

		old := w.all(0)[0]
		for _, token := range []uint64{old.token ^ 1, old.token + 1<<32, old.token | 0xffffffff, 0, 1<<64 - 1} {
			w.done(token, transport.Receipt{Sequence: 66}, nil)
		}

		select {
		case <-first.Done():
			t.Fatal("somebody else's outcome ended it")
		default:
		}

		w.confirm(old, 1)
		w.confirm(old, 2)
		w.refuse(old, errNone)

		if r, err := outcome(t, first); r.Sequence != 1 || err != nil {
			t.Errorf("receipt %+v, error %v", r, err)
		}

		second := async(t, t.Context(), pub, 1)
		synctest.Wait()

		w.confirm(old, 3)
		w.refuse(old, errNone)

		select {
		case <-second.Done():
			t.Fatal("the outcome of an earlier message ended it")
		default:
		}

		w.confirm(w.all(1)[0], 4)

		if r, err := outcome(t, second); r.Sequence != 4 || err != nil {
			t.Errorf("receipt %+v, error %v", r, err)
		}
	})
}

// While there is no connection nothing is lost, and the order is kept.
func TestPipelineWaitsForConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 20

		var (
			back      atomic.Bool
			delivered []string
		)

		w := newWire()
		w.send = func(_ int, s shipment) error {
			if !back.Load() {
				return &transport.Error{Op: "publish", Err: transport.ErrDisconnected}
			}

			delivered = append(delivered, s.msg.Subject)
			w.confirm(s, 1)

			return nil
		}

		pub := publisher(t, w)

		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()

		unsent := async(t, short, pub, -1)

		var pending []*goflux.Pending
		for i := range n {
			pending = append(pending, async(t, t.Context(), pub, i))

			time.Sleep(10 * time.Millisecond)
		}

		_, err := outcome(t, unsent)
		mustFail(t, err, false, context.DeadlineExceeded, goflux.ErrDisconnected)

		synctest.Wait()

		back.Store(true)

		for i, p := range pending {
			if _, err := p.Wait(t.Context()); err != nil {
				t.Errorf("message %d: %v", i, err)
			}
		}

		synctest.Wait()

		for i, subject := range delivered {
			if subject != fmt.Sprint("a.", i) {
				t.Errorf("%q came as number %d", subject, i)
			}
		}
	})
}

// A connection that takes no more holds up nobody but the message it holds.
func TestPipelineStalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stalled := make(chan struct{})
		w := newWire()
		w.send = func(n int, s shipment) error {
			if n == 0 {
				<-stalled
			} else {
				w.confirm(s, 1)
			}

			return nil
		}

		pub := publisher(t, w)
		began := time.Now()

		// Many more than there is room for, one after the other.
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			results, err := pub.PublishBatch(ctx, items(window+5)...)

			cancel()

			if err == nil {
				t.Fatal("no error")
			}

			for i, r := range results {
				mustFail(t, r.Err, i == 0 && time.Since(began) <= time.Second, context.DeadlineExceeded)
			}
		}

		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("it took %v", took)
		}

		if n := len(w.all(0)); n != 1 {
			t.Errorf("%d were sent", n)
		}

		p := async(t, t.Context(), pub, 0)

		close(stalled)

		if _, err := p.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A message that could not be sent after all, when another attempt was due
// already, is sent once, before those that follow it.
func TestPipelineStallsForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 50

		var sent []string

		w := newWire()
		w.send = func(n int, s shipment) error {
			if n < 3 {
				time.Sleep(2 * time.Second)

				return transport.ErrDisconnected
			}

			sent = append(sent, s.msg.Subject)
			w.confirm(s, 1)

			return nil
		}

		pub := publisher(t, w, goflux.WithPublishRetry(100*time.Millisecond))

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()

		if _, err := pub.PublishBatch(ctx, items(n)...); err != nil {
			t.Fatal(err)
		}

		synctest.Wait()

		for i, subject := range sent {
			if subject != fmt.Sprint("a.", i) || len(sent) != n {
				t.Fatalf("%q was sent as number %d of %d", subject, i, len(sent))
			}
		}
	})
}

func TestPipelineRepeatsWhatNobodyAnswered(t *testing.T) {
	t.Parallel()

	for name, test := range map[string]struct {
		opts  []goflux.PublisherOption
		took  time.Duration
		tries int
		want  []error
	}{
		"default":        {nil, 500 * time.Millisecond, 3, []error{goflux.ErrNoStream}},
		"none":           {[]goflux.PublisherOption{goflux.WithRetryAttempts(0)}, 0, 1, []error{goflux.ErrNoStream}},
		"others":         {[]goflux.PublisherOption{goflux.WithRetryAttempts(4), goflux.WithRetryWait(time.Second / 2)}, 2 * time.Second, 5, []error{goflux.ErrNoStream}},
		"until deadline": {[]goflux.PublisherOption{goflux.WithRetryAttempts(-1)}, 5 * time.Second, 20, []error{goflux.ErrNoStream, context.DeadlineExceeded}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				w.send = func(_ int, s shipment) error {
					w.refuse(s, transport.ErrNoStream)

					return nil
				}

				began := time.Now()
				_, err := async(t, t.Context(), publisher(t, w, test.opts...), 0).Wait(t.Context())

				if took := time.Since(began); took < test.took || took > test.took+300*time.Millisecond {
					t.Errorf("it took %v, want %v", took, test.took)
				}

				if n := len(w.all(0)); n < test.tries-1 || n > test.tries {
					t.Errorf("%d attempts, want %d", n, test.tries)
				}

				mustFail(t, err, false, test.want...)
			})
		})
	}
}

func TestPipelineRepeatsSafely(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		pub := publisher(t, w, goflux.WithPublishRetry(time.Second))

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()

		p := async(t, ctx, pub, 0)
		synctest.Wait()

		if w.all(0)[0].msg.ID == "" {
			t.Error("it has no id")
		}

		time.Sleep(1100 * time.Millisecond) // nothing is heard of it
		synctest.Wait()

		tries := w.all(0)
		if len(tries) != 2 || tries[1].msg.ID != tries[0].msg.ID {
			t.Fatalf("attempts: %+v", tries)
		}

		// The first attempt was lost, the second is being stored: not yet.
		w.refuse(tries[0], transport.ErrNoStream)
		w.refuse(tries[1], transport.Mark(transport.ErrPublishUnknown, errNone))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()

		if tries = w.all(0); len(tries) != 3 {
			t.Fatalf("%d attempts", len(tries))
		}

		w.done(tries[2].token, transport.Receipt{Sequence: 5, Duplicate: true}, nil)

		if r, err := outcome(t, p); err != nil || r.Sequence != 5 || !r.Duplicate {
			t.Errorf("receipt %+v, error %v", r, err)
		}

		// The receipt of an earlier attempt is as good as that of the last.
		p = async(t, ctx, pub, 1)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()

		if tries = w.all(3); len(tries) != 2 {
			t.Fatalf("%d attempts", len(tries))
		}

		w.confirm(tries[0], 6)

		if r, err := outcome(t, p); err != nil || r.Sequence != 6 {
			t.Errorf("receipt %+v, error %v", r, err)
		}
	})
}

func TestPipelineEnds(t *testing.T) {
	t.Parallel()

	noStream := func(w *wire, s shipment) { w.refuse(s, transport.ErrNoStream) }
	nothing := func(*wire, shipment) {}
	refusal := func(w *wire, s shipment) { w.refuse(s, errNone) }

	for name, test := range map[string]struct {
		answers []func(*wire, shipment) // one an attempt; the last one repeats
		want    []error
		unknown bool
	}{
		"silence":                 {[]func(*wire, shipment){nothing}, []error{context.DeadlineExceeded}, true},
		"no stream":               {[]func(*wire, shipment){noStream}, []error{context.DeadlineExceeded, goflux.ErrNoStream}, false},
		"silence, then no stream": {[]func(*wire, shipment){nothing, noStream}, []error{context.DeadlineExceeded, goflux.ErrNoStream}, true},
		"refusal":                 {[]func(*wire, shipment){refusal}, []error{errNone}, false},
		"silence, then refusal":   {[]func(*wire, shipment){nothing, refusal}, []error{errNone}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				w.send = func(n int, s shipment) error {
					test.answers[min(n, len(test.answers)-1)](w, s)

					return nil
				}

				_, err := async(t, t.Context(), publisher(t, w, goflux.WithPublishRetry(time.Second)), 0).Wait(t.Context())
				mustFail(t, err, test.unknown, test.want...)
			})
		})
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.send = func(n int, _ shipment) error {
			if n < 5 {
				return nil
			}

			return transport.ErrDisconnected
		}

		pub := publisher(t, w)

		pending := make([]*goflux.Pending, window)
		for i := range pending {
			pending[i] = async(t, t.Context(), pub, i)
		}

		synctest.Wait()

		blocked, flushed := make(chan error), make(chan error)

		go func() {
			_, err := pub.PublishAsync(t.Context(), "a", order{})
			blocked <- err
		}()
		go func() { flushed <- pub.Flush(t.Context()) }()

		synctest.Wait()

		if err := pub.Close(); err != nil {
			t.Error(err)
		}

		mustFail(t, <-blocked, false, goflux.ErrClosed)

		if err := <-flushed; err != nil {
			t.Error(err)
		}

		for i, p := range pending {
			_, err := outcome(t, p)
			mustFail(t, err, i < 5, goflux.ErrClosed)
		}

		w.confirm(w.all(0)[0], 1) // late, and harmless

		if !w.closed {
			t.Error("the pipeline is open")
		}

		if err := pub.Close(); err != nil {
			t.Error(err)
		}

		_, err := pub.PublishAsync(t.Context(), "a", order{})
		mustFail(t, err, false, goflux.ErrClosed)

		results, err := pub.PublishBatch(t.Context(), items(1)...)
		mustFail(t, err, false, goflux.ErrClosed)

		if len(results) != 1 || !errors.Is(results[0].Err, goflux.ErrClosed) {
			t.Errorf("results %+v", results)
		}

		if err := pub.Flush(t.Context()); !errors.Is(err, goflux.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

// Close may come while the transport sends.
func TestCloseWhileSending(t *testing.T) {
	t.Parallel()

	for name, sent := range map[string]error{"sent": nil, "failed": errNone, "lost": transport.ErrDisconnected} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				stalled := make(chan struct{})
				w := newWire()
				w.send = func(int, shipment) error {
					<-stalled

					return sent
				}

				pub := publisher(t, w)
				p := async(t, t.Context(), pub, 0)
				synctest.Wait()

				if err := pub.Close(); err != nil {
					t.Error(err)
				}

				_, err := outcome(t, p)
				mustFail(t, err, true, goflux.ErrClosed)
				close(stalled)
			})
		})
	}
}

// slow keeps the ends of spans waiting.
type slow struct {
	sdktrace.SpanProcessor

	ending, end chan struct{}
}

func (s *slow) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

func (s *slow) OnEnd(sdktrace.ReadOnlySpan) {
	s.ending <- struct{}{}
	<-s.end
}

// After Flush everything is done, not only confirmed.
func TestFlushWaitsUntilTheEndIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		s := &slow{ending: make(chan struct{}), end: make(chan struct{})}

		tel, err := goflux.NewTelemetry(goflux.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s))))
		must(t, err)

		pub := publisher(t, w, goflux.WithTelemetry(tel))
		p := async(t, t.Context(), pub, 0)

		synctest.Wait()

		go w.confirm(w.all(0)[0], 1)
		<-s.ending

		flushed := make(chan error, 2)

		for range 2 {
			go func() { flushed <- pub.Flush(t.Context()) }()
		}

		synctest.Wait()

		select {
		case <-flushed:
			t.Error("flushed before the end was told")
		default:
		}

		close(s.end)

		for range 2 {
			must(t, <-flushed)
		}

		_, err = outcome(t, p)
		must(t, err)
	})
}

// Flush waits for what was published before it, and for nothing else.
func TestFlush(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		pub := publisher(t, w)

		if err := pub.Flush(t.Context()); err != nil {
			t.Error(err)
		}

		before := []*goflux.Pending{async(t, t.Context(), pub, 0), async(t, t.Context(), pub, 1)}
		flushed := make(chan error, 1)

		go func() { flushed <- pub.Flush(t.Context()) }()

		synctest.Wait()

		for i := range 5 {
			async(t, t.Context(), pub, 2+i)
		}

		synctest.Wait()
		w.confirm(w.all(0)[1], 1)
		w.confirm(w.all(0)[2], 2)
		synctest.Wait()

		select {
		case err := <-flushed:
			t.Fatalf("flushed: %v", err)
		default:
		}

		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		if err := pub.Flush(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}

		w.refuse(w.all(0)[0], errNone)

		if err := <-flushed; err != nil {
			t.Error(err)
		}

		for _, p := range before {
			_, _ = outcome(t, p)
		}
	})
}

// A connection that takes no more holds nobody up, also where the pipeline has
// to be opened first.
func TestPipelineThatOpensForLong(t *testing.T) {
	t.Parallel()

	for name, closed := range map[string]bool{"opens": false, "is closed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				w.opens = make(chan struct{})
				w.send = func(_ int, s shipment) error {
					w.confirm(s, 1)

					return nil
				}

				pub := publisher(t, w)
				began := time.Now()

				short, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()

				var wg sync.WaitGroup

				wg.Go(func() {
					results, err := pub.PublishBatch(short, items(2)...)
					mustFail(t, err, false, context.DeadlineExceeded)
					mustFail(t, results[1].Err, false, context.DeadlineExceeded)
				})
				wg.Go(func() {
					_, err := pub.PublishAsync(short, "a", order{})
					mustFail(t, err, false, context.DeadlineExceeded)
				})
				wg.Go(func() { must(t, pub.Flush(short)) })
				wg.Wait()

				if took := time.Since(began); took != time.Second {
					t.Errorf("it took %v", took)
				}

				// Without a deadline there is the ack wait.
				_, err := pub.PublishAsync(t.Context(), "a", order{})
				mustFail(t, err, false, context.DeadlineExceeded)

				if took := time.Since(began); took != 6*time.Second {
					t.Errorf("it took %v", took)
				}

				if closed {
					must(t, pub.Close())
				}

				close(w.opens)
				synctest.Wait()

				if w.opened != 1 || w.closed != closed {
					t.Errorf("opened %d times, closed: %v", w.opened, w.closed)
				}

				if _, err := pub.PublishBatch(t.Context(), items(2)...); errors.Is(err, goflux.ErrClosed) != closed {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestPipelineThatDoesNotOpen(t *testing.T) {
	t.Parallel()

	w := newWire()
	w.failing = transport.ErrClosed
	pub := publisher(t, w)

	_, err := pub.PublishAsync(t.Context(), "a", order{})
	mustFail(t, err, false, goflux.ErrClosed)

	results, err := pub.PublishBatch(t.Context(), items(2)...)
	mustFail(t, err, false, goflux.ErrClosed)

	for i, r := range results {
		if e, told := errors.AsType[*goflux.Error](r.Err); !told || e.Subject != fmt.Sprint("a.", i) {
			t.Errorf("result %d: %v", i, r.Err)
		}
	}

	if len(results) != 2 {
		t.Errorf("%d results", len(results))
	}

	w.failing = nil
	w.send = func(_ int, s shipment) error {
		w.confirm(s, 1)

		return nil
	}

	if _, err := pub.PublishBatch(t.Context(), items(2)...); err != nil {
		t.Error(err)
	}
}

// A transport without a pipeline publishes one after the other.
func TestWithoutPipeline(t *testing.T) {
	t.Parallel()

	s := &script{caps: reliable, steps: []func(context.Context) error{accept, fail(errNone), accept}}
	pub := publisher(t, s)

	results, err := pub.PublishBatch(t.Context(), items(3)...)
	if err == nil || results[0].Err != nil || results[2].Receipt.Sequence != 3 {
		t.Errorf("results %+v, error %v", results, err)
	}

	mustFail(t, results[1].Err, false, errNone)

	p := async(t, goflux.WithMessageID(t.Context(), "m-9"), pub, 9)
	if r, err := outcome(t, p); err != nil || r.Sequence != 4 || s.tries[3].msg.ID != "m-9" {
		t.Errorf("receipt %+v, error %v, sent %+v", r, err, s.tries[3].msg)
	}

	if err := pub.Flush(t.Context()); err != nil {
		t.Error(err)
	}

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()

	results, err = pub.PublishBatch(cancelled, items(2)...)
	if !errors.Is(err, context.Canceled) || !errors.Is(results[1].Err, context.Canceled) || len(s.tries) != 4 {
		t.Errorf("results %+v, error %v", results, err)
	}

	if _, err := pub.PublishAsync(cancelled, "a", order{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// After its end nothing holds a message, whatever became of it.
func TestEndedMessagesHoldNoMemory(t *testing.T) {
	t.Parallel()

	for name, answer := range map[string]func(w *wire, s shipment) error{
		"confirmed": func(w *wire, s shipment) error { w.confirm(s, 1); return nil },
		"refused":   func(w *wire, s shipment) error { w.refuse(s, errNone); return nil },
		"unsent":    func(*wire, shipment) error { return transport.ErrDisconnected },
		"silence":   func(*wire, shipment) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			const n = 100

			w := newWire()
			w.send = func(_ int, s shipment) error {
				err := answer(w, s)

				w.mu.Lock()
				w.sent = nil
				w.mu.Unlock()

				return err
			}

			var payloads []weak.Pointer[byte]

			codec := constant()
			codec.Encode = func(order) ([]byte, error) {
				data := make([]byte, 1<<12)
				payloads = append(payloads, weak.Make(&data[0]))

				return data, nil
			}

			pub, err := goflux.NewPublisher(w, codec, goflux.WithPublishRetry(0))
			if err != nil {
				t.Fatal(err)
			}

			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()

			results, _ := pub.PublishBatch(ctx, items(n)...)
			if len(results) != n {
				t.Fatalf("%d results", len(results))
			}

			// One more, so that no goroutine is in the middle of the last.
			p := async(t, t.Context(), pub, 0)

			runtime.GC()

			kept := 0

			for _, payload := range payloads[:len(payloads)-2] {
				if payload.Value() != nil {
					kept++
				}
			}

			if kept > 0 {
				t.Errorf("%d of %d payloads are kept", kept, len(payloads))
			}

			runtime.KeepAlive(p)
			runtime.KeepAlive(pub)
			must(t, pub.Close())
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()

	if err != nil {
		t.Fatal(err)
	}
}

// Many publish at once, and something happens to everything.
func TestPipelineUnderStress(t *testing.T) {
	t.Parallel()

	const publishers, each = 8, 2000

	w := newWire()
	w.send = func(n int, s shipment) error {
		if n%1000 == 3 {
			return transport.ErrDisconnected
		}

		switch n % 10 {
		case 4:
			go w.refuse(s, transport.ErrNoStream)
		case 5:
			go w.refuse(s, errNone)
		case 6: // lost
		case 7:
			w.confirm(s, 1)
			go w.confirm(s, 2)
		default:
			go w.confirm(s, 1)
		}

		return nil
	}

	pub := publisher(t, w, goflux.WithPublishRetry(20*time.Millisecond))

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	var wg sync.WaitGroup

	for range publishers {
		wg.Go(func() {
			results, err := pub.PublishBatch(ctx, items(each)...)

			var failed *goflux.BatchError
			if err != nil && !errors.As(err, &failed) {
				t.Error(err)
			}

			for _, r := range results {
				if r.Err != nil && !errors.Is(r.Err, errNone) {
					t.Errorf("result %+v", r)
				}
			}
		})

		wg.Go(func() {
			for i := range each {
				p, err := pub.PublishAsync(ctx, "a", order{})
				if err != nil {
					t.Error(err)

					return
				}

				if i%100 == 0 {
					if err := pub.Flush(ctx); err != nil {
						t.Error(err)
					}

					if _, err := outcome(t, p); err != nil && !errors.Is(err, errNone) {
						t.Error(err)
					}
				}
			}
		})
	}

	wg.Wait()

	if err := pub.Flush(ctx); err != nil {
		t.Error(err)
	}
}

// Publishing a batch allocates nothing for a message, beyond its results.
//
//nolint:paralleltest // allocations are counted
func TestBatchAddsNoAllocation(t *testing.T) {
	const n = 1000

	w := newWire()
	w.send = func(_ int, s shipment) error {
		w.sent = w.sent[:0]
		w.confirm(s, 1)

		return nil
	}

	pub := publisher(t, w)
	batch := items(n)
	ctx := t.Context()

	perBatch := testing.AllocsPerRun(20, func() {
		if _, err := pub.PublishBatch(ctx, batch...); err != nil {
			t.Fatal(err)
		}
	})

	if perBatch > n/10 {
		t.Errorf("%v allocations for a batch of %d", perBatch, n)
	}
}
