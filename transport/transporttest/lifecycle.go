package transporttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// grouped returns the options for a member of a group, where there are groups.
func grouped(b *broker, opts ...goflux.SubscriberOption) []goflux.SubscriberOption {
	if b.has(transport.Groups) {
		opts = append(opts, goflux.WithQueueGroup(workers))
	}

	return opts
}

func cancelledSubscribe(e *env) {
	const messages, enough = 100, 10

	b := e.start(Config{})
	t := b.open()
	subject := b.subject("c")

	var (
		got     list[string]
		halt    = make(chan struct{})
		release = make(chan struct{})
	)

	r := e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		// From here on messages are fetched ahead of the handler.
		if got.len() == enough {
			close(halt)

			if !e.happens(release) {
				e.Error("the handler is not released")
			}
		}

		return nil
	}, grouped(b)...)

	want := numbers(messages)
	e.publish(t, subject, want...)
	e.await(halt, "some messages")
	r.cancel()
	close(release)
	e.ok(r.wait(), "a Subscribe that was cancelled")

	handled := got.len()
	again := func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	}

	if !b.has(transport.Redelivery) {
		// What had been sent was handled before it returned: nobody else
		// would get it.
		eachOnce(e, "the cancelled Subscribe", got.all(), want)
		e.subscribe(t, subject, again, grouped(b)...)
		e.publish(t, subject, "fresh")

		if got := got.wait(e, handled+1, "a message for the fresh Subscribe")[handled:]; !slices.Equal(got, []string{"fresh"}) {
			e.Errorf("the fresh Subscribe got %v, want what was sent after it", got)
		}

		return
	}

	if b.has(transport.Durable) {
		// What it left, and what came while nobody was there.
		more := []string{"more", "and more"}
		e.publish(t, subject, more...)

		want = append(want, more...)

		e.subscribe(t, subject, again, grouped(b)...)
		eachOnce(e, "both together", got.wait(e, len(want), "the rest"), want)
	}
}

func repeatedSubscribing(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("r")
	rounds := e.n(20, 10)

	var got list[string]

	h := func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	}

	if !b.has(transport.Durable) {
		// Nothing is lost while somebody is there.
		for i := range rounds {
			r := e.subscribe(t, subject, h, grouped(b)...)
			e.publish(t, subject, numbers(5)...)
			got.wait(e, 5*(i+1), "the messages of a round")
			e.ok(r.stop(), "stop")
		}

		return
	}

	// The group exists from here on.
	e.ok(e.subscribe(t, subject, h, grouped(b)...).stop(), "stop")

	want := numbers(10 * rounds)

	var publishing sync.WaitGroup

	p := e.publisher(b.open())

	publishing.Go(func() {
		for _, s := range want {
			e.check(p.Publish(e.Context(), subject, s), "publish")
		}
	})

	for i := range rounds {
		r := e.subscribe(t, subject, h, grouped(b)...)
		got.wait(e, min(5*(i+1), len(want)), "the messages of a round")
		r.sub.Close()
		e.ok(r.wait(), "a Subscribe whose subscriber was closed")
	}

	publishing.Wait()
	e.subscribe(t, subject, h, grouped(b)...)
	got.until(e, "all messages", func(got []string) bool { return len(counts(got)) == len(want) })
}

func manyMayClose(e *env) {
	const closers = 10

	b := e.start(Config{})
	t := b.open()
	subject := b.subject("c")
	busy := make(chan struct{})
	release := make(chan struct{})

	r := e.subscribe(t, subject, func(context.Context, goflux.Message[string]) error {
		close(busy)

		if !e.happens(release) {
			e.Error("the handler is not released")
		}

		return nil
	})
	p := e.publisher(t)
	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: func(transport.Delivery) {}})
	s.Request(1)

	e.ok(p.Publish(e.within(), subject, "one"), "publish")
	e.await(busy, "the handler to start")

	all := func(what string, f func() error) {
		e.Helper()

		var closing sync.WaitGroup

		for range closers {
			closing.Go(func() { e.check(f(), what) })
		}

		closing.Wait()
	}

	all("close the publisher", p.Close)
	all("close the subscription", func() error { return s.Close(e.within()) })
	// It does not wait, and the handler still runs.
	all("close the subscriber", func() error {
		r.sub.Close()

		return nil
	})
	close(release)
	e.ok(r.wait(), "Subscribe")

	if b.has(transport.Fetching) {
		c := e.consumer(t, subject, fetchers)
		all("close the consumer", func() error {
			c.Close()

			return nil
		})
	}

	all("close the transport", t.Close)
}

func useAfterClose(e *env) {
	b := e.start(Config{})
	t, other := b.open(), b.open()
	subject := b.subject("c")
	ignore := func(context.Context, goflux.Message[string]) error { return nil }

	// What was built on a transport.
	p := e.publisher(t)

	for range 2 {
		e.ok(p.Close(), "close the publisher")
		e.is(p.Publish(e.within(), subject, "late"), goflux.ErrClosed, "publish after closing the publisher")
	}

	sub, err := goflux.NewSubscriber(t, text, goflux.WithLogger(e.log))
	e.ok(err, "make a subscriber")

	for range 2 {
		sub.Close()
		e.is(sub.Subscribe(e.within(), subject, ignore), goflux.ErrClosed, "subscribe after closing the subscriber")
	}

	if b.has(transport.Fetching) {
		c := e.consumer(t, subject, fetchers)

		for range 2 {
			c.Close()

			msgs, err := c.Fetch(e.within(), 1)
			e.is(err, goflux.ErrClosed, "fetch after closing the consumer")

			if len(msgs) > 0 {
				e.Errorf("a closed consumer fetched %v", msgs)
			}
		}

		blocked := e.consumer(t, b.subject("nothing"), "blocked")

		var fetching sync.WaitGroup

		fetching.Go(func() {
			_, err := blocked.Fetch(e.within(), 1)
			e.is(err, goflux.ErrClosed, "a fetch whose consumer is closed")
		})
		blocked.Close()
		fetching.Wait()
	}

	// All of it was closed, and the transport still works.
	var got list[transport.Delivery]

	raw := e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: got.add})
	raw.Request(2)
	e.publish(t, subject, "still open")

	d := got.wait(e, 1, "a message on the transport that is still open")[0]

	e.ok(raw.Close(e.within()), "close the subscription")
	e.ok(raw.Close(e.within()), "close the subscription again")
	raw.Request(1)

	if b.has(transport.Acks) {
		e.settle(d, transport.Ack) // also after Close
	}

	// The transport itself.
	r := e.subscribe(t, b.subject("running"), ignore)
	raw = e.attach(t, transport.SubscribeConfig{Subject: b.subject("running"), Sink: func(transport.Delivery) {}})

	if raw.Err() != nil {
		e.Errorf("the error of a subscription that runs is %v", raw.Err())
	}

	for range 2 {
		e.ok(t.Close(), "close the transport")
		e.is(e.publisher(t).Publish(e.within(), subject, "late"), goflux.ErrClosed, "publish after closing the transport")

		_, err = t.Publish(e.within(), transport.Message{Subject: subject})
		e.is(err, transport.ErrClosed, "Publish after closing the transport")

		_, err = t.Subscribe(e.within(), transport.SubscribeConfig{Subject: subject, Sink: func(transport.Delivery) {}})
		e.is(err, transport.ErrClosed, "Subscribe after closing the transport")
	}

	e.is(r.wait(), goflux.ErrClosed, "a running Subscribe whose transport is closed")
	e.await(raw.Done(), "the subscription to end with its transport")
	e.is(raw.Err(), transport.ErrClosed, "a subscription whose transport is closed")

	// Other clients of the broker have nothing to do with it.
	if other != t {
		got = list[transport.Delivery]{}

		e.attach(other, transport.SubscribeConfig{Subject: b.subject("other"), Sink: got.add}).Request(1)
		e.publish(other, b.subject("other"), "still open")
		got.wait(e, 1, "a message on another client")
	}
}

// flood is several publishers that publish until they are refused. How far they
// are ahead of the handlers is bounded.
type flood struct {
	some *gathering    // complete when some were accepted
	room chan struct{} // what was published and not yet handled
	stop chan struct{} // closed when room is not waited for any more

	publishing sync.WaitGroup
	accepted   list[string]
}

func newFlood() *flood {
	return &flood{some: gather(100), room: make(chan struct{}, 1000), stop: make(chan struct{})}
}

func (f *flood) start(e *env, p *goflux.BoundPublisher[string], subject, name string) {
	for i := range 10 {
		f.publishing.Go(func() {
			for n := 0; ; n++ {
				select {
				case f.room <- struct{}{}:
				case <-f.stop:
				}

				s := fmt.Sprintf("%s-%d-%d", name, i, n)

				if err := p.Publish(e.Context(), subject, s); err != nil {
					e.is(err, goflux.ErrClosed, "publish while closing")

					return
				}

				f.accepted.add(s)
				f.some.arrive()
			}
		})
	}
}

// handled makes room for one more.
func (f *flood) handled() {
	select {
	case <-f.room:
	default:
	}
}

// end returns what was accepted when all publishers have been refused.
func (f *flood) end() []string {
	close(f.stop)
	f.publishing.Wait()

	return f.accepted.all()
}

func closeDuringPublishing(e *env) {
	b := e.start(Config{})
	t, other := b.open(), b.open()
	subject := b.subject("c")
	guard := b.sentinel()
	floods := [2]*flood{newFlood(), newFlood()}

	var got list[string]

	e.subscribe(other, subject, guard.guard(func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		for _, f := range floods {
			f.handled()
		}

		return nil
	}))

	// A publisher that is closed: what was accepted arrives, and nothing else.
	p := e.publisher(t)
	floods[0].start(e, p, subject, "first")
	e.await(floods[0].some.complete, "some messages")
	e.ok(p.Close(), "close the publisher")

	want := floods[0].end()

	guard.seen.Store(1) // nothing of this comes back
	guard.behind(t, subject)
	eachOnce(e, "the subscription", got.wait(e, len(want), "what was accepted"), want)

	// A transport that is closed, if somebody is left to count.
	floods[1].start(e, e.publisher(t), subject, "second")
	e.await(floods[1].some.complete, "some messages")
	e.ok(t.Close(), "close the transport")

	want = append(want, floods[1].end()...)

	if other != t {
		got.until(e, "what was accepted", func(got []string) bool {
			seen := counts(got)

			return !slices.ContainsFunc(want, func(s string) bool { return seen[s] == 0 })
		})
	}
}

func cancelledContexts(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("c")

	var got list[string]

	e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	})

	cancelled, cancel := context.WithCancel(e.Context())
	cancel()

	expired, cancel := context.WithDeadline(e.Context(), time.Now().Add(-time.Second))
	defer cancel()

	for ctx, want := range map[context.Context]error{cancelled: context.Canceled, expired: context.DeadlineExceeded} {
		e.is(e.publisher(t).Publish(ctx, subject, "never"), want, "publish")

		_, err := t.Publish(ctx, transport.Message{Subject: subject, Data: []byte("never")})
		e.is(err, want, "Publish of the transport")

		_, err = t.Subscribe(ctx, transport.SubscribeConfig{Subject: subject, Sink: func(transport.Delivery) {}})
		e.is(err, want, "Subscribe of the transport")
	}

	e.publish(t, subject, "behind")
	sameOrder(e, "the subscription", got.wait(e, 1, "the message behind"), []string{"behind"})

	if !b.has(transport.Fetching) {
		_, err := goflux.NewConsumer(t, text, subject, goflux.WithQueueGroup(fetchers))
		e.is(err, goflux.ErrUnsupported, "a consumer without fetching")

		return
	}

	// The group is there before its messages.
	s := e.attach(t, transport.SubscribeConfig{Subject: b.subject("fetch"), Group: fetchers, Sink: func(transport.Delivery) {}})
	e.ok(s.Close(e.within()), "close")

	c := e.consumer(t, b.subject("fetch"), fetchers)

	for ctx, want := range map[context.Context]error{cancelled: context.Canceled, expired: context.DeadlineExceeded} {
		_, err := c.Fetch(ctx, 1)
		e.is(err, want, "fetch")
	}

	// One that waits: the group is there, and nothing in it.
	e.publish(t, b.subject("fetch"), "one")

	msgs, err := c.Fetch(e.within(), 1)
	e.ok(err, "fetch")
	e.check(msgs[0].Ack(), "ack")

	blocked, cancel := context.WithCancel(e.Context())
	timer := time.AfterFunc(20*time.Millisecond, cancel)

	defer timer.Stop()

	_, err = c.Fetch(blocked, 1)
	e.is(err, context.Canceled, "a blocked fetch")

	short, cancel := context.WithTimeout(e.Context(), 20*time.Millisecond)
	defer cancel()

	_, err = c.Fetch(short, 1)
	e.is(err, context.DeadlineExceeded, "a blocked fetch")

	// Neither of them has taken anything with it.
	e.publish(t, b.subject("fetch"), "two")

	msgs, err = c.Fetch(e.within(), 1)
	e.ok(err, "fetch")

	if len(msgs) != 1 || msgs[0].Payload != "two" {
		e.Errorf("fetched %v, want the second message", msgs)
	}

	e.check(msgs[0].Ack(), "ack")
}

func drainFinishes(e *env) {
	const quick, messages, workers = 50, 100, 2

	b := e.start(Config{})
	t := b.open()
	subject := b.subject("d")

	var (
		first, second list[string]
		running       = make(chan struct{}, workers)
		release       = make(chan struct{})
		blocking      atomic.Bool
	)

	r := e.subscribe(t, subject, func(ctx context.Context, msg goflux.Message[string]) error {
		first.add(msg.Payload)

		if !blocking.Load() {
			return nil
		}

		select {
		case running <- struct{}{}:
		default:
		}

		if !e.happens(release) {
			e.Error("the handler is not released")
		}

		if err := ctx.Err(); err != nil {
			e.Errorf("the context of a handler ended while the subscription drains: %v", context.Cause(ctx))
		}

		return nil
	}, grouped(b, goflux.WithConcurrency(workers))...)

	// Some that go quickly, so that more are fetched ahead.
	want := numbers(quick + messages)
	e.publish(t, subject, want[:quick]...)
	first.wait(e, quick, "the quick ones")
	blocking.Store(true)
	e.publish(t, subject, want[quick:]...)

	for range workers {
		select {
		case <-running:
		case <-time.After(e.harness.patience()):
			e.Fatalf("waited in vain for %d handlers to run", workers)
		}
	}

	r.cancel()

	if b.has(transport.Redelivery, transport.Groups) {
		// What was buffered is redelivered at once, leases are far longer,
		// and while the first member's handlers still run.
		e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
			second.add(msg.Payload)

			return nil
		}, grouped(b)...)
		second.wait(e, messages-workers, "what the draining member had buffered")
	}

	select {
	case <-r.done:
		e.Errorf("Subscribe returned while handlers were running: %v", r.err)
	default:
	}

	close(release)
	e.ok(r.wait(), "Subscribe")

	if b.has(transport.Redelivery) {
		if n := first.len(); n != quick+workers {
			e.Errorf("%d handlers were started after the end of Subscribe's ctx", n-quick-workers)
		}
	}

	if !b.has(transport.Redelivery) || b.has(transport.Groups) {
		eachOnce(e, "the handlers", slices.Concat(first.all(), second.all()), want)
	}
}

func drainedAreSettled(e *env) {
	const workers = 3

	b := e.start(Config{AckWait: leased})
	t := b.open()
	subject := b.subject("d")
	release := make(chan struct{})

	var first, second list[string]

	r := e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		first.add(msg.Payload)

		if !e.happens(release) {
			e.Error("the handler is not released")
		}

		return nil
	}, grouped(b, goflux.WithConcurrency(workers))...)

	e.publish(t, subject, numbers(workers)...)
	first.wait(e, workers, "all handlers to run")
	r.cancel()

	// Leases are kept meanwhile.
	<-time.After(leased + leased/2)
	close(release)
	e.ok(r.wait(), "Subscribe")

	guard := b.sentinel()
	e.subscribe(b.open(), subject, guard.guard(func(_ context.Context, msg goflux.Message[string]) error {
		second.add(msg.Payload)

		return nil
	}), grouped(b)...)
	guard.behind(t, subject)

	if b.has(transport.Durable) || !b.has(transport.Replay) {
		sameOrder(e, "the next member", second.all(), nil)
	}

	eachOnce(e, "the drained Subscribe", first.all(), numbers(workers))
}

func drainHasALimit(e *env) {
	b := e.start(Config{})
	t := b.open()

	// A handler that heeds its context: its message is somebody else's at once.
	var (
		subject = b.subject("heeds")
		busy    = make(chan struct{})
		got     list[string]
	)

	r := e.subscribe(t, subject, func(ctx context.Context, _ goflux.Message[string]) error {
		close(busy)

		if !e.happens(ctx.Done()) {
			e.Error("the context of a handler does not end with the drain timeout")
		}

		if cause := context.Cause(ctx); !errors.Is(cause, goflux.ErrDraining) {
			e.Errorf("the cause of its end is %v, want %v", cause, goflux.ErrDraining)
		}

		return ctx.Err()
	}, grouped(b, goflux.WithDrainTimeout(time.Millisecond))...)

	e.publish(t, subject, "interrupted")
	e.await(busy, "the handler to start")
	e.ok(r.stop(), "a Subscribe whose handler was interrupted")

	e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	}, grouped(b)...)
	e.publish(t, subject, "behind")

	want := []string{"behind"}

	switch {
	case b.has(transport.Redelivery, transport.Durable):
		want = []string{"behind", "interrupted"}
	case b.has(transport.Replay):
		want = []string{"behind", "interrupted"}
	}

	eachOnce(e, "the next Subscribe", got.wait(e, len(want), "what was interrupted"), want)

	// A handler that does not: Subscribe says that something was left.
	var (
		stuck   = make(chan struct{})
		release = make(chan struct{})
		left    = make(chan struct{})
	)

	r = e.subscribe(t, b.subject("ignores"), func(context.Context, goflux.Message[string]) error {
		defer close(left)

		close(stuck)

		if !e.happens(release) {
			e.Error("the handler is not released")
		}

		return nil
	}, goflux.WithDrainTimeout(0))

	e.publish(t, b.subject("ignores"), "stuck")
	e.await(stuck, "the handler to start")

	err := r.stop()
	if drain, ok := errors.AsType[*goflux.DrainError](err); !ok || drain.Abandoned != 1 {
		e.Errorf("Subscribe returned %v, want a DrainError with one abandoned message", err)
	}

	close(release)
	e.await(left, "the handler to return")
}

func brokerRestart(e *env) {
	var (
		publishers = e.n(100, 20)
		each       = e.n(100, 50)
		total      = publishers * each
	)

	// What was on its way when the broker stopped comes back with its lease.
	b := e.start(Config{AckWait: 2 * leased})
	subject := b.subject("r")

	if b.Restart == nil {
		diesWithItsTransport(e, b, subject)

		return
	}

	if !b.has(transport.Persistent, transport.Durable) {
		survivesRestart(e, b, subject)

		return
	}

	var (
		got      list[string]
		mu       sync.Mutex
		seen     = map[string]bool{}
		from, to = b.open(), b.open()
	)

	// A service would do this, too: when a subscription ends with an error,
	// it subscribes again.
	sub, err := goflux.NewSubscriber(to, text, goflux.WithLogger(e.log), goflux.WithQueueGroup(workers), goflux.WithConcurrency(4))
	e.ok(err, "make a subscriber")

	ctx, cancel := context.WithCancel(e.Context())

	var serving sync.WaitGroup

	e.Cleanup(func() {
		cancel()
		serving.Wait()
	})
	serving.Go(func() {
		for ctx.Err() == nil {
			err := sub.Subscribe(ctx, subject, func(_ context.Context, msg goflux.Message[string]) error {
				mu.Lock()
				fresh := !seen[msg.Payload]
				seen[msg.Payload] = true
				mu.Unlock()

				if fresh {
					got.add(msg.Payload)
				}

				return nil
			})
			if err != nil {
				typed(e, err, "a Subscribe during the restart")
			}
		}
	})

	var publishing sync.WaitGroup

	pub := e.publisher(from)

	for p := range publishers {
		publishing.Go(func() {
			for i := range each {
				publishUntilStored(e, pub, subject, fmt.Sprintf("%d-%d", p, i))
			}
		})
	}

	got.wait(e, total/4, "some messages before the restart")
	b.Restart(e)
	publishing.Wait()
	got.wait(e, total, "all messages, the broker was restarted meanwhile")
}

// publishUntilStored publishes under one id until the broker has confirmed it.
func publishUntilStored(e *env, p *goflux.BoundPublisher[string], subject, s string) {
	for e.Context().Err() == nil {
		ctx, cancel := context.WithTimeout(goflux.WithMessageID(e.Context(), s), time.Second)
		err := p.Publish(ctx, subject, s)

		cancel()

		if err == nil {
			return
		}

		typed(e, err, "publish during the restart")

		select {
		case <-time.After(10 * time.Millisecond):
		case <-e.Context().Done():
		}
	}
}

// typed reports an error of a broker that is away which says nothing a program
// could act upon.
func typed(e *env, err error, what string) {
	for _, sentinel := range []error{
		transport.ErrDisconnected, transport.ErrBufferFull, transport.ErrNoStream, transport.ErrNoResponders,
		transport.ErrConsumerNotFound, transport.ErrStreamNotFound, context.DeadlineExceeded, context.Canceled,
	} {
		if errors.Is(err, sentinel) {
			return
		}
	}

	e.Errorf("%s: the error %v is of no type that a program could act upon", what, err)
}

// survivesRestart is for brokers that keep nothing: clients find their way back
// by themselves.
func survivesRestart(e *env, b *broker, subject string) {
	from, to := b.open(), b.open()

	var got list[string]

	r := e.subscribe(to, subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	})
	p := e.publisher(from)

	for i := range 100 {
		e.ok(p.Publish(e.within(), subject, strconv.Itoa(i)), "publish")
	}

	got.wait(e, 100, "the messages before")

	down := make(chan struct{})

	var publishing sync.WaitGroup

	publishing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-down:
				return
			default:
			}

			// Taken or refused, but never silent.
			if err := p.Publish(e.Context(), subject, "during "+strconv.Itoa(i)); err != nil {
				typed(e, err, "publish during the restart")
			}
		}
	})

	b.Restart(e)
	close(down)
	publishing.Wait()

	// There is no saying when both clients are back.
	e.repeat(func() {
		if err := p.Publish(e.within(), subject, "after"); err != nil {
			typed(e, err, "publish after the restart")
		}
	}, func() bool {
		select {
		case <-r.done:
			e.Fatalf("Subscribe ended with the restart of the broker: %v", r.err)
		default:
		}

		return slices.Contains(got.all(), "after")
	}, "a message after the restart of the broker")
}

// diesWithItsTransport is for brokers that cannot be restarted: they live in
// their transport, keep nothing beyond it, and say so when it is closed.
func diesWithItsTransport(e *env, b *broker, subject string) {
	if b.has(transport.Persistent) {
		e.Error("the transport claims to be persistent, and the harness has no Restart to prove it")
	}

	if !b.single() {
		e.Error("the broker has several clients, and the harness has no Restart")
	}

	t, f := b.open(), newFlood()
	r := e.subscribe(t, subject, func(context.Context, goflux.Message[string]) error {
		f.handled()

		return nil
	})

	f.start(e, e.publisher(t), subject, "until the end")
	e.await(f.some.complete, "some messages")
	e.ok(t.Close(), "close the transport")
	f.end()
	e.is(r.wait(), goflux.ErrClosed, "a Subscribe whose broker is gone")
}

func consumerDeleted(e *env) {
	b := e.start(Config{})
	e.deleted(b, b.DeleteConsumer, true, transport.ErrConsumerNotFound)
}

func streamDeleted(e *env) {
	b := e.start(Config{})
	e.deleted(b, b.DeleteStream, false, transport.ErrConsumerNotFound, transport.ErrStreamNotFound)
}

// deleted deletes something under what runs: it recovers, or ends with one of
// the errors, and waits in no case for ever. With each, every consumer is deleted
// by itself.
func (e *env) deleted(b *broker, remove func(tb testing.TB, info transport.Info), each bool, sentinels ...error) {
	t := b.open()
	subject := b.subject("d")
	ended := func(err error, what string) {
		e.Helper()

		for _, sentinel := range sentinels {
			if errors.Is(err, sentinel) {
				return
			}
		}

		e.Errorf("%s: error %v, want one of %v", what, err, sentinels)
	}

	var got list[string]

	r := e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	}, grouped(b)...)
	raw := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: groupIf(b), Sink: func(transport.Delivery) {}})

	if remove == nil {
		// There is nothing at the broker that could go without the transport.
		if info := raw.Info(); !b.has(transport.Durable) && (info.Stream != "" || info.Consumer != "") {
			e.Errorf("a subscription without anything durable behind it reports %+v", info)
		}

		e.ok(t.Close(), "close the transport")
		e.is(r.wait(), goflux.ErrClosed, "a Subscribe whose broker is gone")
		e.await(raw.Done(), "the subscription to end")
		e.is(raw.Err(), transport.ErrClosed, "a subscription whose broker is gone")

		return
	}

	e.publish(t, subject, "before")
	got.wait(e, 1, "a message before the deletion")

	knock := func() { _ = e.publisher(t).Publish(e.within(), subject, "after") }
	fetched := make(chan error, 1)

	if b.has(transport.Fetching) {
		c := e.consumer(t, subject, fetchers)

		_, err := c.Fetch(e.within(), 1) // what was published before, if it replays
		if err != nil && b.has(transport.Replay) {
			e.Errorf("fetch: %v", err)
		}

		s := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: fetchers, Sink: func(transport.Delivery) {}})

		go func() {
			_, err := c.Fetch(e.Context(), 1)
			fetched <- err
		}()

		if each {
			remove(e, s.Info())
		}
	} else {
		fetched <- nil
	}

	remove(e, raw.Info())
	e.repeat(knock, func() bool {
		select {
		case <-r.done:
			ended(r.err, "a Subscribe whose source was deleted")

			return true
		default:
			return slices.Contains(got.all(), "after")
		}
	}, "a Subscribe whose source was deleted to recover, or to end")
	e.repeat(knock, func() bool {
		select {
		case err := <-fetched:
			if err != nil {
				ended(err, "a Fetch whose source was deleted")
			}

			return true
		default:
			return false
		}
	}, "a Fetch whose source was deleted to recover, or to end")
}

// repeat does something now and then until done; it is for what announces
// itself by no event.
func (e *env) repeat(do func(), done func() bool, what string) {
	e.Helper()

	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()

	patience := time.After(e.harness.patience())

	for !done() {
		select {
		case <-tick.C:
			do()
		case <-patience:
			e.Fatalf("waited in vain for: %s", what)
		}
	}
}
