package goflux

import (
	"context"
	"testing"
	"time"
)

// Patience is granted so often, and again when its time is over.
func TestPatience(t *testing.T) {
	t.Parallel()

	var p patience

	now := time.Now()

	for n, want := range []bool{true, true, false, false} {
		if got := p.take(now.Add(time.Duration(n)*time.Second), 2); got != want {
			t.Errorf("answer %d: %v", n, got)
		}
	}

	if !p.take(now.Add(answerPatience+time.Second), 2) {
		t.Error("it is never granted again")
	}
}

// The pauses grow to a bound, and faster after silence, of which there are fewer
// tries.
func TestPausesBetweenAnswers(t *testing.T) {
	t.Parallel()

	for _, tt := range []struct {
		name string
		err  error
		want []time.Duration
	}{
		{"away", ErrNoResponders, []time.Duration{
			250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second,
		}},
		{"silent", context.DeadlineExceeded, []time.Duration{2 * time.Second, 5 * time.Second, 5 * time.Second}},
	} {
		var u undelivered

		for i, want := range tt.want {
			u.failed(tt.err)

			if got := u.pause(); got != want {
				t.Errorf("%s: pause %d is %v, want %v", tt.name, i, got, want)
			}
		}
	}
}
