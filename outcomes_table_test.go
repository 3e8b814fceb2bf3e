package goflux_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

// The tables of docs/outcomes.md, cell by cell, where messages are redelivered.
// The conformance suite has what can be seen from outside on every transport;
// here the clock is one of a bubble, so that delays are exact.

const (
	lease    = 30 * time.Second
	policy   = 7 * time.Second // what the retry policy says
	drainFor = 2 * time.Second
	maximum  = 80 * time.Second
)

// cell is what a handler does at the first delivery, and what comes of it.
type cell struct {
	name string

	// do is the handler. Later deliveries succeed.
	do goflux.Handler[string]

	// stop ends the subscription while do runs; a replica goes on.
	stop bool

	// cut cuts the way to the broker while do runs: leases cannot be renewed.
	cut bool

	// again is how long after the first delivery the second one comes; negative
	// if it does not come.
	again time.Duration

	// reason is that of the dead letter, if there is one on any attempt; last
	// that on the last attempt.
	reason, last string
}

const never = -1

// untilEnd returns when its context ends.
func untilEnd(err error) goflux.Handler[string] {
	return func(ctx context.Context, _ goflux.Message[string]) error {
		<-ctx.Done()

		return err
	}
}

func answers(err error) goflux.Handler[string] {
	return func(context.Context, goflux.Message[string]) error { return err }
}

func settles(verb func(goflux.Message[string]) error, err error) goflux.Handler[string] {
	return func(_ context.Context, msg goflux.Message[string]) error { return errors.Join(verb(msg), err) }
}

// automaticCells are the rows of the table for automatic acks.
func automaticCells() []cell {
	retry := goflux.RetryAfter(3*time.Second, errCannot)
	reject, drop := goflux.Reject(errCannot), goflux.Drop(errCannot)
	exhausted, rejected := goflux.ReasonExhausted, goflux.ReasonRejected

	return []cell{
		{name: "nil", do: answers(nil), again: never},
		{name: "any other error", do: answers(errCannot), again: policy, last: exhausted},
		{name: "RetryAfter", do: answers(retry), again: 3 * time.Second, last: exhausted},
		{name: "Reject", do: answers(reject), again: never, reason: rejected, last: rejected},
		{name: "Drop", do: answers(drop), again: never},
		{name: "panic", do: func(context.Context, goflux.Message[string]) error { panic("oops") }, again: policy, last: exhausted},

		{name: "shutdown, nil", do: untilEnd(nil), stop: true, again: never},
		{name: "shutdown, an error", do: untilEnd(errCannot), stop: true, again: drainFor, last: exhausted},
		{name: "shutdown, RetryAfter", do: untilEnd(retry), stop: true, again: drainFor + 3*time.Second, last: exhausted},
		{name: "shutdown, Reject", do: untilEnd(reject), stop: true, again: never, reason: rejected, last: rejected},
		{name: "shutdown, Drop", do: untilEnd(drop), stop: true, again: never},

		// One delivery more, not two: another nak would make a third.
		{name: "lease lost, an error", do: untilEnd(errCannot), cut: true, again: lease, last: exhausted},
		{name: "lease lost, RetryAfter", do: untilEnd(retry), cut: true, again: lease, last: exhausted},

		{name: "maximum time, an error", do: untilEnd(errCannot), again: maximum + policy, last: exhausted},
	}
}

// manualCells are those for manual acks.
func manualCells() []cell {
	return []cell{
		{name: "no verb, nil", do: answers(nil), again: lease},
		{name: "no verb, an error", do: answers(errCannot), again: lease},
		{name: "no verb, Reject", do: answers(goflux.Reject(errCannot)), again: lease},
		{name: "no verb, Drop", do: answers(goflux.Drop(errCannot)), again: lease},
		{name: "no verb, RetryAfter", do: answers(goflux.RetryAfter(time.Second, nil)), again: lease},
		{name: "Ack and an error", do: settles(goflux.Message[string].Ack, errCannot), again: never},
		{name: "Term", do: settles(goflux.Message[string].Term, nil), again: never},
		{name: "Nak", do: settles(goflux.Message[string].Nak, nil), again: 0},
		{name: "NakWithDelay", do: settles(func(msg goflux.Message[string]) error { return msg.NakWithDelay(time.Second) }, nil), again: time.Second},
		{name: "panic", do: func(context.Context, goflux.Message[string]) error { panic("oops") }, again: policy, last: goflux.ReasonExhausted},
		{name: "Ack and a panic", do: func(_ context.Context, msg goflux.Message[string]) error {
			_ = msg.Ack()

			panic("oops")
		}, again: never},
		{name: "Nak and a panic", do: func(_ context.Context, msg goflux.Message[string]) error {
			_ = msg.NakWithDelay(time.Second)

			panic("oops")
		}, again: time.Second},
		{name: "shutdown", do: untilEnd(errCannot), stop: true, again: lease},
	}
}

func TestOutcomesTable(t *testing.T) {
	t.Parallel()

	for _, manual := range []bool{false, true} {
		cells, acks := automaticCells(), "automatic"
		if manual {
			cells, acks = manualCells(), "manual"
		}

		for _, c := range cells {
			for _, attempts := range []string{"attempts left", "last attempt"} {
				for _, letters := range []string{"dead letters", "no dead letters"} {
					t.Run(acks+"/"+c.name+"/"+attempts+"/"+letters, func(t *testing.T) {
						t.Parallel()
						synctest.Test(t, func(t *testing.T) {
							c.hold(t, manual, attempts == "last attempt", letters == "dead letters")
						})
					})
				}
			}
		}
	}
}

// hold holds the cell against what happens.
func (c cell) hold(t *testing.T, manual, last, letters bool) {
	t.Helper()

	opts := []memory.Option{memory.WithAckWait(lease)}
	if last {
		opts = append(opts, memory.WithMaxDeliver(1))
	}

	broker := inMemory(t, opts...)
	way, store := &cuttable{Transport: broker, cut: new(atomic.Bool)}, newMorgue()

	subOpts := []goflux.SubscriberOption{
		goflux.WithQueueGroup("workers"), goflux.WithRetryPolicy(goflux.ConstantRetry(policy)),
		goflux.WithDrainTimeout(drainFor), goflux.WithMaxHandlingTime(maximum), silent(),
	}
	if manual {
		subOpts = append(subOpts, goflux.WithManualAck())
	}

	if letters {
		subOpts = append(subOpts, goflux.WithDeadLetterPublisher(store, "dead"))
	}

	sub, err := goflux.NewSubscriber(way, raw.String(), subOpts...)
	if err != nil {
		t.Fatal(err)
	}

	var (
		deliveries []time.Time
		replica    func() error
	)

	first, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)

	handler := func(ctx context.Context, msg goflux.Message[string]) error {
		deliveries = append(deliveries, time.Now())

		if len(deliveries) > 1 {
			if manual {
				return msg.Ack()
			}

			return nil
		}

		way.cut.Store(c.cut)

		if c.stop {
			stop()

			replica = serveDead(t, sub, "orders", deliverTo(&deliveries, manual))
		}

		err := c.do(ctx, msg)
		way.cut.Store(false)

		return err
	}

	go func() { ended <- sub.Subscribe(first, "orders", handler) }()

	synctest.Wait()

	if _, err := broker.Publish(t.Context(), transport.Message{Subject: "orders", Data: []byte("one")}); err != nil {
		t.Fatal(err)
	}

	time.Sleep(time.Hour)
	stop()

	if err := <-ended; err != nil {
		t.Error(err)
	}

	if replica != nil {
		if err := replica(); err != nil {
			t.Error(err)
		}
	}

	c.check(t, last, letters, deliveries, store, broker.GivenUp())
}

// deliverTo is the handler of a replica.
func deliverTo(deliveries *[]time.Time, manual bool) goflux.Handler[string] {
	return func(_ context.Context, msg goflux.Message[string]) error {
		*deliveries = append(*deliveries, time.Now())

		if manual {
			return msg.Ack()
		}

		return nil
	}
}

func (c cell) check(t *testing.T, last, letters bool, deliveries []time.Time, store *morgue, givenUp uint64) {
	t.Helper()

	again, reason := c.again, c.reason
	if last {
		again, reason = never, c.last
	}

	switch {
	case again == never && len(deliveries) != 1, again != never && len(deliveries) != 2:
		t.Fatalf("%d deliveries, want another one after %v (-1 is never)", len(deliveries), again)
	case again != never:
		if got := deliveries[1].Sub(deliveries[0]); got != again {
			t.Errorf("it came again after %v, want %v", got, again)
		}
	}

	var got []string
	for _, d := range store.dead() {
		got = append(got, d.Reason)
	}

	var want []string
	if letters && reason != "" {
		want = []string{reason}
	}

	if !slices.Equal(got, want) {
		t.Errorf("dead letters %q, want %q", got, want)
	}

	// What would have come again on the last attempt and became no dead letter
	// is given up. Where the lease was lost, the broker does that by itself, at
	// the time at which the dead letter is stored.
	wantGivenUp := uint64(0)
	if last && c.again != never && len(want) == 0 {
		wantGivenUp = 1
	}

	if either := c.cut && len(want) > 0; givenUp != wantGivenUp && !either {
		t.Errorf("%d messages given up, want %d", givenUp, wantGivenUp)
	}
}

// cuttable is a transport whose way to the broker can be cut: then leases are not
// renewed, and nobody confirms that they were.
type cuttable struct {
	*memory.Transport

	cut *atomic.Bool
}

func (c *cuttable) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	sink := cfg.Sink
	cfg.Sink = func(d transport.Delivery) {
		d.Settler = cuttableSettler{d.Settler, c.cut}
		sink(d)
	}

	sub, err := c.Transport.Subscribe(ctx, cfg)

	return cuttableSubscription{sub, c.cut}, err
}

type cuttableSettler struct {
	transport.Settler

	cut *atomic.Bool
}

func (s cuttableSettler) Settle(ctx context.Context, token any, v transport.Verdict) error {
	if s.cut.Load() && v.Action == transport.Extend {
		return nil // nobody has heard it
	}

	return s.Settler.Settle(ctx, token, v)
}

type cuttableSubscription struct {
	transport.Subscription

	cut *atomic.Bool
}

func (s cuttableSubscription) Flush(ctx context.Context) error {
	if s.cut.Load() {
		return transport.ErrDisconnected
	}

	return s.Subscription.Flush(ctx)
}

// A handler that does not return is abandoned, and its message comes again when
// its lease runs out.
func TestAbandonedHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := inMemory(t, memory.WithAckWait(lease))

		sub, err := goflux.NewSubscriber(tr, raw.String(), goflux.WithQueueGroup("workers"), goflux.WithDrainTimeout(drainFor), silent())
		if err != nil {
			t.Fatal(err)
		}

		var deliveries []time.Time

		stuck, release := make(chan struct{}), make(chan struct{})
		stop := serveDead(t, sub, "orders", func(context.Context, goflux.Message[string]) error {
			deliveries = append(deliveries, time.Now())

			close(stuck)
			<-release

			return nil
		})

		synctest.Wait()

		if _, err := tr.Publish(t.Context(), transport.Message{Subject: "orders"}); err != nil {
			t.Fatal(err)
		}

		<-stuck

		if drain, ok := errors.AsType[*goflux.DrainError](stop()); !ok || drain.Abandoned != 1 {
			t.Errorf("got %v, want one abandoned message", drain)
		}

		if took := time.Since(deliveries[0]); took != drainFor+time.Second {
			t.Errorf("it stopped after %v, want the drain timeout and a second", took)
		}

		replica := serveDead(t, sub, "orders", deliverTo(&deliveries, false))

		time.Sleep(time.Hour)
		synctest.Wait()

		if len(deliveries) != 2 || deliveries[1].Sub(deliveries[0]) < lease {
			t.Errorf("delivered at %v, want again when its lease ran out", deliveries)
		}

		close(release)

		if err := replica(); err != nil {
			t.Error(err)
		}
	})
}
