package transporttest

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux/transport"
)

// list keeps what handlers and sinks get, and tells when it grows. Its zero
// value is ready.
type list[V any] struct {
	mu    sync.Mutex
	items []V
	grown chan struct{} // closed at the next add; nil if nobody waits
}

func (l *list[V]) add(v V) {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.items = append(l.items, v)

	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
}

// all returns what is there.
func (l *list[V]) all() []V {
	l.mu.Lock()
	defer l.mu.Unlock()

	return slices.Clone(l.items)
}

func (l *list[V]) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()

	return len(l.items)
}

// wait returns what is there when there are n, or more.
func (l *list[V]) wait(e *env, n int, what string) []V {
	e.Helper()

	return l.until(e, what, func(items []V) bool { return len(items) >= n })
}

// until waits until ok, and returns what is there then. It ends the item when
// nothing is added for as long as patience lasts.
func (l *list[V]) until(e *env, what string, ok func(items []V) bool) []V {
	e.Helper()

	for {
		l.mu.Lock()

		if ok(l.items) {
			items := slices.Clone(l.items)
			l.mu.Unlock()

			return items
		}

		if l.grown == nil {
			l.grown = make(chan struct{})
		}

		grown, n := l.grown, len(l.items)
		l.mu.Unlock()

		select {
		case <-grown:
		case <-time.After(e.harness.patience()):
			e.Fatalf("waited in vain for: %s; got %d: %s", what, n, brief(l.all()))
		}
	}
}

// brief prints a value, of deliveries the payloads, as far as one cares to read.
func brief(v any) string {
	if ds, ok := v.([]transport.Delivery); ok {
		v = payloads(ds)
	}

	const limit = 500

	s := fmt.Sprint(v)
	if len(s) > limit {
		s = s[:limit] + "..."
	}

	return s
}

// counts returns how often each value is there.
func counts[V comparable](values []V) map[V]int {
	m := make(map[V]int, len(values))
	for _, v := range values {
		m[v]++
	}

	return m
}

// eachOnce reports values that are not there exactly once.
func eachOnce[V comparable](e *env, who string, got, want []V) {
	e.Helper()

	seen := counts(got)

	for _, v := range want {
		if n := seen[v]; n != 1 {
			e.Errorf("%s got %v %d times, want once", who, v, n)
		}

		delete(seen, v)
	}

	for v, n := range seen {
		e.Errorf("%s got %v %d times, want never", who, v, n)
	}
}

// sameOrder reports two lists that differ.
func sameOrder[V comparable](e *env, who string, got, want []V) {
	e.Helper()

	if !slices.Equal(got, want) {
		e.Errorf("%s got %s, want %s", who, brief(got), brief(want))
	}
}

// gathering is complete when as many have arrived as are expected.
type gathering struct {
	missing  atomic.Int64
	complete chan struct{}
}

func gather(n int) *gathering {
	g := &gathering{complete: make(chan struct{})}
	g.missing.Store(int64(n))

	return g
}

// arrive says that one more has arrived; those that are not expected count for
// nothing.
func (g *gathering) arrive() {
	if g.missing.Add(-1) == 0 {
		close(g.complete)
	}
}
