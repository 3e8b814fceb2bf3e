package memory_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

var actions = []transport.Action{transport.Ack, transport.AckSync, transport.Nak, transport.Term, transport.Extend}

// after lets d pass in the bubble, and all that it sets off.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestSettleOnce(t *testing.T) {
	t.Parallel()

	for _, first := range actions {
		t.Run(first.String(), func(t *testing.T) {
			t.Parallel()

			tr, in := open(t), &inbox{}
			sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
			sub.Request(1)
			publish(t, tr, "a", "1")

			d := in.want(t, "1")[0]
			settled(t, d, transport.Verdict{Action: first})

			for _, second := range actions {
				want := transport.ErrSettled
				if first == transport.Extend {
					want = nil

					if second != transport.Extend {
						continue // would settle it
					}
				}

				if err := settle(d, second); !errors.Is(err, want) {
					t.Errorf("%s after %s: %v", second, first, err)
				}
			}

			// Redelivered only by a nak, and only once.
			sub.Request(9)

			switch first {
			case transport.Nak:
				in.want(t, "1")
			default:
				in.want(t)
			}
		})
	}
}

func TestSettleWhatIsNotOurs(t *testing.T) {
	t.Parallel()

	tr, in := open(t), &inbox{}
	subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink}).Request(1)
	publish(t, tr, "a", "1")

	d := in.want(t, "1")[0]
	foreign := transport.Delivery{Settler: d.Settler, Token: "foreign"}

	for _, token := range []any{"foreign", nil} {
		foreign.Token = token

		if err := settle(foreign, transport.Ack); !errors.Is(err, transport.ErrInvalidOption) {
			t.Errorf("the token %v: %v", token, err)
		}

		if m := d.Settler.Metadata(token); m != (transport.Metadata{}) {
			t.Errorf("the token %v has %+v", token, m)
		}
	}

	if err := settle(d, 0); !errors.Is(err, transport.ErrInvalidOption) {
		t.Errorf("no action: %v", err)
	}

	ack(t, d) // it was not settled by that
}

func TestRedeliveredComesBeforeNew(t *testing.T) {
	t.Parallel()

	tr, in := open(t), &inbox{}
	sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: in.sink})
	publish(t, tr, "a", "1", "2", "3", "4", "5")
	sub.Request(3)

	got := in.want(t, "1", "2", "3")
	nak(t, got[1], got[0])
	ack(t, got[2])
	sub.Request(9)
	in.want(t, "2", "1", "4", "5")
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, in := open(t), &inbox{}
		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: in.sink})
		stored := time.Now()

		publish(t, tr, "other", "1")
		publish(t, tr, "a", "2", "3", "4")
		time.Sleep(time.Second)
		sub.Request(1)

		for attempt := 1; attempt <= 3; attempt++ {
			d := in.want(t, "2")[0]
			want := transport.Metadata{
				Stream: "memory", Consumer: "g", Sequence: 2, Attempt: attempt, Pending: 2, Timestamp: stored,
			}

			if got := d.Settler.Metadata(d.Token); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}

			nak(t, d)
			sub.Request(1)

			// A settled delivery still knows what it was.
			if got := d.Settler.Metadata(d.Token); got != want {
				t.Errorf("settled: got %+v, want %+v", got, want)
			}
		}

		ack(t, in.take()...)
		sub.Request(2)

		for i, d := range in.want(t, "3", "4") {
			if m := d.Settler.Metadata(d.Token); m.Pending != uint64(1-i) || m.Attempt != 1 || m.Sequence != uint64(3+i) {
				t.Errorf("%q has %+v", d.Data, m)
			}
		}
	})
}

func TestDelayedNak(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, in := open(t, memory.WithAckWait(24*time.Hour)), &inbox{}
		subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink}).Request(100)
		publish(t, tr, "a", "50ms", "10ms", "1h", "20ms", "0s", "-1s", "10ms")

		for _, d := range in.take() {
			delay, err := time.ParseDuration(string(d.Data))
			if err != nil {
				t.Fatal(err)
			}

			settled(t, d, transport.Verdict{Action: transport.Nak, Delay: delay})
		}

		in.want(t, "0s", "-1s")
		after(10*time.Millisecond - 1)
		in.want(t)
		after(1)
		in.want(t, "10ms", "10ms")
		after(10 * time.Millisecond)
		in.want(t, "20ms")
		after(29 * time.Millisecond)
		in.want(t)
		after(time.Millisecond)
		ack(t, in.want(t, "50ms")...)
		after(time.Hour - 50*time.Millisecond - 1)
		in.want(t)
		after(1)
		in.want(t, "1h")
	})
}

func TestDelaysThatEndTogetherKeepTheOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, in := open(t), &inbox{}
		subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink}).Request(100)
		publish(t, tr, "a", "1", "2", "3", "4", "5")

		got := in.take()
		slices.Reverse(got)

		for _, d := range got {
			settled(t, d, transport.Verdict{Action: transport.Nak, Delay: time.Second})
		}

		after(time.Second)
		in.want(t, "1", "2", "3", "4", "5")
	})
}

func TestLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, in := open(t, memory.WithAckWait(time.Second)), &inbox{}
		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Group: "g", Sink: in.sink})

		// The lease runs from the delivery on, not from the publish.
		publish(t, tr, "a", "1", "2", "3")
		after(time.Hour)
		sub.Request(100)

		got := in.want(t, "1", "2", "3")
		after(500 * time.Millisecond)
		ack(t, got[1])
		settled(t, got[2], transport.Verdict{Action: transport.Extend})
		after(500*time.Millisecond - 1)
		in.want(t)
		after(1)

		again := in.want(t, "1")
		if m := again[0].Settler.Metadata(again[0].Token); m.Attempt != 2 {
			t.Errorf("attempt %d", m.Attempt)
		}

		// The extended one has half a second more, and again.
		after(499 * time.Millisecond)
		in.want(t)
		settled(t, got[2], transport.Verdict{Action: transport.Extend})
		after(501 * time.Millisecond)
		ack(t, in.want(t, "1")...)
		after(498 * time.Millisecond)
		in.want(t)
		after(time.Millisecond)
		ack(t, in.want(t, "3")...)
		after(time.Hour)
		in.want(t)
	})
}

func TestLeasePassesToAnotherMember(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, one, two := open(t), &inbox{}, &inbox{}
		cfg := transport.SubscribeConfig{Subject: "a", Group: "g", Sink: one.sink}
		first := subscribe(t, tr, cfg)
		first.Request(9)
		publish(t, tr, "a", "1", "2", "3")

		got := one.want(t, "1", "2", "3")

		if err := first.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		cfg.Sink = two.sink
		subscribe(t, tr, cfg).Request(9)
		two.want(t) // it is not the closing that gives them back

		// Settling still works after Close.
		ack(t, got[0])
		nak(t, got[1])
		two.want(t, "2")
		after(30 * time.Second)
		two.want(t, "3", "2")
		one.want(t)
	})
}

func TestRedeliveryIsSharedByTheMembers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, one, two := open(t), &inbox{}, &inbox{}
		cfg := transport.SubscribeConfig{Subject: "a", Group: "g", Sink: one.sink}
		subscribe(t, tr, cfg).Request(100)
		publish(t, tr, "a", "1", "2", "3", "4")
		one.want(t, "1", "2", "3", "4")

		cfg.Sink = two.sink
		subscribe(t, tr, cfg).Request(100)
		after(30 * time.Second)
		one.want(t, "2", "4")
		two.want(t, "1", "3")
	})
}

// The verdicts of a delivery whose lease has run out.
func TestLateVerdicts(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		name      string
		redeliver bool // before the verdict
		late      transport.Verdict
		want      []string // delivered afterwards, at once
	}{
		{"ack of a message that waits", false, transport.Verdict{Action: transport.Ack}, []string{"2"}},
		{"ack of a message that is out", true, transport.Verdict{Action: transport.Ack}, []string{"2"}},
		{"term of a message that waits", false, transport.Verdict{Action: transport.Term}, []string{"2"}},
		{"term of a message that is out", true, transport.Verdict{Action: transport.Term}, []string{"2"}},
		{"nak of a message that waits", false, transport.Verdict{Action: transport.Nak}, []string{"1", "2"}},
		{"nak of a message that is out", true, transport.Verdict{Action: transport.Nak}, []string{"1", "2"}},
		{"delayed nak of a message that waits", false, transport.Verdict{Action: transport.Nak, Delay: 1}, []string{"2"}},
		{"delayed nak of a message that is out", true, transport.Verdict{Action: transport.Nak, Delay: 1}, []string{"2"}},
		{"extension of a message that waits", false, transport.Verdict{Action: transport.Extend}, []string{"1", "2"}},
		{"extension of a message that is out", true, transport.Verdict{Action: transport.Extend}, []string{"2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr, in := open(t, memory.WithAckWait(time.Second)), &inbox{}
				sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
				sub.Request(1)
				publish(t, tr, "a", "1")

				old := in.want(t, "1")[0]
				after(time.Second)

				if tc.redeliver {
					sub.Request(1)
					in.want(t, "1")
				}

				after(time.Millisecond) // so that an extension shows
				settled(t, old, tc.late)
				publish(t, tr, "a", "2")
				sub.Request(9)

				got := in.want(t, tc.want...)
				ack(t, got...)

				// What was not done with comes back in its time, once.
				after(time.Second)

				switch late := tc.late; {
				case late.Action == transport.Nak && late.Delay > 0, tc.redeliver && late.Action == transport.Extend:
					ack(t, in.want(t, "1")...)
				default:
					in.want(t)
				}

				after(time.Hour)
				in.want(t)
			})
		})
	}
}

// A nak brings forward what is out, not what is already about to be redelivered.
func TestLateNakKeepsThePlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, in := open(t), &inbox{}
		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
		sub.Request(2)
		publish(t, tr, "a", "1", "2")

		got := in.take()

		after(30 * time.Second)
		nak(t, got[0])
		sub.Request(9)
		in.want(t, "1", "2")
	})
}

func TestVerdictOnADoneMessageChangesNothing(t *testing.T) {
	t.Parallel()

	for _, late := range actions {
		t.Run(late.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr, in := open(t, memory.WithMaxPending(1)), &inbox{}
				subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink}).Request(9)
				publish(t, tr, "a", "1")

				old := in.want(t, "1")[0]
				after(30 * time.Second)
				ack(t, in.want(t, "1")...)
				settled(t, old, transport.Verdict{Action: late})
				after(time.Hour)
				in.want(t)

				// It was counted once: there is room for one, not for two.
				publish(t, tr, "a", "2")

				if _, err := tr.Publish(t.Context(), transport.Message{Subject: "a"}); !errors.Is(err, transport.ErrBufferFull) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestMaxDeliver(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		name string
		fail func(t *testing.T, d transport.Delivery)
	}{
		{"nak", func(t *testing.T, d transport.Delivery) { t.Helper(); nak(t, d) }},
		{"delayed nak", func(t *testing.T, d transport.Delivery) {
			t.Helper()
			settled(t, d, transport.Verdict{Action: transport.Nak, Delay: time.Minute})
		}},
		{"lease", func(*testing.T, transport.Delivery) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr, in := open(t, memory.WithMaxDeliver(3), memory.WithMaxPending(1)), &inbox{}
				sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
				publish(t, tr, "a", "1")

				var last transport.Delivery

				for attempt := 1; attempt <= 3; attempt++ {
					if tr.GivenUp() != 0 {
						t.Errorf("given up before attempt %d", attempt)
					}

					sub.Request(1)

					last = in.want(t, "1")[0]
					if got := last.Settler.Metadata(last.Token).Attempt; got != attempt {
						t.Errorf("attempt %d, want %d", got, attempt)
					}

					tc.fail(t, last)
					after(time.Minute)
				}

				sub.Request(9)
				in.want(t)

				if got := tr.GivenUp(); got != 1 {
					t.Errorf("%d given up", got)
				}

				publish(t, tr, "a", "2") // there is room again

				// An ack on the last attempt comes in time.
				last = in.want(t, "2")[0]
				nak(t, last)
				nak(t, in.want(t, "2")...)
				ack(t, in.want(t, "2")...)
				after(time.Hour)
				in.want(t)

				if got := tr.GivenUp(); got != 1 {
					t.Errorf("%d given up", got)
				}
			})
		})
	}
}

// Closing an ungrouped subscription takes its leases and delays with it, and
// leaves those of others in order.
func TestCloseForgetsLeasesAndDelays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, gone, stays := open(t), &inbox{}, &inbox{}
		leaving := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: gone.sink})
		leaving.Request(100)
		subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: stays.sink}).Request(100)

		// Two of each: delays that end in turn, one that is due, one leased.
		delays := []string{"9s", "1s", "8s", "2s", "7s", "3s", "6s", "4s", "5s"}
		publish(t, tr, "a", append(slices.Clone(delays), "leased")...)

		for _, in := range []*inbox{gone, stays} {
			for _, d := range in.take() {
				if delay, err := time.ParseDuration(string(d.Data)); err == nil {
					settled(t, d, transport.Verdict{Action: transport.Nak, Delay: delay})
				}
			}
		}

		after(time.Second)
		stays.want(t, "1s")

		out := gone.want(t, "1s")[0]

		if err := leaving.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		// Nothing comes of it, and it is no error.
		settled(t, out, transport.Verdict{Action: transport.Nak, Delay: time.Second})

		slices.Sort(delays)

		for _, d := range delays[1:] {
			after(time.Second)
			ack(t, stays.want(t, d)...)
		}

		after(21 * time.Second)
		stays.want(t, "leased")
		after(time.Second)
		stays.want(t, "1s")
		gone.want(t)
	})
}

// A delivery that is older than a delay that was forgotten disturbs no other.
func TestLateVerdictAfterClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, gone, stays := open(t, memory.WithMaxDeliver(2)), &inbox{}, &inbox{}
		leaving := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: gone.sink})
		leaving.Request(100)
		publish(t, tr, "a", "1", "2")

		old := gone.take()

		after(29 * time.Second)
		settled(t, old[1], transport.Verdict{Action: transport.Extend})
		after(time.Second)

		again := gone.want(t, "1")[0]
		nak(t, old[1])
		gone.want(t, "2")

		// The second attempt at the first is the last, the delay of a late
		// nak of the first attempt would be the clock's.
		if err := leaving.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: stays.sink}).Request(100)
		publish(t, tr, "a", "3")
		settled(t, stays.want(t, "3")[0], transport.Verdict{Action: transport.Nak, Delay: time.Second})

		nak(t, old[0], again)

		if n := tr.GivenUp(); n != 0 {
			t.Errorf("%d given up by a queue that is gone", n)
		}

		after(time.Second)
		stays.want(t, "3")
	})
}

func TestAckOfAForgottenDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, gone, stays := open(t), &inbox{}, &inbox{}
		leaving := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: gone.sink})
		leaving.Request(100)
		publish(t, tr, "a", "1")

		old := gone.take()[0]

		after(30 * time.Second)
		settled(t, gone.want(t, "1")[0], transport.Verdict{Action: transport.Nak, Delay: time.Second})

		if err := leaving.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: stays.sink}).Request(100)
		publish(t, tr, "a", "2")
		settled(t, stays.want(t, "2")[0], transport.Verdict{Action: transport.Nak, Delay: time.Second})
		ack(t, old)
		after(time.Second)
		stays.want(t, "2")
	})
}

func TestSettleAfterClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, in := open(t), &inbox{}
		sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "a", Sink: in.sink})
		sub.Request(2)
		publish(t, tr, "a", "1", "2", "3", "4", "5", "6")
		after(30 * time.Second) // now the first two are due again
		sub.Request(2)

		got := in.want(t, "1", "2", "1", "2")
		nak(t, got[3])

		if err := sub.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		for i, a := range []transport.Action{transport.Extend, transport.Ack, transport.Nak} {
			settled(t, got[i], transport.Verdict{Action: a})
		}

		if err := settle(got[1], transport.Ack); !errors.Is(err, transport.ErrSettled) {
			t.Errorf("twice: %v", err)
		}

		if err := sub.Flush(t.Context()); err != nil {
			t.Errorf("flush: %v", err)
		}
	})
}
