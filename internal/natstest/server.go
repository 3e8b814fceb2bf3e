// Package natstest starts NATS servers and clusters within a test, and stops
// them when it ends.
//
// Everything here is gone at the end of the test that asked for it: after the
// test's cleanups no goroutine and no file of it is left, so packages that use
// natstest run goleak in their TestMain with no exceptions.
package natstest

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport/embedded"
)

// errStopped is what a client sees that connects to a stopped server.
var errStopped = errors.New("natstest: server is stopped")

// Server is an embedded server that can be stopped and started again within a
// test, with its address and its store kept. All methods are safe for
// concurrent use, and may be called from any goroutine until the test ends.
type Server struct {
	tb   testing.TB
	opts []embedded.Option
	port int // 0 if the server does not listen

	mu  sync.Mutex                      // held while it starts and stops
	cur atomic.Pointer[embedded.Server] // nil unless running
}

// Run starts a server with JetStream that opens no port and keeps its store in
// the test's temporary directory. opts add to that. It ends with the test; a
// failure to start ends the test.
func Run(tb testing.TB, opts ...embedded.Option) *Server {
	tb.Helper()
	return run(tb, 0, opts)
}

// RunTCP is [Run] with a TCP port on the loopback address, for tests that put
// something between client and server. The port stays the same over restarts.
func RunTCP(tb testing.TB, opts ...embedded.Option) *Server {
	tb.Helper()
	return run(tb, FreePort(tb), opts)
}

func run(tb testing.TB, port int, opts []embedded.Option) *Server {
	tb.Helper()
	s := newServer(tb, port, opts)
	if err := s.Start(); err != nil {
		tb.Fatal(err)
	}
	return s
}

// newServer prepares a server without starting it.
func newServer(tb testing.TB, port int, opts []embedded.Option) *Server {
	tb.Helper()
	s := &Server{tb: tb, port: port}
	s.opts = append(s.opts, embedded.WithStoreDir(tb.TempDir()))
	if port != 0 {
		// Without NoAdvertise the server tells clients its real address, and
		// they would reconnect past whatever stands in between.
		s.opts = append(s.opts, embedded.WithListen("127.0.0.1", port),
			embedded.WithConfig(func(o *server.Options) { o.Cluster.NoAdvertise = true }))
	}
	s.opts = append(s.opts, opts...)
	tb.Cleanup(s.Stop)
	return s
}

// Start starts the server again after [Server.Stop], with the same store and
// port. It does nothing to a server that runs.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur.Load() != nil {
		return nil
	}
	// Not the test's context: that one ends before the cleanups run.
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	cur, err := embedded.Start(ctx, s.opts...)
	if err != nil {
		return err
	}
	s.cur.Store(cur)
	return nil
}

// Stop shuts the server down and waits for its end. Its store stays for
// [Server.Start]. It does nothing to a server that is stopped.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	cur := s.cur.Swap(nil)
	if cur == nil {
		return
	}
	if err := cur.Shutdown(); err != nil {
		s.tb.Error(err)
	}
}

// Restart is [Server.Stop] and [Server.Start].
func (s *Server) Restart() error {
	s.Stop()
	return s.Start()
}

// URL returns the server's address, the same before and after a restart. It is
// empty for a server made with [Run].
func (s *Server) URL() string {
	if s.port == 0 {
		return ""
	}
	return "nats://" + addr(s.port)
}

// NATSServer returns the running nats-server, nil while it is stopped, stopping
// or starting. A restart makes a new one.
func (s *Server) NATSServer() *server.Server {
	if cur := s.cur.Load(); cur != nil {
		return cur.NATSServer()
	}
	return nil
}

// InProcessConn makes *Server usable with [nats.InProcessServer]. A client
// connected in this way reconnects after a restart, as one over TCP does.
func (s *Server) InProcessConn() (net.Conn, error) {
	ns := s.NATSServer()
	if ns == nil {
		return nil, errStopped
	}
	return ns.InProcessConn()
}

// Target is what [Connect] connects to: a [*Server], a [*Cluster] or a [URL].
type Target interface {
	target() string // empty for a server that does not listen
}

func (s *Server) target() string { return s.URL() }

// URL is a [Target] given by its address, such as that of a proxy in front of a
// server. Several are separated by commas.
type URL string

func (u URL) target() string { return string(u) }

// Connect connects to s and closes the connection when the test ends. The
// client reconnects for ever and at once (10 ms, no jitter), so that restarts
// don't slow a test down; opts come after that and may change it.
func Connect(tb testing.TB, s Target, opts ...nats.Option) *nats.Conn {
	tb.Helper()
	all := []nats.Option{
		nats.Name(tb.Name()),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(10 * time.Millisecond),
		nats.ReconnectJitter(0, 0),
	}
	if srv, ok := s.(*Server); ok && srv.port == 0 {
		all = append(all, nats.InProcessServer(srv))
	}
	nc, err := nats.Connect(s.target(), append(all, opts...)...)
	if err != nil {
		tb.Fatalf("natstest: connect: %v", err)
	}
	tb.Cleanup(nc.Close)
	return nc
}

// JetStream returns the JetStream API of nc.
func JetStream(tb testing.TB, nc *nats.Conn, opts ...jetstream.JetStreamOpt) jetstream.JetStream {
	tb.Helper()
	js, err := jetstream.New(nc, opts...)
	if err != nil {
		tb.Fatalf("natstest: JetStream: %v", err)
	}
	return js
}

// Stream creates the stream of cfg.
func Stream(tb testing.TB, js jetstream.JetStream, cfg jetstream.StreamConfig) jetstream.Stream {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), Limit)
	defer cancel()
	stream, err := js.CreateStream(ctx, cfg)
	if err != nil {
		tb.Fatalf("natstest: stream %q: %v", cfg.Name, err)
	}
	return stream
}

// Consumer creates the consumer of cfg on stream.
func Consumer(tb testing.TB, stream jetstream.Stream, cfg jetstream.ConsumerConfig) jetstream.Consumer {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), Limit)
	defer cancel()
	cons, err := stream.CreateConsumer(ctx, cfg)
	if err != nil {
		tb.Fatalf("natstest: consumer %q: %v", cfg.Durable+cfg.Name, err)
	}
	return cons
}
