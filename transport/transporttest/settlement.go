package transporttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// verbs are what a handler may say of a message.
var verbs = map[string]func(goflux.Message[string]) error{
	"ack":      goflux.Message[string].Ack,
	"ack sync": func(msg goflux.Message[string]) error { return msg.AckSync(context.Background()) },
	"nak":      goflux.Message[string].Nak,
	"nak with delay": func(msg goflux.Message[string]) error {
		return msg.NakWithDelay(time.Millisecond)
	},
	"term":        goflux.Message[string].Term,
	"in progress": goflux.Message[string].InProgress,
}

func nakIsRedelivered(e *env) {
	b := e.start(Config{AckWait: leased})
	t := b.open()
	subject := b.subject("n")

	if !b.has(transport.Acks) {
		settlingIsUnsupported(e, t, subject)

		return
	}

	var (
		guard = b.sentinel()
		got   list[goflux.Message[string]]
	)

	guard.manual = true
	header := goflux.Header{"X-Kept": {"1", "2"}}

	e.subscribe(t, subject, guard.guard(func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg)

		// Twice, so that what was redelivered is redelivered, too.
		if got.len() <= 2 {
			return msg.Nak()
		}

		return msg.Ack()
	}), goflux.WithManualAck())

	e.ok(e.publisher(t).Publish(goflux.WithHeader(e.within(), header), subject, "again"), "publish")

	want := 1
	if b.has(transport.Redelivery) {
		want = 3
	}

	got.wait(e, want, "the deliveries of a naked message")
	guard.behind(t, subject)

	for i, msg := range got.all() {
		if msg.Payload != "again" || msg.Subject != subject || !slices.Equal(msg.Header["X-Kept"], header["X-Kept"]) {
			e.Errorf("delivery %d is %+v, want what was sent", i+1, msg)
		}
	}

	if n := got.len(); n != want {
		e.Errorf("a message that was naked twice and then acked was delivered %d times, want %d", n, want)
	}
}

// settlingIsUnsupported is what there is to say of a transport without acks.
func settlingIsUnsupported(e *env, t transport.Transport, subject string) {
	for name, opt := range map[string]goflux.SubscriberOption{
		"WithManualAck": goflux.WithManualAck(),
		"WithAckSync":   goflux.WithAckSync(),
	} {
		_, err := goflux.NewSubscriber(t, text, opt)
		e.is(err, goflux.ErrUnsupported, name+" without acks")

		if err != nil && !strings.Contains(err.Error(), name) {
			e.Errorf("the error %q does not name %s", err, name)
		}
	}

	var got list[string]

	e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		for name, verb := range verbs {
			e.is(verb(msg), goflux.ErrUnsupported, name+" without acks")
		}

		got.add(msg.Payload)

		return nil
	})
	e.publish(t, subject, "once", "behind")
	sameOrder(e, "the subscription", got.wait(e, 2, "two messages"), []string{"once", "behind"})
}

func failureIsRedelivered(e *env) {
	b := e.start(Config{AckWait: leased})
	t := b.open()
	subject := b.subject("f")
	guard := b.sentinel()

	var got list[string]

	opts := []goflux.SubscriberOption{goflux.WithRetryPolicy(goflux.ConstantRetry(0))}

	want := []string{"again", "again", "again"}
	if !b.has(transport.Redelivery) {
		_, err := goflux.NewSubscriber(t, text, opts...)
		e.is(err, goflux.ErrUnsupported, "WithRetryPolicy without redelivery")

		opts, want = nil, want[:1]
	}

	e.subscribe(t, subject, guard.guard(func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		if got.len() < 3 {
			return errors.New("not yet")
		}

		return nil
	}), opts...)

	e.publish(t, subject, "again")
	got.wait(e, len(want), "the deliveries of a failing message")
	guard.behind(t, subject)
	sameOrder(e, "a handler that fails twice", got.all(), want)
}

func delaysAreHonoured(e *env) {
	const (
		delay     = 400 * time.Millisecond
		tolerance = delay / 5
	)

	b := e.start(Config{})
	t := b.open()

	if !b.has(transport.DelayedNak) {
		delaysAreIgnored(e, b, t)

		return
	}

	for name, way := range map[string]struct {
		handler textHandler
		opts    []goflux.SubscriberOption
	}{
		"nak-with-delay": {
			func(_ context.Context, msg goflux.Message[string]) error { return msg.NakWithDelay(delay) },
			[]goflux.SubscriberOption{goflux.WithManualAck()},
		},
		"retry-after": {
			func(context.Context, goflux.Message[string]) error { return goflux.RetryAfter(delay, nil) }, nil,
		},
		"retry-policy": {
			func(context.Context, goflux.Message[string]) error { return errors.New("fails") },
			[]goflux.SubscriberOption{goflux.WithRetryPolicy(goflux.ConstantRetry(delay))},
		},
	} {
		var (
			subject = b.subject(name)
			times   list[time.Time]
			others  list[string]
		)

		e.subscribe(t, subject, func(ctx context.Context, msg goflux.Message[string]) error {
			if msg.Payload != "delayed" {
				others.add(msg.Payload)

				// It is of use only with manual acks.
				e.check(msg.Ack(), "ack")

				return nil
			}

			// The clock of the delay starts with the settlement, which comes
			// after this.
			times.add(time.Now())

			switch times.len() {
			case 1:
				return way.handler(ctx, msg)
			default:
				return msg.Ack()
			}
		}, way.opts...)

		e.publish(t, subject, "delayed", "other")

		// What is delayed holds up nobody.
		others.wait(e, 1, "the message behind the delayed one")

		if n := times.len(); n != 1 {
			e.Errorf("%s: %d deliveries before the message behind, want 1", name, n)
		}

		at := times.wait(e, 2, name+": the delayed delivery")
		if took := at[1].Sub(at[0]); took < delay-tolerance {
			e.Errorf("%s: redelivered after %v, want %v", name, took, delay)
		}
	}
}

// delaysAreIgnored is what there is to say of a transport that cannot wait with
// a redelivery: a message whose delay is never over comes back at once, or not
// at all where nothing does.
func delaysAreIgnored(e *env, b *broker, t transport.Transport) {
	var got list[string]

	e.subscribe(t, b.subject("d"), func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		if got.len() == 1 {
			return goflux.RetryAfter(time.Hour, nil)
		}

		return nil
	})
	e.publish(t, b.subject("d"), "delayed")

	want := []string{"delayed", "behind"}
	if b.has(transport.Redelivery) {
		want = []string{"delayed", "delayed", "behind"}
		got.wait(e, 2, "a redelivery at once, without the capability to delay it")
	}

	e.publish(t, b.subject("d"), "behind")
	sameOrder(e, "the subscription", got.wait(e, len(want), "the message behind"), want)
}

func attemptsAreCounted(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("a")

	var (
		got   list[int]
		asked list[int] // what the retry policy was asked
		other list[int]
		opts  []goflux.SubscriberOption
	)

	if b.has(transport.Redelivery) {
		opts = append(opts, goflux.WithRetryPolicy(func(attempt int) time.Duration {
			asked.add(attempt)

			return 0
		}))
	}

	e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		if msg.Payload == "other" {
			other.add(msg.Attempt())

			return nil
		}

		got.add(msg.Attempt())

		if got.len() < 4 {
			return errors.New("again")
		}

		return nil
	}, opts...)
	e.publish(t, subject, "again", "other")

	first := 0
	if b.has(transport.Attempts) {
		first = 1
	}

	sameOrder(e, "the attempts of a message that does not fail", other.wait(e, 1, "the other message"), []int{first})

	if !b.has(transport.Redelivery) {
		sameOrder(e, "the attempts", got.all(), []int{first})

		return
	}

	want := []int{1, 2, 3, 4}

	attempts := got.wait(e, 4, "four attempts")
	if !b.has(transport.Attempts) {
		sameOrder(e, "the attempts without the capability", attempts, []int{0, 0, 0, 0})

		return
	}

	sameOrder(e, "the attempts", attempts, want)
	sameOrder(e, "the retry policy's attempts", asked.all(), want[:3])
}

func attemptsAreLimited(e *env) {
	const limit = 3

	b := e.start(Config{AckWait: leased, MaxDeliver: limit})
	t := b.open()
	subject := b.subject("a")

	want := limit
	if !b.has(transport.Redelivery) {
		want = 1 // that there is no redelivery is a limit of one
	}

	if got := e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: func(transport.Delivery) {}}).Info().MaxDeliver; got != want {
		e.Errorf("Info().MaxDeliver is %d, want %d", got, want)
	}

	var (
		guard = b.sentinel()
		got   list[string]
	)

	e.subscribe(t, subject, guard.guard(func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return goflux.RetryAfter(0, nil)
	}))
	e.publish(t, subject, "fails")
	got.wait(e, want, "all attempts")
	guard.behind(t, subject)

	if n := got.len(); n != want {
		e.Errorf("a message that always fails was delivered %d times, want %d", n, want)
	}
}

func termIsFinal(e *env) {
	b := e.start(Config{AckWait: leased})
	t := b.open()

	var (
		manual, auto   list[string]
		guardM, guardA = b.sentinel(), b.sentinel()
	)

	if b.has(transport.Acks) {
		guardM.manual = true

		e.subscribe(t, b.subject("manual"), guardM.guard(func(_ context.Context, msg goflux.Message[string]) error {
			manual.add(msg.Payload)

			return msg.Term()
		}), goflux.WithManualAck())
		e.publish(t, b.subject("manual"), "term", sentinelText)
	}

	e.subscribe(t, b.subject("auto"), guardA.guard(func(_ context.Context, msg goflux.Message[string]) error {
		auto.add(msg.Payload)

		if msg.Payload == "reject" {
			return goflux.Reject(errors.New("never"))
		}

		return goflux.Drop(errors.New("useless"))
	}))
	e.publish(t, b.subject("auto"), "reject", "drop")
	guardA.behind(t, b.subject("auto"))
	sameOrder(e, "the subscription that rejects", auto.all(), []string{"reject", "drop"})

	if b.has(transport.Acks) {
		guardM.await()
		sameOrder(e, "the subscription that terminates", manual.all(), []string{"term"})
	}
}

func leasesExpire(e *env) {
	b := e.start(Config{AckWait: leased})
	t := b.open()
	subject := b.subject("l")

	var got list[transport.Delivery]

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: groupIf(b), Sink: got.add})
	s.Request(2)
	e.publish(t, subject, "unsettled")

	want := leased
	if !b.has(transport.Leases) {
		want = 0
	}

	if w := s.Info().AckWait; w != want {
		e.Errorf("Info().AckWait is %v, want %v", w, want)
	}

	d := got.wait(e, 1, "the first delivery")[0]

	if !b.has(transport.Leases) {
		// Nothing brings it back: what is sent behind comes next, and alone.
		e.publish(t, subject, "behind")
		sameOrder(e, "the subscription", payloads(got.wait(e, 2, "the message behind")), []string{"unsettled", "behind"})

		return
	}

	again := got.wait(e, 2, "the delivery after the lease ran out")[1]
	if string(again.Data) != "unsettled" {
		e.Errorf("after the lease ran out %q was delivered", again.Data)
	}

	if b.has(transport.Attempts) {
		if n := again.Settler.Metadata(again.Token).Attempt; n != 2 {
			e.Errorf("the delivery after the lease ran out is attempt %d, want 2", n)
		}
	}

	e.settle(again, transport.Ack)

	// The one who lost the lease may say what it likes.
	_ = d.Settler.Settle(e.within(), d.Token, transport.Verdict{Action: transport.Ack})

	// Another member gets what a member that is gone had not settled.
	if b.has(transport.Groups) {
		s.Request(1)
		e.publish(t, subject, "orphan")
		got.wait(e, 3, "a message that its receiver does not settle")
		e.ok(s.Close(e.within()), "close")

		var heir list[transport.Delivery]

		e.attach(b.open(), transport.SubscribeConfig{Subject: subject, Group: workers, Sink: heir.add}).Request(1)

		d := heir.wait(e, 1, "the message of the member that is gone")[0]
		if string(d.Data) != "orphan" {
			e.Errorf("the other member got %q, want the orphan", d.Data)
		}

		e.settle(d, transport.Ack)
	}
}

// groupIf returns the name of a group where there are groups.
func groupIf(b *broker) string {
	if b.has(transport.Groups) {
		return workers
	}

	return ""
}

func payloads(ds []transport.Delivery) []string {
	s := make([]string, len(ds))
	for i, d := range ds {
		s[i] = string(d.Data)
	}

	return s
}

func leasesAreExtended(e *env) {
	b := e.start(Config{AckWait: leased})
	t := b.open()
	subject := b.subject("l")

	var got list[transport.Delivery]

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: got.add})
	s.Request(10)
	e.publish(t, subject, "slow")

	d := got.wait(e, 1, "the first delivery")[0]
	extend := func() error {
		return d.Settler.Settle(e.within(), d.Token, transport.Verdict{Action: transport.Extend})
	}

	if !b.has(transport.Leases) {
		if b.has(transport.Acks) {
			e.ok(extend(), "extend without leases")
		} else {
			e.is(extend(), transport.ErrUnsupported, "extend without acks")
		}

		return
	}

	heartbeat := time.NewTicker(leased / 4)
	defer heartbeat.Stop()

	for range 9 { // more than two leases
		<-heartbeat.C
		e.ok(extend(), "extend")
		e.ok(s.Flush(e.within()), "flush")
	}

	e.settle(d, transport.Ack)
	e.publish(t, subject, "behind")
	sameOrder(e, "the subscription", payloads(got.wait(e, 2, "the message behind")), []string{"slow", "behind"})
	e.settle(got.all()[1], transport.Ack)
}

func handlersKeepLeases(e *env) {
	b := e.start(Config{AckWait: leased})
	t := b.open()

	// Short without leases: there is nothing to outlast.
	lease := leased
	if !b.has(transport.Leases) {
		lease = leased / 100
	}

	// A handler that takes longer than its lease.
	var (
		slow      list[string]
		guardSlow = b.sentinel()
	)

	e.subscribe(t, b.subject("slow"), guardSlow.guard(func(ctx context.Context, msg goflux.Message[string]) error {
		slow.add(msg.Payload)

		select {
		case <-time.After(2 * lease):
		case <-ctx.Done():
			e.Errorf("the context of a slow handler ended: %v", context.Cause(ctx))
		}

		return nil
	}))
	e.publish(t, b.subject("slow"), "slow")

	// Messages that wait for their handler longer than their lease, behind some
	// that went quickly.
	const waiting = 15

	var (
		many      list[string]
		guardMany = b.sentinel()
		quick     = numbers(100)
		published = make(chan struct{})
	)

	e.subscribe(t, b.subject("many"), guardMany.guard(func(_ context.Context, msg goflux.Message[string]) error {
		many.add(msg.Payload)

		switch {
		case strings.HasPrefix(msg.Payload, "slow"):
			<-time.After(lease / 10)
		case msg.Payload == "50" && !e.happens(published): // the rest is fetched ahead
			e.Error("the handler is not released")
		}

		return nil
	}))
	e.publish(t, b.subject("many"), quick...)
	close(published)
	many.wait(e, len(quick), "the quick messages")

	want := slices.Clone(quick)

	for i := range waiting {
		want = append(want, fmt.Sprintf("slow %d", i))
	}

	e.publish(t, b.subject("many"), want[len(quick):]...)

	// They are behind what takes long.
	e.publish(t, b.subject("slow"), sentinelText)
	e.publish(t, b.subject("many"), sentinelText)

	slow.wait(e, 1, "the slow message")
	many.wait(e, len(want), "the messages that wait")
	guardSlow.await()
	guardMany.await()
	eachOnce(e, "the slow handler", slow.all(), []string{"slow"})
	eachOnce(e, "the handler of many", many.all(), want)
}

func secondSettleIsHarmless(e *env) {
	b := e.start(Config{AckWait: leased})
	t := b.open()
	subject := b.subject("s")

	var got list[transport.Delivery]

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: got.add})
	s.Request(100)

	settle := func(d transport.Delivery, a transport.Action) error {
		return d.Settler.Settle(e.within(), d.Token, transport.Verdict{Action: a})
	}
	actions := []transport.Action{transport.Ack, transport.AckSync, transport.Nak, transport.Term, transport.Extend}

	if !b.has(transport.Acks) {
		e.publish(t, subject, "once")

		d := got.wait(e, 1, "a message")[0]
		for _, a := range actions {
			e.is(settle(d, a), transport.ErrUnsupported, a.String()+" without acks")
		}

		return
	}

	// After the first verdict all others return ErrSettled.
	finals := []transport.Action{transport.Ack, transport.AckSync, transport.Term}

	for i, first := range finals {
		e.publish(t, subject, first.String())

		d := got.wait(e, i+1, "a message")[i]
		e.ok(settle(d, transport.Extend), "extend, which is no verdict")
		e.ok(settle(d, first), first.String())

		for _, second := range actions {
			e.is(settle(d, second), transport.ErrSettled, second.String()+" after "+first.String())
		}
	}

	// So do all but one of those that settle at once.
	e.publish(t, subject, "race")

	d := got.wait(e, len(finals)+1, "a message")[len(finals)]

	var (
		racing sync.WaitGroup
		won    atomic.Int32
	)

	for i := range 20 {
		racing.Go(func() {
			if err := settle(d, finals[i%len(finals)]); err == nil {
				won.Add(1)
			} else {
				e.is(err, transport.ErrSettled, "settle in a race")
			}
		})
	}

	racing.Wait()

	if n := won.Load(); n != 1 {
		e.Errorf("of 20 that settled at once %d succeeded, want 1", n)
	}

	// A nak stands: what comes after it does not take it back.
	if b.has(transport.Redelivery) {
		e.publish(t, subject, "nak")

		d := got.wait(e, len(finals)+2, "a message")[len(finals)+1]
		e.ok(settle(d, transport.Nak), "nak")
		e.is(settle(d, transport.Ack), transport.ErrSettled, "ack after nak")
		e.is(settle(d, transport.Term), transport.ErrSettled, "term after nak")

		d = got.wait(e, len(finals)+3, "the redelivery")[len(finals)+2]
		e.ok(settle(d, transport.Ack), "ack of the redelivery")
	}

	e.ok(s.Flush(e.within()), "flush")

	// Nothing of it comes back: not before one that is left unsettled does.
	before := got.len()
	e.publish(t, subject, "behind")

	behind := got.wait(e, before+1, "the message behind")[before:]
	if b.has(transport.Leases) {
		behind = got.wait(e, before+2, "the message behind, again")[before:]
	}

	for _, d := range behind {
		if string(d.Data) != "behind" {
			e.Errorf("%q was settled and delivered again", d.Data)
		}
	}

	e.ok(settle(behind[len(behind)-1], transport.Ack), "ack")
	secondVerbIsHarmless(e, t, b.subject("typed"))
}

// secondVerbIsHarmless is the same through the verbs of a message: the handler's
// own verdict stands, whatever its error says.
func secondVerbIsHarmless(e *env, t transport.Transport, subject string) {
	var got list[string]

	e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		if msg.Payload == "behind" {
			return nil
		}

		e.check(msg.Ack(), "ack")

		for name, verb := range verbs {
			e.is(verb(msg), goflux.ErrSettled, name+" after ack")
		}

		return errors.New("too late")
	})
	e.publish(t, subject, "once", "behind")
	sameOrder(e, "a handler that acks and fails", got.wait(e, 2, "the message behind"), []string{"once", "behind"})
}

func failuresDoNotStopTheRest(e *env) {
	const subscribers, failures = 3, 100

	b := e.start(Config{})
	subject := b.subject("f")
	want := numbers(failures + 50)

	var (
		handled [subscribers]list[string]
		opts    []goflux.SubscriberOption
	)

	if b.has(transport.Redelivery) {
		opts = append(opts, goflux.WithRetryPolicy(goflux.ConstantRetry(time.Millisecond)))
	}

	for i := range subscribers {
		var calls atomic.Int32

		e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
			switch n := calls.Add(1); {
			case n > failures:
				handled[i].add(msg.Payload)

				return nil
			case n%2 == 0:
				panic("the handler is broken") //nolint:forbidigo // what the item is about
			default:
				return errors.New("fails")
			}
		}, opts...)
	}

	e.publish(b.open(), subject, want...)

	if !b.has(transport.Redelivery) {
		want = want[failures:]
	}

	for i := range subscribers {
		eachOnce(e, fmt.Sprintf("subscriber %d", i), handled[i].wait(e, len(want), "the rest"), want)
	}
}
