package natstest

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Limit bounds every wait of this package whose caller names no deadline. It is
// there to end a test that is stuck, not to measure anything.
const Limit = 20 * time.Second

// tick is how often a condition is looked at for which there is no event.
const tick = 5 * time.Millisecond

// Eventually waits until cond holds, looking again every few milliseconds, and
// ends the test if that takes longer than [Limit]. It is for states that
// announce themselves by no event; where there is one, wait for that. What and
// its arguments say what was waited for.
func Eventually(tb testing.TB, cond func() bool, what string, args ...any) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), Limit)
	defer cancel()
	if err := Poll(ctx, cond, what, args...); err != nil {
		tb.Fatal(err)
	}
}

// Poll is [Eventually] for goroutines that must not end the test: it returns an
// error that wraps the cause of ctx when ctx ends first.
func Poll(ctx context.Context, cond func() bool, what string, args ...any) error {
	if cond() {
		return nil
	}
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("natstest: waiting for %s: %w", fmt.Sprintf(what, args...), context.Cause(ctx))
		case <-t.C:
			if cond() {
				return nil
			}
		}
	}
}
