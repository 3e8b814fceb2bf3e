package nats_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/nats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quiet keeps nats.go from printing errors that a test provokes.
var quiet = natsgo.ErrorHandler(func(*natsgo.Conn, *natsgo.Subscription, error) {})

// limited returns a context that ends a test which is stuck.
func limited(tb testing.TB) context.Context {
	tb.Helper()

	ctx, cancel := context.WithTimeout(tb.Context(), natstest.Limit)
	tb.Cleanup(cancel)

	return ctx
}

func newTransport(tb testing.TB, nc *natsgo.Conn, opts ...nats.TransportOption) *nats.Transport {
	tb.Helper()

	t, err := nats.New(nc, opts...)
	if err != nil {
		tb.Fatal(err)
	}

	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})

	return t
}

// inbox is a sink and a Notify that keep what they get.
type inbox struct {
	tb       testing.TB
	messages chan transport.Delivery
	notices  chan error
}

func newInbox(tb testing.TB) *inbox {
	tb.Helper()

	return &inbox{tb, make(chan transport.Delivery, 100_000), make(chan error, 1000)}
}

func (in *inbox) config(subject, group string) transport.SubscribeConfig {
	return transport.SubscribeConfig{
		Subject: subject,
		Group:   group,
		Sink:    func(d transport.Delivery) { in.messages <- d },
		Notify:  func(err error) { in.notices <- err },
	}
}

// next waits for a message.
func (in *inbox) next() transport.Delivery {
	in.tb.Helper()

	select {
	case d := <-in.messages:
		return d
	case <-time.After(natstest.Limit):
		in.tb.Fatal("no message arrived")

		return transport.Delivery{}
	}
}

// payloads takes out n messages.
func (in *inbox) payloads(n int) []string {
	in.tb.Helper()

	got := make([]string, n)
	for i := range got {
		got[i] = string(in.next().Data)
	}

	return got
}

// dropped takes out the reports of dropped messages that are there, and adds
// them up.
func (in *inbox) dropped() (sum uint64) {
	in.tb.Helper()

	for {
		select {
		case err := <-in.notices:
			var dropped *transport.DroppedError
			if !errors.As(err, &dropped) || !errors.Is(err, transport.ErrDropped) || dropped.Count == 0 {
				in.tb.Fatalf("notice %v, want a DroppedError with a count", err)
			}

			sum += dropped.Count
		default:
			return sum
		}
	}
}

// subscribe opens a subscription that ends with the test.
func subscribe(tb testing.TB, t *nats.Transport, cfg transport.SubscribeConfig) transport.Subscription {
	tb.Helper()

	s, err := t.Subscribe(limited(tb), cfg)
	if err != nil {
		tb.Fatal(err)
	}

	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), natstest.Limit)
		defer cancel()

		if err := s.Close(ctx); err != nil {
			tb.Error(err)
		}
	})

	return s
}

func publish(tb testing.TB, t *nats.Transport, subject string, payloads ...string) {
	tb.Helper()

	for _, p := range payloads {
		if _, err := t.Publish(limited(tb), transport.Message{Subject: subject, Data: []byte(p)}); err != nil {
			tb.Fatal(err)
		}
	}

	if err := t.Flush(limited(tb)); err != nil {
		tb.Fatal(err)
	}
}

func closeNow(tb testing.TB, s transport.Subscription) {
	tb.Helper()

	if err := s.Close(limited(tb)); err != nil {
		tb.Fatal(err)
	}
}

// nobodyListens asserts that the server has no subscription on subject. It may
// have one for a moment longer, of a connection whose end it has not noticed.
func nobodyListens(tb testing.TB, nc *natsgo.Conn, subject string) {
	tb.Helper()

	natstest.Eventually(tb, func() bool {
		_, err := nc.Request(subject, nil, 100*time.Millisecond)

		return errors.Is(err, natsgo.ErrNoResponders)
	}, "the server to have no subscription on %q", subject)
}

// wantError asserts an *transport.Error with an operation and a subject, that
// wraps target.
func wantError(tb testing.TB, err error, op, subject string, target error) {
	tb.Helper()

	var e *transport.Error
	if !errors.As(err, &e) || e.Op != op || e.Subject != subject || !errors.Is(err, target) {
		tb.Fatalf("error %v, want a *transport.Error of %s %q that wraps: %v", err, op, subject, target)
	}
}

// line is a dialer whose connections can go dead, so that what is written gets
// lost, can break, so that writing fails, and be cut.
type line struct {
	dead    atomic.Bool
	broken  atomic.Bool
	lost    atomic.Int64 // writes
	current atomic.Pointer[net.Conn]
}

// Dial is that of [natsgo.CustomDialer].
func (l *line) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}

	l.current.Store(&conn)

	return &lineConn{conn, l}, nil
}

func (l *line) cut() { _ = (*l.current.Load()).Close() }

type lineConn struct {
	net.Conn

	line *line
}

func (c *lineConn) Write(b []byte) (int, error) {
	if c.line.broken.Load() {
		return 0, io.ErrClosedPipe
	}

	if c.line.dead.Load() {
		c.line.lost.Add(1)

		return len(b), nil
	}

	return c.Conn.Write(b)
}

// denied configures a server with a user u, password p, who may not subscribe
// to subject.
func denied(subject string) embedded.Option {
	return embedded.WithConfig(func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Deny: []string{subject}},
		}}}
	})
}
