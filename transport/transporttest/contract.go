package transporttest

import (
	"context"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// send publishes texts through the contract.
func (e *env) send(t transport.Publisher, subject string, texts ...string) {
	e.Helper()

	for _, s := range texts {
		_, err := t.Publish(e.within(), transport.Message{Subject: subject, Data: []byte(s)})
		e.ok(err, "publish "+s)
	}
}

// settleIf settles where there are acks.
func (b *broker) settleIf(ds []transport.Delivery, a transport.Action) {
	b.e.Helper()

	if b.has(transport.Acks) {
		for _, d := range ds {
			b.e.settle(d, a)
		}
	}
}

func creditIsNeverExceeded(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("c")
	want := numbers(20)

	var got list[transport.Delivery]

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: got.add})

	// Once with messages that wait for credit, once with credit that waits.
	e.send(t, subject, want[:10]...)

	if n := got.len(); n != 0 {
		e.Errorf("%d deliveries without credit", n)
	}

	s.Request(0)
	s.Request(-5)
	s.Request(2)
	s.Request(1)
	got.wait(e, 3, "what was requested")
	b.settleIf(got.all(), transport.Ack)

	// When Pause returns, all that was on its way has arrived.
	e.ok(s.Pause(e.within()), "pause")

	if n := got.len(); n != 3 {
		e.Errorf("%d deliveries for a credit of 3", n)
	}

	s.Request(12)
	got.wait(e, 10, "what waited for credit")
	e.send(t, subject, want[10:]...)
	got.wait(e, 15, "what credit waited for")
	e.ok(s.Pause(e.within()), "pause")
	sameOrder(e, "a credit of 15", payloads(got.all()), want[:15])

	s.Request(5)
	sameOrder(e, "a credit of 20", payloads(got.wait(e, 20, "the rest")), want)
	b.settleIf(got.all()[3:], transport.Ack)
}

func pauseTakesCreditBack(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("p")

	var got, other list[transport.Delivery]

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: groupIf(b), Sink: got.add})
	s.Request(100)
	e.send(t, subject, "one")
	got.wait(e, 1, "a message")

	for range 2 { // a second time there is nothing to take back
		e.ok(s.Pause(e.within()), "pause")
	}

	e.send(t, subject, "two")

	// The broker keeps the message for others.
	if b.has(transport.Groups, transport.Redelivery) {
		o := e.attach(b.open(), transport.SubscribeConfig{Subject: subject, Group: workers, Sink: other.add})
		o.Request(1)
		sameOrder(e, "the other member", payloads(other.wait(e, 1, "a message for the other member")), []string{"two"})
		b.settleIf(other.all(), transport.Ack)
		e.ok(o.Close(e.within()), "close")
	}

	if n := got.len(); n != 1 {
		e.Errorf("%d deliveries, and credit was taken back after the first", n)
	}

	want := []string{"one", "two", "three"}
	if other.len() > 0 {
		want = []string{"one", "three"}
	}

	e.send(t, subject, "three")
	s.Request(2)
	sameOrder(e, "the subscription", payloads(got.wait(e, len(want), "a message after the pause")), want)
	b.settleIf(got.all(), transport.Ack)
}

func closeHandsOver(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("c")
	want := numbers(10)

	var got, next, witness list[transport.Delivery]

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: groupIf(b), Sink: got.add})
	s.Request(3)
	e.send(t, subject, want...)
	got.wait(e, 3, "what was requested")
	e.ok(s.Close(e.within()), "close")

	atClose := payloads(got.all())

	if b.has(transport.Redelivery) {
		// The rest is still the broker's, and what was delivered can be settled.
		sameOrder(e, "a subscription with a credit of 3", atClose, want[:3])
		b.settleIf(got.all()[:1], transport.Ack)
		b.settleIf(got.all()[1:], transport.Nak)
	} else {
		sameOrder(e, "a subscription that nobody comes after", atClose, want)
	}

	// Nothing arrives after Close, whatever is asked for.
	s.Request(10)
	e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: witness.add}).Request(1000)
	e.send(t, subject, "late")
	witness.until(e, "the witness to see what was sent after", func(ds []transport.Delivery) bool {
		return slices.Contains(payloads(ds), "late")
	})
	b.settleIf(witness.all(), transport.Ack)
	e.ok(s.Close(e.within()), "close again")

	if n := got.len(); n != len(atClose) {
		e.Errorf("%d deliveries after Close", n-len(atClose))
	}

	if b.has(transport.Durable, transport.Redelivery) {
		heir := e.attach(b.open(), transport.SubscribeConfig{Subject: subject, Group: workers, Sink: next.add})
		heir.Request(100)

		rest := append(slices.Clone(want[1:]), "late")
		eachOnce(e, "the next member", payloads(next.wait(e, len(rest), "what was left")), rest)
		b.settleIf(next.all(), transport.Ack)
	}
}

func flushedSettlements(e *env) {
	b := e.start(Config{AckWait: leased})
	t := b.open()
	subject := b.subject("f")

	var got, next list[transport.Delivery]

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: groupIf(b), Sink: got.add})
	e.ok(s.Flush(e.within()), "flush with nothing to flush")
	s.Request(10)
	e.send(t, subject, numbers(10)...)
	got.wait(e, 10, "all messages")
	b.settleIf(got.all()[:9], transport.Ack)
	e.ok(s.Flush(e.within()), "flush")
	e.ok(t.Close(), "close the transport at once")

	if !b.has(transport.Leases, transport.Durable) || b.single() {
		return // nothing is left of it that could tell
	}

	// What was settled and flushed stays settled, though the client is gone.
	e.attach(b.open(), transport.SubscribeConfig{Subject: subject, Group: workers, Sink: next.add}).Request(100)

	last := next.wait(e, 1, "the one message that was not settled")
	sameOrder(e, "the next member", payloads(last), []string{"9"})
	b.settleIf(last, transport.Ack)
}

func sinkIsSerial(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("s")
	messages := e.n(1000, 300)

	var (
		got    list[transport.Delivery]
		within atomic.Bool
	)

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: func(d transport.Delivery) {
		if within.Swap(true) {
			e.Error("the sink is called while it runs")
		}

		runtime.Gosched()
		got.add(d)
		within.Store(false)
	}})

	var busy sync.WaitGroup

	for range 4 {
		busy.Go(func() {
			for range messages { // twice as much as needed: some is redelivered
				s.Request(1)
			}
		})
		busy.Go(func() {
			for i := range messages / 4 {
				_, err := t.Publish(e.Context(), transport.Message{Subject: subject, Data: []byte(strconv.Itoa(i))})
				e.check(err, "publish")
			}
		})
	}

	busy.Wait()
	got.wait(e, messages/4*4, "all messages")

	if b.has(transport.Redelivery) {
		// Naks from many goroutines make deliveries, too.
		first := got.all()

		for i := range 4 {
			busy.Go(func() {
				for j := i; j < len(first); j += 4 {
					e.check(first[j].Settler.Settle(e.Context(), first[j].Token, transport.Verdict{Action: transport.Nak}), "nak")
				}
			})
		}

		busy.Wait()
		b.settleIf(got.wait(e, 2*len(first), "all redeliveries")[len(first):], transport.Ack)
	}
}

func buffersBelong(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("b")

	var one, two list[transport.Delivery]

	for _, l := range []*list[transport.Delivery]{&one, &two} {
		e.attach(t, transport.SubscribeConfig{Subject: subject, Sink: l.add}).Request(10)
	}

	// The publisher's are its own again when Publish has returned.
	data, header := []byte("data"), transport.Header{"X-Key": {"value"}}

	_, err := t.Publish(e.within(), transport.Message{Subject: subject, Header: header, Data: data})
	e.ok(err, "publish")

	copy(data, "DIRT")
	header["X-Key"][0] = "dirt"
	header.Set("X-Other", "dirt")

	whole := func(d transport.Delivery, what string) {
		e.Helper()

		if string(d.Data) != "data" || len(d.Header) != 1 || d.Header.Get("X-Key") != "value" {
			e.Errorf("%s has %q and %v, want what was published", what, d.Data, d.Header)
		}
	}

	// A receiver's are its own: neither another one nor the next delivery sees
	// what it does with them.
	d := one.wait(e, 1, "a message")[0]
	whole(d, "the first receiver")
	copy(d.Data, "DIRT")
	d.Header.Set("X-Key", "dirt")
	d.Header.Set("X-Other", "dirt")

	whole(two.wait(e, 1, "a message")[0], "the second receiver")

	if b.has(transport.Redelivery) {
		e.settle(d, transport.Nak)

		again := one.wait(e, 2, "the redelivery")[1]
		whole(again, "the redelivery")
		e.settle(again, transport.Ack)
	}

	b.settleIf(two.all(), transport.Ack)
}

func capabilitiesAndInfo(e *env) {
	const ackWait, maxDeliver = 2 * leased, 7

	b := e.start(Config{AckWait: ackWait, MaxDeliver: maxDeliver})
	t := b.open()

	if other := b.open(); other.Capabilities() != b.caps || t.Capabilities() != b.caps {
		e.Errorf("the capabilities change: %v, %v, %v", b.caps, t.Capabilities(), other.Capabilities())
	}

	// What does not go without something else.
	for _, rule := range []struct{ has, needs transport.Capability }{
		{transport.Redelivery, transport.Acks},
		{transport.DelayedNak, transport.Redelivery},
		{transport.Leases, transport.Redelivery},
		{transport.Durable, transport.Groups},
		{transport.Fetching, transport.Durable},
		{transport.Deduplication, transport.Receipts},
		{transport.ExpectedSequence, transport.Receipts},
		{transport.AtomicBatches, transport.Receipts},
	} {
		if b.has(rule.has) && !b.has(rule.needs) {
			e.Errorf("the transport has %v without %v", rule.has, rule.needs)
		}
	}

	// What is claimed is implemented.
	for c, does := range map[transport.Capability]bool{
		transport.RequestReply:  implements[transport.RequestReplier](t),
		transport.AtomicBatches: implements[transport.AtomicPublisher](t),
	} {
		if b.has(c) && !does {
			e.Errorf("the transport claims %v and does not implement it", c)
		}
	}

	filter := b.subject("i", "*")
	s := e.attach(t, transport.SubscribeConfig{Subject: filter, Group: groupIf(b), Sink: func(transport.Delivery) {}})
	info := s.Info()

	if info.Filter != filter {
		e.Errorf("Info().Filter is %q, want %q", info.Filter, filter)
	}

	wantWait, wantDeliver := ackWait, maxDeliver
	if !b.has(transport.Leases) {
		wantWait = 0
	}

	if !b.has(transport.Redelivery) {
		wantDeliver = 1
	}

	if info.AckWait != wantWait || info.MaxDeliver != wantDeliver {
		e.Errorf("Info() has the ack wait %v and %d deliveries, want %v and %d", info.AckWait, info.MaxDeliver, wantWait, wantDeliver)
	}

	if s.Err() != nil {
		e.Errorf("the error of a subscription that runs is %v", s.Err())
	}

	// A subscription never ends because its owner closes it.
	e.ok(s.Close(e.within()), "close")

	select {
	case <-s.Done():
		e.Errorf("Done is closed by Close, with %v; it says that a subscription ended by itself", s.Err())
	default:
	}

	// Without capability the option is refused, and says what is missing.
	for name, row := range map[string]struct {
		opt   goflux.SubscriberOption
		needs transport.Capability
	}{
		"WithQueueGroup":  {goflux.WithQueueGroup("g"), transport.Groups},
		"WithManualAck":   {goflux.WithManualAck(), transport.Acks},
		"WithAckSync":     {goflux.WithAckSync(), transport.Acks},
		"WithRetryPolicy": {goflux.WithRetryPolicy(goflux.DefaultRetryPolicy), transport.Redelivery},
		"WithStrictOrder": {goflux.WithStrictOrder(), transport.Redelivery},
	} {
		_, err := goflux.NewSubscriber(t, text, row.opt)
		if b.has(row.needs) {
			e.check(err, name)
		} else {
			e.is(err, goflux.ErrUnsupported, name+" without "+row.needs.String())
		}
	}

	_, err := goflux.NewConsumer(t, text, "s", goflux.WithQueueGroup("g"))
	if b.has(transport.Fetching) {
		e.check(err, "a consumer")
	} else {
		e.is(err, goflux.ErrUnsupported, "a consumer without fetching")
	}
}

func implements[I any](v any) bool {
	_, ok := v.(I)

	return ok
}

// fetchable starts a broker with a group that keeps what is published from here
// on, and returns a client and a consumer; nil where nothing can be fetched, and
// that was asserted.
func (e *env) fetchable(cfg Config) (b *broker, t transport.Transport, c *goflux.BoundConsumer[string], subject string) {
	e.Helper()

	b = e.start(cfg)
	t = b.open()
	subject = b.subject("f")

	if !b.has(transport.Fetching) {
		_, err := goflux.NewConsumer(t, text, subject, goflux.WithQueueGroup(fetchers))
		e.is(err, goflux.ErrUnsupported, "a consumer without fetching")

		return b, t, nil, ""
	}

	s := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: fetchers, Sink: func(transport.Delivery) {}})
	e.ok(s.Close(e.within()), "close")

	return b, t, e.consumer(t, subject, fetchers), subject
}

// fetch returns the payloads of a fetch.
func (e *env) fetch(c *goflux.BoundConsumer[string], n int) (msgs []goflux.Message[string], got []string) {
	e.Helper()

	msgs, err := c.Fetch(e.within(), n)
	e.ok(err, "fetch")

	if len(msgs) == 0 || len(msgs) > n {
		e.Errorf("fetched %d messages, want 1 to %d", len(msgs), n)
	}

	for _, msg := range msgs {
		got = append(got, msg.Payload)
	}

	return msgs, got
}

func fetchReturns(e *env) {
	b, t, c, subject := e.fetchable(Config{AckWait: leased})
	if c == nil {
		return
	}

	want := numbers(100)
	e.publish(t, subject, want...)

	// No more than asked for, in order, and what is there without waiting.
	var all []string

	for len(all) < len(want) {
		msgs, got := e.fetch(c, 30)
		all = append(all, got...)

		for _, msg := range msgs {
			if b.has(transport.Acks) {
				e.check(msg.Ack(), "ack")
				e.is(msg.Nak(), goflux.ErrSettled, "nak after ack")
			} else {
				e.is(msg.Ack(), goflux.ErrUnsupported, "ack without acks")
			}
		}
	}

	sameOrder(e, "the consumer", all, want)

	if !b.has(transport.Leases) {
		return // nothing comes back
	}

	// It blocks until there is one.
	arrived := make(chan struct{})

	go func() {
		defer close(arrived)

		msgs, err := c.Fetch(e.Context(), 10)
		if err != nil || len(msgs) != 1 || msgs[0].Payload != "awaited" {
			e.Errorf("fetched %v and %v, want the one that was awaited", msgs, err)

			return
		}

		e.check(msgs[0].Nak(), "nak")
	}()

	e.publish(t, subject, "awaited")
	e.await(arrived, "a blocked fetch to return")

	// What was naked comes again, and so does what nobody settled.
	for attempt := 2; attempt <= 3; attempt++ {
		msgs, got := e.fetch(c, 10)
		sameOrder(e, "the fetch after a nak or an expired lease", got, []string{"awaited"})

		if n := msgs[0].Attempt(); n != attempt {
			e.Errorf("attempt %d, want %d", n, attempt)
		}

		if attempt == 3 {
			e.check(msgs[0].AckSync(e.within()), "ack sync")
		}
	}

	// Fetches at once share the messages.
	e.publish(t, subject, want...)

	var (
		fetching sync.WaitGroup
		shared   list[string]
	)

	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()

	for range 4 {
		fetching.Go(func() {
			for {
				msgs, err := c.Fetch(ctx, 7)
				if err != nil {
					e.is(err, context.Canceled, "fetch")

					return
				}

				for _, msg := range msgs {
					e.check(msg.Ack(), "ack")
					shared.add(msg.Payload)
				}
			}
		})
	}

	eachOnce(e, "the fetches", shared.wait(e, len(want), "all messages"), want)
	cancel()
	fetching.Wait()
}

func fetchSkipsUndecodable(e *env) {
	_, t, c, subject := e.fetchable(Config{AckWait: leased})
	if c == nil {
		return
	}

	// They do not end the wait.
	fetched := make(chan struct{})

	go func() {
		defer close(fetched)

		msgs, err := c.Fetch(e.Context(), 1)
		if err != nil || len(msgs) != 1 || msgs[0].Payload != "good" {
			e.Errorf("fetched %v and %v, want the one that decodes", msgs, err)

			return
		}

		e.check(msgs[0].Ack(), "ack")
	}()

	e.publish(t, subject, undecodable, explosive, "good")
	e.await(fetched, "a fetch behind messages that do not decode")

	// And they are gone: what is left unsettled behind them comes back alone.
	e.publish(t, subject, "behind")

	for attempt := 1; attempt <= 2; attempt++ {
		msgs, got := e.fetch(c, 10)
		sameOrder(e, "the fetch", got, []string{"behind"})

		if attempt == 2 {
			e.check(msgs[0].Ack(), "ack")
		}
	}
}

func fetchBadArguments(e *env) {
	b, t, c, subject := e.fetchable(Config{})
	if c == nil {
		return
	}

	for _, n := range []int{-1, 0, 10_001} {
		_, err := c.Fetch(e.within(), n)
		e.is(err, goflux.ErrInvalidOption, "fetch "+strconv.Itoa(n))
	}

	_, err := goflux.NewConsumer(t, text, subject)
	e.is(err, goflux.ErrInvalidOption, "a consumer without a group")

	_, err = goflux.NewConsumer(t, goflux.Codec[string]{}, subject, goflux.WithQueueGroup("g"))
	e.is(err, goflux.ErrInvalidOption, "a consumer without a codec")

	// The one group cannot serve another subject.
	_, err = e.consumer(t, b.subject("other"), fetchers).Fetch(e.within(), 1)
	e.is(err, goflux.ErrSubjectMismatch, "another subject for a durable group")
}
