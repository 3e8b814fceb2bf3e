package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// env is what an item works with.
type env struct {
	testing.TB

	harness Harness
	log     *slog.Logger
}

func newEnv(tb testing.TB, h Harness) *env {
	tb.Helper()

	logged := &logBuffer{}

	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("what goflux logged:\n%s", logged)
		}
	})

	return &env{tb, h, slog.New(slog.NewTextHandler(logged, nil))}
}

// logBuffer keeps the first of what is logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	if b.buf.Len() < 1<<14 {
		b.buf.Write(p)
	}

	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.buf.String()
}

// n returns a number of messages: full, or short with -short.
func (e *env) n(full, short int) int {
	if testing.Short() {
		return short
	}

	return full
}

// within returns a context that ends with the item, or when patience does.
func (e *env) within() context.Context {
	ctx, cancel := context.WithTimeout(e.Context(), e.harness.patience())
	e.Cleanup(cancel)

	return ctx
}

// await waits for an event.
func (e *env) await(event <-chan struct{}, what string) {
	e.Helper()

	if !e.happens(event) {
		e.Fatalf("waited in vain for: %s", what)
	}
}

// happens is await for goroutines that must not end the test.
func (e *env) happens(event <-chan struct{}) bool {
	select {
	case <-event:
		return true
	case <-time.After(e.harness.patience()):
		return false
	}
}

// ok ends the item if err is not nil.
func (e *env) ok(err error, what string) {
	e.Helper()

	if err != nil {
		e.Fatalf("%s: %v", what, err)
	}
}

// check reports err if it is not nil. Other than ok it may be called by handlers.
func (e *env) check(err error, what string) {
	e.Helper()

	if err != nil {
		e.Errorf("%s: %v", what, err)
	}
}

// is reports an error that does not match the sentinel, or that tells nothing of
// its circumstances.
func (e *env) is(err, sentinel error, what string) {
	e.Helper()

	if !errors.Is(err, sentinel) {
		e.Errorf("%s: error %v, want one that matches %q", what, err, sentinel)

		return
	}

	if _, told := errors.AsType[*transport.Error](err); !told {
		e.Errorf("%s: error %q is not a *transport.Error", what, err)
	}
}

// The groups of most items.
const (
	workers  = "workers"
	fetchers = "fetchers"
)

// leased is the ack wait of items in which leases end. Long enough that a busy
// machine does not end them by itself.
const leased = 2 * time.Second

// broker is a broker of an item.
type broker struct {
	Broker

	e     *env
	cfg   Config
	caps  transport.Capabilities
	first transport.Transport // opened for caps; nil once it is in use
}

var started atomic.Uint64

// start starts a broker. Without an ack wait in cfg, leases outlast the item.
func (e *env) start(cfg Config) *broker {
	e.Helper()

	cfg.Prefix = fmt.Sprintf("tt%06x-%d", rand.Uint32N(1<<24), started.Add(1))

	if cfg.AckWait == 0 {
		cfg.AckWait = 10 * e.harness.patience()
	}

	b := &broker{Broker: e.harness.Start(e, cfg), e: e, cfg: cfg}
	b.first = b.open()
	b.caps = b.first.Capabilities()

	return b
}

// open returns a client of its own, which is closed with the item.
func (b *broker) open() transport.Transport {
	b.e.Helper()

	if t := b.first; t != nil {
		b.first = nil

		return t
	}

	t := b.Open(b.e)

	b.e.Cleanup(func() {
		if err := t.Close(); err != nil {
			b.e.Errorf("close the transport: %v", err)
		}
	})

	return t
}

// single reports whether the broker lives in its transport: then there are no
// two clients.
func (b *broker) single() bool { return b.open() == b.open() }

func (b *broker) has(cs ...transport.Capability) bool { return b.caps.Has(cs...) }

// subject returns a subject of the broker.
func (b *broker) subject(tokens ...string) string {
	return strings.Join(append([]string{b.cfg.Prefix}, tokens...), ".")
}

// The payloads that text does not decode.
const (
	undecodable = "this does not decode"
	explosive   = "this makes the codec panic"
)

// text is the codec of most items.
var text = goflux.Codec[string]{
	Encode: func(s string) ([]byte, error) { return []byte(s), nil },
	Decode: func(data []byte, s *string) error {
		*s = string(data)

		switch *s {
		case undecodable:
			return errors.New("bad payload")
		case explosive:
			panic("a codec that was not tested") //nolint:forbidigo // what an item is about
		default:
			return nil
		}
	},
}

// numbers returns the texts 0 to n-1.
func numbers(n int) []string {
	s := make([]string, n)
	for i := range s {
		s[i] = strconv.Itoa(i)
	}

	return s
}

// publisher returns a publisher of text.
func (e *env) publisher(t transport.Publisher) *goflux.BoundPublisher[string] {
	e.Helper()

	return newPublisher(e, t, text)
}

func newPublisher[T any](e *env, t transport.Publisher, codec goflux.Codec[T], opts ...goflux.PublisherOption) *goflux.BoundPublisher[T] {
	e.Helper()

	p, err := goflux.NewPublisher(t, codec, append([]goflux.PublisherOption{goflux.WithLogger(e.log)}, opts...)...)
	e.ok(err, "make a publisher")

	return p
}

// publish publishes texts, one after the other.
func (e *env) publish(t transport.Publisher, subject string, texts ...string) {
	e.Helper()

	p := e.publisher(t)

	for _, s := range texts {
		e.ok(p.Publish(e.within(), subject, s), "publish "+s)
	}
}

// running is a Subscribe that runs in the background.
type running struct {
	e      *env
	sub    interface{ Close() }
	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done is closed
}

type textHandler = goflux.Handler[string]

// subscribe runs Subscribe until the item ends, and returns when the broker has
// the subscription.
func (e *env) subscribe(t transport.Subscriber, subject string, h textHandler, opts ...goflux.SubscriberOption) *running {
	e.Helper()

	return subscribe(e, t, text, subject, h, opts...)
}

func subscribe[T any](
	e *env, t transport.Subscriber, codec goflux.Codec[T], subject string, h goflux.Handler[T], opts ...goflux.SubscriberOption,
) *running {
	e.Helper()

	ready := make(chan struct{})

	s, err := goflux.NewSubscriber(t, codec, append([]goflux.SubscriberOption{
		goflux.WithLogger(e.log),
		goflux.WithReady(func() { close(ready) }),
	}, opts...)...)
	e.ok(err, "make a subscriber")

	ctx, cancel := context.WithCancel(e.Context())
	r := &running{e: e, sub: s, cancel: cancel, done: make(chan struct{})}

	go func() {
		defer close(r.done)

		r.err = s.Subscribe(ctx, subject, h)
	}()

	e.Cleanup(func() {
		cancel()

		if !e.happens(r.done) {
			e.Errorf("Subscribe(%q) does not return", subject)
		}
	})

	select {
	case <-ready:
	case <-r.done:
		e.Fatalf("Subscribe(%q) returned before it was ready: %v", subject, r.err)
	case <-time.After(e.harness.patience()):
		e.Fatalf("Subscribe(%q) does not become ready", subject)
	}

	return r
}

// stop ends the Subscribe and returns its error.
func (r *running) stop() error {
	r.e.Helper()
	r.cancel()

	return r.wait()
}

// wait returns the error of a Subscribe that is to end by itself.
func (r *running) wait() error {
	r.e.Helper()
	r.e.await(r.done, "Subscribe to return")

	return r.err
}

// consumer returns a consumer of text that is closed with the item.
func (e *env) consumer(t transport.Subscriber, subject, group string) *goflux.BoundConsumer[string] {
	e.Helper()

	c, err := goflux.NewConsumer(t, text, subject, goflux.WithQueueGroup(group), goflux.WithLogger(e.log))
	e.ok(err, "make a consumer")
	e.Cleanup(c.Close)

	return c
}

// attach opens a subscription of the contract, which is closed with the item.
func (e *env) attach(t transport.Subscriber, cfg transport.SubscribeConfig) transport.Subscription {
	e.Helper()

	s, err := t.Subscribe(e.within(), cfg)
	e.ok(err, "subscribe to "+cfg.Subject)

	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), e.harness.patience())
		defer cancel()

		if err := s.Close(ctx); err != nil && !errors.Is(err, transport.ErrClosed) {
			e.Errorf("close the subscription to %q: %v", cfg.Subject, err)
		}
	})

	return s
}

// settle settles a delivery of the contract.
func (e *env) settle(d transport.Delivery, a transport.Action) {
	e.Helper()
	e.ok(d.Settler.Settle(e.within(), d.Token, transport.Verdict{Action: a}), a.String())
}
