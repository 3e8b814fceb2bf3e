package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/foomo/goflux/transport/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, opts ...embedded.Option) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, s) })
	return s
}

func shutdown(t *testing.T, s *embedded.Server) {
	t.Helper()
	if err := s.Shutdown(); err != nil {
		t.Error(err)
	}
}

func connect(t *testing.T, s *embedded.Server, opts ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := s.Connect(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func TestStartServesJetStreamWithoutListening(t *testing.T) {
	t.Parallel()
	s := start(t)
	if got := s.ClientURL(); got != "" {
		t.Errorf("ClientURL = %q, want none", got)
	}
	if addr := s.NATSServer().Addr(); addr != nil {
		t.Errorf("server listens on %v", addr)
	}
	_, js := connect(t, s)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	ack, err := js.Publish(t.Context(), "s.a", []byte("x"))
	if err != nil || ack.Sequence != 1 {
		t.Fatalf("ack %+v, error %v", ack, err)
	}
}

func TestTemporaryStoreGoesWithTheServer(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, js := connect(t, s)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	dir := s.NATSServer().StoreDir()
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	shutdown(t, s)
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("store %s after shutdown: %v", filepath.Dir(dir), err)
	}
}

func TestStoreDirIsKept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made", "by", "start")
	for range 2 {
		s := start(t, embedded.WithStoreDir(dir))
		_, js := connect(t, s)
		if _, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(t.Context(), "s", nil); err != nil {
			t.Fatal(err)
		}
		shutdown(t, s)
	}
	s := start(t, embedded.WithStoreDir(dir))
	_, js := connect(t, s)
	stream, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got != 2 {
		t.Errorf("%d messages after two runs, want 2", got)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "127.0.0.1", "localhost", "0.0.0.0"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			s := start(t, embedded.WithListen(host, 0))
			if !strings.HasPrefix(s.ClientURL(), "nats://") || strings.Contains(s.ClientURL(), "0.0.0.0") {
				t.Errorf("ClientURL = %q", s.ClientURL())
			}
			nc, err := nats.Connect(s.ClientURL())
			if err != nil {
				t.Fatal(err)
			}
			nc.Close()
			connect(t, s) // In memory too.
		})
	}
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("enough")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(cause)

	tests := []struct {
		name string
		ctx  context.Context
		opt  embedded.Option
		want error
		text string
	}{
		{"port taken", nil, embedded.WithListen("", taken.Addr().(*net.TCPAddr).Port), embedded.ErrStart, "in use"},
		{"store is a file", nil, embedded.WithStoreDir(file), embedded.ErrStart, "JetStream"},
		{"no store dir", nil, embedded.WithStoreDir(""), embedded.ErrInvalidOption, "WithStoreDir"},
		{"port too high", nil, embedded.WithListen("", 65536), embedded.ErrInvalidOption, "65536"},
		{"port negative", nil, embedded.WithListen("", -2), embedded.ErrInvalidOption, "-2"},
		{"memory negative", nil, embedded.WithMaxMemory(-1), embedded.ErrInvalidOption, "WithMaxMemory"},
		{"store negative", nil, embedded.WithMaxStore(-1), embedded.ErrInvalidOption, "WithMaxStore"},
		{"no function", nil, embedded.WithConfig(nil), embedded.ErrInvalidOption, "WithConfig"},
		{"refused by the server", nil, embedded.WithConfig(func(o *server.Options) { o.ServerName = "a b" }), embedded.ErrInvalidOption, "server name"},
		{"cluster without a port", nil, embedded.WithConfig(func(o *server.Options) {
			o.ServerName, o.Cluster.Name, o.Cluster.Port = "n", "c", -1
		}), embedded.ErrInvalidOption, "WithListen"},
		{"ctx ended", cancelled, nil, embedded.ErrNotReady, ""},
		{"ctx ended, cause", cancelled, nil, cause, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := tt.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			s, err := embedded.Start(ctx, tt.opt)
			if s != nil || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("server %v, error %v; want %v with %q", s, err, tt.want, tt.text)
			}
		})
	}
}

func TestStartIsBoundedByContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var opts *server.Options
	s, err := embedded.Start(ctx,
		embedded.WithLogger(slog.New(cancelOnLog{slog.DiscardHandler, cancel})),
		embedded.WithConfig(func(o *server.Options) { opts = o }))
	if s != nil || !errors.Is(err, embedded.ErrNotReady) || !errors.Is(err, context.Canceled) {
		t.Errorf("server %v, error %v", s, err)
	}
	if _, err := os.Stat(opts.StoreDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("temporary store after the failed start: %v", err)
	}
}

// cancelOnLog ends a context in the middle of the start: at its first notice.
type cancelOnLog struct {
	slog.Handler
	cancel context.CancelFunc
}

func (h cancelOnLog) Enabled(context.Context, slog.Level) bool { return true }

func (h cancelOnLog) Handle(context.Context, slog.Record) error {
	h.cancel()
	return nil
}

func TestConnectAfterShutdown(t *testing.T) {
	t.Parallel()
	s := start(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { shutdown(t, s) })
	}
	wg.Wait()
	if nc, err := s.Connect(); nc != nil || !errors.Is(err, embedded.ErrClosed) {
		t.Errorf("connection %v, error %v", nc, err)
	}
}

func TestConnectKeepsTheCallersOptions(t *testing.T) {
	t.Parallel()
	s := start(t)
	opts := make([]nats.Option, 0, 4)
	opts = append(opts, nats.Name("mine"))
	nc, _ := connect(t, s, opts...)
	if nc.Opts.Name != "mine" || len(opts) != 1 {
		t.Errorf("name %q, %d options", nc.Opts.Name, len(opts))
	}
}

func TestWithConfigRunsLast(t *testing.T) {
	t.Parallel()
	s := start(t, embedded.WithConfig(func(o *server.Options) {
		if o.JetStreamMaxMemory != 1<<20 {
			t.Errorf("limit in WithConfig is %d", o.JetStreamMaxMemory)
		}
		o.JetStream = false
	}), embedded.WithMaxMemory(1<<20))
	if s.NATSServer().JetStreamEnabled() {
		t.Error("JetStream is on")
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	s := start(t, embedded.WithMaxMemory(1<<20), embedded.WithMaxStore(1<<21))
	_, js := connect(t, s)
	for storage, limit := range map[jetstream.StorageType]int{jetstream.MemoryStorage: 1 << 20, jetstream.FileStorage: 1 << 21} {
		name := storage.String()
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{name}, Storage: storage}); err != nil {
			t.Fatal(err)
		}
		var err error
		var stored int
		body := make([]byte, 256<<10)
		for range 2 * limit / len(body) {
			if _, err = js.Publish(t.Context(), name, body); err != nil {
				break
			}
			stored += len(body)
		}
		if apiErr := (*jetstream.APIError)(nil); !errors.As(err, &apiErr) || stored > limit {
			t.Errorf("%s: stored %d of %d bytes, error %v", name, stored, limit, err)
		}
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		level     slog.Level
		want, not string
	}{
		{slog.LevelInfo, "Server Exiting", "level=DEBUG"},
		{slog.LevelDebug, "level=DEBUG", "secret-payload"},
		{slog.LevelError, "", "level=INFO"},
	} {
		t.Run(tt.level.String(), func(t *testing.T) {
			t.Parallel()
			var out syncBuffer
			s := start(t, embedded.WithLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: tt.level}))),
				embedded.WithConfig(func(o *server.Options) { o.Trace, o.TraceVerbose = true, true }))
			nc, _ := connect(t, s)
			if err := nc.Publish("s", []byte("secret-payload")); err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			nc.Close()
			shutdown(t, s)
			if got := out.String(); !strings.Contains(got, tt.want) || strings.Contains(got, tt.not) {
				t.Errorf("want %q and not %q in:\n%s", tt.want, tt.not, got)
			}
		})
	}
}

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
