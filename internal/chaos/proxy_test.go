package chaos_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
)

// pair is both ends of a connection through a proxy.
type pair struct {
	*chaos.Proxy
	client, server *net.TCPConn
}

// connect makes a pair through a proxy of its own.
func connect(t *testing.T) pair {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p := newProxy(t, l.Addr().String())
	return dial(t, p, l)
}

func newProxy(t *testing.T, target string) *chaos.Proxy {
	t.Helper()
	p, err := chaos.NewProxy(target, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func dial(t *testing.T, p *chaos.Proxy, l net.Listener) pair {
	t.Helper()
	client, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{client, server} {
		_ = c.SetDeadline(time.Now().Add(natstest.Limit))
		t.Cleanup(func() { _ = c.Close() })
	}
	return pair{p, client.(*net.TCPConn), server.(*net.TCPConn)}
}

func send(t *testing.T, from net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
}

// carries checks that text sent at one end is what comes next at the other.
func carries(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	send(t, from, text)
	receives(t, to, text)
}

func receives(t *testing.T, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("got %q, error %v; want %q", got, err, text)
	}
}

func ends(t *testing.T, c net.Conn, want error) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
		t.Errorf("read %d bytes, error %v; want %v", n, err, want)
	}
}

func TestProxyForwards(t *testing.T) {
	t.Parallel()
	p := connect(t)
	carries(t, p.client, p.server, "there")
	carries(t, p.server, p.client, "and back")
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // More than all queues hold.
	go func() {
		_, _ = p.client.Write(big)
		_ = p.client.CloseWrite()
	}()
	got, err := io.ReadAll(p.server)
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes of %d, error %v", len(got), len(big), err)
	}
	carries(t, p.server, p.client, "the other half goes on")
	_ = p.server.Close()
	ends(t, p.client, io.EOF)
	natstest.Eventually(t, func() bool { return p.Stats().Active == 0 }, "the connection to be gone")
	want := chaos.Stats{
		Accepted: 1,
		ToServer: chaos.Flow{Forwarded: int64(len(big)) + 5},
		ToClient: chaos.Flow{Forwarded: 30},
	}
	if got := p.Stats(); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

func TestProxyCut(t *testing.T) {
	t.Parallel()
	p := connect(t)
	carries(t, p.client, p.server, "x")
	if n := p.Cut(); n != 1 {
		t.Errorf("cut %d connections", n)
	}
	ends(t, p.client, syscall.ECONNRESET)
	ends(t, p.server, syscall.ECONNRESET)
}

func TestProxyHalfClose(t *testing.T) {
	t.Parallel()
	p := connect(t)
	carries(t, p.client, p.server, "x")
	if n := p.HalfClose(chaos.ToClient); n != 1 {
		t.Errorf("closed %d connections", n)
	}
	ends(t, p.client, io.EOF)
	send(t, p.server, "lost")
	natstest.Eventually(t, func() bool { return p.Stats().ToClient.Dropped == 4 }, "the bytes to be thrown away")
	carries(t, p.client, p.server, "still heard")
}

func TestProxyDropOneWay(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.Drop(chaos.ToServer)
	send(t, p.client, "lost")
	natstest.Eventually(t, func() bool { return p.Stats().ToServer.Dropped == 4 }, "the bytes to be dropped")
	carries(t, p.server, p.client, "the other way is open")
	p.Resume()
	// What comes after a hole would make no sense to the server.
	ends(t, p.server, syscall.ECONNRESET)
	ends(t, p.client, syscall.ECONNRESET)
}

func TestProxyDropSparesIdleConnections(t *testing.T) {
	t.Parallel()
	p := connect(t)
	carries(t, p.client, p.server, "x")
	p.Drop(chaos.Both)
	p.Resume()
	carries(t, p.client, p.server, "there")
	carries(t, p.server, p.client, "back")
}

func TestProxyDropHidesTheEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*net.TCPConn){
		"orderly": func(c *net.TCPConn) { _ = c.Close() },
		"reset": func(c *net.TCPConn) {
			_ = c.SetLinger(0)
			_ = c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := connect(t)
			p.Drop(chaos.ToServer)
			send(t, p.client, "x")
			end(p.client)
			// The proxy notices, the server does not: it sends and sees no error.
			natstest.Eventually(t, func() bool {
				send(t, p.server, "y")
				s := p.Stats()
				return s.ToClient.Dropped > 0 && s.ToServer.Dropped == 1
			}, "the proxy to find the client gone")
			if got := p.Stats(); got.Active != 1 {
				t.Errorf("stats %+v, want the server to be connected", got)
			}
			p.Resume()
			ends(t, p.server, syscall.ECONNRESET)
		})
	}
}

func TestProxyStall(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.Stall(chaos.Both)
	send(t, p.client, "there")
	send(t, p.server, "back")
	natstest.Eventually(t, func() bool {
		s := p.Stats()
		return s.ToServer.Stalled == 5 && s.ToClient.Stalled == 4
	}, "the bytes to be held back")
	if s := p.Stats(); s.ToServer.Forwarded+s.ToClient.Forwarded != 0 {
		t.Errorf("stats %+v, want nothing forwarded", s)
	}
	p.Resume()
	receives(t, p.server, "there")
	receives(t, p.client, "back")
}

func TestProxyStallIsCut(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.Stall(chaos.Both)
	send(t, p.client, "there")
	natstest.Eventually(t, func() bool { return p.Stats().ToServer.Stalled == 5 }, "the bytes to be held back")
	p.Cut()
	ends(t, p.server, syscall.ECONNRESET)
}

func TestProxyDelay(t *testing.T) {
	t.Parallel()
	p := connect(t)
	const base, jitter = 60 * time.Millisecond, 20 * time.Millisecond
	p.Delay(chaos.ToServer, base, jitter)
	began := time.Now()
	for range 3 {
		carries(t, p.client, p.server, "x") // Each waits for the one before it.
	}
	if took := time.Since(began); took < 3*(base-jitter) {
		t.Errorf("three delays of at least %v took %v", base-jitter, took)
	}
	p.Delay(chaos.ToServer, time.Hour, 0)
	send(t, p.client, "never")
	p.Delay(chaos.ToServer, 0, 0)
	if n := p.Cut(); n != 1 { // Ends the wait.
		t.Errorf("cut %d connections", n)
	}
	ends(t, p.server, syscall.ECONNRESET)
}

func TestProxyDelayKeepsOrder(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.Delay(chaos.ToServer, 2*time.Millisecond, 2*time.Millisecond)
	var sent bytes.Buffer
	for i := range 200 {
		b := []byte{byte(i)}
		sent.Write(b)
		send(t, p.client, string(b))
	}
	receives(t, p.server, sent.String())
}

func TestProxyRefuse(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.Refuse()
	isReset(t, p.Proxy)
	carries(t, p.client, p.server, "those there go on")
	if got := p.Stats(); got.Refused != 1 || got.Accepted != 1 {
		t.Errorf("stats %+v", got)
	}
}

func TestProxyWithoutServer(t *testing.T) {
	t.Parallel()
	p := newProxy(t, natstest.RunTCP(t).URL())
	dead := newProxy(t, p.Addr())
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	isReset(t, dead)
}

// isReset checks that a new connection is reset, which shows in the dial or
// after it.
func isReset(t *testing.T, p *chaos.Proxy) {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(natstest.Limit))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("error %v, want a reset", err)
	}
}

func TestNewProxyRefusesBadTargets(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"", "localhost", "nats://localhost", "://"} {
		if p, err := chaos.NewProxy(target, 1); err == nil {
			t.Errorf("%q is accepted", target)
			_ = p.Close()
		}
	}
}

func TestProxyCloseEndsEverything(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.Stall(chaos.ToClient)
	p.Drop(chaos.ToServer)
	send(t, p.client, "x")
	send(t, p.server, "y")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	ends(t, p.client, syscall.ECONNRESET)
	if got := p.Stats().Active; got != 0 {
		t.Errorf("%d connections after close", got)
	}
}

// A NATS client behind the proxy notices each fault and is back after it.
func TestProxyInFrontOfNATS(t *testing.T) {
	t.Parallel()
	p := newProxy(t, natstest.RunTCP(t).URL())
	up := make(chan struct{}, 1)
	nc := natstest.Connect(t, natstest.URL(p.URL()),
		nats.PingInterval(50*time.Millisecond), nats.MaxPingsOutstanding(2),
		nats.ReconnectHandler(func(*nats.Conn) { up <- struct{}{} }))
	sub, err := nc.SubscribeSync("s")
	if err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string]func(){
		"cut":                  func() { p.Cut() },
		"half-close to client": func() { p.HalfClose(chaos.ToClient) },
		"half-close to server": func() { p.HalfClose(chaos.ToServer) },
		"drop to server": func() {
			p.Drop(chaos.ToServer)
			natstest.Eventually(t, func() bool { return !nc.IsConnected() }, "the client to miss its pongs")
			p.Resume()
		},
		"drop to client": func() {
			p.Drop(chaos.ToClient)
			natstest.Eventually(t, func() bool { return !nc.IsConnected() }, "the client to miss its pongs")
			p.Resume()
		},
	} {
		fault()
		select {
		case <-up:
		case <-time.After(natstest.Limit):
			t.Fatalf("%s: not reconnected", name)
		}
		if err := nc.Publish("s", []byte(name)); err != nil {
			t.Fatal(err)
		}
		if m, err := sub.NextMsg(natstest.Limit); err != nil || string(m.Data) != name {
			t.Fatalf("%s: message %v, error %v", name, m, err)
		}
	}
}
