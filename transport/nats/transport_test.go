package nats_test

import (
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/nats"
)

func TestNewRejects(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))

	for name, tc := range map[string]struct {
		nc   *natsgo.Conn
		opts []nats.TransportOption
	}{
		"no connection":       {nil, nil},
		"no pending messages": {nc, []nats.TransportOption{nats.WithPendingLimits(0, 1)}},
		"no pending bytes":    {nc, []nats.TransportOption{nats.WithPendingLimits(1, 0)}},
	} {
		if _, err := nats.New(tc.nc, tc.opts...); !errors.Is(err, transport.ErrInvalidOption) {
			t.Errorf("%s: %v, want ErrInvalidOption", name, err)
		}
	}

	if _, err := nats.New(nc, nil, nats.WithPendingLimits(-1, -1)); err != nil {
		t.Error(err)
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)))
	if got := tr.Capabilities(); got != transport.Of(transport.Groups, transport.RequestReply) {
		t.Fatalf("capabilities %v, want groups and request-reply alone", got)
	}
}

func TestPublishCarriesEverything(t *testing.T) {
	t.Parallel()

	tr := newTransport(t, natstest.Connect(t, natstest.Run(t)))
	in := newInbox(t)
	subscribe(t, tr, in.config("all.>", "")).Request(100)

	odd := transport.Header{
		"X-Many":           {"one", "", "two  words", "Grüße, Æsir", "a:b;c=\"d\"", "\x01"},
		"x-many":           {"another key, its case is kept"},
		"!#$%&'*+-.^_`|~9": {"odd key"},
		"Empty":            {""},
	}

	for name, want := range map[string]transport.Message{
		"plain":            {Subject: "all.plain", Data: []byte("payload")},
		"empty":            {Subject: "all.empty"},
		"binary":           {Subject: "all.binary", Data: []byte{0, 255, '\r', '\n', 0xc3}},
		"reply":            {Subject: "all.reply", Reply: "answers.1", Data: []byte("?")},
		"header":           {Subject: "all.header", Header: odd, Data: []byte("payload")},
		"header and reply": {Subject: "all.both", Reply: "answers.2", Header: odd},
		"empty header":     {Subject: "all.none", Header: transport.Header{}},
	} {
		receipt, err := tr.Publish(limited(t), want)
		if err != nil || receipt != (transport.Receipt{}) {
			t.Fatalf("%s: receipt %v, error %v", name, receipt, err)
		}

		got := in.next()
		if got.Subject != want.Subject || got.Reply != want.Reply || string(got.Data) != string(want.Data) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}

		if len(want.Header) == 0 && got.Header != nil {
			t.Errorf("%s: headers %v, want nil", name, got.Header)
		}

		if len(want.Header) > 0 && !reflect.DeepEqual(got.Header, want.Header) {
			t.Errorf("%s: headers %v, want %v", name, got.Header, want.Header)
		}
	}
}

func TestPublishTooLarge(t *testing.T) {
	t.Parallel()

	const limit = 4096

	srv := natstest.Run(t, embedded.WithConfig(func(o *server.Options) { o.MaxPayload = limit }))
	nc := natstest.Connect(t, srv)
	tr := newTransport(t, nc)

	if _, err := tr.Publish(limited(t), transport.Message{Subject: "s", Data: make([]byte, limit)}); err != nil {
		t.Fatal("at the limit:", err)
	}

	before := nc.Stats().OutMsgs

	for name, msg := range map[string]transport.Message{
		"payload":             {Subject: "s", Data: make([]byte, limit+1)},
		"payload, with reply": {Subject: "s", Reply: "r", Data: make([]byte, limit+1)},
		"payload and header":  {Subject: "s", Data: make([]byte, limit-10), Header: transport.Header{"A": {"b"}}},
		"header":              {Subject: "s", Header: transport.Header{"A": {strings.Repeat("x", limit)}}},
	} {
		_, err := tr.Publish(limited(t), msg)
		if err == nil {
			t.Fatalf("%s: no error", name)
		}

		wantError(t, err, "publish", "s", transport.ErrTooLarge)
	}

	if after := nc.Stats().OutMsgs; after != before {
		t.Errorf("%d messages were sent all the same", after-before)
	}

	publish(t, tr, "s", "the connection is still good")
}

func TestPublishErrors(t *testing.T) {
	t.Parallel()

	canceled, cancel := context.WithCancel(t.Context())
	cancel()

	srv := natstest.Run(t)
	closed := natstest.Connect(t, srv)
	closed.Close()

	shut := newTransport(t, natstest.Connect(t, srv))
	if err := shut.Close(); err != nil {
		t.Fatal(err)
	}

	for name, tc := range map[string]struct {
		tr     *nats.Transport
		ctx    context.Context
		target error
	}{
		"canceled":          {newTransport(t, natstest.Connect(t, srv)), canceled, context.Canceled},
		"closed connection": {newTransport(t, closed), t.Context(), transport.ErrClosed},
		"closed transport":  {shut, t.Context(), transport.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			_, err := tc.tr.Publish(tc.ctx, transport.Message{Subject: "s"})
			wantError(t, err, "publish", "s", tc.target)

			wantError(t, tc.tr.Flush(tc.ctx), "publish", "", tc.target)

			_, err = tc.tr.Subscribe(tc.ctx, newInbox(t).config("s", ""))
			wantError(t, err, "subscribe", "s", tc.target)
		})
	}
}

func TestPublishWhileDisconnected(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)
	nc := natstest.Connect(t, srv, natsgo.ReconnectBufSize(1000))
	tr := newTransport(t, nc)
	in := newInbox(t)
	subscribe(t, tr, in.config("s", "")).Request(100)

	srv.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client to notice")

	// Nil means buffered.
	if _, err := tr.Publish(limited(t), transport.Message{Subject: "s", Data: make([]byte, 999)}); err != nil {
		t.Fatal(err)
	}

	_, err := tr.Publish(limited(t), transport.Message{Subject: "s"})
	wantError(t, err, "publish", "s", transport.ErrBufferFull)

	short, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, tr.Flush(short), "publish", "", context.Canceled)

	flushed := make(chan error, 1)
	go func() { flushed <- tr.Flush(t.Context()) }()

	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}

	if err := <-flushed; err != nil {
		t.Error("flush over a reconnect:", err)
	}

	if got := in.next(); len(got.Data) != 999 {
		t.Errorf("%d bytes arrived, want the buffered message", len(got.Data))
	}
}

func TestPublishUnbuffered(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)
	nc := natstest.Connect(t, srv, natsgo.ReconnectBufSize(-1))
	tr := newTransport(t, nc)

	srv.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client to notice")

	_, err := tr.Publish(limited(t), transport.Message{Subject: "s"})
	wantError(t, err, "publish", "s", transport.ErrBufferFull)
}

func TestPublishOverABrokenConnection(t *testing.T) {
	t.Parallel()

	line := &line{}
	tr := newTransport(t, natstest.Connect(t, natstest.RunTCP(t), natsgo.SetCustomDialer(line)))

	line.broken.Store(true)

	// Larger than the client's write buffer, so that it is written at once.
	_, err := tr.Publish(limited(t), transport.Message{Subject: "s", Data: make([]byte, 100_000)})
	wantError(t, err, "publish", "s", transport.ErrDisconnected)

	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v does not tell the cause", err)
	}

	line.broken.Store(false)
	line.cut()
}

func TestFlushTellsOfABrokenConnection(t *testing.T) {
	t.Parallel()

	line := &line{}
	nc := natstest.Connect(t, natstest.RunTCP(t), natsgo.SetCustomDialer(line))
	tr := newTransport(t, nc)

	line.dead.Store(true)

	flushed := make(chan error, 1)
	go func() { flushed <- tr.Flush(t.Context()) }()

	natstest.Eventually(t, func() bool { return line.lost.Load() > 0 }, "the flush to be under way")
	line.dead.Store(false)
	line.cut()
	wantError(t, <-flushed, "publish", "", transport.ErrDisconnected)
	publish(t, tr, "s", "the connection comes back")
}

func TestFlushTellsOfAConnectionGivenUp(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)
	nc := natstest.Connect(t, srv)
	tr := newTransport(t, nc)

	srv.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client to notice")

	flushed := make(chan error, 1)
	go func() { flushed <- tr.Flush(t.Context()) }()

	nc.Close()
	wantError(t, <-flushed, "publish", "", transport.ErrClosed)
}

func TestCloseLeavesTheConnectionAlone(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))
	tr := newTransport(t, nc)
	in := newInbox(t)
	s := subscribe(t, tr, in.config("s", ""))
	publish(t, tr, "s", "waits for credit")

	// It has been taken over from nats.go when the next one was handed over.
	s.Request(1)
	in.next()

	for range 2 {
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}

	<-s.Done()
	wantError(t, s.Err(), "subscribe", "s", transport.ErrClosed)

	if !nc.IsConnected() {
		t.Fatal("the caller's connection was closed")
	}

	nobodyListens(t, nc, "s")
	closeNow(t, s)
}

// Not parallel: AllocsPerRun counts what the whole process allocates.
func TestPublishAllocatesNothingMore(t *testing.T) { //nolint:paralleltest // see above
	nc := natstest.Connect(t, natstest.Run(t))
	tr := newTransport(t, nc)
	ctx := t.Context()
	data := make([]byte, 128)
	header := natsgo.Header{"A": {"b"}}

	for name, tc := range map[string]struct{ bare, ours func() error }{
		"plain": {
			func() error { return nc.Publish("s", data) },
			func() error {
				_, err := tr.Publish(ctx, transport.Message{Subject: "s", Data: data})

				return err
			},
		},
		"reply": {
			func() error { return nc.PublishRequest("s", "r", data) },
			func() error {
				_, err := tr.Publish(ctx, transport.Message{Subject: "s", Reply: "r", Data: data})

				return err
			},
		},
		"header": {
			func() error { return nc.PublishMsg(&natsgo.Msg{Subject: "s", Header: header, Data: data}) },
			func() error {
				_, err := tr.Publish(ctx, transport.Message{Subject: "s", Header: transport.Header(header), Data: data})

				return err
			},
		},
	} {
		count := func(f func() error) float64 {
			return testing.AllocsPerRun(1000, func() {
				if err := f(); err != nil {
					t.Error(err)
				}
			})
		}

		bare, ours := count(tc.bare), count(tc.ours)
		t.Logf("%s: %v allocations with nats.go, %v with goflux", name, bare, ours)

		if ours > bare {
			t.Errorf("%s: %v allocations, nats.go alone makes %v", name, ours, bare)
		}
	}
}
