package jetstream_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
)

func TestOpen(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t, embedded.WithConfig(func(o *server.Options) { o.Username, o.Password = "user", "secret" }))
	url := "jetstream" + strings.TrimPrefix(strings.Replace(s.URL(), "://", "://user:secret@", 1), "nats")

	tr, err := transport.Open(t.Context(), url+
		"?stream=EVENTS&subjects=events.>,audit&storage=memory&retention=interest&replicas=1&name=service&reconnectbuf=1024"+
		"&ackwait=7s&maxdeliver=5&maxackpending=77")
	must(t, err)

	js := natstest.JetStream(t, natstest.Connect(t, s, nats.UserInfo("user", "secret")))
	stream, err := js.Stream(t.Context(), "EVENTS")
	must(t, err)

	if c := stream.CachedInfo().Config; c.Storage != natsjs.MemoryStorage || c.Retention != natsjs.InterestPolicy || len(c.Subjects) != 2 {
		t.Errorf("the stream is %+v", c)
	}

	conns, err := s.NATSServer().Connz(&server.ConnzOptions{Username: true})
	must(t, err)

	var found bool
	for _, c := range conns.Conns {
		found = found || c.Name == "service"
	}

	if !found {
		t.Error("the connection has another name")
	}

	in := newInbox()
	cfg := in.config("events.a")
	cfg.Group = "g"
	sub, err := tr.Subscribe(t.Context(), cfg)
	must(t, err)
	sub.Request(2)

	_, err = tr.Publish(t.Context(), transport.Message{Subject: "events.a", Data: []byte("x")})
	must(t, err)
	ack(t, in.wait(t, 1)...)

	must(t, tr.Close())
	must(t, tr.Close())
	mustBe(t, ended(t, sub), transport.ErrClosed)
	must(t, sub.Close(t.Context()))

	// The settlement had arrived before the connection went.
	consumer, err := stream.Consumer(t.Context(), "g")
	must(t, err)

	if c := consumer.CachedInfo().Config; c.AckWait != 7*time.Second || c.MaxDeliver != 5 || c.MaxAckPending != 77 {
		t.Errorf("the consumer is %+v", c)
	}

	unsettled(t, consumer, 0)

	natstest.Eventually(t, func() bool { return s.NATSServer().NumClients() == 1 }, "the connection to be closed")

	// An existing stream, and none.
	for _, query := range []string{"?stream=EVENTS", ""} {
		tr, err := transport.Open(t.Context(), url+query)
		must(t, err)
		must(t, tr.Close())
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)
	host := strings.TrimPrefix(s.URL(), "nats://")

	for url, want := range map[string]error{
		"jetstream://user:secret@" + host + "?strem=EVENTS":                               transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?subjects=events.>":                          transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=EVENTS&subjects=events..a":           transport.ErrInvalidSubject,
		"jetstream://user:secret@" + host + "?stream=EVENTS&storage=memory":               transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=EVENTS&subjects=a&storage=tape":      transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=EVENTS&subjects=a&retention=forever": transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=EVENTS&subjects=a&replicas=two":      transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=EVENTS&ackwait=7":                    transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=EVENTS&ackwait=-7s":                  transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=EVENTS&maxdeliver=0":                 transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=EVENTS&maxackpending=many":           transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=a.b&subjects=a":                      transport.ErrInvalidOption,
		"jetstream://user:secret@" + host + "?stream=GONE":                                transport.ErrStreamNotFound,
		"jetstream://user:secret@" + host + "/path":                                       transport.ErrInvalidOption,
		"jetstream:":                          transport.ErrInvalidOption,
		"jetstream+tls://user:secret@" + host: nats.ErrSecureConnWanted,
	} {
		_, err := transport.Open(t.Context(), url)
		mustBe(t, err, want)

		if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "user") {
			t.Errorf("the error shows credentials: %v", err)
		}
	}

	s.Stop()

	_, err := transport.Open(t.Context(), "jetstream://secret@"+host)
	mustBe(t, err, transport.ErrDisconnected)

	canceled, cancel := context.WithCancel(t.Context())
	cancel()

	_, err = transport.Open(canceled, "jetstream://"+host)
	mustBe(t, err, context.Canceled)
}

// The domain is asked for; a server without it does not answer.
func TestOpenDomain(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t, embedded.WithConfig(func(o *server.Options) { o.JetStreamDomain = "hub" }))
	url := "jetstream" + strings.TrimPrefix(s.URL(), "nats") + "?stream=EVENTS&subjects=events.>&domain="

	tr, err := transport.Open(t.Context(), url+"hub")
	must(t, err)
	must(t, tr.Close())

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()

	if _, err = transport.Open(ctx, url+"spoke"); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another domain: %v", err)
	}
}
