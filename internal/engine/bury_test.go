package engine_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// morgue is a storage of dead letters.
type morgue struct {
	mu      sync.Mutex
	down    bool
	takes   time.Duration
	refuses func(n int) bool
	tries   []int
	times   []time.Time
	stored  []int
	active  int
	most    int
}

func (m *morgue) bury(ctx context.Context, job *engine.Job) engine.Burial {
	n, _ := job.Burial.(int)

	m.mu.Lock()
	m.tries = append(m.tries, n)
	m.times = append(m.times, time.Now())
	m.active++
	m.most = max(m.most, m.active)
	takes := m.takes
	m.mu.Unlock()

	select {
	case <-time.After(takes):
	case <-ctx.Done():
	}

	m.mu.Lock()
	defer m.mu.Unlock()

	m.active--

	switch {
	case m.down || ctx.Err() != nil:
		return engine.Failing
	case m.refuses != nil && m.refuses(n):
		return engine.Refused
	default:
		m.stored = append(m.stored, n)
		job.Settling()
		_ = job.Delivery.Settler.Settle(ctx, job.Delivery.Token, transport.Verdict{Action: transport.Term})

		return engine.Buried
	}
}

func (m *morgue) open(open bool) {
	m.mu.Lock()
	defer m.mu.Unlock()

	m.down = !open
	m.tries, m.times, m.most = nil, nil, 0

	if open {
		m.takes = 0
	}
}

func (m *morgue) counts() (tries, stored, most int) {
	m.mu.Lock()
	defer m.mu.Unlock()

	return len(m.tries), len(m.stored), m.most
}

// withMorgue configures an engine whose handler buries what bad says.
func withMorgue(m *morgue, bad func(n int) bool, handled func(n int)) engine.Config {
	cfg := config(nil)
	cfg.Bury = m.bury
	cfg.BuryRetry = func(failures int) time.Duration { return time.Second << min(failures, 6) }
	cfg.Handle = func(_ context.Context, job *engine.Job) (time.Duration, bool) {
		n, _ := job.Delivery.Token.(int)

		if bad(n) {
			job.Burial = n

			return 0, true
		}

		handled(n)
		ack(job)

		return 0, false
	}

	return cfg
}

func below(limit int) func(int) bool { return func(n int) bool { return n < limit } }

// With one handler, and a storage that hangs and then fails, what cannot be
// stored holds back nobody; the storage is asked once per back-off, whatever
// waits for it, and all is stored when it is there again.
func TestBurialsHoldBackNobody(t *testing.T) {
	t.Parallel()

	for _, bad := range []int{1, 8, 300} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			b := newBroker(bad+600, transport.Info{AckWait: time.Minute})
			m := &morgue{down: true, takes: 5 * time.Second}

			var good atomic.Int32

			result := start(ctx, b, withMorgue(m, below(bad), func(int) { good.Add(1) }))

			synctest.Wait()

			if good.Load() != 600 {
				t.Errorf("%d of 600 good ones were handled while the first bad one was tried", good.Load())
			}

			time.Sleep(time.Hour)
			synctest.Wait()

			// In the end every 64 s and the five seconds that it takes.
			if tries, _, most := m.counts(); tries < 50 || tries > 60 || most != 1 {
				t.Errorf("the storage was asked %d times in an hour, %d at once", tries, most)
			}

			m.open(true)
			time.Sleep(10 * time.Minute)
			synctest.Wait()

			if _, stored, _ := m.counts(); stored != bad {
				t.Errorf("%d of %d were stored in the end", stored, bad)
			}

			if n := b.count(transport.Term); n != bad {
				t.Errorf("%d of %d were terminated", n, bad)
			}

			cancel()

			if err := <-result; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// So many that they count against the window hold back others, until they can be
// stored.
func TestBurialsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const bad, good = 10_000, 100

		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(bad+good, transport.Info{AckWait: time.Hour})
		m := &morgue{down: true}

		var handled atomic.Int32

		result := start(ctx, b, withMorgue(m, below(bad), func(int) { handled.Add(1) }))

		time.Sleep(time.Hour)
		synctest.Wait()

		if b.open < 8192 || b.open > 8192+513 {
			t.Errorf("%d are held", b.open)
		}

		m.open(true)
		time.Sleep(time.Hour)
		synctest.Wait()

		if _, stored, _ := m.counts(); stored != bad || handled.Load() != good {
			t.Errorf("%d of %d were stored, and %d of %d handled", stored, bad, handled.Load(), good)
		}

		cancel()

		if err := <-result; err != nil {
			t.Fatal(err)
		}
	})
}

// While the storage works, as many are stored at once as there are handlers, and
// when it fails that is one failure.
func TestBurialsGoSideBySide(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(0, transport.Info{AckWait: time.Minute})
		m := &morgue{takes: time.Second}
		cfg := withMorgue(m, below(1000), nil)
		cfg.Concurrency = 8
		result := start(ctx, b, cfg)

		b.push(80)
		time.Sleep(10*time.Second + time.Millisecond)

		if _, stored, most := m.counts(); stored != 80 || most != 8 {
			t.Errorf("%d of 80 were stored in 10 s, %d at once", stored, most)
		}

		m.open(false)
		b.push(80)

		began := time.Now()

		time.Sleep(time.Minute)
		synctest.Wait()

		m.mu.Lock()
		for i, at := range m.times {
			// 8 at once, which is one failure; then one by one.
			want := time.Duration(0)
			for k := range max(i-7, 0) {
				want += time.Second + time.Second<<(k+1)
			}

			if !near(at.Sub(began), want) {
				t.Errorf("try %d came after %v, want %v", i, at.Sub(began), want)
			}
		}

		if len(m.times) != 12 {
			t.Errorf("%d tries in a minute, want 8 at once and 4", len(m.times))
		}
		m.mu.Unlock()

		cancel()
		<-result
	})
}

// A letter that the storage refuses waits by itself.
func TestRefusedBurialsWaitAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(100, transport.Info{AckWait: time.Minute})
		m := &morgue{refuses: below(50)}
		result := start(ctx, b, withMorgue(m, below(100), nil))

		synctest.Wait()

		if tries, stored, _ := m.counts(); stored != 50 || tries != 100 {
			t.Errorf("%d of 50 were stored, in %d tries of 100", stored, tries)
		}

		time.Sleep(2 * time.Second)
		synctest.Wait()

		if tries, _, _ := m.counts(); tries != 150 {
			t.Errorf("%d tries in all, want 150", tries)
		}

		cancel()
		<-result
	})
}

// A burial opens its key, except in the strict form.
func TestBurialsAndKeys(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		strict bool
		want   []int
	}{"loose": {false, []int{1, 2, 3}}, "strict": {true, nil}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := newBroker(4, transport.Info{AckWait: time.Minute})
				m := &morgue{down: true}

				var handled []int

				cfg := withMorgue(m, below(1), func(n int) { handled = append(handled, n) })
				cfg.Strict, cfg.Lane = c.strict, func(*engine.Job) string { return "" }
				result := start(ctx, b, cfg)

				time.Sleep(10 * time.Minute)
				synctest.Wait()

				if !slices.Equal(handled, c.want) {
					t.Errorf("while the first one is to be stored %v are handled, want %v", handled, c.want)
				}

				m.open(true)
				time.Sleep(10 * time.Minute)
				synctest.Wait()

				if !slices.Equal(handled, []int{1, 2, 3}) {
					t.Errorf("in the end %v were handled", handled)
				}

				cancel()

				if err := <-result; err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// The leases of what waits to be buried are kept.
func TestBurialsKeepTheirLeases(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(3, transport.Info{AckWait: 3 * time.Second})
		result := start(ctx, b, withMorgue(&morgue{down: true}, below(3), nil))

		time.Sleep(time.Minute)
		synctest.Wait()

		if n := b.extended.Load(); n < 3*50 || n > 3*70 {
			t.Errorf("3 leases of 3 s were renewed %d times in a minute", n)
		}

		cancel()
		<-result
	})
}

// What could not be stored says nothing of how long handlers take: the window is
// as large as before.
func TestBurialsLeaveThePaceAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBroker(100, transport.Info{AckWait: 30 * time.Second})
		m := &morgue{down: true, takes: 10 * time.Second}

		var good atomic.Int32

		result := start(ctx, b, withMorgue(m, below(50), func(int) { good.Add(1) }))

		time.Sleep(time.Minute)
		synctest.Wait()

		b.mu.Lock()
		credit := b.credit
		b.mu.Unlock()

		if good.Load() != 50 || credit < 250 {
			t.Errorf("%d good ones, %d may still come", good.Load(), credit)
		}

		cancel()
		<-result
	})
}

// When the subscription ends, what waits is stored if the storage works, and
// handed back if it does not: nobody has to wait for the ack wait.
func TestDrainBuries(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		down       bool // from the beginning, or when the drain begins
		failsLater bool
		info       transport.Info
		redelivery bool

		stored, handedBack, abandoned int
	}{
		"stored":                       {redelivery: true, stored: 20},
		"handed back":                  {redelivery: true, down: true, handedBack: 20},
		"handed back when it fails":    {redelivery: true, failsLater: true, stored: 4, handedBack: 16},
		"last attempts, stored":        {redelivery: true, info: transport.Info{MaxDeliver: 1}, stored: 20},
		"last attempts, not":           {redelivery: true, info: transport.Info{MaxDeliver: 1}, down: true, abandoned: 20},
		"last attempts, failing later": {redelivery: true, info: transport.Info{MaxDeliver: 1}, failsLater: true, stored: 4, abandoned: 16},
		"no redelivery, stored":        {stored: 20},
		"no redelivery, not":           {down: true, abandoned: 20},
		"no redelivery, failing later": {failsLater: true, stored: 4, abandoned: 16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := newBroker(0, c.info)
				m := &morgue{down: c.down, takes: time.Second}
				cfg := withMorgue(m, below(20), nil)
				cfg.Concurrency, cfg.Redelivery, cfg.DrainTimeout = 2, c.redelivery, 20*time.Second
				result := start(ctx, b, cfg)

				b.push(20)
				time.Sleep(1500 * time.Millisecond)
				cancel()
				time.Sleep(time.Second)

				if c.failsLater {
					m.open(false)
				}

				if handedBack := b.count(transport.Nak); c.down && handedBack != c.handedBack {
					t.Errorf("%d of %d were handed back at once", handedBack, c.handedBack)
				}

				var (
					drain     *engine.DrainError
					abandoned int
				)

				if err := <-result; errors.As(err, &drain) {
					abandoned = drain.Abandoned
				} else if err != nil {
					t.Error(err)
				}

				stored, handedBack := b.count(transport.Term), b.count(transport.Nak)
				if stored != c.stored || handedBack != c.handedBack || abandoned != c.abandoned {
					t.Errorf("%d stored, %d handed back, %d abandoned, want %d, %d and %d",
						stored, handedBack, abandoned, c.stored, c.handedBack, c.abandoned)
				}

				m.open(true)
				time.Sleep(time.Hour)
				synctest.Wait()

				if tries, _, _ := m.counts(); tries > 0 {
					t.Errorf("after the end there were %d tries", tries)
				}
			})
		})
	}
}

// A handler whose context ends with the drain timeout fails, and this was its
// last attempt: there is time to store it, yet not for ever. One that returns
// after the end sees to it itself.
func TestBurialsInTheGrace(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		takes     time.Duration // to store it
		late      time.Duration // the handler, beyond its context
		abandoned bool
		stored    bool
	}{
		"in time":  {takes: 100 * time.Millisecond, stored: true},
		"too slow": {takes: time.Minute, abandoned: true},
		"too late": {takes: 100 * time.Millisecond, late: time.Minute, abandoned: true, stored: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := newBroker(1, transport.Info{AckWait: time.Minute, MaxDeliver: 1})
				m := &morgue{takes: c.takes}
				cfg := withMorgue(m, below(1), nil)
				cfg.DrainTimeout = 5 * time.Second
				cfg.Handle = func(ctx context.Context, job *engine.Job) (time.Duration, bool) {
					<-ctx.Done()
					time.Sleep(c.late)

					job.Burial = 0

					return 0, true
				}
				result := start(ctx, b, cfg)

				synctest.Wait()
				cancel()

				began := time.Now()

				var drain *engine.DrainError
				if err := <-result; errors.As(err, &drain) != c.abandoned {
					t.Errorf("got %v", err)
				}

				if took := time.Since(began); took > 7*time.Second {
					t.Errorf("it took %v", took)
				}

				if c.late == 0 {
					m.mu.Lock()
					if m.active > 0 {
						t.Error("a burial goes on after the end")
					}
					m.mu.Unlock()
				}

				time.Sleep(time.Hour)
				synctest.Wait()

				if _, stored, _ := m.counts(); (stored == 1) != c.stored {
					t.Errorf("%d were stored", stored)
				}
			})
		})
	}
}
