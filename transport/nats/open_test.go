package nats_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
)

func TestOpen(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)

	tr, err := transport.Open(limited(t), srv.URL()+"?name=orders&pendingmsgs=2&pendingbytes=-1")
	if err != nil {
		t.Fatal(err)
	}

	in := newInbox(t)

	s, err := tr.Subscribe(limited(t), in.config("s", ""))
	if err != nil {
		t.Fatal(err)
	}

	for range 5 {
		if _, err := tr.Publish(limited(t), transport.Message{Subject: "s"}); err != nil {
			t.Fatal(err)
		}
	}

	// Those before were taken over from nats.go.
	if err := <-in.notices; !errors.Is(err, transport.ErrDropped) {
		t.Fatal(err)
	} else {
		in.notices <- err
	}

	closeNow(t, s)

	if got, dropped := len(in.messages), in.dropped(); got+int(dropped) != 5 || dropped == 0 {
		t.Errorf("%d messages, %d dropped: that is not the limit of the URL", got, dropped)
	}

	connz := natstest.Connect(t, srv)

	if _, err := tr.Publish(limited(t), transport.Message{Subject: "s"}); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}

	// Its connection went with it.
	natstest.Eventually(t, func() bool { return srv.NATSServer().NumClients() == 1 }, "the connection to be closed")

	if !connz.IsConnected() {
		t.Error("another connection is gone")
	}
}

func TestOpenEndsSubscriptions(t *testing.T) {
	t.Parallel()

	tr, err := transport.Open(limited(t), natstest.RunTCP(t).URL())
	if err != nil {
		t.Fatal(err)
	}

	s, err := tr.Subscribe(limited(t), newInbox(t).config("s", ""))
	if err != nil {
		t.Fatal(err)
	}

	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}

	<-s.Done()
	wantError(t, s.Err(), "subscribe", "s", transport.ErrClosed)
	closeNow(t, s)
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()

	plain := strings.TrimPrefix(natstest.RunTCP(t).URL(), "nats://")
	free := net.JoinHostPort("127.0.0.1", "1")

	for rawURL, target := range map[string]error{
		"nats://":                               transport.ErrInvalidOption,
		"nats://" + plain + "?pendingmsgs=0":    transport.ErrInvalidOption,
		"nats://" + plain + "?pendingmsgs=many": transport.ErrInvalidOption,
		"nats://" + plain + "?pendingbytes=0":   transport.ErrInvalidOption,
		"nats://" + plain + "?pending=1":        transport.ErrInvalidOption,
		"nats://u:secret@" + free:               transport.ErrDisconnected,
	} {
		_, err := transport.Open(limited(t), rawURL)
		if !errors.Is(err, target) {
			t.Errorf("%s: %v, want %v", rawURL, err, target)
		}

		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}

	// Those who ask for TLS don't get a connection without it.
	for _, scheme := range []string{"tls://", "nats+tls://"} {
		if _, err := transport.Open(limited(t), scheme+plain); err == nil {
			t.Errorf("%s connected to a server without TLS", scheme)
		}
	}
}
