package memory_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

// Members that fail in every way there is, come and go, while messages are
// published from all sides: each message is handled, once for each group.
func TestNothingIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const publishers, each, members = 4, 250, 5

		tr := open(t, memory.WithAckWait(50*time.Millisecond))

		type group struct {
			mu      sync.Mutex
			handled map[string]int
		}

		groups := map[string]*group{"": {handled: map[string]int{}}, "g": {handled: map[string]int{}}, "h": {handled: map[string]int{}}}

		var stop []transport.Subscription

		for name, g := range groups {
			for i := range members {
				if name == "" && i > 0 {
					break
				}

				queue := make(chan transport.Delivery, 4)
				random := rand.New(rand.NewPCG(uint64(i), 7))
				sub := subscribe(t, tr, transport.SubscribeConfig{
					Subject: "s.>", Group: name, Sink: func(d transport.Delivery) { queue <- d },
				})
				stop = append(stop, sub)
				sub.Request(cap(queue))

				go func() {
					for {
						var d transport.Delivery

						select {
						case d = <-queue:
						case <-sub.Done():
							return
						}

						time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)

						v := transport.Verdict{Action: transport.Ack}

						switch random.IntN(10) {
						case 0:
							v.Action = transport.Nak
						case 1:
							v = transport.Verdict{Action: transport.Nak, Delay: time.Duration(random.IntN(200)) * time.Millisecond}
						case 2:
							v.Action = 0 // lets the lease run out
						case 3:
							settled(t, d, transport.Verdict{Action: transport.Extend})
						}

						if v.Action == transport.Ack {
							g.mu.Lock()
							g.handled[string(d.Data)]++
							g.mu.Unlock()
						}

						if v.Action != 0 {
							settled(t, d, v)
						}

						if random.IntN(20) == 0 {
							if err := sub.Pause(t.Context()); err != nil {
								t.Error(err)
							}

							time.Sleep(time.Millisecond)
							sub.Request(cap(queue) - len(queue))

							continue
						}

						sub.Request(1)
					}
				}()
			}
		}

		for p := range publishers {
			go func() {
				for n := range each {
					publish(t, tr, "s.x", string(binary.AppendUvarint(binary.AppendUvarint(nil, uint64(p)), uint64(n))))
					time.Sleep(time.Millisecond)
				}
			}()
		}

		// The bubble's clock runs on until all has come to rest.
		after(time.Hour)

		for name, g := range groups {
			g.mu.Lock()

			if len(g.handled) != publishers*each {
				t.Errorf("group %q handled %d of %d", name, len(g.handled), publishers*each)
			}

			for _, n := range g.handled {
				if n != 1 {
					t.Errorf("group %q handled a message %d times", name, n)
				}
			}

			g.mu.Unlock()
		}

		if err := tr.Close(); err != nil {
			t.Error(err)
		}

		for _, s := range stop {
			<-s.Done()
		}
	})
}

// Of what a message needs nothing is kept: not by subject, key or id beyond the
// window, neither for what failed nor for what was given up.
func TestMemoryStaysFlat(t *testing.T) { //nolint:paralleltest // measures the heap
	messages, subjects := 1_000_000, 100_000
	if testing.Short() {
		messages, subjects = 200_000, 20_000
	}

	tr := open(t, memory.WithHistory(100), memory.WithMaxDeliver(2))
	handled := 0

	for _, cfg := range []transport.SubscribeConfig{{Subject: ">"}, {Subject: "s.*", Group: "g"}} {
		var sub transport.Subscription

		cfg.Sink = func(d transport.Delivery) {
			handled++
			a := transport.Ack

			if handled%5 < 2 {
				a = transport.Nak
			}

			if err := settle(d, a); err != nil {
				t.Error(err)
			}

			sub.Request(1)
		}
		sub = subscribe(t, tr, cfg)
		sub.Request(10)
	}

	var subject [16]byte

	run := func(n int) {
		for i := range n {
			s := string(binary.AppendUvarint(append(subject[:0], "s."...), uint64(i%subjects)+1<<20))
			if _, err := tr.Publish(t.Context(), transport.Message{
				Subject: s, ID: string(binary.AppendUvarint(nil, uint64(handled))), Data: make([]byte, 100),
			}); err != nil {
				t.Fatal(err)
			}
		}
	}

	run(150_000) // fills the window of ids twice

	before := heap()

	run(messages)

	if now := heap(); now > before+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, now)
	}

	if handled < 2*messages {
		t.Errorf("%d handled", handled)
	}

	if tr.GivenUp() == 0 {
		t.Error("none was given up")
	}
}

// A backlog that is gone leaves nothing behind.
func TestBacklogIsReleased(t *testing.T) { //nolint:paralleltest // measures the heap
	tr := open(t)
	before := heap()

	var sub transport.Subscription

	left := 0
	done := make(chan struct{})

	sub = subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: func(d transport.Delivery) {
		if err := settle(d, transport.Ack); err != nil {
			t.Error(err)
		}

		left--
		if left == 0 {
			close(done)
		}
	}})

	for {
		_, err := tr.Publish(t.Context(), transport.Message{Subject: "a", Data: make([]byte, 256)})
		if errors.Is(err, transport.ErrBufferFull) {
			break
		}

		if err != nil {
			t.Fatal(err)
		}

		left++
	}

	if left != 1<<16 {
		t.Errorf("the default holds %d", left)
	}

	full := heap()

	sub.Request(left)
	<-done

	if now := heap(); now > before+(full-before)/10 {
		t.Errorf("the heap was %d, rose to %d, and is %d bytes", before, full, now)
	}
}

// Nor does a subscription that is closed with messages in every state.
func TestClosedSubscriptionIsReleased(t *testing.T) { //nolint:paralleltest // measures the heap
	tr := open(t)
	before := heap()

	for range 200 {
		in := &inbox{}
		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
		sub.Request(3)

		for range 5 {
			if _, err := tr.Publish(t.Context(), transport.Message{Subject: "a", Data: make([]byte, 64<<10)}); err != nil {
				t.Fatal(err)
			}
		}

		got, later := in.take(), transport.Verdict{Action: transport.Nak, Delay: time.Hour}
		settled(t, got[0], later)

		if err := sub.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		settled(t, got[1], later)
	}

	if now := heap(); now > before+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, now)
	}
}

func heap() uint64 {
	var m runtime.MemStats

	runtime.GC()
	runtime.ReadMemStats(&m)

	return m.HeapAlloc
}
