package natsconn_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/natsconn"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, raw string) *url.URL {
	t.Helper()

	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}

	return u
}

func connect(t *testing.T, raw string, opts ...nats.Option) *nats.Conn {
	t.Helper()

	nc, err := natsconn.Connect(t.Context(), parse(t, raw), opts...)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(nc.Close)

	return nc
}

func TestConnect(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)
	nc := connect(t, s.URL()+"?name=orders&reconnectbuf=-1&server=127.0.0.1:1&other=ignored", nil, nats.ReconnectWait(time.Minute))

	if o := nc.Opts; o.Name != "orders" || o.ReconnectBufSize != -1 || o.MaxReconnect != -1 || o.ReconnectWait != time.Minute {
		t.Errorf("options %+v", o)
	}

	// A loss is noticed before a minute is over, and no write lasts longer.
	if o := nc.Opts; o.PingInterval*time.Duration(o.MaxPingsOut+1) > time.Minute || o.FlusherTimeout != 10*time.Second {
		t.Errorf("options %+v", o)
	}

	if len(nc.Servers()) != 2 {
		t.Errorf("servers %v", nc.Servers())
	}

	// Without parameters the program's name stands in.
	if nc := connect(t, s.URL()); nc.Opts.Name != filepath.Base(os.Args[0]) || nc.Opts.ReconnectBufSize != nats.DefaultReconnectBufSize {
		t.Errorf("options %+v", nc.Opts)
	}
}

func TestConnectWithCredentials(t *testing.T) {
	t.Parallel()

	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}

	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}

	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}

	file := filepath.Join(t.TempDir(), "user.nk")
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		t.Fatal(err)
	}

	user := natstest.RunTCP(t, embedded.WithConfig(func(o *server.Options) { o.Username, o.Password = "us er", "p@ss:w/rd" }))
	token := natstest.RunTCP(t, embedded.WithConfig(func(o *server.Options) { o.Authorization = "tok/en" }))
	nkey := natstest.RunTCP(t, embedded.WithConfig(func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} }))

	at := func(s *natstest.Server, info *url.Userinfo, query string) string {
		u := parse(t, s.URL())
		u.User, u.RawQuery = info, query

		return u.String()
	}

	connect(t, at(user, url.UserPassword("us er", "p@ss:w/rd"), ""))
	connect(t, at(token, url.User("tok/en"), ""))
	connect(t, at(nkey, nil, url.Values{"nkey": {file}}.Encode()))

	for _, raw := range []string{at(user, url.UserPassword("us er", "guess"), ""), at(token, url.User("guess"), ""), at(nkey, nil, "")} {
		_, err := natsconn.Connect(t.Context(), parse(t, raw))
		if !errors.Is(err, nats.ErrAuthorization) || strings.Contains(err.Error(), "guess") {
			t.Errorf("error %v", err)
		}
	}
}

// Credentials that are refused for a while end no connection: what knows them may
// be away, or they are being renewed.
func TestRefusedForAWhile(t *testing.T) {
	t.Parallel()

	var password atomic.Value

	password.Store("secret")

	s := natstest.RunTCP(t, embedded.WithConfig(func(o *server.Options) { o.Username, o.Password = "u", password.Load().(string) }))
	refused := make(chan struct{}, 100)

	nc := connect(t, strings.Replace(s.URL(), "://", "://u:secret@", 1), nats.ReconnectWait(10*time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrAuthorization) {
				refused <- struct{}{}
			}
		}))

	restart := func(with string) {
		s.Stop()
		password.Store(with)

		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}

	restart("another")

	for range 3 { // nats.go gives up after two
		select {
		case <-refused:
		case <-time.After(natstest.Limit):
			t.Fatal("it does not try again")
		}
	}

	restart("secret")
	natstest.Eventually(t, nc.IsConnected, "the connection to be back")
}

func TestConnectErrors(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)
	file := filepath.Join(t.TempDir(), "empty")

	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, tc := range []struct {
		url  string
		want error
	}{
		{"nats:", transport.ErrInvalidOption},
		{"nats:///path", transport.ErrInvalidOption},
		{s.URL() + "/path", transport.ErrInvalidOption},
		{"nats://u:secret@one,nats://u:secret@other", transport.ErrInvalidOption},
		{s.URL() + "?reconnectbuf=much", transport.ErrInvalidOption},
		{s.URL() + "?reconnectbuf=-2", transport.ErrInvalidOption},
		{s.URL() + "?reconnectbuf=0", transport.ErrInvalidOption},
		{s.URL() + "?server=nats://other", transport.ErrInvalidOption},
		{s.URL() + "?server=u:secret@other", transport.ErrInvalidOption},
		{s.URL() + "?server=", transport.ErrInvalidOption},
		{s.URL() + "?creds=/no/such/file", transport.ErrInvalidOption},
		{s.URL() + "?nkey=" + file, transport.ErrInvalidOption},
		{s.URL() + "?tlsca=/no/such/file", transport.ErrInvalidOption},
		{s.URL() + "?tlscert=" + file, transport.ErrInvalidOption},
		{s.URL() + "?tlskey=" + file, transport.ErrInvalidOption},
		{s.URL() + "?tlsfirst=perhaps", transport.ErrInvalidOption},
		{"nats+tls" + strings.TrimPrefix(s.URL(), "nats"), nats.ErrSecureConnWanted},
		{"nats://127.0.0.1:1", transport.ErrDisconnected},
	} {
		nc, err := natsconn.Connect(t.Context(), parse(t, tc.url))
		if !errors.Is(err, tc.want) || nc != nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %v", tc.url, err, tc.want)
		}
	}

	for _, opt := range []nats.Option{func(*nats.Options) error { return errors.New("bad") }} {
		if _, err := natsconn.Connect(t.Context(), parse(t, s.URL()), opt); !errors.Is(err, transport.ErrInvalidOption) {
			t.Errorf("a bad option: %v", err)
		}
	}
}

// ctx ends the wait for a server that takes the connection and says nothing.
func TestConnectContext(t *testing.T) {
	t.Parallel()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	accepted := make(chan struct{})
	gone := make(chan struct{})

	go func() {
		defer close(gone)

		c, err := l.Accept()
		if err != nil {
			return
		}

		close(accepted)

		_, _ = io.Copy(io.Discard, bufio.NewReader(c))
		_ = c.Close()
	}()

	ctx, cancel := context.WithCancelCause(t.Context())

	go func() {
		<-accepted
		cancel(nil)
	}()

	_, err = natsconn.Connect(ctx, parse(t, "nats://"+l.Addr().String()))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}

	<-gone // the attempt ends by itself
	_ = l.Close()
}

func TestClose(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)
	other := connect(t, s.URL())

	sub, err := other.SubscribeSync("a")
	if err != nil {
		t.Fatal(err)
	}

	if err := other.Flush(); err != nil {
		t.Fatal(err)
	}

	nc := connect(t, s.URL())
	if err := nc.Publish("a", nil); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		if err := natsconn.Close(nc); err != nil || !nc.IsClosed() {
			t.Errorf("Close: %v", err)
		}
	}

	if _, err := sub.NextMsg(natstest.Limit); err != nil {
		t.Errorf("what was published before: %v", err)
	}

	nc = connect(t, s.URL())

	s.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client's noticing")

	if err := natsconn.Close(nc); err == nil || !nc.IsClosed() {
		t.Errorf("Close without a server: %v", err)
	}
}

// What happens on the connection goes to the log, without anything secret.
func TestErrorsAreLogged(t *testing.T) { //nolint:paralleltest // it looks at what goes to the default logger
	log := new(syncBuffer)

	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))

	s := natstest.RunTCP(t, embedded.WithConfig(func(o *server.Options) {
		o.Users = []*server.User{{
			Username: "u", Password: "secret",
			Permissions: &server.Permissions{Subscribe: &server.SubjectPermission{Deny: []string{"forbidden"}}},
		}}
	}))

	nc := connect(t, strings.Replace(s.URL(), "://", "://u:secret@", 1))

	if _, err := nc.SubscribeSync("forbidden"); err != nil {
		t.Fatal(err)
	}

	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, func() bool { return log.String() != "" }, "the log")

	if out := log.String(); !strings.Contains(out, "level=WARN") || !strings.Contains(out, "forbidden") || strings.Contains(out, "secret") {
		t.Errorf("logged %q", out)
	}

	s.Stop()
	natstest.Eventually(t, func() bool { return strings.Contains(log.String(), "is lost") }, "the log of the loss")

	if err := s.Start(); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, func() bool { return strings.Contains(log.String(), "is back") }, "the log of the return")

	lost := strings.Count(log.String(), "is lost")
	closed := nc.StatusChanged(nats.CLOSED)

	nc.Close()
	<-closed

	if out := log.String(); strings.Count(out, "is lost") != lost || strings.Contains(out, "secret") {
		t.Errorf("logged %q, and closing on purpose is no loss", out)
	}
}

// syncBuffer is a buffer that is written and read at the same time.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.buf.String()
}
