package chaos

import (
	"slices"
	"testing"
	"time"
)

func TestDelaysComeFromTheSeed(t *testing.T) {
	t.Parallel()
	series := func(seed, connection uint64, direction int) (s []time.Duration) {
		d := newDelays(seed, connection, direction)
		for range 100 {
			s = append(s, d.next(30*time.Millisecond, 20*time.Millisecond))
		}
		return s
	}
	one := series(1, 2, 0)
	if !slices.Equal(one, series(1, 2, 0)) {
		t.Error("the same seed gives two series")
	}
	for name, other := range map[string][]time.Duration{
		"seed": series(2, 2, 0), "connection": series(1, 3, 0), "direction": series(1, 2, 1),
	} {
		if slices.Equal(one, other) {
			t.Errorf("another %s gives the same series", name)
		}
	}
	if lo, hi := slices.Min(one), slices.Max(one); lo < 10*time.Millisecond || hi > 50*time.Millisecond || lo == hi {
		t.Errorf("delays from %v to %v", lo, hi)
	}
	d := newDelays(1, 1, 1)
	for range 100 {
		if got := d.next(time.Millisecond, time.Second); got < 0 || got > time.Second+time.Millisecond {
			t.Fatalf("delay %v", got)
		}
	}
}
