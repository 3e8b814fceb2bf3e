package transporttest

import (
	"context"
	"fmt"
	"reflect"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// noGoroutineIsLeft does a bit of everything under a label that goroutines
// inherit, so that it can run beside other items, closes, and looks for
// goroutines with that label that are still at work in the transport.
func noGoroutineIsLeft(e *env) {
	b := e.start(Config{})
	label := b.cfg.Prefix

	var pkg string

	pprof.Do(e.Context(), pprof.Labels("transporttest", label), func(context.Context) {
		s := &scope{TB: e.TB}
		defer s.end()

		inner := *b
		inner.e = &env{s, e.harness, e.log}
		inner.first = nil

		pkg = bitOfEverything(&inner)
	})

	var left string

	e.repeat(func() {}, func() bool {
		left = goroutines(label, "github.com/foomo/goflux", pkg)

		return left == "" || e.Failed()
	}, "all goroutines of the transport to end")
}

// bitOfEverything uses a transport and returns the path of its package.
func bitOfEverything(b *broker) string {
	e, t := b.e, b.Open(b.e)
	e.Cleanup(func() { e.check(t.Close(), "close the transport") })

	var got list[string]

	for _, opts := range [][]goflux.SubscriberOption{nil, grouped(b, goflux.WithConcurrency(4)), {goflux.WithOrderingKey(keyOf)}} {
		e.subscribe(t, b.subject("l", ">"), func(_ context.Context, msg goflux.Message[string]) error {
			got.add(msg.Payload)

			return goflux.Drop(nil)
		}, opts...)
	}

	var raw list[transport.Delivery]

	e.attach(t, transport.SubscribeConfig{Subject: b.subject("l", "*"), Sink: raw.add}).Request(5)
	e.publish(t, b.subject("l", "x"), numbers(20)...)
	got.wait(e, 60, "all messages")
	raw.wait(e, 5, "what was requested")

	if b.has(transport.Fetching) {
		// The group is there before its message.
		e.attach(t, transport.SubscribeConfig{Subject: b.subject("f"), Group: fetchers, Sink: func(transport.Delivery) {}})
		e.publish(t, b.subject("f"), "one")

		_, err := e.consumer(t, b.subject("f"), fetchers).Fetch(e.within(), 1)
		e.ok(err, "fetch")
	}

	typ := reflect.TypeOf(t)
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}

	return typ.PkgPath()
}

// goroutines returns the stacks that have the label and a function of one of
// the packages. Others, of a server within the process for instance, may have
// inherited the label as well.
func goroutines(label string, packages ...string) string {
	var profile strings.Builder

	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		return err.Error()
	}

	var found strings.Builder

	for stack := range strings.SplitSeq(profile.String(), "\n\n") {
		if !strings.Contains(stack, fmt.Sprintf("%q:%q", "transporttest", label)) || strings.Contains(stack, "transporttest.goroutines") {
			continue
		}

		for _, pkg := range packages {
			if pkg != "" && strings.Contains(stack, pkg) {
				found.WriteString(stack + "\n\n")

				break
			}
		}
	}

	return found.String()
}

// scope is a test within a test: what is registered with its Cleanup runs at its
// end.
type scope struct {
	testing.TB

	mu       sync.Mutex
	cleanups []func()
	ctx      context.Context //nolint:containedctx // as in a testing.TB
	cancel   context.CancelFunc
}

// Cleanup implements [testing.TB].
func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.cleanups = append(s.cleanups, f)
}

// Context implements [testing.TB].
func (s *scope) Context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.ctx == nil {
		s.ctx, s.cancel = context.WithCancel(s.TB.Context())
	}

	return s.ctx
}

func (s *scope) end() {
	_ = s.Context()
	s.cancel()

	for {
		s.mu.Lock()

		n := len(s.cleanups)
		if n == 0 {
			s.mu.Unlock()

			return
		}

		f := s.cleanups[n-1]
		s.cleanups = s.cleanups[:n-1]
		s.mu.Unlock()

		f()
	}
}
