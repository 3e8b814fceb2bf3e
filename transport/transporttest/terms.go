package transporttest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// refusals asserts that what a capability is missing for is refused, that the
// error names the capability, and that nothing is sent.
func (b *broker) refusals(missing transport.Capability, attempts map[string]func(p *goflux.BoundPublisher[string], subject string) error) {
	e, t, subject := b.e, b.open(), b.subject("refused")
	e.Helper()

	got := e.payloads(t, subject)
	p := e.publisher(t)

	for name, attempt := range attempts {
		err := attempt(p, subject)
		what := name + " without " + missing.String()
		e.is(err, goflux.ErrUnsupported, what)

		if err != nil && !strings.Contains(err.Error(), missing.String()) {
			e.Errorf("%s: the error %q does not name %q", what, err, missing)
		}
	}

	e.publish(t, subject, "behind")
	sameOrder(e, "the subscription", got.wait(e, 1, "the message behind"), []string{"behind"})
}

// payloads subscribes until the item ends, and returns where the payloads are
// put, in the order of the broker.
func (e *env) payloads(t transport.Subscriber, filter string) *list[string] {
	e.Helper()

	var got list[string]

	e.subscribe(t, filter, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	})

	return &got
}

// refused is env.is for publishes of which nothing was stored.
func (e *env) refused(r goflux.Receipt, err, sentinel error, what string) {
	e.Helper()
	e.is(err, sentinel, what)

	if errors.Is(err, goflux.ErrPublishUnknown) || r != (goflux.Receipt{}) {
		e.Errorf("%s: the receipt %+v, and the error %v, want it to be known that nothing is stored", what, r, err)
	}
}

func expectedSequenceHolds(e *env) {
	b := e.start(Config{})

	if !b.has(transport.ExpectedSequence) {
		send := func(opt goflux.SendOption) func(p *goflux.BoundPublisher[string], subject string) error {
			return func(p *goflux.BoundPublisher[string], subject string) error {
				_, err := p.Send(e.within(), subject, "refused", opt)

				return err
			}
		}

		b.refusals(transport.ExpectedSequence, map[string]func(p *goflux.BoundPublisher[string], subject string) error{
			"ExpectLastSequence":        send(goflux.ExpectLastSequence(0)),
			"ExpectLastSubjectSequence": send(goflux.ExpectLastSubjectSequence(0)),
		})

		return
	}

	t, other := b.open(), b.open()
	one, two := b.subject("s", "one"), b.subject("s", "two")
	got := e.payloads(t, b.subject("s", "*"))
	p := e.publisher(t)

	var want []string

	send := func(ctx context.Context, subject, payload string, opts ...goflux.SendOption) goflux.Receipt {
		e.Helper()

		r, err := p.Send(ctx, subject, payload, opts...)
		e.ok(err, "send "+payload+" with the last sequence as it is expected")

		if !r.Duplicate {
			want = append(want, payload)
		}

		return r
	}

	// Zero stands for nothing, in the stream and on the subject.
	first := send(e.within(), one, "first", goflux.ExpectLastSequence(0), goflux.ExpectLastSubjectSequence(0))
	second := send(e.within(), two, "second", goflux.ExpectLastSequence(first.Sequence), goflux.ExpectLastSubjectSequence(0))
	last := send(e.within(), one, "third", goflux.ExpectLastSubjectSequence(first.Sequence))

	if first.Sequence == 0 || second.Sequence <= first.Sequence || last.Sequence <= second.Sequence {
		e.Errorf("the receipts are %+v, %+v and %+v, want growing sequences", first, second, last)
	}

	type terms = []goflux.SendOption

	ofStream, ofSubject := goflux.ExpectLastSequence, goflux.ExpectLastSubjectSequence

	for what, row := range map[string]struct {
		subject        string
		opts           terms
		expected, last uint64
	}{
		"an empty stream":         {one, terms{ofStream(0)}, 0, last.Sequence},
		"an older sequence":       {two, terms{ofStream(second.Sequence)}, second.Sequence, last.Sequence},
		"a later sequence":        {one, terms{ofStream(last.Sequence + 1)}, last.Sequence + 1, last.Sequence},
		"an empty subject":        {two, terms{ofSubject(0)}, 0, second.Sequence},
		"one that is replaced":    {one, terms{ofSubject(first.Sequence)}, first.Sequence, last.Sequence},
		"another subject's":       {two, terms{ofSubject(last.Sequence)}, last.Sequence, second.Sequence},
		"a message on no subject": {b.subject("s", "new"), terms{ofSubject(last.Sequence)}, last.Sequence, 0},

		"both, and not that of the stream": {
			two, terms{ofStream(first.Sequence), ofSubject(second.Sequence)}, first.Sequence, last.Sequence,
		},
		"both, and not that of the subject": {
			two, terms{ofStream(last.Sequence), ofSubject(first.Sequence)}, first.Sequence, second.Sequence,
		},
	} {
		r, err := p.Send(e.within(), row.subject, "conflict", row.opts...)
		e.refused(r, err, goflux.ErrConflict, "expecting "+what)
		e.conflict(err, "expecting "+what, row.expected, row.last)
	}

	// Of many who expect the same one wins, and the others know that they lost.
	for range 3 {
		won := e.race([]transport.Transport{t, other}, one, last.Sequence)
		want = append(want, "won")
		last = won
	}

	if b.has(transport.Deduplication) {
		// A retry does not conflict with the attempt that succeeded.
		ctx := goflux.WithMessageID(e.within(), "m-1")
		once := send(ctx, one, "once", goflux.ExpectLastSubjectSequence(last.Sequence))
		again := send(ctx, one, "again", goflux.ExpectLastSubjectSequence(last.Sequence))

		if !again.Duplicate || again.Sequence != once.Sequence {
			e.Errorf("what was stored as %+v is published again under its id: %+v", once, again)
		}

		// An id is not used up by a conflict.
		ctx = goflux.WithMessageID(e.within(), "m-2")
		r, err := p.Send(ctx, one, "conflict", goflux.ExpectLastSubjectSequence(last.Sequence))
		e.refused(r, err, goflux.ErrConflict, "a conflict under an id")

		if r = send(ctx, one, "anew", goflux.ExpectLastSubjectSequence(once.Sequence)); r.Duplicate {
			e.Errorf("the receipt %+v after a conflict under the same id, want no duplicate", r)
		}
	}

	send(e.within(), one, "behind")
	sameOrder(e, "the subscription", got.wait(e, len(want), "all that was stored"), want)
}

// conflict reports a conflict that does not tell what was expected and found.
func (e *env) conflict(err error, what string, expected, last uint64) {
	e.Helper()

	c, told := errors.AsType[*goflux.ConflictError](err)
	if !told {
		e.Errorf("%s: error %v, want a *ConflictError", what, err)

		return
	}

	if !c.Known {
		last = 0
	}

	if c.Expected != expected || c.Last != last {
		e.Errorf("%s: the conflict is between %d and %d (known: %t), want %d and %d", what, c.Expected, c.Last, c.Known, expected, last)
	}
}

// race lets many send under the same expectation, and returns the receipt of the
// one that succeeds.
func (e *env) race(ts []transport.Transport, subject string, last uint64) goflux.Receipt {
	e.Helper()

	var (
		racing sync.WaitGroup
		won    list[goflux.Receipt]
	)

	for i := range 8 {
		p := e.publisher(ts[i%len(ts)])

		racing.Go(func() {
			r, err := p.Send(e.within(), subject, "won", goflux.ExpectLastSubjectSequence(last))
			if err == nil {
				won.add(r)
			} else {
				e.is(err, goflux.ErrConflict, "one of many who expect the same")
			}
		})
	}

	racing.Wait()

	all := won.all()
	if len(all) != 1 {
		e.Fatalf("%d of 8 who expect the same sequence succeed, want 1: %v", len(all), all)
	}

	return all[0]
}

func messagesExpire(e *env) {
	b := e.start(Config{})

	if !b.has(transport.MessageTTL) {
		b.refusals(transport.MessageTTL, map[string]func(p *goflux.BoundPublisher[string], subject string) error{
			"TTL": func(p *goflux.BoundPublisher[string], subject string) error {
				_, err := p.Send(e.within(), subject, "refused", goflux.TTL(time.Hour))

				return err
			},
		})

		return
	}

	if !b.has(transport.Replay) && !b.has(transport.Durable) {
		e.Fatalf("the transport claims %v and keeps no messages", transport.MessageTTL)
	}

	t := b.open()
	p := e.publisher(t)
	cfg := transport.SubscribeConfig{Subject: b.subject("t")}

	if !b.has(transport.Replay) {
		// It keeps a message for who comes back.
		cfg.Group, cfg.Sink = workers, func(transport.Delivery) {}
		e.ok(e.attach(t, cfg).Close(e.within()), "close")
	}

	for _, d := range []time.Duration{0, -time.Second} {
		r, err := p.Send(e.within(), cfg.Subject, "senseless", goflux.TTL(d))
		e.refused(r, err, goflux.ErrInvalidOption, "a TTL of "+d.String())
	}

	for _, row := range []struct {
		payload string
		ttl     time.Duration
	}{{"brief", time.Second}, {"long", time.Hour}} {
		_, err := p.Send(e.within(), cfg.Subject, row.payload, goflux.TTL(row.ttl))
		e.ok(err, "send with a TTL")
	}

	e.publish(t, cfg.Subject, "for ever")

	// What is kept is seen by who comes late.
	kept := func() string {
		var got list[transport.Delivery]

		cfg.Sink = got.add
		s := e.attach(t, cfg)
		s.Request(1)

		ds := got.wait(e, 1, "the first message that is kept")
		b.settleIf(ds, transport.Nak) // for the next
		e.ok(s.Close(e.within()), "close")

		return string(ds[0].Data)
	}

	first := "brief"

	e.repeat(func() { first = kept() }, func() bool { return first != "brief" }, "the end of a message with a TTL of a second")

	if first != "long" {
		e.Errorf("the first message that is kept is %q, want the one with a TTL of an hour", first)
	}
}

func laterIsNeverEarly(e *env) {
	b := e.start(Config{})

	if !b.has(transport.Scheduling) {
		attempt := func(at time.Time) func(p *goflux.BoundPublisher[string], subject string) error {
			return func(p *goflux.BoundPublisher[string], subject string) error {
				return p.PublishAt(e.within(), subject, "refused", at)
			}
		}

		b.refusals(transport.Scheduling, map[string]func(p *goflux.BoundPublisher[string], subject string) error{
			"PublishAt":          attempt(time.Now().Add(time.Hour)),
			"PublishAt the past": attempt(time.Unix(0, 0)),
			"PublishAfter": func(p *goflux.BoundPublisher[string], subject string) error {
				return p.PublishAfter(e.within(), subject, "refused", time.Millisecond)
			},
		})

		return
	}

	type arrival struct {
		msg goflux.Message[string]
		at  time.Time
	}

	t := b.open()
	subject := b.subject("l")
	p := e.publisher(t)

	var got list[arrival]

	e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(arrival{msg, time.Now()})

		return nil
	})

	// Not at a full second: who counts in seconds must not round down.
	due := time.Now().Truncate(time.Second).Add(1900 * time.Millisecond)
	dues := map[string]time.Time{"past": {}, "zero": {}, "soon": {}, "overdue": {}, "at": due}
	ctx := goflux.WithHeader(goflux.WithMessageID(e.within(), "m-1"), goflux.Header{"Many": {"a", "", "b"}})

	e.ok(p.PublishAt(ctx, subject, "at", due), "publish for later")

	if b.has(transport.Deduplication) {
		e.ok(p.PublishAt(ctx, subject, "at", due), "publish what waits already") // is stored once
	}

	for payload, d := range map[string]time.Duration{"after": time.Until(due), "sooner": time.Until(due) / 2} {
		dues[payload] = time.Now().Add(d)
		e.ok(p.PublishAfter(e.within(), subject, payload, d), "publish for later")
	}

	// It may be time before the broker sees it.
	e.ok(p.PublishAfter(e.within(), subject, "soon", time.Microsecond), "publish for a moment later")
	e.ok(p.PublishAfter(e.within(), subject, "zero", 0), "publish with a delay of zero")
	e.ok(p.PublishAt(e.within(), subject, "past", time.Unix(0, 0)), "publish for the past")

	_, err := t.Publish(e.within(), transport.Message{
		Subject: subject, Data: []byte("overdue"), Terms: &transport.Terms{At: time.Now().Add(-time.Second)},
	})
	e.ok(err, "publish under terms that are overdue")

	got.wait(e, len(dues), "all messages")

	// What would come twice would come before this.
	dues["behind"] = time.Now().Add(100 * time.Millisecond)
	e.ok(p.PublishAt(e.within(), subject, "behind", dues["behind"]), "publish for later")

	var payloads []string

	for _, a := range got.wait(e, len(dues), "the message behind") { //nolint:gocritic // a copy is simpler
		if early := dues[a.msg.Payload].Sub(a.at); early > 0 {
			e.Errorf("%q arrived %v early", a.msg.Payload, early)
		}

		if a.msg.Subject != subject {
			e.Errorf("%q arrived with the subject %q, want %q", a.msg.Payload, a.msg.Subject, subject)
		}

		if id := a.msg.ID(); a.msg.Payload == "at" && (id != "m-1" || !slices.Equal(a.msg.Header["Many"], []string{"a", "", "b"})) {
			e.Errorf("%q arrived with the id %q and the headers %v, want those it was published with", a.msg.Payload, id, a.msg.Header)
		}

		payloads = append(payloads, a.msg.Payload)
	}

	want := make([]string, 0, len(dues))
	for payload := range dues {
		want = append(want, payload)
	}

	eachOnce(e, "the subscription", payloads, want)
}
