// Package pause waits.
package pause

import (
	"context"
	"time"
)

// For waits for d, no longer than ctx. It returns nil when the time is over, and
// the cause with which ctx ended otherwise, also when ctx had ended before.
func For(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	if d <= 0 {
		return nil
	}

	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
