package nats_test

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

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/nats"
)

func TestSubscribeDeliversByFilter(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t)
	tr := newTransport(t, natstest.Connect(t, srv))
	other := newTransport(t, natstest.Connect(t, srv))
	subjects := []string{"a", "a.b", "a.c", "a.b.c", "b.b", "b"}

	for filter, want := range map[string][]string{
		"a":     {"a"},
		"a.*":   {"a.b", "a.c"},
		"*.b":   {"a.b", "b.b"},
		"a.>":   {"a.b", "a.c", "a.b.c"},
		"a.*.c": {"a.b.c"},
		">":     subjects,
	} {
		in := newInbox(t)
		s := subscribe(t, tr, in.config(filter, ""))

		if got := s.Info(); got.Filter != filter || got.MaxDeliver != 1 || got.AckWait != 0 || got.Consumer != "" {
			t.Errorf("%s: info %+v", filter, got)
		}

		for _, subject := range subjects {
			publish(t, other, subject, subject)
		}

		closeNow(t, s)

		if got := in.payloads(len(in.messages)); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", filter, got, want)
		}
	}
}

func TestSubscribeRejects(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)))
	sink := func(transport.Delivery) {}

	for name, tc := range map[string]struct {
		cfg    transport.SubscribeConfig
		target error
	}{
		"no subject":       {transport.SubscribeConfig{Sink: sink}, transport.ErrInvalidSubject},
		"empty token":      {transport.SubscribeConfig{Subject: "a..b", Sink: sink}, transport.ErrInvalidSubject},
		"> within":         {transport.SubscribeConfig{Subject: "a.>.b", Sink: sink}, transport.ErrInvalidSubject},
		"white space":      {transport.SubscribeConfig{Subject: "a b", Sink: sink}, transport.ErrInvalidSubject},
		"group with space": {transport.SubscribeConfig{Subject: "a", Group: "g h", Sink: sink}, transport.ErrInvalidOption},
		"no sink":          {transport.SubscribeConfig{Subject: "a"}, transport.ErrInvalidOption},
	} {
		_, err := tr.Subscribe(limited(t), tc.cfg)
		if err == nil {
			t.Errorf("%s: no error", name)

			continue
		}

		wantError(t, err, "subscribe", tc.cfg.Subject, tc.target)
	}

	publish(t, tr, "s", "the connection is still good")
}

// Each subscription is published to as soon as Subscribe has returned, over
// another connection.
func TestSubscribeMissesNothing(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t)
	tr := newTransport(t, natstest.Connect(t, srv))
	other := newTransport(t, natstest.Connect(t, srv))

	for i := range 100 {
		subject := fmt.Sprintf("s.%d", i)
		in := newInbox(t)
		s := subscribe(t, tr, in.config(subject, ""))
		s.Request(1)
		publish(t, other, subject, subject)

		if got := string(in.next().Data); got != subject {
			t.Fatalf("got %q, want %q", got, subject)
		}

		closeNow(t, s)
	}
}

func TestGroupSharesMessages(t *testing.T) {
	t.Parallel()

	const members, messages = 5, 1000

	srv := natstest.Run(t)
	pub := newTransport(t, natstest.Connect(t, srv))
	shared, alone := newInbox(t), newInbox(t)

	// The members share two connections.
	subs := make([]transport.Subscription, 0, members+1)

	trs := []*nats.Transport{newTransport(t, natstest.Connect(t, srv)), newTransport(t, natstest.Connect(t, srv))}
	for i := range members {
		subs = append(subs, subscribe(t, trs[i%2], shared.config("s", "workers")))
	}

	subs = append(subs, subscribe(t, trs[0], alone.config("s", "")))

	want := make([]string, messages)
	for i := range want {
		want[i] = fmt.Sprintf("%04d", i)
	}

	for _, s := range subs {
		s.Request(messages)
	}

	publish(t, pub, "s", want...)

	for _, s := range subs {
		closeNow(t, s)
	}

	for name, in := range map[string]*inbox{"group": shared, "alone": alone} {
		got := in.payloads(len(in.messages))
		slices.Sort(got)

		if !slices.Equal(got, want) {
			t.Errorf("%s: got %d messages, want each of %d once", name, len(got), messages)
		}
	}
}

// Members come and go while messages flow: what the server has assigned to one
// that leaves is still received, so none is lost for the group.
func TestGroupLosesNothingWhenAMemberLeaves(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t)
	pub := newTransport(t, natstest.Connect(t, srv))
	stays := newTransport(t, natstest.Connect(t, srv))
	leaves := newTransport(t, natstest.Connect(t, srv))
	in := newInbox(t)
	first := subscribe(t, stays, in.config("s", "workers"))
	first.Request(1 << 30)

	stop := make(chan struct{})
	sent := 0

	var sender sync.WaitGroup

	sender.Go(func() {
		for ; ; sent++ {
			select {
			case <-stop:
				return
			default:
			}

			if _, err := pub.Publish(t.Context(), transport.Message{Subject: "s"}); err != nil {
				t.Error(err)
			}

			if sent%50 == 49 {
				// The inbox has room for 100,000.
				if err := pub.Flush(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})

	for range 20 {
		s := subscribe(t, leaves, in.config("s", "workers"))
		s.Request(1)
		closeNow(t, s)
	}

	close(stop)
	sender.Wait()
	closeNow(t, first)

	if got := len(in.messages); got != sent {
		t.Errorf("%d messages arrived, %d were sent", got, sent)
	}

	t.Logf("%d messages", sent)
}

func TestCredit(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)))
	in := newInbox(t)
	s := subscribe(t, tr, in.config("s", ""))

	const total = 5000

	want := make([]string, 0, total+1)
	for i := range total {
		want = append(want, strconv.Itoa(i))
	}

	// On a connection of its own the last message has been read when the
	// server answered.
	publish(t, tr, "s", want[:total/2]...)

	var got []string

	take := func(n int) {
		s.Request(n)

		got = append(got, in.payloads(n)...)
	}

	for _, n := range []int{0, -1} {
		s.Request(n)
	}

	take(1)
	take(99)
	publish(t, tr, "s", want[total/2:]...)
	take(900)

	// More credit than there are messages, taken back when they are through.
	s.Request(total)

	got = append(got, in.payloads(total-1000)...)
	if err := s.Pause(limited(t)); err != nil {
		t.Fatal(err)
	}

	publish(t, tr, "s", "after the pause")

	if err := s.Flush(limited(t)); err != nil {
		t.Fatal(err)
	}

	if n := len(in.messages); n > 0 {
		t.Errorf("%d messages without credit", n)
	}

	take(1)

	if want = append(want, "after the pause"); !slices.Equal(got, want) {
		t.Errorf("got %d messages in this order: %q", len(got), got)
	}
}

// The credit of two huge requests does not overflow.
func TestCreditSaturates(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)))
	in := newInbox(t)
	s := subscribe(t, tr, in.config("s", ""))

	for range 3 {
		s.Request(int(^uint(0) >> 1))
	}

	publish(t, tr, "s", "1", "2")
	in.payloads(2)
}

// A sink may ask for more from within.
func TestRequestWithinTheSink(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)))
	in := newInbox(t)
	cfg := in.config("s", "")

	var s transport.Subscription

	ready := make(chan struct{})
	cfg.Sink = func(d transport.Delivery) {
		<-ready
		s.Request(1)

		in.messages <- d
	}
	s = subscribe(t, tr, cfg)

	close(ready)
	publish(t, tr, "s", "1", "2")
	s.Request(1)
	publish(t, tr, "s", "3", "4")

	if got := in.payloads(4); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
		t.Errorf("got %q", got)
	}
}

func TestPauseWaitsForTheSink(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)))
	in := newInbox(t)
	cfg := in.config("s", "")
	entered, leave := make(chan struct{}), make(chan struct{})
	cfg.Sink = func(d transport.Delivery) {
		entered <- struct{}{}

		<-leave

		in.messages <- d
	}
	s := subscribe(t, tr, cfg)
	s.Request(10)
	publish(t, tr, "s", "1", "2")
	<-entered

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, s.Pause(ctx), "subscribe", "s", context.Canceled)

	paused := make(chan error, 1)
	go func() { paused <- s.Pause(limited(t)) }()

	close(leave)

	if err := <-paused; err != nil {
		t.Fatal(err)
	}

	if got := len(in.messages); got != 1 {
		t.Fatalf("%d messages when Pause returned, want the one that was under way", got)
	}

	s.Request(1)
	<-entered
	in.payloads(2)
}

func TestDropsAreCountedExactly(t *testing.T) {
	t.Parallel()

	const sent = 2000

	payload := fmt.Sprintf("%100d", 0)

	for name, tc := range map[string]struct {
		option nats.TransportOption
		kept   int // without credit
	}{
		"messages":  {nats.WithPendingLimits(10, -1), 10},
		"bytes":     {nats.WithPendingLimits(-1, 1010), 10}, // The subject counts.
		"unlimited": {nats.WithPendingLimits(-1, -1), sent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			tr := newTransport(t, natstest.Connect(t, natstest.Run(t)), tc.option)
			in := newInbox(t)
			s := subscribe(t, tr, in.config("s", ""))

			publish(t, tr, "s", slices.Repeat([]string{payload}, sent)...)

			// The reports do not wait for the end.
			for reported := 0; reported < sent-tc.kept; {
				select {
				case err := <-in.notices:
					in.notices <- err
					reported += int(in.dropped())
				case <-time.After(natstest.Limit):
					t.Fatalf("%d messages were reported as dropped, want %d", reported, sent-tc.kept)
				}
			}

			closeNow(t, s)

			if got := len(in.messages); got != tc.kept {
				t.Errorf("%d messages were kept, want %d", got, tc.kept)
			}

			if got := in.dropped(); got != 0 {
				t.Errorf("%d more messages were reported as dropped", got)
			}
		})
	}
}

// What nats.go itself drops, because the sink keeps its goroutine busy, is
// counted along: 64 MB of a message that is there 100 times.
func TestDropsOfTheClientAreCounted(t *testing.T) {
	t.Parallel()

	const sent = 100

	srv := natstest.Run(t)
	tr := newTransport(t, natstest.Connect(t, srv, quiet))
	other := newTransport(t, natstest.Connect(t, srv))
	in := newInbox(t)
	cfg := in.config("s", "")
	entered, leave := make(chan struct{}), make(chan struct{})
	cfg.Sink = func(d transport.Delivery) {
		if len(d.Data) == 0 {
			close(entered)
			<-leave
		}

		in.messages <- d
	}
	s := subscribe(t, tr, cfg)
	s.Request(2 * sent)
	publish(t, other, "s", "")
	<-entered

	publish(t, other, "s", slices.Repeat([]string{string(make([]byte, 1<<20))}, sent)...)

	// The client has read all that.
	if err := tr.Flush(limited(t)); err != nil {
		t.Fatal(err)
	}

	close(leave)
	closeNow(t, s)

	got, dropped := len(in.messages)-1, int(in.dropped())
	if dropped == 0 || got+dropped != sent {
		t.Errorf("%d of %d messages arrived, %d were reported as dropped", got, sent, dropped)
	}
}

func TestDropsWithHandlersAtWork(t *testing.T) {
	t.Parallel()

	const sent = 20_000

	srv := natstest.Run(t)
	tr := newTransport(t, natstest.Connect(t, srv), nats.WithPendingLimits(5, -1))
	other := newTransport(t, natstest.Connect(t, srv))
	in := newInbox(t)
	s := subscribe(t, tr, in.config("s", ""))

	var (
		received atomic.Int64
		done     = make(chan struct{})
		handlers sync.WaitGroup
	)

	handlers.Go(func() {
		for {
			select {
			case <-in.messages:
				received.Add(1)
				s.Request(1)
			case <-done:
				return
			}
		}
	})

	s.Request(1)
	publish(t, other, "s", slices.Repeat([]string{"x"}, sent)...)
	closeNow(t, s)
	close(done)
	handlers.Wait()

	got, dropped := int(received.Load())+len(in.messages), int(in.dropped())
	if got+dropped != sent {
		t.Errorf("%d messages arrived and %d were reported as dropped, together not %d", got, dropped, sent)
	}

	t.Logf("%d arrived, %d dropped", got, dropped)
}

func TestNoNotify(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)), nats.WithPendingLimits(1, -1))
	in := newInbox(t)
	cfg := in.config("s", "")
	cfg.Notify = nil
	s := subscribe(t, tr, cfg)
	publish(t, tr, "s", "1", "2", "3")
	closeNow(t, s)
	in.payloads(1)
}

func TestCloseHandsOverWhatWasReceived(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t)
	tr := newTransport(t, natstest.Connect(t, srv))
	nc := natstest.Connect(t, srv)
	other := newTransport(t, nc)
	in := newInbox(t)
	s := subscribe(t, tr, in.config("s", ""))
	s.Request(10)

	var (
		flushed atomic.Int64
		stop    = make(chan struct{})
		sender  sync.WaitGroup
	)

	sender.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}

			if _, err := other.Publish(t.Context(), transport.Message{Subject: "s", Data: []byte(strconv.Itoa(i))}); err != nil {
				t.Error(err)
			}

			if i%100 == 99 {
				if err := other.Flush(t.Context()); err != nil {
					t.Error(err)
				}

				flushed.Store(int64(i + 1))
			}
		}
	})

	natstest.Eventually(t, func() bool { return flushed.Load() > 1000 }, "messages to be published")

	least := flushed.Load()
	closeNow(t, s)

	got := len(in.messages)
	nobodyListens(t, nc, "s")
	close(stop)
	sender.Wait()

	if n := len(in.messages); n != got {
		t.Errorf("%d messages reached the sink after Close", n-got)
	}

	if int64(got) < least {
		t.Errorf("%d messages arrived, %d were published before Close", got, least)
	}

	for i, p := range in.payloads(got) {
		if p != strconv.Itoa(i) {
			t.Fatalf("message %d is %s: there is a gap", i, p)
		}
	}

	t.Logf("%d messages, %d of them sent before Close", got, least)
}

func TestCloseConcurrently(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))
	tr := newTransport(t, nc)
	in := newInbox(t)
	s := subscribe(t, tr, in.config("s", ""))
	publish(t, tr, "s", "1", "2", "3")

	var closers sync.WaitGroup

	for range 10 {
		closers.Go(func() {
			if err := s.Close(limited(t)); err != nil {
				t.Error(err)
			}

			if n := len(in.messages); n != 3 {
				t.Errorf("%d messages when Close returned, want 3", n)
			}
		})
	}

	closers.Wait()
	nobodyListens(t, nc, "s")

	select {
	case <-s.Done():
		t.Error("Done is closed, though the subscription did not end by itself")
	default:
	}

	if err := s.Err(); err != nil {
		t.Error(err)
	}

	// Nothing is left to ask for, and nothing breaks.
	s.Request(1)

	if err := s.Pause(limited(t)); err != nil {
		t.Error(err)
	}

	if err := s.Flush(limited(t)); err != nil {
		t.Error(err)
	}

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, s.Flush(canceled), "subscribe", "s", context.Canceled)
}

func TestCloseIsBounded(t *testing.T) {
	t.Parallel()

	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		t.Cleanup(cancel)

		return ctx
	}

	t.Run("by a sink that is stuck", func(t *testing.T) {
		t.Parallel()

		nc := natstest.Connect(t, natstest.Run(t))
		tr := newTransport(t, nc)
		in := newInbox(t)
		cfg := in.config("s", "")
		entered, leave, left := make(chan struct{}), make(chan struct{}), make(chan struct{})
		cfg.Sink = func(d transport.Delivery) {
			in.messages <- d

			close(entered)
			<-leave
			close(left)
		}

		s, err := tr.Subscribe(limited(t), cfg)
		if err != nil {
			t.Fatal(err)
		}

		publish(t, tr, "s", "1", "2")
		s.Request(1)
		<-entered

		wantError(t, s.Close(short()), "subscribe", "s", context.DeadlineExceeded)
		nobodyListens(t, nc, "s")
		close(leave)
		<-left

		if err := s.Pause(limited(t)); err != nil {
			t.Fatal(err)
		}

		if n := len(in.messages); n != 1 {
			t.Errorf("%d messages reached the sink, want the one before Close", n)
		}
	})

	t.Run("by a server that is silent", func(t *testing.T) {
		t.Parallel()

		line := &line{}
		tr := newTransport(t, natstest.Connect(t, natstest.RunTCP(t), natsgo.SetCustomDialer(line)))
		in := newInbox(t)

		s, err := tr.Subscribe(limited(t), in.config("s", ""))
		if err != nil {
			t.Fatal(err)
		}

		publish(t, tr, "s", "1", "2")
		s.Request(1)
		in.next()
		line.dead.Store(true)
		wantError(t, s.Close(short()), "subscribe", "s", context.DeadlineExceeded)

		if got := in.payloads(1); got[0] != "2" {
			t.Errorf("got %q: what was there is handed over all the same", got)
		}
	})
}

func TestCloseWhileDisconnected(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)
	nc := natstest.Connect(t, srv)
	tr := newTransport(t, nc)
	in := newInbox(t)
	s := subscribe(t, tr, in.config("s", "workers"))
	publish(t, tr, "s", "1", "2", "3")

	srv.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client to notice")
	closeNow(t, s)

	if got := in.payloads(len(in.messages)); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("got %q, want all that was there", got)
	}

	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}

	// The reconnect does not bring the subscription back.
	nobodyListens(t, natstest.Connect(t, srv), "s")
	publish(t, tr, "s", "the client is back")
	nobodyListens(t, nc, "s")
}

// Whichever comes first, the closing or the loss of the connection.
func TestCloseWhileTheConnectionBreaks(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)
	nc := natstest.Connect(t, srv)
	tr := newTransport(t, nc)

	for i := range 20 {
		in := newInbox(t)
		s := subscribe(t, tr, in.config("s", []string{"", "workers"}[i%2]))
		publish(t, tr, "s", slices.Repeat([]string{"x"}, 1000)...)

		var restart sync.WaitGroup

		restart.Go(func() {
			if err := nc.ForceReconnect(); err != nil {
				t.Error(err)
			}
		})

		closeNow(t, s)
		restart.Wait()

		if n := len(in.messages); n != 1000 {
			t.Fatalf("round %d: %d messages, want all 1000", i, n)
		}

		publish(t, tr, "other", "the client is back")
		nobodyListens(t, nc, "s")
	}
}

func TestReconnectKeepsTheSubscription(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)
	tr := newTransport(t, natstest.Connect(t, srv))
	in := newInbox(t)
	s := subscribe(t, tr, in.config("s", ""))
	s.Request(10)

	for range 2 {
		publish(t, tr, "s", "before")
		in.payloads(1)

		if err := srv.Restart(); err != nil {
			t.Fatal(err)
		}

		// It was noticed.
		select {
		case err := <-in.notices:
			wantError(t, err, "subscribe", "s", transport.ErrDisconnected)
		case <-time.After(natstest.Limit):
			t.Fatal("nobody tells that the connection was lost")
		}

		publish(t, tr, "s", "after")

		if got := in.payloads(1); got[0] != "after" {
			t.Errorf("got %q", got)
		}
	}

	select {
	case <-s.Done():
		t.Error("ended with", s.Err())
	default:
	}
}

func TestSubscribeWhileDisconnected(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)
	nc := natstest.Connect(t, srv)
	tr := newTransport(t, nc)

	srv.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client to notice")

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()

	_, err := tr.Subscribe(ctx, newInbox(t).config("given.up", ""))
	wantError(t, err, "subscribe", "given.up", context.DeadlineExceeded)

	// Without a deadline it waits.
	in := newInbox(t)
	attached := make(chan transport.Subscription, 1)

	go func() {
		s, err := tr.Subscribe(t.Context(), in.config("s", ""))
		if err != nil {
			t.Error(err)
		}

		attached <- s
	}()

	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}

	s := <-attached
	publish(t, newTransport(t, natstest.Connect(t, srv)), "s", "1")
	closeNow(t, s)
	in.payloads(1)
	nobodyListens(t, nc, "given.up")
}

func TestSubscribeOverAConnectionThatBreaks(t *testing.T) {
	t.Parallel()

	line := &line{}
	nc := natstest.Connect(t, natstest.RunTCP(t), natsgo.SetCustomDialer(line))
	tr := newTransport(t, nc)

	line.dead.Store(true)

	failed := make(chan error, 1)

	go func() {
		_, err := tr.Subscribe(t.Context(), newInbox(t).config("s", ""))
		failed <- err
	}()

	natstest.Eventually(t, func() bool { return line.lost.Load() > 0 }, "the subscription to be under way")

	// One that has to wait for its turn is bounded by its own context.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()

	_, err := tr.Subscribe(ctx, newInbox(t).config("next", ""))
	wantError(t, err, "subscribe", "next", context.DeadlineExceeded)

	line.dead.Store(false)
	line.cut()
	wantError(t, <-failed, "subscribe", "s", transport.ErrDisconnected)
	publish(t, tr, "s", "the client is back")
	nobodyListens(t, nc, "s")
}

func TestConnectionClosedForGood(t *testing.T) {
	t.Parallel()

	for name, end := range map[string]func(nc *natsgo.Conn, srv *natstest.Server){
		"closed by its owner":  func(nc *natsgo.Conn, _ *natstest.Server) { nc.Close() },
		"drained by its owner": func(nc *natsgo.Conn, _ *natstest.Server) { _ = nc.Drain() },
		"given up":             func(_ *natsgo.Conn, srv *natstest.Server) { srv.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			srv := natstest.RunTCP(t)
			nc := natstest.Connect(t, srv, natsgo.MaxReconnects(1))
			tr := newTransport(t, nc, nats.WithPendingLimits(3, -1))
			in := newInbox(t)
			s := subscribe(t, tr, in.config("s.*", ""))
			publish(t, tr, "s.x", "1", "2", "3", "dropped")

			// The report says that those before were taken over from nats.go.
			if err := <-in.notices; !errors.Is(err, transport.ErrDropped) {
				t.Fatal(err)
			}

			if err := s.Err(); err != nil {
				t.Fatal(err)
			}

			end(nc, srv)

			select {
			case <-s.Done():
			case <-time.After(natstest.Limit):
				t.Fatal("Done is not closed")
			}

			wantError(t, s.Err(), "subscribe", "s.*", transport.ErrClosed)
			natstest.Eventually(t, nc.IsClosed, "the connection to be closed")
			wantError(t, s.Flush(limited(t)), "subscribe", "s.*", transport.ErrClosed)

			// Credit still works, and Close hands over the rest.
			s.Request(1)
			in.next()
			closeNow(t, s)
			in.payloads(2)
			t.Log(s.Err())
		})
	}
}

func TestSettlingIsUnsupported(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)))
	in := newInbox(t)
	subscribe(t, tr, in.config("s", "")).Request(1)
	publish(t, tr, "s", "1")

	d := in.next()

	for _, a := range []transport.Action{transport.Ack, transport.AckSync, transport.Nak, transport.Term, transport.Extend} {
		err := d.Settler.Settle(t.Context(), d.Token, transport.Verdict{Action: a})
		wantError(t, err, "settle", "", transport.ErrUnsupported)
	}

	if got := d.Settler.Metadata(d.Token); got != (transport.Metadata{}) {
		t.Errorf("metadata %+v, want none", got)
	}
}

// What the receiver does with a delivery does not show in another.
func TestDeliveriesBelongToTheReceiver(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t)
	tr := newTransport(t, natstest.Connect(t, srv))
	ins := []*inbox{newInbox(t), newInbox(t)}

	for _, in := range ins {
		subscribe(t, tr, in.config("s", "")).Request(100)
	}

	for range 50 {
		msg := transport.Message{Subject: "s", Header: transport.Header{"A": {"b"}}, Data: []byte("payload")}
		if _, err := tr.Publish(limited(t), msg); err != nil {
			t.Fatal(err)
		}
	}

	for range 50 {
		d := ins[0].next()
		clear(d.Data)

		_ = append(d.Data, "beyond"...)

		d.Header.Set("A", "changed")
	}

	for range 50 {
		if d := ins[1].next(); string(d.Data) != "payload" || d.Header.Get("A") != "b" {
			t.Fatalf("got %q, %v", d.Data, d.Header)
		}
	}
}

func TestSubscribeTellsOfARefusal(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t, embedded.WithConfig(func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Allow: []string{"open.>", "shared good"}},
		}}}
	}))

	var handled atomic.Int64

	nc := natstest.Connect(t, srv, natsgo.UserInfo("u", "p"),
		natsgo.ErrorHandler(func(*natsgo.Conn, *natsgo.Subscription, error) { handled.Add(1) }))
	tr := newTransport(t, nc)

	refused := func(subject, group string) {
		_, err := tr.Subscribe(limited(t), newInbox(t).config(subject, group))
		if err == nil {
			t.Errorf("%q in group %q: no error", subject, group)

			return
		}

		wantError(t, err, "subscribe", subject, natsgo.ErrPermissionViolation)
	}

	refused("secret", "")
	subscribe(t, tr, newInbox(t).config("open.a", ""))
	refused("secret", "")
	refused("shared", "bad")
	refused("shared", "")
	subscribe(t, tr, newInbox(t).config("shared", "good"))

	var all sync.WaitGroup

	for i := range 20 {
		all.Go(func() { refused(fmt.Sprintf("secret.%d", i), "") })
	}

	all.Wait()

	if n := nc.NumSubscriptions(); n != 2 {
		t.Errorf("%d subscriptions are left in the client, want the two that are allowed", n)
	}

	natstest.Eventually(t, func() bool { return handled.Load() == 24 }, "the caller's error handler to hear of all refusals")
}

func TestSubscribeTellsOfTooManySubscriptions(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t, embedded.WithConfig(func(o *server.Options) { o.MaxSubs = 2 }))
	tr := newTransport(t, natstest.Connect(t, srv, quiet))

	var err error
	for i := 0; err == nil && i < 10; i++ {
		_, err = tr.Subscribe(limited(t), newInbox(t).config("s."+strconv.Itoa(i), ""))
	}

	if !errors.Is(err, natsgo.ErrMaxSubscriptionsExceeded) {
		t.Fatalf("%v, want ErrMaxSubscriptionsExceeded", err)
	}
}
