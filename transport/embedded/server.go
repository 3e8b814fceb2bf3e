// Package embedded runs a NATS server inside the process, so that a service
// can be developed and tested with nothing installed but Go.
//
// The server is the real nats-server (v2.15), not an imitation: streams,
// consumers, headers and errors behave as they do in production. By default it
// has JetStream on, keeps its store in a temporary directory that it removes
// when it shuts down, and opens no port; connections are made in memory with
// [Server.Connect].
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

var (
	// ErrInvalidOption is returned by [Start] when an option's value cannot be
	// used, or when the server refuses the configuration as a whole. Nothing
	// has been started.
	ErrInvalidOption = errors.New("embedded: invalid option")

	// ErrStart is returned by [Start] when the server gave up while starting,
	// for instance because its port is taken or its store directory cannot be
	// written. The error's text is the server's own.
	ErrStart = errors.New("embedded: server did not start")

	// ErrNotReady is returned by [Start] when ctx ended, or [ReadyTimeout]
	// passed, before the server was ready. It wraps the cause of ctx.
	ErrNotReady = errors.New("embedded: server not ready in time")

	// ErrClosed is returned by [Server.Connect] after [Server.Shutdown].
	ErrClosed = errors.New("embedded: server is shut down")
)

// ReadyTimeout is how long [Start] waits for the server to become ready when
// ctx has no deadline.
const ReadyTimeout = 10 * time.Second

// readyPoll is how often a start is checked for its end. nats-server spins
// when it is asked to wait for 25 ms or less, so this stays above.
const readyPoll = 100 * time.Millisecond

// Option configures [Start].
type Option interface{ apply(*config) error }

type optionFunc func(*config) error

func (f optionFunc) apply(c *config) error { return f(c) }

type config struct {
	nats   server.Options
	logger *slog.Logger
	edits  []func(*server.Options)
}

// WithStoreDir keeps the streams and consumers in dir, which is created when it
// is missing and which stays after [Server.Shutdown]: a server that is started
// on the same dir later has them again. The default is a temporary directory
// that is removed at shutdown.
//
// One dir belongs to one server at a time; nats-server does not guard against
// a second one.
func WithStoreDir(dir string) Option {
	return optionFunc(func(c *config) error {
		if dir == "" {
			return errors.New("WithStoreDir: the directory is empty; leave the option out for a temporary one")
		}
		c.nats.StoreDir = dir
		return nil
	})
}

// WithListen lets the server listen for TCP connections on host and port, so
// that other processes and the nats command line tool can reach it. An empty
// host means 127.0.0.1; port 0 means any free port, see [Server.ClientURL].
// The default is not to listen at all.
//
// The server asks nobody for credentials: keep it on a loopback address, or
// set up users with [WithConfig].
func WithListen(host string, port int) Option {
	return optionFunc(func(c *config) error {
		if port < 0 || port > 65535 {
			return fmt.Errorf("WithListen: port %d is not in 0..65535", port)
		}
		if host == "" {
			host = "127.0.0.1"
		}
		if port == 0 {
			port = server.RANDOM_PORT // To nats-server 0 means its default, 4222.
		}
		c.nats.DontListen, c.nats.Host, c.nats.Port = false, host, port
		return nil
	})
}

// WithMaxMemory limits what all streams in memory together may hold, in bytes.
// A publish beyond it is refused with a JetStream API error. Zero, the default,
// leaves it to the server, which takes three quarters of the machine's memory
// (or of GOMEMLIMIT, if that is less).
func WithMaxMemory(bytes int64) Option {
	return optionFunc(func(c *config) error {
		if bytes < 0 {
			return fmt.Errorf("WithMaxMemory: %d bytes is negative", bytes)
		}
		c.nats.JetStreamMaxMemory = bytes
		return nil
	})
}

// WithMaxStore limits what all streams on disk together may hold, in bytes. A
// publish beyond it is refused with a JetStream API error. Zero, the default,
// leaves it to the server, which takes three quarters of the free disk space.
func WithMaxStore(bytes int64) Option {
	return optionFunc(func(c *config) error {
		if bytes < 0 {
			return fmt.Errorf("WithMaxStore: %d bytes is negative", bytes)
		}
		c.nats.JetStreamMaxStore = bytes
		return nil
	})
}

// WithLogger sends what the server reports to l: notices as Info, warnings as
// Warn, errors as Error, and debug output as Debug if l is enabled for Debug
// when the server starts. The server's protocol trace, which shows payloads
// and credentials, is never on. The default, and nil, is silence.
func WithLogger(l *slog.Logger) Option {
	return optionFunc(func(c *config) error {
		c.logger = l
		return nil
	})
}

// WithConfig lets edit change the server's own options before it starts: users,
// TLS, limits, a cluster, or JetStream set to false. It runs after all other
// options, in the order given, and sees what they set. A StoreDir set here is
// kept after shutdown, as with [WithStoreDir].
func WithConfig(edit func(*server.Options)) Option {
	return optionFunc(func(c *config) error {
		if edit == nil {
			return errors.New("WithConfig: the function is nil")
		}
		c.edits = append(c.edits, edit)
		return nil
	})
}

// Server is a NATS server in this process. All its methods are safe for
// concurrent use.
type Server struct {
	nats    *server.Server
	url     string
	tempDir string // removed at shutdown, empty if the store is the caller's

	closed   atomic.Bool
	shutdown func() error
}

// Start starts a server and returns when it is ready for connections.
//
// ctx bounds the start only; it does not stop the server later. Without a
// deadline, [ReadyTimeout] applies. If ctx ends first, the server is shut down
// again before Start returns. Reading back a large store counts, and cannot be
// interrupted: there Start returns as soon as the server lets it.
//
// Errors: [ErrInvalidOption], [ErrStart], [ErrNotReady]. After an error nothing
// is left behind, neither goroutine nor temporary directory.
func Start(ctx context.Context, opts ...Option) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, context.Cause(ctx))
	}
	c := config{nats: server.Options{
		DontListen: true,
		JetStream:  true,
		NoLog:      true, // Where the log goes is set below.
		NoSigs:     true, // Signals belong to the program, not to a server within it.

		DisableJetStreamBanner: true,
	}}
	for _, o := range opts {
		if o == nil {
			continue
		}
		if err := o.apply(&c); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalidOption, err)
		}
	}
	for _, edit := range c.edits {
		edit(&c.nats)
	}
	if c.nats.DontListen && c.nats.Cluster.Port != 0 {
		// nats-server would wait for its client port for ever, also at shutdown.
		return nil, fmt.Errorf("%w: a cluster node has to listen for clients, add WithListen", ErrInvalidOption)
	}

	s := &Server{}
	s.shutdown = sync.OnceValue(s.doShutdown)
	if c.nats.JetStream && c.nats.StoreDir == "" {
		dir, err := os.MkdirTemp("", "goflux-embedded-")
		if err != nil {
			return nil, fmt.Errorf("%w: temporary store: %w", ErrStart, err)
		}
		s.tempDir, c.nats.StoreDir = dir, dir
	}

	var err error
	if s.nats, err = server.NewServer(&c.nats); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrInvalidOption, err), s.removeTemp())
	}
	if err := s.start(ctx, c.logger); err != nil {
		return nil, errors.Join(err, s.Shutdown())
	}
	if !c.nats.DontListen {
		s.url = clientURL(s.nats)
	}
	return s, nil
}

// start runs the server and waits until it is ready, has given up or ctx ends.
func (s *Server) start(ctx context.Context, l *slog.Logger) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ReadyTimeout,
		fmt.Errorf("not ready after %v: %w", ReadyTimeout, context.DeadlineExceeded))
	defer cancel()

	// The server tells why it gives up to its logger alone, and then just
	// returns from Start. Hence it always has one.
	log := &logger{to: l}
	s.nats.SetLoggerV2(log, l != nil && l.Enabled(ctx, slog.LevelDebug), false, false)
	s.nats.Start()
	for {
		if reason := log.fatal.Load(); reason != nil {
			return fmt.Errorf("%w: %s", ErrStart, *reason)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrNotReady, context.Cause(ctx))
		}
		if s.nats.ReadyForConnections(readyPoll) {
			return nil
		}
	}
}

// Connect connects to the server within the process, over a pipe in memory
// rather than a socket. The connection belongs to the caller, who closes or
// drains it before [Server.Shutdown]; one that is left open tries to reconnect
// until its own limits end that.
//
// It fails with [ErrClosed] after Shutdown, and otherwise as [nats.Connect]
// does.
func (s *Server) Connect(natsOpts ...nats.Option) (*nats.Conn, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	opts := make([]nats.Option, 0, len(natsOpts)+1)
	opts = append(append(opts, nats.InProcessServer(s.nats)), natsOpts...)
	nc, err := nats.Connect("", opts...)
	if err != nil {
		return nil, fmt.Errorf("embedded: connect: %w", err)
	}
	return nc, nil
}

// ClientURL returns the URL under which other processes reach the server, such
// as nats://127.0.0.1:41423. It is empty unless the server listens, see
// [WithListen]. For a server on all interfaces it names the loopback address.
func (s *Server) ClientURL() string { return s.url }

// NATSServer returns the server itself, for what this package does not cover.
// Use [Server.Shutdown] to end it, so that the temporary store goes too.
func (s *Server) NATSServer() *server.Server { return s.nats }

// Shutdown ends the server: it closes all connections, writes what is pending
// in the store, waits until all of the server's goroutines are done, and
// removes the store if it is a temporary one. Every call waits for the end and
// returns the same error: nil, or why the temporary store could not be removed.
func (s *Server) Shutdown() error { return s.shutdown() }

func (s *Server) doShutdown() error {
	s.closed.Store(true)
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
	return s.removeTemp()
}

func (s *Server) removeTemp() error {
	if s.tempDir == "" {
		return nil
	}
	if err := os.RemoveAll(s.tempDir); err != nil {
		return fmt.Errorf("embedded: remove temporary store: %w", err)
	}
	return nil
}

// clientURL is the server's own ClientURL, except that a client can dial it
// also when the server listens on 0.0.0.0 or [::].
func clientURL(ns *server.Server) string {
	raw := ns.ClientURL()
	u, err := url.Parse(raw)
	addr, ok := ns.Addr().(*net.TCPAddr)
	if err != nil || !ok || !addr.IP.IsUnspecified() {
		return raw
	}
	host := "127.0.0.1"
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.To4() == nil {
		host = "::1"
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(addr.Port))
	return u.String()
}

// logger hands the server's log to slog and remembers why it gave up.
type logger struct {
	to    *slog.Logger
	fatal atomic.Pointer[string]
}

func (l *logger) log(level slog.Level, format string, v []any) {
	if l.to == nil || !l.to.Enabled(context.Background(), level) {
		return
	}
	l.to.Log(context.Background(), level, fmt.Sprintf(format, v...))
}

func (l *logger) Noticef(format string, v ...any) { l.log(slog.LevelInfo, format, v) }
func (l *logger) Warnf(format string, v ...any)   { l.log(slog.LevelWarn, format, v) }
func (l *logger) Errorf(format string, v ...any)  { l.log(slog.LevelError, format, v) }
func (l *logger) Debugf(format string, v ...any)  { l.log(slog.LevelDebug, format, v) }

// Tracef stays empty: a protocol trace shows payloads and credentials.
func (l *logger) Tracef(string, ...any) {}

func (l *logger) Fatalf(format string, v ...any) {
	reason := fmt.Sprintf(format, v...)
	l.fatal.CompareAndSwap(nil, &reason) // The first reason is the cause of the others.
	l.log(slog.LevelError, format, v)
}
