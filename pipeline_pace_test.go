package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// stream is what a server does with the messages for a stream: it stores one
// after the other, each id once, and has room for some of them.
type stream struct {
	each  time.Duration // that storing one takes
	queue chan arrival

	mu      sync.Mutex
	stored  map[string]uint64
	refused int
}

type arrival struct {
	w *wire
	s shipment
}

func newStream(t *testing.T, room int, each time.Duration) *stream {
	t.Helper()

	st := &stream{each: each, queue: make(chan arrival, room), stored: map[string]uint64{}}
	done := make(chan struct{})

	go func() {
		defer close(done)

		for a := range st.queue {
			time.Sleep(st.each)
			st.store(a.w, a.s)
		}
	}()

	t.Cleanup(func() {
		close(st.queue)
		<-done
	})

	return st
}

func (st *stream) store(w *wire, s shipment) {
	st.mu.Lock()
	defer st.mu.Unlock()

	seq, duplicate := st.stored[s.msg.ID]
	if !duplicate {
		seq = uint64(len(st.stored) + 1)
		st.stored[s.msg.ID] = seq
	}

	w.done(s.token, transport.Receipt{Stream: "S", Sequence: seq, Duplicate: duplicate}, nil)
}

// connect returns a wire to the stream.
func (st *stream) connect() *wire {
	w := newWire()
	w.send = func(_ int, s shipment) error {
		select {
		case st.queue <- arrival{w, s}:
		default:
			go func() {
				st.mu.Lock()
				defer st.mu.Unlock()

				st.refused++
				w.refuse(s, transport.ErrUnavailable)
			}()
		}

		return nil
	}

	return w
}

// overWires publishes a batch of n over each wire, and returns how much was sent.
func overWires(t *testing.T, n int, patience time.Duration, wires ...*wire) int {
	t.Helper()

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	var wg sync.WaitGroup

	for _, w := range wires {
		pub := publisher(t, w, goflux.WithPublishRetry(100*time.Millisecond))

		wg.Go(func() {
			if _, err := pub.PublishBatch(ctx, items(n)...); err != nil {
				t.Error(err)
			}
		})
	}

	wg.Wait()

	sent := 0
	for _, w := range wires {
		sent += len(w.all(0))
	}

	return sent
}

// A server that is slow, or busy with others, is not given everything twice.
func TestSlowServerGetsMessagesOnce(t *testing.T) {
	t.Parallel()

	for name, publishers := range map[string]int{"one publisher": 1, "several": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const n = 2*window + 100

				st := newStream(t, 1<<20, time.Millisecond)

				var wires []*wire
				for range publishers {
					wires = append(wires, st.connect())
				}

				// A whole window takes forty times as long as an attempt.
				sent := overWires(t, n, time.Hour, wires...)

				if all := publishers * n; len(st.stored) != all || sent > all+all/10 {
					t.Errorf("%d messages were sent, %d stored, want %d", sent, len(st.stored), all)
				}
			})
		})
	}
}

// A server that has no room for all windows gets what it has room for.
func TestServerWithoutRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const publishers, n, room = 4, 10_000, 3000

		st := newStream(t, room, time.Millisecond)

		var wires []*wire
		for range publishers {
			wires = append(wires, st.connect())
		}

		began := time.Now()
		sent := overWires(t, n, time.Hour, wires...)

		all := publishers * n
		if len(st.stored) != all || sent > 2*all {
			t.Errorf("%d messages were sent, %d refused, %d stored, want %d", sent, st.refused, len(st.stored), all)
		}

		// It is kept busy.
		if took := time.Since(began); took > time.Duration(all)*st.each*3/2 {
			t.Errorf("it took %v", took)
		}
	})
}

// A server that loses everything for a while is asked now and then; when it is
// back it gets what it has lost, in order.
func TestServerThatIsAwayForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const away = 3 * time.Second

		began := time.Now()
		st := newStream(t, 1<<20, 10*time.Microsecond)
		w := st.connect()
		there := w.send
		w.send = func(n int, s shipment) error {
			if time.Since(began) < away {
				return nil
			}

			return there(n, s)
		}

		sent := overWires(t, window, time.Minute, w)

		if took := time.Since(began); took > away+2*time.Second {
			t.Errorf("it took %v", took)
		}

		// The window, a few attempts of some, the window.
		if len(st.stored) != window || sent > 2*window+500 {
			t.Errorf("%d messages were sent, %d stored", sent, len(st.stored))
		}

		last := -1
		disorder := 0

		for _, s := range w.all(window) {
			if s.at.Sub(began) < away {
				continue
			}

			var i int
			if _, err := fmt.Sscanf(s.msg.Subject, "a.%d", &i); err != nil {
				t.Error(err)
			}

			if i < last {
				disorder++
			}

			last = i
		}

		if disorder > 20 {
			t.Errorf("%d messages came before an earlier one", disorder)
		}
	})
}

// While there is no stream, because its leader is being elected, it is not asked
// without a break; and what is for a stream that is there goes its way.
func TestNoStreamHoldsOthersNotUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const nowhere, all = 3000, 3500

		began := time.Now()
		w := newWire()
		w.send = func(_ int, s shipment) error {
			var i int
			if _, err := fmt.Sscanf(s.msg.Subject, "a.%d", &i); err != nil {
				t.Error(err)
			}

			go func() {
				if i < nowhere && time.Since(began) < 4*time.Second {
					w.refuse(s, transport.ErrNoStream)
				} else {
					w.confirm(s, 1)
				}
			}()

			return nil
		}

		pub := publisher(t, w, goflux.WithPublishRetry(0))
		pending := make([]*goflux.Pending, all)

		for i := range pending {
			pending[i] = async(t, t.Context(), pub, i)
		}

		for _, p := range pending[nowhere:] {
			_, err := p.Wait(t.Context())
			must(t, err)
		}

		if took := time.Since(began); took > time.Second {
			t.Errorf("the others took %v", took)
		}

		for _, p := range pending {
			_, err := p.Wait(t.Context())
			must(t, err)
		}

		if n := len(w.all(0)); n > 5*all {
			t.Errorf("%d messages were sent", n)
		}
	})
}

// A message that is lost while others are answered is sent again soon.
func TestMessageLostAmongOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.send = func(n int, s shipment) error {
			if n > 0 {
				w.confirm(s, 1)
			}

			return nil
		}

		pub := publisher(t, w, goflux.WithPublishRetry(100*time.Millisecond))
		lost := async(t, t.Context(), pub, 0)
		began := time.Now()

		for i := range 100 {
			time.Sleep(10 * time.Millisecond)
			async(t, t.Context(), pub, i+1)
		}

		if _, err := outcome(t, lost); err != nil {
			t.Error(err)
		}

		for _, s := range w.all(1) {
			if took := s.at.Sub(began); s.msg.Subject == "a.0" && took > 200*time.Millisecond {
				t.Errorf("it was sent again after %v", took)
			}
		}
	})
}

// What is under way is bounded in bytes, too; one message always fits.
func TestWindowOfBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 64 << 20

		payload := make([]byte, 2*limit)
		size := limit / 8
		codec := constant()
		codec.Encode = func(order) ([]byte, error) { return payload[:size], nil }

		w := newWire()

		pub, err := goflux.NewPublisher(w, codec, goflux.WithAckWait(time.Hour))
		must(t, err)

		for i := range 8 {
			async(t, t.Context(), pub, i)
		}

		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		began := time.Now()
		_, err = pub.PublishAsync(short, "a", order{})
		mustFail(t, err, false, context.DeadlineExceeded)

		if took := time.Since(began); took != time.Second {
			t.Errorf("it blocked for %v", took)
		}

		// Room for the ninth is room for all of it, whatever its size.
		size = len(payload)
		taken := make(chan struct{})

		go func() {
			defer close(taken)

			async(t, t.Context(), pub, 8)
		}()

		synctest.Wait()
		w.confirm(w.all(0)[0], 1)
		<-taken
		synctest.Wait()

		for i, s := range w.all(1) {
			w.confirm(s, uint64(i+2))
		}

		must(t, pub.Flush(t.Context()))
		must(t, pub.Close())
	})
}

// What comes again however often it is repeated is not repeated.
func TestFinalErrorsEndAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		foreign := transport.Final(transport.Mark(transport.ErrPublishUnknown, transport.ErrNoStream))
		w := newWire()
		w.send = func(_ int, s shipment) error {
			w.refuse(s, foreign)

			return nil
		}

		_, err := async(t, t.Context(), publisher(t, w, goflux.WithPublishRetry(0)), 0).Wait(t.Context())
		mustFail(t, err, true, goflux.ErrNoStream)

		s := &script{caps: reliable, steps: []func(context.Context) error{fail(foreign)}}
		err = publisher(t, s, goflux.WithPublishRetry(0)).Publish(t.Context(), "a", order{})
		mustFail(t, err, true, goflux.ErrNoStream)

		if len(w.all(0)) != 1 || len(s.tries) != 1 || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%d and %d attempts, error %v", len(w.all(0)), len(s.tries), err)
		}
	})
}
