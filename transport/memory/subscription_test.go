package memory_test

import (
	"context"
	"errors"
	"math"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

func TestCredit(t *testing.T) {
	t.Parallel()

	tr, in := open(t), &inbox{}
	sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
	publish(t, tr, "a", "1", "2", "3", "4", "5")
	in.want(t)

	sub.Request(0)
	sub.Request(-1)
	in.want(t)

	sub.Request(1)
	sub.Request(1)
	in.want(t, "1", "2")

	// Credit that is left over adds up, and does not overflow.
	sub.Request(4)
	in.want(t, "3", "4", "5")
	sub.Request(math.MaxInt)
	sub.Request(math.MaxInt)
	publish(t, tr, "a", "6", "7")
	in.want(t, "6", "7")

	if err := sub.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}

	publish(t, tr, "a", "8")
	in.want(t)
	sub.Request(1)
	in.want(t, "8")
}

func TestPauseLeavesMessagesToOthers(t *testing.T) {
	t.Parallel()

	tr, one, two := open(t), &inbox{}, &inbox{}
	first := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: one.sink})
	second := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: two.sink})

	first.Request(9)

	if err := first.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}

	second.Request(9)
	publish(t, tr, "a", "1", "2")
	one.want(t)
	two.want(t, "1", "2")
}

// Pause and Close return when a sink that runs has returned, and nothing comes
// afterwards.
func TestPauseAndCloseWaitForTheSink(t *testing.T) {
	t.Parallel()

	for name, stop := range map[string]func(transport.Subscription, context.Context) error{
		"pause": transport.Subscription.Pause,
		"close": transport.Subscription.Close,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr := open(t)
				release, calls := make(chan struct{}), 0
				sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: func(transport.Delivery) {
					calls++
					<-release
				}})
				sub.Request(9)

				go func() { _, _ = tr.Publish(context.Background(), transport.Message{Subject: "a"}) }()

				synctest.Wait()
				publish(t, tr, "a", "waits") // not stuck behind the sink

				// ctx bounds the wait.
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()

				if err := stop(sub, ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}

				var returned atomic.Int32

				for range 3 {
					go func() {
						if err := stop(sub, context.Background()); err != nil {
							t.Error(err)
						}

						returned.Add(1)
					}()
				}

				synctest.Wait()

				if n := returned.Load(); n != 0 {
					t.Errorf("%d returned while the sink runs", n)
				}

				close(release)
				synctest.Wait()

				if n := returned.Load(); n != 3 || calls != 1 {
					t.Errorf("%d returned, the sink was called %d times", n, calls)
				}
			})
		})
	}
}

func TestSinkIsSerialAndInOrder(t *testing.T) {
	t.Parallel()

	const publishers, each = 8, 500

	tr := open(t)

	var (
		running atomic.Int32
		last    [publishers]int
		total   int
		done    = make(chan struct{})
		sub     transport.Subscription
	)

	sub = subscribe(t, tr, transport.SubscribeConfig{Subject: "a.*", Sink: func(d transport.Delivery) {
		if running.Add(1) != 1 {
			t.Error("two calls at once")
		}

		runtime.Gosched()

		p, _ := strconv.Atoi(d.Subject[2:])
		if n, _ := strconv.Atoi(string(d.Data)); n != last[p]+1 {
			t.Errorf("publisher %d: %d after %d", p, n, last[p])
		}

		last[p]++
		total++
		ack(t, d)
		running.Add(-1)
		sub.Request(1)

		if total == publishers*each {
			close(done)
		}
	}})
	sub.Request(3)

	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for n := range each {
				publish(t, tr, "a."+strconv.Itoa(p), strconv.Itoa(n+1))
			}
		})
	}

	wg.Wait()
	<-done
}

func TestSlowSink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, fast, slow := open(t), &inbox{}, &inbox{}
		subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: func(d transport.Delivery) {
			time.Sleep(time.Second)
			slow.sink(d)
			ack(t, d)
		}}).Request(9)
		subscribe(t, tr, transport.SubscribeConfig{Subject: "*", Sink: fast.sink}).Request(9)

		go publish(t, tr, "a", "1")

		synctest.Wait()
		publish(t, tr, "a", "2", "3") // these do not wait for it
		ack(t, fast.want(t, "1", "2", "3")...)
		after(2999 * time.Millisecond)
		slow.want(t, "1", "2")
		after(time.Millisecond)
		slow.want(t, "3")
	})
}

// A sink may do all but wait for itself.
func TestSinkMayCallBack(t *testing.T) {
	t.Parallel()

	tr, other := open(t), &inbox{}
	subscribe(t, tr, transport.SubscribeConfig{Subject: "b", Group: "other", Sink: other.sink}).Request(9)

	var (
		sub transport.Subscription
		got []string
	)

	sub = subscribe(t, tr, transport.SubscribeConfig{Subject: "*", Sink: func(d transport.Delivery) {
		got = append(got, d.Subject)
		m := d.Settler.Metadata(d.Token)

		switch {
		case d.Subject == "a" && m.Attempt == 1:
			publish(t, tr, "b", "x")
			nak(t, d)
		default:
			ack(t, d)
		}

		if err := sub.Flush(t.Context()); err != nil {
			t.Error(err)
		}

		_ = sub.Err()
		_ = sub.Info()

		sub.Request(1)
		publish(t, open(t), "elsewhere", "x")

		if len(got) == 3 {
			if err := subscribe(t, tr, transport.SubscribeConfig{Subject: "c", Sink: other.sink}).Close(t.Context()); err != nil {
				t.Error(err)
			}

			if err := tr.Close(); err != nil {
				t.Error(err)
			}

			select {
			case <-sub.Done():
				t.Error("done before its sink has returned")
			default:
			}

			if err := sub.Err(); err != nil {
				t.Errorf("it ended with %v before its sink has returned", err)
			}
		}
	}})
	sub.Request(1)
	publish(t, tr, "a", "1")

	// What is redelivered comes first.
	if !slices.Equal(got, []string{"a", "a", "b"}) {
		t.Errorf("got %q", got)
	}

	other.want(t, "x")

	<-sub.Done()

	if err := sub.Err(); !errors.Is(err, transport.ErrClosed) {
		t.Errorf("it ended with %v", err)
	}
}

// Who publishes into a subscription that never runs dry is not kept for ever:
// here each delivery makes the next.
func TestPublisherIsNotCaptured(t *testing.T) {
	t.Parallel()

	tr := open(t)

	var (
		sub      transport.Subscription
		returned = make(chan struct{})
		calls    int
		enough   = make(chan struct{})
	)

	sub = subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: func(d transport.Delivery) {
		ack(t, d)

		select {
		case <-returned:
			// Another thousand, from elsewhere.
			calls++
			if calls == 1000 {
				close(enough)

				return
			}
		default:
		}

		publish(t, tr, "a", "again")
		sub.Request(1)
	}})
	sub.Request(1)
	publish(t, tr, "a", "1")
	close(returned)
	<-enough
}

func TestLargeBacklogIsDelivered(t *testing.T) {
	t.Parallel()

	const n = 5000

	tr, all := open(t), make(chan int, n)
	sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: func(d transport.Delivery) {
		i, _ := strconv.Atoi(string(d.Data))
		all <- i
	}})

	for i := range n {
		publish(t, tr, "a", strconv.Itoa(i))
	}

	sub.Request(n)

	for want := range n {
		if got := <-all; got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
	}
}

// A sink that panics or ends its goroutine is a mistake that must not make a
// second one of it: everything goes on.
func TestSinkThatDoesNotReturn(t *testing.T) {
	t.Parallel()

	for name, fail := range map[string]func(){
		"panic":  func() { panic("sink") },
		"goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			tr, second := open(t), make(chan transport.Delivery, 1)
			first := true
			sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: func(d transport.Delivery) {
				if first {
					first = false

					fail()
				}

				second <- d
			}})
			publish(t, tr, "a", "1", "2")

			ended := make(chan struct{})

			go func() {
				defer close(ended)
				defer func() { _ = recover() }()

				sub.Request(2)
			}()

			<-ended

			if d := <-second; string(d.Data) != "2" {
				t.Errorf("got %q", d.Data)
			}

			if err := sub.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestClose(t *testing.T) {
	t.Parallel()

	for _, group := range []string{"", "g"} {
		t.Run("group "+group, func(t *testing.T) {
			t.Parallel()

			tr, in := open(t), &inbox{}
			cfg := transport.SubscribeConfig{Subject: "a", Group: group, Sink: in.sink}
			sub, closed := subscribe(t, tr, cfg), subscribe(t, tr, cfg)
			sub.Request(9)

			if err := closed.Close(t.Context()); err != nil {
				t.Fatal(err)
			}

			if err := sub.Flush(t.Context()); err != nil {
				t.Error(err)
			}

			publish(t, tr, "a", "1", "2")

			got := in.want(t, "1", "2")
			ack(t, got[0])

			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if err := tr.Close(); err != nil {
						t.Error(err)
					}
				})
			}

			wg.Wait()
			<-sub.Done()

			for range 2 {
				if err := sub.Err(); !errors.Is(err, transport.ErrClosed) {
					t.Errorf("err: %v", err)
				}
			}

			// One that its owner has closed did not end by itself.
			select {
			case <-closed.Done():
				t.Error("the closed subscription is done")
			default:
			}

			if err := closed.Err(); err != nil {
				t.Errorf("the closed subscription has %v", err)
			}

			if _, err := tr.Publish(t.Context(), transport.Message{Subject: "a"}); !errors.Is(err, transport.ErrClosed) {
				t.Errorf("publish: %v", err)
			}

			if _, err := tr.Subscribe(t.Context(), cfg); !errors.Is(err, transport.ErrClosed) {
				t.Errorf("subscribe: %v", err)
			}

			if err := sub.Flush(t.Context()); !errors.Is(err, transport.ErrClosed) {
				t.Errorf("flush: %v", err)
			}

			if err := settle(got[0], transport.Ack); !errors.Is(err, transport.ErrSettled) {
				t.Errorf("settle twice: %v", err)
			}

			if err := settle(got[1], transport.Ack); !errors.Is(err, transport.ErrClosed) {
				t.Errorf("settle: %v", err)
			}

			sub.Request(9)

			if err := sub.Pause(t.Context()); err != nil {
				t.Errorf("pause: %v", err)
			}

			for range 2 {
				if err := sub.Close(t.Context()); err != nil {
					t.Errorf("close: %v", err)
				}
			}

			in.want(t)
		})
	}
}

func TestCloseStopsTheTimer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, in := open(t), &inbox{}
		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
		sub.Request(9)
		publish(t, tr, "a", "1", "2")
		settled(t, in.want(t, "1", "2")[0], transport.Verdict{Action: transport.Nak, Delay: time.Second})

		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}

		after(time.Hour)
		in.want(t)
	})
}

// Every publish is accepted or fails with ErrClosed, whatever else goes on.
func TestCloseWhileInUse(t *testing.T) {
	t.Parallel()

	tr := open(t, memory.WithAckWait(time.Millisecond))

	var (
		wg      sync.WaitGroup
		started sync.WaitGroup
	)

	for i := range 8 {
		started.Add(1)
		wg.Go(func() {
			for n := 0; ; n++ {
				if n == 20 {
					started.Done()
				}

				_, err := tr.Publish(t.Context(), transport.Message{Subject: "a." + strconv.Itoa(i)})
				if errors.Is(err, transport.ErrClosed) {
					if n < 20 {
						t.Error("closed too early")
						started.Done()
					}

					return
				}

				if err != nil && !errors.Is(err, transport.ErrBufferFull) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			var sub transport.Subscription

			for n := 0; ; n++ {
				s, err := tr.Subscribe(t.Context(), transport.SubscribeConfig{
					Subject: "a.*", Group: []string{"", "g"}[n%2], Sink: func(d transport.Delivery) {
						_ = settle(d, actions[n%len(actions)])
					},
				})
				if err != nil {
					if !errors.Is(err, transport.ErrClosed) {
						t.Error(err)
					}

					break
				}

				sub = s
				sub.Request(10)

				if err := sub.Pause(t.Context()); err != nil {
					t.Error(err)
				}

				sub.Request(10)

				if n >= 4 { // the first few are left to the transport
					if err := sub.Close(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}

	started.Wait()

	if err := tr.Close(); err != nil {
		t.Error(err)
	}

	wg.Wait()
}
