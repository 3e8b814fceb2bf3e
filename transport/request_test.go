package transport_test

import (
	"math"
	"testing"
	"time"

	"github.com/foomo/goflux/transport"
)

func TestDeadlineTravels(t *testing.T) {
	t.Parallel()

	now := time.Now()

	for _, left := range []time.Duration{time.Nanosecond, time.Millisecond, time.Second + 1, time.Hour} {
		h := transport.WriteDeadline(transport.Header{"A": {"b"}}, now.Add(left), now)
		if h.Get("A") != "b" || h.Validate() != nil {
			t.Errorf("header %v", h)
		}

		// By the clocks of the two machines, and by when it was sent.
		for _, skew := range []time.Duration{0, time.Minute, -time.Minute} {
			arrived := now.Add(skew)
			want := now.Add(left)

			if skew > 0 {
				want = arrived.Add(left)
			}

			at, ok := transport.ReadDeadline(h, arrived)
			if !ok || at.Sub(want).Abs() > time.Millisecond {
				t.Errorf("%v left, %v ahead: deadline in %v, want %v", left, skew, at.Sub(now), want.Sub(now))
			}
		}

		if at, ok := transport.ReadDeadline(h, time.Time{}); !ok || at.Sub(now.Add(left)).Abs() > time.Millisecond {
			t.Errorf("%v left: deadline in %v", left, at.Sub(now))
		}
	}

	if h := transport.WriteDeadline(nil, now.Add(-time.Hour), now); h.Validate() != nil {
		t.Errorf("header %v", h)
	}

	if at, ok := transport.ReadDeadline(nil, now); ok || !at.IsZero() {
		t.Errorf("deadline %v", at)
	}
}

func TestMilliseconds(t *testing.T) {
	t.Parallel()

	for d, want := range map[time.Duration]int64{
		-time.Hour: 1, 0: 1, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, time.Second: 1000, math.MaxInt64: math.MaxInt64/1_000_000 + 1,
	} {
		if got := transport.Milliseconds(d); got != want {
			t.Errorf("%v: %d, want %d", d, got, want)
		}
	}

	for s, want := range map[string]time.Duration{
		"": -1, "-1": -1, "1.5": -1, "x": -1, "9223372036855": -1, "99999999999999999999": -1,
		"0": 0, "7": 7 * time.Millisecond, "9223372036854": 9223372036854 * time.Millisecond,
	} {
		if got, ok := transport.ParseMilliseconds(s); ok != (want >= 0) || (ok && got != want) {
			t.Errorf("%q: %v, %v", s, got, ok)
		}
	}
}

func FuzzReadDeadline(f *testing.F) {
	f.Add("1763696400123 5000", int64(0))
	f.Add("-1 ", int64(1<<60))
	f.Add("9223372036854775807 9223372036854", int64(-5))

	f.Fuzz(func(t *testing.T, value string, since int64) {
		arrived := time.Unix(0, since)

		at, ok := transport.ReadDeadline(transport.Header{transport.HeaderDeadline: {value}}, arrived)
		if ok == at.IsZero() {
			t.Errorf("deadline %v, %v", at, ok)
		}
	})
}
