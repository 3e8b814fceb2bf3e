package engine_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker is a subscription that gives out numbered deliveries as far as it was
// given credit, and records what became of them.
type broker struct {
	mu       sync.Mutex
	info     transport.Info
	data     []byte // of each delivery
	sink     func(transport.Delivery)
	backlog  int
	next     int
	credit   int
	sending  bool // the sink is serial
	maxAhead int  // the most deliveries that were unsettled at once
	open     int
	attempts map[int]int
	verdicts map[int][]transport.Verdict
	extended atomic.Int64
	flushErr error
	onFlush  func(context.Context) error // may wait, unlike all else
	closed   bool
	done     chan struct{}
	err      error
	onClose  func()
	asked    chan struct{} // closed with the first request
}

func newBroker(backlog int, info transport.Info) *broker {
	return &broker{
		info: info, data: []byte{1}, backlog: backlog, attempts: map[int]int{}, verdicts: map[int][]transport.Verdict{}, done: make(chan struct{}), asked: make(chan struct{}),
	}
}

func (b *broker) Info() transport.Info {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.info
}

// reconfigure changes the configuration.
func (b *broker) reconfigure(change func(*transport.Info)) {
	b.mu.Lock()
	defer b.mu.Unlock()

	change(&b.info)
}

// push delivers messages though nobody has asked for them.
func (b *broker) push(n int) {
	for range n {
		b.mu.Lock()
		d := b.deliveryLocked()
		b.mu.Unlock()
		b.sink(d)
	}
}

func (b *broker) Request(n int) {
	b.mu.Lock()
	b.credit += n

	select {
	case <-b.asked:
	default:
		close(b.asked)
	}

	if b.sending {
		b.mu.Unlock()

		return // whoever sends goes on
	}

	b.sending = true

	for b.credit > 0 && b.next < b.backlog && !b.closed {
		b.credit--
		d := b.deliveryLocked()
		b.mu.Unlock()
		b.sink(d)
		b.mu.Lock()
	}

	b.sending = false
	b.mu.Unlock()
}

func (b *broker) deliveryLocked() transport.Delivery {
	n := b.next
	b.next++
	b.attempts[n]++
	b.open++
	b.maxAhead = max(b.maxAhead, b.open)

	return transport.Delivery{Subject: fmt.Sprint(n), Data: b.data, Token: n, Settler: b}
}

func (b *broker) Pause(context.Context) error { return nil }

func (b *broker) Flush(ctx context.Context) error {
	b.mu.Lock()
	err, wait := b.flushErr, b.onFlush
	b.mu.Unlock()

	if wait != nil {
		return wait(ctx)
	}

	return err
}

// failFlush lets every Flush fail, or none.
func (b *broker) failFlush(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.flushErr = err
}

func (b *broker) Close(context.Context) error {
	if b.onClose != nil {
		b.onClose()
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true

	return nil
}

func (b *broker) Done() <-chan struct{} { return b.done }
func (b *broker) Err() error            { return b.err }

func (b *broker) Settle(_ context.Context, token any, v transport.Verdict) error {
	if v.Action == transport.Extend {
		b.extended.Add(1)

		return nil
	}

	b.mu.Lock()
	defer b.mu.Unlock()

	n, _ := token.(int)
	b.verdicts[n] = append(b.verdicts[n], v)
	b.open--

	return nil
}

func (b *broker) Metadata(token any) transport.Metadata {
	b.mu.Lock()
	defer b.mu.Unlock()

	n, _ := token.(int)

	return transport.Metadata{Attempt: b.attempts[n]}
}

func (b *broker) count(a transport.Action) int {
	b.mu.Lock()
	defer b.mu.Unlock()

	n := 0

	for _, vs := range b.verdicts {
		for _, v := range vs {
			if v.Action == a {
				n++
			}
		}
	}

	return n
}

func start(ctx context.Context, b *broker, cfg engine.Config) <-chan error {
	e := engine.New(ctx, cfg)
	b.sink = e.Deliver
	result := make(chan error, 1)

	go func() { result <- e.Run(ctx, b) }()

	<-b.asked

	return result
}

func ack(job *engine.Job) {
	job.Settling()
	_ = job.Delivery.Settler.Settle(context.Background(), job.Delivery.Token, transport.Verdict{Action: transport.Ack})
}

func config(handle func(ctx context.Context, job *engine.Job)) engine.Config {
	return engine.Config{
		Concurrency: 1, Redelivery: true, DrainTimeout: time.Minute,
		Handle: func(ctx context.Context, job *engine.Job) (time.Duration, bool) {
			handle(ctx, job)

			return 0, false
		},
	}
}

func TestSlowHandlersFetchNothingAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()

		b := newBroker(100, transport.Info{AckWait: time.Second})
		cfg := config(func(_ context.Context, job *engine.Job) {
			time.Sleep(500 * time.Millisecond)
			ack(job)
		})
		cfg.Concurrency = 4
		result := start(ctx, b, cfg)

		time.Sleep(time.Minute)
		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if got := b.count(transport.Ack); got != 100 {
			t.Errorf("acked %d of 100", got)
		}

		if b.maxAhead != 4 {
			t.Errorf("%d messages were out at once, want 4", b.maxAhead)
		}
	})
}

func TestFastHandlersFetchAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(5000, transport.Info{AckWait: 30 * time.Second})
		result := start(ctx, b, config(func(_ context.Context, job *engine.Job) { ack(job) }))

		synctest.Wait()
		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if got := b.count(transport.Ack); got != 5000 {
			t.Errorf("acked %d of 5000", got)
		}

		if b.maxAhead < 100 || b.maxAhead > 1000 {
			t.Errorf("%d messages were out at once, want some hundreds", b.maxAhead)
		}
	})
}

func TestLeaseIsRenewedAtAThirdWhileAHandlerRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(1, transport.Info{AckWait: 3 * time.Second})
		result := start(ctx, b, config(func(_ context.Context, job *engine.Job) {
			time.Sleep(15 * time.Second)
			ack(job)
		}))

		time.Sleep(16 * time.Second)
		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if got := b.extended.Load(); got < 13 || got > 16 {
			t.Errorf("the lease was renewed %d times in 15 s, want about 14", got)
		}
	})
}

func TestLeaseThatCannotBeRenewedEndsTheHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(2, transport.Info{AckWait: 3 * time.Second})
		b.flushErr = transport.ErrDisconnected

		cause := make(chan error, 2)
		began := time.Now()
		result := start(ctx, b, config(func(ctx context.Context, job *engine.Job) {
			if job.Delivery.Token == 1 {
				cause <- ctx.Err() // the next message has a context of its own

				return
			}

			<-ctx.Done()
			cause <- context.Cause(ctx)
		}))

		if err := <-cause; !errors.Is(err, engine.ErrLeaseLost) {
			t.Errorf("cause %v, want ErrLeaseLost", err)
		}

		if took := time.Since(began); took < 3*time.Second || took > 5*time.Second {
			t.Errorf("the handler ended after %v, want the ack wait of 3 s", took)
		}

		if err := <-cause; err != nil {
			t.Errorf("the next handler began with %v", err)
		}

		cancel()
		<-result
	})
}

func TestExpiredDeliveryIsNotHandled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: time.Second})
		b.flushErr = transport.ErrDisconnected

		var handled, expired atomic.Int32

		cfg := config(func(_ context.Context, _ *engine.Job) {
			handled.Add(1)
			time.Sleep(5 * time.Second) // longer than the lease, and not heeding its context
		})
		cfg.OnExpired = func(transport.Delivery) { expired.Add(1) }
		result := start(ctx, b, cfg)

		b.mu.Lock()
		b.next, b.backlog = 0, 2
		first, second := b.deliveryLocked(), b.deliveryLocked()
		b.mu.Unlock()
		b.sink(first)
		b.sink(second)

		time.Sleep(10 * time.Second)

		if handled.Load() != 1 || expired.Load() != 1 {
			t.Errorf("handled %d, expired %d, want 1 and 1", handled.Load(), expired.Load())
		}

		cancel()
		<-result
	})
}

func TestMaxHandlingTimeEndsTheHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(1, transport.Info{})
		cause := make(chan error, 1)
		began := time.Now()
		cfg := config(func(ctx context.Context, _ *engine.Job) {
			<-ctx.Done()
			cause <- context.Cause(ctx)
		})
		cfg.MaxHandlingTime = 8 * time.Second
		result := start(ctx, b, cfg)

		if err := <-cause; !errors.Is(err, engine.ErrMaxHandlingTime) {
			t.Errorf("cause %v, want ErrMaxHandlingTime", err)
		}

		if took := time.Since(began); took < 8*time.Second || took > 9*time.Second {
			t.Errorf("ended after %v, want 8 to 9 s", took)
		}

		cancel()
		<-result
	})
}

func TestLanesKeepOrderAndAStuckKeyHoldsBackOnlyItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(2000, transport.Info{AckWait: time.Minute})
		stuck := make(chan struct{})

		var (
			mu   sync.Mutex
			seen = map[int][]int{}
		)

		cfg := config(func(_ context.Context, job *engine.Job) {
			n, _ := job.Delivery.Token.(int)
			if n == 0 {
				<-stuck
			}

			mu.Lock()
			seen[n%10] = append(seen[n%10], n)
			mu.Unlock()
			ack(job)
		})
		cfg.Concurrency = 8
		cfg.Lane = func(job *engine.Job) string {
			n, _ := job.Delivery.Token.(int)

			return fmt.Sprint(n % 10)
		}
		result := start(ctx, b, cfg)

		synctest.Wait()

		if got := b.count(transport.Ack); got != 1800 {
			t.Errorf("with one of ten keys stuck %d of 2000 were handled, want 1800", got)
		}

		close(stuck)
		synctest.Wait()
		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		for key, ns := range seen {
			for i, n := range ns {
				if n != key+10*i {
					t.Fatalf("key %d: place %d is %d, out of order", key, i, n)
				}
			}
		}

		if got := b.count(transport.Ack); got != 2000 {
			t.Errorf("%d of 2000 were handled", got)
		}
	})
}

func TestRetryHoldsItsLane(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(10, transport.Info{AckWait: 3 * time.Second})

		var order []int

		e := config(nil)
		e.Lane = func(*engine.Job) string { return "" }
		e.Handle = func(_ context.Context, job *engine.Job) (time.Duration, bool) {
			n, _ := job.Delivery.Token.(int)
			if n == 3 && job.Retries < 4 {
				return 5 * time.Second, true
			}

			order = append(order, n)
			ack(job)

			return 0, false
		}
		result := start(ctx, b, e)

		time.Sleep(30 * time.Second)
		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		for i, n := range order {
			if i != n {
				t.Fatalf("order %v", order)
			}
		}

		if len(order) != 10 {
			t.Errorf("%d of 10 handled", len(order))
		}

		if b.extended.Load() < 15 {
			t.Errorf("the waiting message's lease was renewed %d times in 20 s", b.extended.Load())
		}
	})
}

func TestDrainFinishesWhatRunsAndHandsBackTheRest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: 10 * time.Second})
		result := start(ctx, b, config(func(hctx context.Context, job *engine.Job) {
			time.Sleep(20 * time.Second)

			if hctx.Err() == nil {
				ack(job)
			}
		}))

		b.mu.Lock()
		b.backlog = 5

		ds := make([]transport.Delivery, 0, 5)
		for range 5 {
			ds = append(ds, b.deliveryLocked())
		}
		b.mu.Unlock()

		for _, d := range ds {
			b.sink(d)
		}

		synctest.Wait()
		cancel()

		began := time.Now()
		synctest.Wait()

		if got := b.count(transport.Nak); got != 4 {
			t.Errorf("%d were handed back at once, want 4", got)
		}

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("drained in %v, want 20 s", took)
		}

		if got := b.count(transport.Ack); got != 1 {
			t.Errorf("%d were acked, want the running one", got)
		}
	})
}

func TestDrainHandlesWhatTheBrokerWouldGiveUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: 10 * time.Second, MaxDeliver: 1})
		result := start(ctx, b, config(func(_ context.Context, job *engine.Job) {
			time.Sleep(time.Second)
			ack(job)
		}))

		b.mu.Lock()
		first, second := b.deliveryLocked(), b.deliveryLocked()
		b.mu.Unlock()
		b.sink(first)
		b.sink(second)
		synctest.Wait()

		// One more arrives while the subscription is being closed.
		b.onClose = func() {
			b.mu.Lock()
			third := b.deliveryLocked()
			b.mu.Unlock()
			b.sink(third)
		}

		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if acks, naks := b.count(transport.Ack), b.count(transport.Nak); acks != 3 || naks != 0 {
			t.Errorf("%d acked, %d naked, want 3 and 0", acks, naks)
		}
	})
}

func TestDrainTimeoutCancelsAndCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(2, transport.Info{AckWait: 10 * time.Second})
		deaf := make(chan struct{})
		cause := make(chan error, 1)
		cfg := config(func(hctx context.Context, job *engine.Job) {
			if job.Delivery.Token == 0 {
				<-deaf

				return
			}

			<-hctx.Done()
			cause <- context.Cause(hctx)
			ack(job)
		})
		cfg.Concurrency, cfg.DrainTimeout = 2, 5*time.Second
		result := start(ctx, b, cfg)
		synctest.Wait()
		cancel()

		var drain *engine.DrainError
		if err := <-result; !errors.As(err, &drain) || drain.Abandoned != 1 {
			t.Errorf("got %v, want one abandoned", err)
		}

		if err := <-cause; !errors.Is(err, engine.ErrDraining) {
			t.Errorf("cause %v, want ErrDraining", err)
		}

		if b.count(transport.Ack) != 1 {
			t.Error("the settlement of the handler that heeded its context is missing")
		}

		close(deaf)
	})
}

func TestEndOfTheSubscriptionIsReturned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(1, transport.Info{})
		result := start(t.Context(), b, config(func(_ context.Context, job *engine.Job) { ack(job) }))
		synctest.Wait()

		b.err = &transport.Error{Op: "subscribe", Consumer: "c", Err: transport.ErrConsumerNotFound}
		close(b.done)

		if err := <-result; !errors.Is(err, transport.ErrConsumerNotFound) {
			t.Errorf("got %v", err)
		}
	})
}

//nolint:paralleltest // allocations are counted
func TestDeliverAllocatesNothing(t *testing.T) {
	b := newBroker(0, transport.Info{AckWait: time.Minute})
	handled := make(chan struct{}, 1)
	s := &silent{broker: b}
	ctx, cancel := context.WithCancel(context.Background())
	result := start(ctx, b, config(func(context.Context, *engine.Job) { handled <- struct{}{} }))
	d := transport.Delivery{Token: s, Settler: s}

	for range 100 { // fills the free list
		b.sink(d)
		<-handled
	}

	if n := testing.AllocsPerRun(1000, func() {
		b.sink(d)
		<-handled
	}); n != 0 {
		t.Errorf("%v allocations per message", n)
	}

	cancel()
	<-result
}

type silent struct{ *broker }

func (s *silent) Settle(context.Context, any, transport.Verdict) error { return nil }
func (s *silent) Metadata(any) transport.Metadata                      { return transport.Metadata{} }

func TestHandedBackMessagesDoNotComeBackHere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: 10 * time.Second})
		e := config(nil)
		e.Handle = func(context.Context, *engine.Job) (time.Duration, bool) {
			return time.Hour, true // holds its lane
		}
		e.Lane = func(*engine.Job) string { return "" }
		result := start(ctx, b, e)

		b.mu.Lock()
		first, second := b.deliveryLocked(), b.deliveryLocked()
		b.mu.Unlock()
		b.sink(first)
		b.sink(second)
		synctest.Wait()

		// What is naked before the subscription is closed comes back at once.
		b.onClose = func() {
			if n := b.count(transport.Nak); n > 0 {
				t.Errorf("%d were handed back before the broker had stopped", n)
			}
		}

		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if n := b.count(transport.Nak); n != 2 {
			t.Errorf("%d of 2 were handed back", n)
		}
	})
}

func TestTwoAtOnceFindTwoWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{})

		var running atomic.Int32

		release := make(chan struct{})
		cfg := config(func(_ context.Context, job *engine.Job) {
			running.Add(1)
			<-release
			running.Add(-1)
			ack(job)
		})
		cfg.Concurrency = 2
		result := start(ctx, b, cfg)

		deliver := func() {
			b.mu.Lock()
			d := b.deliveryLocked()
			b.mu.Unlock()
			b.sink(d)
		}

		for range 200 {
			deliver()
			deliver()
			synctest.Wait()

			if n := running.Load(); n != 2 {
				t.Fatalf("%d of 2 handlers run", n)
			}

			release <- struct{}{}
			release <- struct{}{}

			synctest.Wait()
		}

		cancel()
		<-result
	})
}

func TestRecycledJobsKeepTheirLeasesWhileTheyWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: 3 * time.Second})

		var handled atomic.Int32

		result := start(ctx, b, config(func(_ context.Context, job *engine.Job) {
			if handled.Add(1) > 3 {
				time.Sleep(10 * time.Second)
			}

			ack(job)
		}))

		for range 3 { // these fill the free list
			b.mu.Lock()
			d := b.deliveryLocked()
			b.mu.Unlock()
			b.sink(d)
			synctest.Wait()
		}

		b.mu.Lock()
		first, second := b.deliveryLocked(), b.deliveryLocked()
		b.mu.Unlock()
		b.sink(first)
		b.sink(second)

		time.Sleep(30 * time.Second)
		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}

		if handled.Load() != 5 {
			t.Errorf("%d of 5 were handled: a lease ran out behind a slow handler", handled.Load())
		}
	})
}

// A handler may end its goroutine, as the FailNow of package testing does: the
// job is concluded by another worker, its lane stays closed until then, and the
// end is as orderly as ever.
func TestHandlerThatEndsItsGoroutine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(5, transport.Info{AckWait: time.Minute})

		var order []string

		cfg := config(nil)
		cfg.Lane = func(*engine.Job) string { return "" }
		cfg.Handle = func(ctx context.Context, job *engine.Job) (time.Duration, bool) {
			n, exited := job.Delivery.Token.(int), job.Exited != nil
			order = append(order, fmt.Sprint(n, exited))

			if err := ctx.Err(); err != nil {
				t.Errorf("the context of %d has ended: %v", n, err)
			}

			if exited && !strings.Contains(string(job.Exited), "engine_test.goexit") {
				t.Errorf("the stack is not that of the handler: %s", job.Exited)
			}

			switch {
			case n < 3 && !exited && job.Retries == 0, n == 2:
				goexit()
			case n == 1 && exited:
				return time.Second, true
			}

			ack(job)

			return 0, false
		}
		result := start(ctx, b, cfg)

		time.Sleep(2 * time.Second)
		cancel()

		if err := <-result; err != nil {
			t.Error(err)
		}

		if want := []string{"0 false", "0 true", "1 false", "1 true", "1 false", "2 false", "2 true", "3 false", "4 false"}; !slices.Equal(order, want) {
			t.Errorf("order %q, want %q", order, want)
		}

		if got := b.count(transport.Ack); got != 4 {
			t.Errorf("%d were acked, want all but the one that was let go", got)
		}
	})
}

func goexit() { runtime.Goexit() }

// Who ends its goroutine is replaced, however many do and whatever waits.
func TestWorkersThatEndAreReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(1000, transport.Info{})

		cfg := config(nil)
		cfg.Concurrency = 4
		cfg.Handle = func(_ context.Context, job *engine.Job) (time.Duration, bool) {
			if job.Exited == nil {
				runtime.Goexit()
			}

			ack(job)

			return 0, false
		}
		result := start(ctx, b, cfg)

		synctest.Wait()
		cancel()

		if err := <-result; err != nil {
			t.Error(err)
		}

		if got := b.count(transport.Ack); got != 1000 {
			t.Errorf("%d of 1000 were handled", got)
		}
	})
}

// What nobody else gets, and was not started by the end of the drain timeout, is
// told of instead of handled.
func TestDrainTellsOfWhatItAbandons(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{})

		var handled, abandoned []int

		arrived := time.Now().Add(-time.Minute)
		cfg := config(func(_ context.Context, job *engine.Job) {
			if !job.Arrived().Equal(arrived) {
				t.Errorf("it arrived at %v", job.Arrived())
			}

			handled = append(handled, job.Delivery.Token.(int))

			time.Sleep(10 * time.Second) // whatever its context says
		})
		cfg.Redelivery, cfg.DrainTimeout = false, 25*time.Second
		cfg.OnDrain = func() {
			if b.closed {
				t.Error("the broker was told to stop before the end was announced")
			}

			handled = append(handled, -1)
		}
		cfg.OnAbandoned = func(ctx context.Context, job *engine.Job) {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("there is no bound")
			}

			abandoned = append(abandoned, job.Delivery.Token.(int))
		}
		result := start(ctx, b, cfg)

		for range 6 {
			b.mu.Lock()
			d := b.deliveryLocked()
			b.mu.Unlock()

			d.Arrived = arrived
			b.sink(d)
		}

		synctest.Wait()
		cancel()

		// The third one is still at it when the moment of grace is over.
		var drain *engine.DrainError
		if err := <-result; !errors.As(err, &drain) || drain.Abandoned != 4 {
			t.Errorf("got %v, want four abandoned", err)
		}

		synctest.Wait() // for the one that is still at it

		if !slices.Equal(handled, []int{0, -1, 1, 2}) || !slices.Equal(abandoned, []int{3, 4, 5}) {
			t.Errorf("handled %v, abandoned %v", handled, abandoned)
		}

		time.Sleep(10 * time.Second)
		synctest.Wait()

		if len(handled) != 4 {
			t.Errorf("handled %v in the end", handled)
		}
	})
}
