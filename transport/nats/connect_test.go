package nats_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/nats"
)

// What is published while the connection is lost is buffered as far as the URL,
// or an option of nats.go, allows.
func TestConnectBuffers(t *testing.T) {
	t.Parallel()

	for name, tc := range map[string]struct {
		query   string
		opts    []natsgo.Option
		fits    int // payloads of 1 KiB
		refused error
		text    string
	}{
		"default":            {"", nil, 4096, nil, ""},
		"none by URL":        {"?reconnectbuf=-1", nil, 0, goflux.ErrBufferFull, "told to buffer nothing"},
		"some by URL":        {"?reconnectbuf=8192", nil, 1, goflux.ErrBufferFull, "holds 8192 bytes"},
		"some by option":     {"", []natsgo.Option{natsgo.ReconnectBufSize(8192)}, 1, goflux.ErrBufferFull, "holds 8192 bytes"},
		"the option wins":    {"?reconnectbuf=-1", []natsgo.Option{natsgo.ReconnectBufSize(8192)}, 1, goflux.ErrBufferFull, "holds 8192 bytes"},
		"a nil is no option": {"?reconnectbuf=-1", []natsgo.Option{nil}, 0, goflux.ErrBufferFull, "told to buffer nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			s := natstest.RunTCP(t)

			nc, err := nats.Connect(limited(t), s.URL()+tc.query, tc.opts...)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()

			s.Stop()
			natstest.Eventually(t, nc.IsReconnecting, "the client's noticing")

			pub := nats.NewPublisher(nc, raw.String())
			payload := strings.Repeat(".", 1024)
			taken := 0

			for err = nil; err == nil && taken < 4096; taken++ {
				if err = pub.Publish(limited(t), "s", payload); err != nil {
					break
				}
			}

			if !errors.Is(err, tc.refused) || taken < tc.fits || (tc.refused != nil && taken > 8) {
				t.Errorf("%d were taken, then %v, want at least %d, then %v", taken, err, tc.fits, tc.refused)
			}

			if tc.refused != nil && (!errors.Is(err, natsgo.ErrReconnectBufExceeded) || !strings.Contains(err.Error(), tc.text)) {
				t.Errorf("%v does not wrap that of nats.go, or does not say %q", err, tc.text)
			}
		})
	}
}

// The defaults are those of a service, and options come last.
func TestConnectOptions(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)

	nc, err := nats.Connect(limited(t), s.URL()+"?name=orders&server=127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()

	if o := nc.Opts; o.Name != "orders" || o.MaxReconnect != -1 || len(nc.Servers()) != 2 {
		t.Errorf("name %q, %d reconnects, servers %v", o.Name, o.MaxReconnect, nc.Servers())
	}

	other, err := nats.Connect(limited(t), s.URL()+"?name=orders", natsgo.Name("another"), natsgo.MaxReconnects(3))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	if o := other.Opts; o.Name != "another" || o.MaxReconnect != 3 {
		t.Errorf("name %q, %d reconnects: the options do not win", o.Name, o.MaxReconnect)
	}
}

// A service that starts before its server gets a connection that waits for it.
func TestConnectBeforeTheServer(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)
	s.Stop()

	nc, err := nats.Connect(limited(t), s.URL(), natsgo.RetryOnFailedConnect(true))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()

	if err := s.Start(); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, nc.IsConnected, "the connection")
}

func TestConnectErrors(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)
	withUser := strings.Replace(s.URL(), "://", "://u:secret@", 1)

	for rawURL, target := range map[string]error{
		"":                            transport.ErrInvalidOption,
		"127.0.0.1:4222":              transport.ErrInvalidOption,
		"jetstream://127.0.0.1":       transport.ErrInvalidOption,
		withUser + "," + withUser:     transport.ErrInvalidOption,
		withUser + "?pendingmsgs=1":   transport.ErrInvalidOption, // there is no transport
		withUser + "?bufsize=1":       transport.ErrInvalidOption,
		withUser + "/path":            transport.ErrInvalidOption,
		"nats://u:secret@127.0.0.1:1": transport.ErrDisconnected,
		strings.Replace(withUser, "nats", "tls", 1):      natsgo.ErrSecureConnWanted,
		strings.Replace(withUser, "nats", "nats+tls", 1): natsgo.ErrSecureConnWanted,
	} {
		nc, err := nats.Connect(limited(t), rawURL)
		if !errors.Is(err, target) || nc != nil {
			t.Errorf("%s: %v, want %v", rawURL, err, target)
		}

		var told *transport.Error
		if !errors.As(err, &told) || told.Op != "connect" {
			t.Errorf("%s: %#v is no *transport.Error of connecting", rawURL, err)
		}

		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the password: %v", err)
		}

		if u, perr := url.Parse(rawURL); perr == nil && u.Host != "" && errors.Is(err, transport.ErrDisconnected) &&
			!strings.Contains(err.Error(), u.Host) {
			t.Errorf("%v does not say which server", err)
		}
	}

	bad := func(*natsgo.Options) error { return errors.New("bad") }
	if _, err := nats.Connect(limited(t), s.URL(), bad); !errors.Is(err, transport.ErrInvalidOption) {
		t.Errorf("a bad option: %v", err)
	}
}

// A flush that ends with its ctx while the connection is lost says that it is.
func TestFlushWithoutAConnection(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)

	nc, err := nats.Connect(limited(t), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()

	s.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client's noticing")

	plain, flushing := nats.NewPublisher(nc, raw.String()), nats.NewPublisher(nc, raw.String(), goflux.WithFlush())

	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		t.Cleanup(cancel)

		return ctx
	}

	if err := plain.Flush(soon()); !errors.Is(err, goflux.ErrDisconnected) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Flush: %v", err)
	}

	if err := flushing.Publish(soon(), "s", "x"); !errors.Is(err, goflux.ErrDisconnected) ||
		!errors.Is(err, goflux.ErrPublishUnknown) {
		t.Errorf("WithFlush: %v", err)
	}
}
