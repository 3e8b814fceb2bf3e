package memory_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

func TestCapabilities(t *testing.T) {
	t.Parallel()

	want := transport.Of(
		transport.Acks, transport.Redelivery, transport.DelayedNak, transport.Attempts, transport.Leases, transport.Groups,
		transport.Durable, transport.Receipts, transport.Deduplication, transport.Fetching, transport.RequestReply,
		transport.Scheduling, transport.AtomicBatches,
	)

	if got := open(t).Capabilities(); got != want {
		t.Errorf("got %s", got)
	}

	if got := open(t, memory.WithHistory(1)).Capabilities(); got != want|transport.Of(transport.Replay, transport.ExpectedSequence) {
		t.Errorf("with history: got %s", got)
	}
}

func TestDeliveryIsWhatWasPublished(t *testing.T) {
	t.Parallel()

	tr, in := open(t), &inbox{}
	subscribe(t, tr, transport.SubscribeConfig{Subject: "orders.*", Sink: in.sink}).Request(9)

	header := transport.Header{"key": {"a", ""}, "KEY": {"b"}}
	data := []byte{0, 0xff, 'x'}

	if _, err := tr.Publish(t.Context(), transport.Message{
		Subject: "orders.new", Reply: "inbox.1", Header: header, Data: data,
	}); err != nil {
		t.Fatal(err)
	}

	// The publisher may use its buffers again.
	header["key"][0], data[0] = "changed", 9

	d := in.take()[0]
	if d.Subject != "orders.new" || d.Reply != "inbox.1" || string(d.Data) != "\x00\xffx" {
		t.Errorf("got %+v", d)
	}

	if fmt.Sprint(d.Header) != "map[KEY:[b] key:[a ]]" {
		t.Errorf("header %v", d.Header)
	}

	// And so may the receiver: the next attempt is whole.
	d.Header["key"][0], d.Data[0] = "changed", 9
	d.Header.Set("more", "x")
	nak(t, d)

	d = in.take()[0]
	if string(d.Data) != "\x00\xffx" || fmt.Sprint(d.Header) != "map[KEY:[b] key:[a ]]" {
		t.Errorf("the second attempt got %v %q", d.Header, d.Data)
	}

	if _, err := tr.Publish(t.Context(), transport.Message{Subject: "orders.new"}); err != nil {
		t.Fatal(err)
	}

	if d = in.take()[0]; d.Header != nil || len(d.Data) != 0 {
		t.Errorf("an empty message arrived as %v %q", d.Header, d.Data)
	}
}

func TestReceiversShareNothing(t *testing.T) {
	t.Parallel()

	tr, one, two := open(t), &inbox{}, &inbox{}
	subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: one.sink}).Request(1)
	subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: two.sink}).Request(1)

	if _, err := tr.Publish(t.Context(), transport.Message{
		Subject: "a", Header: transport.Header{"k": {"v"}}, Data: []byte("data"),
	}); err != nil {
		t.Fatal(err)
	}

	d := one.take()[0]
	d.Header["k"][0], d.Data[0] = "x", 'x'

	if d = two.take()[0]; d.Header.Get("k") != "v" || string(d.Data) != "data" {
		t.Errorf("the other receiver got %v %q", d.Header, d.Data)
	}
}

func TestSubjects(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		filter string
		want   []string
	}{
		{"a", []string{"a"}},
		{"a.b", []string{"a.b"}},
		{"a.*", []string{"a.b", "a.c"}},
		{"a.>", []string{"a.b", "a.c", "a.b.c"}},
		{"*", []string{"a", "b*"}},
		{"*.b.*", []string{"a.b.c"}},
		{"b*", []string{"b*"}},
		{">", []string{"a", "a.b", "a.c", "a.b.c", "b*"}},
		{"A", nil},
	} {
		t.Run(tc.filter, func(t *testing.T) {
			t.Parallel()

			tr, in := open(t), &inbox{}
			subscribe(t, tr, transport.SubscribeConfig{Subject: tc.filter, Sink: in.sink}).Request(9)

			for _, s := range []string{"a", "a.b", "a.c", "a.b.c", "b*"} {
				publish(t, tr, s, s)
			}

			in.want(t, tc.want...)
		})
	}
}

func TestEveryQueueGetsTheMessage(t *testing.T) {
	t.Parallel()

	tr := open(t)

	// More queues than Publish has room for on its stack.
	var own [12]inbox
	for i := range own {
		subscribe(t, tr, transport.SubscribeConfig{Subject: []string{"a", "*", ">"}[i%3], Sink: own[i].sink}).Request(9)
	}

	var g1, g2 [2]inbox
	for i := range 2 {
		subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "one", Sink: g1[i].sink}).Request(9)
		subscribe(t, tr, transport.SubscribeConfig{Subject: "*", Group: "two", Sink: g2[i].sink}).Request(9)
	}

	publish(t, tr, "a", "1", "2")

	for i := range own {
		own[i].want(t, "1", "2")
	}

	g1[0].want(t, "1")
	g1[1].want(t, "2")
	g2[0].want(t, "1")
	g2[1].want(t, "2")
}

func TestMembersTakeTurns(t *testing.T) {
	t.Parallel()

	tr := open(t)

	var (
		in   [4]inbox
		subs [4]transport.Subscription
	)

	for i := range subs {
		subs[i] = subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: in[i].sink})
	}

	// The second has no credit, and is passed over.
	for _, i := range []int{0, 2, 3} {
		subs[i].Request(100)
	}

	publish(t, tr, "a", "1", "2", "3", "4", "5")
	in[0].want(t, "1", "4")
	in[1].want(t)
	in[2].want(t, "2", "5")
	in[3].want(t, "3")

	// It has its turn when it has credit, once for each.
	subs[1].Request(1)
	publish(t, tr, "a", "6", "7", "8", "9", "10")
	in[3].want(t, "6", "10")
	in[0].want(t, "7")
	in[1].want(t, "8")
	in[2].want(t, "9")

	if err := subs[0].Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	publish(t, tr, "a", "11", "12", "13")
	in[0].want(t)
	in[2].want(t, "11", "13")
	in[3].want(t, "12")
}

func TestMemberThatLeavesTakesNobodysTurn(t *testing.T) {
	t.Parallel()

	for leaver, want := range []int{1, 2, 1} {
		tr := open(t)

		var (
			in   [3]inbox
			subs [3]transport.Subscription
		)

		for i := range subs {
			subs[i] = subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: in[i].sink})
			subs[i].Request(9)
		}

		publish(t, tr, "a", "1")
		in[0].want(t, "1")

		if err := subs[leaver].Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		publish(t, tr, "a", "2")
		in[want].want(t, "2")
	}
}

func TestGroupIsDurable(t *testing.T) {
	t.Parallel()

	tr, in := open(t), &inbox{}
	cfg := transport.SubscribeConfig{Subject: "a.*", Group: "g", Sink: in.sink}

	publish(t, tr, "a.b", "before the group")

	sub := subscribe(t, tr, cfg)
	sub.Request(1)
	publish(t, tr, "a.b", "1", "2")
	ack(t, in.want(t, "1")...)

	for range 2 {
		if err := sub.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	sub.Request(1)
	publish(t, tr, "a.b", "3")
	in.want(t)

	subscribe(t, tr, cfg).Request(9)
	in.want(t, "2", "3")
}

func TestUngroupedEndsWithItsSubscription(t *testing.T) {
	t.Parallel()

	// For filters that are looked up, and for those that are compared.
	for _, filter := range []string{"a", "*"} {
		tr, in, other := open(t, memory.WithMaxPending(1)), &inbox{}, &inbox{}
		cfg := transport.SubscribeConfig{Subject: filter, Sink: in.sink}
		first := subscribe(t, tr, cfg)
		publish(t, tr, "a", "1")

		if err := first.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		subscribe(t, tr, cfg).Request(9)
		in.want(t)

		// What it held no longer counts, and it leaves the others alone.
		subscribe(t, tr, transport.SubscribeConfig{Subject: filter, Sink: other.sink}).Request(9)
		publish(t, tr, "a", "2")
		in.want(t, "2")
		other.want(t, "2")
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()

	tr := open(t, memory.WithHistory(4))

	replay := func(group, filter string, want ...string) {
		t.Helper()

		in := &inbox{}
		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: filter, Group: group, Sink: in.sink})
		sub.Request(9)

		got := in.want(t, want...)
		ack(t, got...)

		for _, d := range got {
			if strconv.FormatUint(d.Settler.Metadata(d.Token).Sequence, 10) != string(d.Data) {
				t.Errorf("%q has sequence %d", d.Data, d.Settler.Metadata(d.Token).Sequence)
			}
		}

		if err := sub.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	replay("", ">")
	publish(t, tr, "a.1", "1")
	publish(t, tr, "a.2", "2")
	replay("", "a.*", "1", "2")
	publish(t, tr, "b", "3")
	publish(t, tr, "a.1", "4", "5", "6")

	// The first two made room for the last two.
	replay("", ">", "3", "4", "5", "6")
	replay("", "a.*", "4", "5", "6")
	replay("", "b", "3")
	replay("", "c")

	// To a group it is new once only.
	replay("g", ">", "3", "4", "5", "6")
	replay("g", ">")
	publish(t, tr, "b", "7")
	replay("g", ">", "7")
	replay("h", ">", "4", "5", "6", "7")
}

func TestWithoutHistoryNothingIsReplayed(t *testing.T) {
	t.Parallel()

	tr, in := open(t), &inbox{}
	publish(t, tr, "a", "1")
	subscribe(t, tr, transport.SubscribeConfig{Subject: ">", Sink: in.sink}).Request(9)
	in.want(t)
}

func TestReceipts(t *testing.T) {
	t.Parallel()

	tr := open(t)

	for want := uint64(1); want <= 3; want++ {
		got, err := tr.Publish(t.Context(), transport.Message{Subject: "nobody.listens"})
		if err != nil || got != (transport.Receipt{Stream: "memory", Sequence: want}) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, in := open(t, memory.WithDuplicateWindow(time.Minute), memory.WithAckWait(24*time.Hour)), &inbox{}
		subscribe(t, tr, transport.SubscribeConfig{Subject: ">", Sink: in.sink}).Request(100)

		want := func(id string, sequence uint64, duplicate bool) {
			t.Helper()

			got, err := tr.Publish(t.Context(), transport.Message{Subject: "a", ID: id, Data: []byte(id)})
			if err != nil || got != (transport.Receipt{Stream: "memory", Sequence: sequence, Duplicate: duplicate}) {
				t.Errorf("id %q: got %+v, %v", id, got, err)
			}
		}

		want("x", 1, false)
		want("", 2, false)
		want("", 3, false)
		time.Sleep(time.Minute - 1)
		want("y", 4, false)
		want("x", 1, true) // does not prolong the window
		time.Sleep(time.Nanosecond)
		want("x", 5, false)
		want("y", 4, true)
		time.Sleep(time.Hour)
		want("y", 6, false)
		in.want(t, "x", "", "", "y", "x", "y")
	})
}

func TestDuplicateWindowIsBoundedByCount(t *testing.T) {
	t.Parallel()

	const bound = 65536

	tr := open(t)
	duplicate := func(i int) bool {
		r, err := tr.Publish(t.Context(), transport.Message{Subject: "a", ID: strconv.Itoa(i)})
		if err != nil {
			t.Fatal(err)
		}

		return r.Duplicate
	}

	// Several rounds, so that the window wraps.
	for i := range 3 * bound {
		if duplicate(i) {
			t.Fatalf("%d is new", i)
		}
	}

	if !duplicate(2 * bound) {
		t.Error("the oldest of the window is forgotten")
	}

	if duplicate(2*bound - 1) {
		t.Error("one before the window is still known")
	}
}

func TestRefusedMessageLeavesItsIDFree(t *testing.T) {
	t.Parallel()

	tr, in := open(t, memory.WithMaxPending(1)), &inbox{}
	sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
	publish(t, tr, "a", "1")

	msg := transport.Message{Subject: "a", ID: "x"}
	if _, err := tr.Publish(t.Context(), msg); !errors.Is(err, transport.ErrBufferFull) {
		t.Fatalf("got %v", err)
	}

	sub.Request(1)
	ack(t, in.take()...)

	if r, err := tr.Publish(t.Context(), msg); err != nil || r.Duplicate || r.Sequence != 2 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()

	withHeader := len("NATS/1.0\r\nkey: value\r\nkey: \r\nk: v\r\n\r\n")
	header := transport.Header{"key": {"value", ""}, "k": {"v"}}
	bigHeader := func(bytes int) transport.Header {
		return transport.Header{"k": {strings.Repeat("v", bytes-len("NATS/1.0\r\nk: \r\n\r\n"))}}
	}

	for _, tc := range []struct {
		name string
		msg  transport.Message
		max  int
		fits bool
	}{
		{"data that just fits", transport.Message{Data: make([]byte, 10)}, 10, true},
		{"one byte more", transport.Message{Data: make([]byte, 11)}, 10, false},
		{"headers that just fit", transport.Message{Header: header, Data: []byte("x")}, withHeader + 1, true},
		{"headers a byte more", transport.Message{Header: header, Data: []byte("xx")}, withHeader + 1, false},
		{"no headers in a map", transport.Message{Header: transport.Header{}, Data: []byte("x")}, 1, true},
		{"the most of headers", transport.Message{Header: bigHeader(65535)}, 1 << 20, true},
		{"more of headers", transport.Message{Header: bigHeader(65536)}, 1 << 20, false},
		{"the default", transport.Message{Data: make([]byte, 1<<20)}, 0, true},
		{"more than the default", transport.Message{Data: make([]byte, 1<<20+1)}, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()

			var opts []memory.Option
			if tc.max > 0 {
				opts = append(opts, memory.WithMaxPayload(tc.max))
			}

			tr, in := open(t, opts...), &inbox{}
			subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink}).Request(1)

			tc.msg.Subject = "a"

			_, err := tr.Publish(t.Context(), tc.msg)
			if tc.fits != (err == nil) || (err != nil && !errors.Is(err, transport.ErrTooLarge)) {
				t.Errorf("got %v", err)
			}

			if got := len(in.take()); (got == 1) != tc.fits {
				t.Errorf("%d delivered", got)
			}
		})
	}
}

func TestFullQueueRefusesForAll(t *testing.T) {
	t.Parallel()

	for _, group := range []string{"", "g"} {
		t.Run("group "+group, func(t *testing.T) {
			t.Parallel()

			tr, in, other := open(t, memory.WithMaxPending(3)), &inbox{}, &inbox{}
			sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: group, Sink: in.sink})

			subscribe(t, tr, transport.SubscribeConfig{Subject: "*", Group: "other", Sink: func(d transport.Delivery) {
				ack(t, d)
				other.sink(d)
			}}).Request(100)

			sub.Request(1)
			publish(t, tr, "a", "1", "2", "3")
			other.want(t, "1", "2", "3")

			// One of the three is delivered and counts until it is settled.
			_, err := tr.Publish(t.Context(), transport.Message{Subject: "a"})

			full := &memory.FullError{}
			if !errors.As(err, &full) || *full != (memory.FullError{Group: group, Filter: "a", Limit: 3}) {
				t.Fatalf("got %v", err)
			}

			if !errors.Is(err, transport.ErrBufferFull) || transport.ErrorType(err) != "buffer_full" {
				t.Errorf("%v has the type %q", err, transport.ErrorType(err))
			}

			if !strings.Contains(err.Error(), `"a"`) || !strings.Contains(err.Error(), "WithMaxPending") {
				t.Errorf("it says %q", err)
			}

			other.want(t)

			// Other subjects are not concerned.
			publish(t, tr, "b", "4")
			other.want(t, "4")

			// A nak and an extension make no room, an ack does.
			d := in.want(t, "1")[0]
			settled(t, d, transport.Verdict{Action: transport.Extend})
			nak(t, d)

			if _, err := tr.Publish(t.Context(), transport.Message{Subject: "a"}); !errors.Is(err, transport.ErrBufferFull) {
				t.Errorf("after a nak: %v", err)
			}

			sub.Request(1)
			ack(t, in.want(t, "1")...)

			if r, err := tr.Publish(t.Context(), transport.Message{Subject: "a"}); err != nil || r.Sequence != 5 {
				t.Errorf("after an ack: %+v, %v", r, err)
			}
		})
	}
}

func TestSubscribeErrors(t *testing.T) {
	t.Parallel()

	sink := func(transport.Delivery) {}
	ended, cancel := context.WithCancel(t.Context())
	cancel()

	tr := open(t)
	subscribe(t, tr, transport.SubscribeConfig{Subject: "a.*", Group: "g", Sink: sink})

	for _, tc := range []struct {
		name string
		ctx  context.Context
		cfg  transport.SubscribeConfig
		want error
	}{
		{"no subject", t.Context(), transport.SubscribeConfig{Sink: sink}, transport.ErrInvalidSubject},
		{"bad subject", t.Context(), transport.SubscribeConfig{Subject: "a..b", Sink: sink}, transport.ErrInvalidSubject},
		{"bad group", t.Context(), transport.SubscribeConfig{Subject: "a", Group: "a.b", Sink: sink}, transport.ErrInvalidOption},
		{"no sink", t.Context(), transport.SubscribeConfig{Subject: "a"}, transport.ErrInvalidOption},
		{"other filter", t.Context(), transport.SubscribeConfig{Subject: "a.b", Group: "g", Sink: sink}, transport.ErrSubjectMismatch},
		{"wider filter", t.Context(), transport.SubscribeConfig{Subject: "a.>", Group: "g", Sink: sink}, transport.ErrSubjectMismatch},
		{"ended", ended, transport.SubscribeConfig{Subject: "a", Sink: sink}, context.Canceled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()

			sub, err := tr.Subscribe(tc.ctx, tc.cfg)
			if !errors.Is(err, tc.want) || sub != nil {
				t.Errorf("got %v, %v", sub, err)
			}

			rich := &transport.Error{}
			if !errors.As(err, &rich) || rich.Op != "subscribe" || rich.Subject != tc.cfg.Subject || rich.Consumer != tc.cfg.Group {
				t.Errorf("got %+v", rich)
			}
		})
	}
}

func TestPublishWithEndedContext(t *testing.T) {
	t.Parallel()

	tr, in := open(t), &inbox{}
	subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink}).Request(1)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	if _, err := tr.Publish(ctx, transport.Message{Subject: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}

	in.want(t)
}

func TestOptions(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		name string
		opts []memory.Option
		ok   bool
	}{
		{"none", nil, true},
		{"all", []memory.Option{
			memory.WithAckWait(1), memory.WithMaxDeliver(1), memory.WithHistory(1), memory.WithMaxPayload(1),
			memory.WithDuplicateWindow(1), memory.WithMaxPending(1),
		}, true},
		{"zero where it means something", []memory.Option{memory.WithMaxDeliver(0), memory.WithHistory(0)}, true},
		{"nil", []memory.Option{nil}, false},
		{"no ack wait", []memory.Option{memory.WithAckWait(0)}, false},
		{"negative ack wait", []memory.Option{memory.WithAckWait(-time.Second)}, false},
		{"negative deliveries", []memory.Option{memory.WithMaxDeliver(-1)}, false},
		{"negative history", []memory.Option{memory.WithHistory(-1)}, false},
		{"history that does not fit", []memory.Option{memory.WithHistory(3), memory.WithMaxPending(2)}, false},
		{"history beyond the default", []memory.Option{memory.WithHistory(65537)}, false},
		{"no payload", []memory.Option{memory.WithMaxPayload(0)}, false},
		{"no window", []memory.Option{memory.WithDuplicateWindow(0)}, false},
		{"negative window", []memory.Option{memory.WithDuplicateWindow(-1)}, false},
		{"nothing pending", []memory.Option{memory.WithMaxPending(0)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()

			tr, err := memory.New(tc.opts...)
			if tc.ok != (err == nil) || tc.ok != (tr != nil) || (err != nil && !errors.Is(err, transport.ErrInvalidOption)) {
				t.Errorf("got %v, %v", tr, err)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		url string
		ok  bool
	}{
		{"memory:", true},
		{"memory://", true},
		{"memory:///", true},
		{"memory:?ackwait=1s&duplicatewindow=3m&history=10&maxdeliver=5&maxpayload=100&maxpending=20", true},
		{"memory:?historie=1", false},
		{"memory:?history=1&history=2", false},
		{"memory:?history=1;maxpending=2", false},
		{"memory:?history=", false},
		{"memory:?history=many", false},
		{"memory:?history=-1", false},
		{"memory:?ackwait=5", false},
		{"memory:?ackwait=0s", false},
		{"memory:?duplicatewindow=x", false},
		{"memory:?maxdeliver=x", false},
		{"memory:?maxpayload=1MB", false},
		{"memory:?maxpending=0", false},
		{"memory:?history=10&maxpending=5", false},
		{"memory:name", false},
		{"memory://host", false},
		{"memory:///path", false},
		{"memory://user:secret@", false},
		{"memory:#fragment", false},
	} {
		t.Run(tc.url, func(t *testing.T) {
			t.Parallel()

			tr, err := transport.Open(t.Context(), tc.url)
			if tc.ok != (err == nil) || tc.ok != (tr != nil) || (err != nil && !errors.Is(err, transport.ErrInvalidOption)) {
				t.Fatalf("got %v, %v", tr, err)
			}

			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("it shows the password: %v", err)
			}

			if tr != nil {
				if err := tr.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestOpenAppliesParameters(t *testing.T) {
	t.Parallel()

	tr, err := transport.Open(t.Context(), "memory:?ackwait=1s&history=10&maxdeliver=5&maxpayload=100&maxpending=20")
	if err != nil {
		t.Fatal(err)
	}

	defer tr.Close()

	info := subscribe(t, tr, transport.SubscribeConfig{Subject: "a.*", Group: "g", Sink: func(transport.Delivery) {}}).Info()
	want := transport.Info{Stream: "memory", Consumer: "g", Filter: "a.*", AckWait: time.Second, MaxDeliver: 5}

	if fmt.Sprint(info) != fmt.Sprint(want) {
		t.Errorf("got %+v", info)
	}

	if !tr.Capabilities().Has(transport.Replay) {
		t.Error("no history")
	}

	if _, err := tr.Publish(t.Context(), transport.Message{Subject: "b", Data: make([]byte, 101)}); !errors.Is(err, transport.ErrTooLarge) {
		t.Errorf("101 bytes: %v", err)
	}

	for range 20 {
		publish(t, tr, "a.b", "x")
	}

	if _, err := tr.Publish(t.Context(), transport.Message{Subject: "a.b"}); !errors.Is(err, transport.ErrBufferFull) {
		t.Errorf("21 pending: %v", err)
	}
}

func TestErrorsSayWhatTheyAreAbout(t *testing.T) {
	t.Parallel()

	tr := open(t, memory.WithMaxPayload(1))
	subscribe(t, tr, transport.SubscribeConfig{Subject: "a.*", Group: "g", Sink: func(transport.Delivery) {}})

	_, tooLarge := tr.Publish(t.Context(), transport.Message{Subject: "a.b", Data: []byte("top secret")})
	_, mismatch := tr.Subscribe(t.Context(), transport.SubscribeConfig{Subject: "b", Group: "g", Sink: func(transport.Delivery) {}})

	for _, tc := range []struct {
		err  error
		says []string
	}{
		{tooLarge, []string{"publish", `"a.b"`, "10 bytes", "WithMaxPayload"}},
		{mismatch, []string{"subscribe", `"b"`, `"g"`, `"a.*"`}},
	} {
		text := tc.err.Error()
		if slices.ContainsFunc(tc.says, func(s string) bool { return !strings.Contains(text, s) }) || strings.Contains(text, "secret") {
			t.Errorf("it says %q", text)
		}
	}
}
