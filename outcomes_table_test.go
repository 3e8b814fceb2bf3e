package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
	corenats "github.com/foomo/goflux/transport/nats"
)

// The tables of docs/outcomes.md, cell by cell: those with redelivery in memory,
// where the clock is one of a bubble and delays are exact, and on JetStream, where
// they are bounded from below and the advisories tell how a message ended; that
// without redelivery on core NATS and on a consumer without acks. The conformance
// suite has what can be seen from outside on every transport.

// times are those of one run of the tables.
type times struct {
	lease   time.Duration // the ack wait
	policy  time.Duration // what the retry policy says
	after   time.Duration // what the handler asks for
	drain   time.Duration // the drain timeout
	maximum time.Duration // the maximum handling time
	quiet   time.Duration // after which nothing happens any more
}

var (
	inBubble = times{
		lease: 30 * time.Second, policy: 7 * time.Second, after: 3 * time.Second,
		drain: 2 * time.Second, maximum: 80 * time.Second, quiet: time.Hour,
	}
	inRealTime = times{
		lease: time.Second, policy: 300 * time.Millisecond, after: 600 * time.Millisecond,
		drain: 300 * time.Millisecond, maximum: 1500 * time.Millisecond, quiet: 8 * time.Second,
	}
)

// cell is what a handler does at the first delivery, and what comes of it.
type cell struct {
	name string

	// do is the handler at the first delivery; later ones succeed. Nil: the
	// payload does not decode.
	do goflux.Handler[string]

	// stop ends the subscription while do runs; a replica goes on.
	stop bool

	// stuck: instead of do, the handler does not return until all is over.
	stuck bool

	// abandons: the handler has not returned at the end of the subscription.
	abandons bool

	// cut cuts the way to the broker while do runs: leases cannot be renewed.
	cut bool

	// expires: the message comes again because its lease runs out.
	expires bool

	// overrun: when do returns the lease is over, and another handler has the
	// message, for some time.
	overrun bool

	// again is how long after the first delivery the second one comes; negative
	// if it does not come.
	again time.Duration

	// reason is that of the dead letter, if there is one on any attempt; last
	// that on the last attempt.
	reason, last string

	// terminated: the broker is told to end the message, dead letter or not.
	terminated bool
}

const never = -1

func (c cell) is(change func(*cell)) cell {
	change(&c)

	return c
}

// untilEnd returns when its context ends.
func untilEnd(err error) goflux.Handler[string] {
	return func(ctx context.Context, _ goflux.Message[string]) error {
		<-ctx.Done()

		return err
	}
}

// longAfter returns long after its context has ended.
func longAfter(d time.Duration, err error) goflux.Handler[string] {
	return func(ctx context.Context, _ goflux.Message[string]) error {
		<-ctx.Done()
		time.Sleep(d)

		return err
	}
}

func answers(err error) goflux.Handler[string] {
	return func(context.Context, goflux.Message[string]) error { return err }
}

func panics(context.Context, goflux.Message[string]) error { panic("oops") }

type verb = func(goflux.Message[string]) error

func settles(v verb, err error) goflux.Handler[string] {
	return func(_ context.Context, msg goflux.Message[string]) error {
		_ = v(msg)

		return err
	}
}

func settlesAndPanics(v verb) goflux.Handler[string] {
	return func(_ context.Context, msg goflux.Message[string]) error {
		_ = v(msg)

		panic("oops")
	}
}

func settlesAtEnd(v verb) goflux.Handler[string] {
	return func(ctx context.Context, msg goflux.Message[string]) error {
		<-ctx.Done()

		return v(msg)
	}
}

// automatic are the rows of the table for automatic acks.
func (tm times) automatic() []cell {
	retry := goflux.RetryAfter(tm.after, errCannot)
	reject, drop := goflux.Reject(errCannot), goflux.Drop(errCannot)
	exhausted, rejected := goflux.ReasonExhausted, goflux.ReasonRejected
	ack, nak := goflux.Message[string].Ack, func(msg goflux.Message[string]) error { return msg.NakWithDelay(tm.after) }

	cells := []cell{
		{name: "nil", do: answers(nil), again: never},
		{name: "any other error", do: answers(errCannot), again: tm.policy, last: exhausted},
		{name: "RetryAfter", do: answers(retry), again: tm.after, last: exhausted},
		{name: "Reject", do: answers(reject), again: never, reason: rejected, last: rejected, terminated: true},
		{name: "Drop", do: answers(drop), again: never, terminated: true},
		{name: "panic", do: panics, again: tm.policy, last: exhausted},
		{name: "undecodable", again: never, reason: goflux.ReasonUndecodable, last: goflux.ReasonUndecodable, terminated: true},

		{name: "Ack and an error", do: settles(ack, errCannot), again: never},
		{name: "Ack and Reject", do: settles(ack, reject), again: never},
		{name: "Ack and a panic", do: settlesAndPanics(ack), again: never},
		{name: "NakWithDelay and nil", do: settles(nak, nil), again: tm.after},
		{name: "NakWithDelay and an error", do: settles(nak, errCannot), again: tm.after},
	}

	shutdown := func(c cell) {
		cells = append(cells, c.is(func(c *cell) { c.name, c.stop = "shutdown, "+c.name, true }))
	}
	shutdown(cell{name: "nil", do: untilEnd(nil), again: never})
	shutdown(cell{name: "an error", do: untilEnd(errCannot), again: tm.drain, last: exhausted})
	shutdown(cell{name: "RetryAfter", do: untilEnd(retry), again: tm.drain + tm.after, last: exhausted})
	shutdown(cell{name: "Reject", do: untilEnd(reject), again: never, reason: rejected, last: rejected, terminated: true})
	shutdown(cell{name: "Drop", do: untilEnd(drop), again: never, terminated: true})
	shutdown(cell{name: "does not return", stuck: true, abandons: true, expires: true, again: tm.lease})
	shutdown(cell{
		name: "an error long after", do: longAfter(tm.lease*3/2, errCannot), abandons: true, expires: true, overrun: true,
		again: tm.lease, last: exhausted,
	})

	// The message comes again because the lease was over. One delivery more,
	// not two: another nak would make a third.
	lost := func(c cell) {
		cells = append(cells, c.is(func(c *cell) { c.name, c.cut, c.expires = "lease lost, "+c.name, true, true }))
	}
	lost(cell{name: "nil", do: untilEnd(nil), again: never})
	lost(cell{name: "an error", do: untilEnd(errCannot), again: tm.lease, last: exhausted})
	lost(cell{name: "RetryAfter", do: untilEnd(retry), again: tm.lease, last: exhausted})
	lost(cell{name: "a panic", do: func(ctx context.Context, msg goflux.Message[string]) error {
		<-ctx.Done()

		return panics(ctx, msg)
	}, again: tm.lease, last: exhausted})
	lost(cell{name: "Reject", do: untilEnd(reject), again: never, reason: rejected, last: rejected, terminated: true})
	lost(cell{name: "Drop", do: untilEnd(drop), again: never, terminated: true})

	over := func(c cell) { cells = append(cells, c.is(func(c *cell) { c.name = "maximum time, " + c.name })) }
	over(cell{name: "nil", do: untilEnd(nil), again: never})
	over(cell{name: "an error", do: untilEnd(errCannot), again: tm.maximum + tm.policy, last: exhausted})
	over(cell{name: "RetryAfter", do: untilEnd(retry), again: tm.maximum + tm.after, last: exhausted})
	over(cell{name: "Reject", do: untilEnd(reject), again: never, reason: rejected, last: rejected, terminated: true})
	over(cell{name: "Drop", do: untilEnd(drop), again: never, terminated: true})
	over(cell{
		name: "an error long after", do: longAfter(tm.lease*3/2, errCannot), expires: true, overrun: true,
		again: tm.letGo(), last: exhausted,
	})

	return cells
}

// letGo is when the lease is over of a message whose handler runs into the
// maximum time: it was renewed last a third of an ack wait before.
func (tm times) letGo() time.Duration { return tm.maximum - tm.lease/3 + tm.lease }

// manual are those for manual acks.
func (tm times) manual() []cell {
	ack, nak, term := goflux.Message[string].Ack, goflux.Message[string].Nak, goflux.Message[string].Term
	later := func(msg goflux.Message[string]) error { return msg.NakWithDelay(tm.after) }
	undecodable := goflux.ReasonUndecodable

	return []cell{
		{name: "no verb, nil", do: answers(nil), expires: true, again: tm.lease},
		{name: "no verb, an error", do: answers(errCannot), expires: true, again: tm.lease},
		{name: "no verb, Reject", do: answers(goflux.Reject(errCannot)), expires: true, again: tm.lease},
		{name: "no verb, Drop", do: answers(goflux.Drop(errCannot)), expires: true, again: tm.lease},
		{name: "no verb, RetryAfter", do: answers(goflux.RetryAfter(0, nil)), expires: true, again: tm.lease},
		{name: "Ack", do: settles(ack, nil), again: never},
		{name: "Ack and an error", do: settles(ack, errCannot), again: never},
		{name: "Term", do: settles(term, nil), again: never, terminated: true},
		{name: "Term and RetryAfter", do: settles(term, goflux.RetryAfter(0, nil)), again: never, terminated: true},
		{name: "Nak", do: settles(nak, nil), again: 0},
		{name: "NakWithDelay", do: settles(later, nil), again: tm.after},
		{name: "NakWithDelay and Reject", do: settles(later, goflux.Reject(errCannot)), again: tm.after},
		{name: "panic", do: panics, again: tm.policy, last: goflux.ReasonExhausted},
		{name: "Ack and a panic", do: settlesAndPanics(ack), again: never},
		{name: "NakWithDelay and a panic", do: settlesAndPanics(later), again: tm.after},
		{name: "undecodable", again: never, reason: undecodable, last: undecodable, terminated: true},

		{name: "shutdown, no verb", do: untilEnd(errCannot), stop: true, expires: true, again: tm.lease},
		{name: "shutdown, Ack", do: settlesAtEnd(ack), stop: true, again: never},
		{name: "shutdown, NakWithDelay", do: settlesAtEnd(later), stop: true, again: tm.drain + tm.after},

		{name: "lease lost, no verb", do: untilEnd(errCannot), cut: true, expires: true, again: tm.lease},
		{name: "lease lost, Ack", do: settlesAtEnd(ack), cut: true, expires: true, again: never},
		{name: "lease lost, Term", do: settlesAtEnd(term), cut: true, expires: true, again: never, terminated: true},

		{name: "maximum time, no verb", do: untilEnd(nil), expires: true, again: tm.letGo()},
		{name: "maximum time, Ack", do: settlesAtEnd(ack), again: never},
		{name: "maximum time, Nak", do: settlesAtEnd(nak), again: tm.maximum},
	}
}

// setting is where a cell is tried.
type setting struct {
	times

	manual, last, letters bool

	alone bool // there is no replica that goes on
}

// settings calls f for each cell in each setting.
func (tm times) settings(f func(name string, c cell, s setting)) {
	for _, manual := range []bool{false, true} {
		cells, acks := tm.automatic(), "automatic"
		if manual {
			cells, acks = tm.manual(), "manual"
		}

		for _, c := range cells {
			for _, last := range []bool{false, true} {
				for _, letters := range []bool{true, false} {
					name := fmt.Sprintf("%s/%s/last attempt %v/dead letters %v", acks, c.name, last, letters)
					f(name, c, setting{tm, manual, last, letters, false})
				}
			}
		}
	}
}

// seen is what became of a message.
type seen struct {
	deliveries []time.Time
	reasons    []string // of the dead letters
	err        error    // of the first subscription
	givenUp    int      // by the broker

	// These are not known everywhere.
	terminated int
	unsettled  int
}

// undecodable is the payload that does not decode.
const undecodable = "undecodable"

// picky does not decode what is undecodable.
func picky() goflux.Codec[string] {
	c := raw.String()
	decode := c.Decode
	c.Decode = func(b []byte, s *string) error {
		if string(b) == undecodable {
			return errCannot
		}

		return decode(b, s)
	}

	return c
}

// stage is where a cell is played: a broker with nothing else on it.
type stage struct {
	transport.Subscriber

	subject string
	group   bool // the broker knows queue groups
	publish func(data string) error
}

// play plays the cell, and tells what it has seen when nothing happens any more.
func (c cell) play(at stage, s setting) (got seen, err error) {
	way, store := &cuttable{Subscriber: at.Subscriber, cut: new(atomic.Bool)}, newMorgue()
	ready := make(chan struct{}, 2)

	sub, err := goflux.NewSubscriber(way, picky(), s.options(c, at, store, func() { ready <- struct{}{} })...)
	if err != nil {
		return got, err
	}

	var (
		mu         sync.Mutex
		deliveries []time.Time
		running    sync.WaitGroup
	)

	first, stop := context.WithCancel(context.Background())
	second, stopReplica := context.WithCancel(context.Background())
	ended, replicaEnded := make(chan error, 1), make(chan error, 1)
	release := make(chan struct{})

	var handle goflux.Handler[string]

	handle = func(ctx context.Context, msg goflux.Message[string]) error {
		running.Add(1)
		defer running.Done()

		mu.Lock()
		deliveries = append(deliveries, time.Now())
		again := len(deliveries) > 1
		mu.Unlock()

		switch {
		case again && c.overrun:
			time.Sleep(s.lease * 3 / 2)

			fallthrough
		case again:
			if s.manual {
				return msg.Ack()
			}

			return nil
		}

		way.cut.Store(c.cut)
		defer way.cut.Store(false)

		if c.stop {
			stop()
		}

		if c.stop && !s.alone {
			go func() { replicaEnded <- sub.Subscribe(second, at.subject, handle) }()
		}

		if c.stuck {
			<-release

			return nil
		}

		return c.do(ctx, msg)
	}

	go func() { ended <- sub.Subscribe(first, at.subject, handle) }()

	select {
	case <-ready:
	case err := <-ended:
		stop()
		stopReplica()

		return got, err
	}

	payload := "one"
	if c.do == nil && !c.stuck {
		payload = undecodable
	}

	err = at.publish(payload)

	<-time.After(s.quiet)
	stop()
	stopReplica()

	got.err = <-ended
	if c.stop && !s.alone {
		err = errors.Join(err, <-replicaEnded)
	}

	close(release)
	running.Wait()

	got.deliveries = deliveries
	for _, d := range store.dead() {
		got.reasons = append(got.reasons, d.Reason)
	}

	return got, err
}

func (s setting) options(c cell, at stage, store *morgue, ready func()) []goflux.SubscriberOption {
	opts := []goflux.SubscriberOption{
		goflux.WithDrainTimeout(s.drain), goflux.WithMaxHandlingTime(s.maximum), goflux.WithReady(ready), silent(),
	}

	if at.Capabilities().Has(transport.Redelivery) {
		opts = append(opts, goflux.WithRetryPolicy(goflux.ConstantRetry(s.policy)))
	}

	if at.group {
		opts = append(opts, goflux.WithQueueGroup("workers"))
	}

	if c.overrun {
		opts = append(opts, goflux.WithConcurrency(2)) // else the second delivery waits for the first handler
	}

	if s.manual {
		opts = append(opts, goflux.WithManualAck())
	}

	if s.letters {
		opts = append(opts, goflux.WithDeadLetterPublisher(store, "dead"))
	}

	return opts
}

// check holds the cell against what was seen.
func (c cell) check(t *testing.T, s setting, exact bool, got seen) {
	t.Helper()

	again, reason := c.again, c.reason
	if s.last {
		again, reason = never, c.last
	}

	// Where the lease is over when the message is settled, the broker may be
	// faster: to JetStream with an ack that is still in the queue, to all with
	// what is stored as a dead letter meanwhile.
	may := c.cut && again == never && (!exact || (s.letters && reason != ""))

	if !may || len(got.deliveries) != 2 {
		c.checkDeliveries(t, again, exact, got.deliveries)
	}

	if drain, abandoned := errors.AsType[*goflux.DrainError](got.err); abandoned != c.abandons || (abandoned && drain.Abandoned != 1) {
		t.Errorf("Subscribe returned %v, want a DrainError with one message: %v", got.err, c.abandons)
	} else if got.err != nil && !abandoned {
		t.Error(got.err)
	}

	var want []string
	if s.letters && reason != "" {
		want = []string{reason}
	}

	if !slices.Equal(got.reasons, want) {
		t.Errorf("dead letters %q, want %q", got.reasons, want)
	}

	if got.unsettled != 0 {
		t.Errorf("%d messages are not settled", got.unsettled)
	}

	// The same on the last attempt: the broker may have given it up by then.
	if c.cut || (s.last && c.overrun) {
		return
	}

	// What would have come again on the last attempt and became no dead letter
	// is given up.
	givenUp, terminated := 0, 0
	if s.last && c.again != never && len(want) == 0 {
		givenUp = 1
	}

	if c.terminated || len(want) > 0 {
		terminated = 1
	}

	if got.givenUp != givenUp {
		t.Errorf("given up %d times, want %d", got.givenUp, givenUp)
	}

	if !exact && got.terminated != terminated {
		t.Errorf("terminated %d times, want %d", got.terminated, terminated)
	}
}

func (c cell) checkDeliveries(t *testing.T, again time.Duration, exact bool, at []time.Time) {
	t.Helper()

	want := 2

	switch {
	case c.do == nil && !c.stuck:
		want = 0
	case again == never:
		want = 1
	}

	if len(at) != want {
		t.Fatalf("%d deliveries to the handler, want %d", len(at), want)
	}

	if want < 2 {
		return
	}

	switch took := at[1].Sub(at[0]); {
	case exact && took != again:
		t.Errorf("it came again after %v, want %v", took, again)
	case took < again-again/10:
		t.Errorf("it came again after %v, want %v at the least", took, again)
	}
}

func TestOutcomesTableInMemory(t *testing.T) {
	t.Parallel()

	inBubble.settings(func(name string, c cell, s setting) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				opts := []memory.Option{memory.WithAckWait(s.lease)}
				if s.last {
					opts = append(opts, memory.WithMaxDeliver(1))
				}

				tr := inMemory(t, opts...)

				got, err := c.play(stage{tr, "orders", true, func(data string) error {
					_, err := tr.Publish(t.Context(), transport.Message{Subject: "orders", Data: []byte(data)})

					return err
				}}, s)
				if err != nil {
					t.Fatal(err)
				}

				got.givenUp = int(tr.GivenUp())
				c.check(t, s, true, got)
			})
		})
	})
}

// On JetStream time is real, so all cells are played at once.
func TestOutcomesTableOnJetStream(t *testing.T) { //nolint:tparallel // its cells have been played when they are looked at
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))
	js := natstest.JetStream(t, nc)
	told := listen(t, nc)

	type played struct {
		name string
		cell
		setting

		consumer natsjs.Consumer
		got      seen
		err      error
	}

	var (
		all     []*played
		playing sync.WaitGroup
	)

	inRealTime.settings(func(name string, c cell, s setting) {
		p := &played{name: name, cell: c, setting: s}
		all = append(all, p)

		id := fmt.Sprint("C", len(all))
		cfg := natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: time.Minute}

		if c.expires {
			cfg.AckWait = s.lease
		}

		if s.last {
			cfg.MaxDeliver = 1
		}

		stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: id, Subjects: []string{id}, Storage: natsjs.MemoryStorage})
		p.consumer = natstest.Consumer(t, stream, cfg)

		playing.Go(func() {
			p.got, p.err = c.play(stage{jetstream.Bind(p.consumer), id, false, func(data string) error {
				_, err := js.Publish(t.Context(), id, []byte(data))

				return err
			}}, s)
		})
	})

	playing.Wait()

	for i, p := range all { //nolint:paralleltest // they have been played
		t.Run(p.name, func(t *testing.T) {
			if p.err != nil {
				t.Fatal(p.err)
			}

			info, err := p.consumer.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}

			p.got.unsettled = info.NumAckPending
			p.got.givenUp, p.got.terminated = told(fmt.Sprint("C", i+1))
			p.check(t, p.setting, false, p.got)
		})
	}
}

// listen hears the advisories of a server. The function it returns tells how often
// messages of a stream were given up, and terminated.
func listen(t *testing.T, nc *nats.Conn) (told func(stream string) (givenUp, terminated int)) {
	t.Helper()

	const prefix = "$JS.EVENT.ADVISORY.CONSUMER."

	var (
		mu   sync.Mutex
		seen = map[string]int{}
	)

	if _, err := nc.Subscribe(prefix+">", func(msg *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()

		seen[strings.TrimPrefix(msg.Subject, prefix)]++
	}); err != nil {
		t.Fatal(err)
	}

	return func(stream string) (givenUp, terminated int) {
		mu.Lock()
		defer mu.Unlock()

		return seen["MAX_DELIVERIES."+stream+".workers"], seen["MSG_TERMINATED."+stream+".workers"]
	}
}

// fleeting are the rows of the table for what is not redelivered.
func (tm times) fleeting() []cell {
	exhausted, rejected := goflux.ReasonExhausted, goflux.ReasonRejected
	retry := goflux.RetryAfter(time.Hour, errCannot)

	return []cell{
		{name: "nil", do: answers(nil)},
		{name: "any other error", do: answers(errCannot), reason: exhausted},
		{name: "RetryAfter", do: answers(retry), reason: exhausted},
		{name: "panic", do: panics, reason: exhausted},
		{name: "Reject", do: answers(goflux.Reject(errCannot)), reason: rejected},
		{name: "Drop", do: answers(goflux.Drop(errCannot))},
		{name: "undecodable", reason: goflux.ReasonUndecodable},
		{name: "shutdown, nil", do: untilEnd(nil), stop: true},
		{name: "shutdown, an error", do: untilEnd(errCannot), stop: true, reason: exhausted},
		{name: "shutdown, RetryAfter", do: untilEnd(retry), stop: true, reason: exhausted},
		{name: "shutdown, Reject", do: untilEnd(goflux.Reject(errCannot)), stop: true, reason: rejected},
		{name: "shutdown, Drop", do: untilEnd(goflux.Drop(errCannot)), stop: true},
		{name: "maximum time, an error", do: untilEnd(errCannot), reason: exhausted},
	}
}

func TestOutcomesTableWithoutRedelivery(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))
	js := natstest.JetStream(t, nc)
	core := func(t *testing.T, _ string) stage {
		t.Helper()

		tr, err := corenats.New(nc)
		if err != nil {
			t.Fatal(err)
		}

		subject := nats.NewInbox()

		return stage{tr, subject, true, func(data string) error {
			return errors.Join(nc.Publish(subject, []byte(data)), nc.Flush())
		}}
	}
	acksNone := func(t *testing.T, id string) stage {
		t.Helper()

		stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: id, Subjects: []string{id}, Storage: natsjs.MemoryStorage})
		consumer := natstest.Consumer(t, stream, natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckNonePolicy})

		return stage{jetstream.Bind(consumer), id, false, func(data string) error {
			_, err := js.Publish(t.Context(), id, []byte(data))

			natstest.Eventually(t, func() bool {
				info, err := consumer.Info(t.Context())

				return err == nil && info.Delivered.Consumer == 1
			}, "the delivery")

			return err
		}}
	}

	for name, open := range map[string]func(*testing.T, string) stage{"core NATS": core, "JetStream, ack policy none": acksNone} {
		for _, opt := range []goflux.SubscriberOption{
			goflux.WithManualAck(), goflux.WithAckSync(), goflux.WithRetryPolicy(goflux.ConstantRetry(0)), goflux.WithStrictOrder(),
		} {
			t.Run(name+"/"+opt.String(), func(t *testing.T) {
				t.Parallel()

				if _, err := goflux.NewSubscriber(open(t, opt.String()).Subscriber, raw.String(), opt); !errors.Is(err, goflux.ErrUnsupported) {
					t.Errorf("got %v, want ErrUnsupported", err)
				}
			})
		}

		for i, c := range inRealTime.fleeting() {
			for _, letters := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/dead letters %v", name, c.name, letters), func(t *testing.T) {
					t.Parallel()

					c.again = never
					s := setting{times: inRealTime, letters: letters, alone: true}
					s.drain, s.maximum, s.quiet = time.Minute, 0, 0

					switch {
					case c.stop:
						s.drain = 100 * time.Millisecond
					case strings.HasPrefix(c.name, "maximum"):
						s.maximum = 100 * time.Millisecond
					}

					got, err := c.play(open(t, fmt.Sprintf("S%d%v", i, letters)), s)
					if err != nil {
						t.Fatal(err)
					}

					c.terminated = len(got.reasons) > 0 // nobody to tell
					got.terminated = len(got.reasons)
					c.check(t, s, false, got)
				})
			}
		}
	}
}

// cuttable is a transport whose way to the broker can be cut: then leases are not
// renewed, and nobody confirms that they were.
type cuttable struct {
	transport.Subscriber

	cut *atomic.Bool
}

func (c *cuttable) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	sink := cfg.Sink
	cfg.Sink = func(d transport.Delivery) {
		d.Settler = cuttableSettler{d.Settler, c.cut}
		sink(d)
	}

	sub, err := c.Subscriber.Subscribe(ctx, cfg)

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
