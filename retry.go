package goflux

import (
	"math/rand/v2"
	"time"
)

// RetryPolicy returns how long to wait before the next delivery of a message
// whose handler failed. attempt is the one that failed, from 1, as counted by
// the broker, so that the policy survives restarts. Zero and less mean at once.
// It is called concurrently and must not block.
type RetryPolicy func(attempt int) time.Duration

// DefaultRetryPolicy is the policy where none is configured: the first
// redelivery at once, then after 100 ms, doubling up to 30 s, with jitter.
var DefaultRetryPolicy = ExponentialRetry(100*time.Millisecond, 30*time.Second)

// ExponentialRetry returns a policy whose first redelivery comes at once, the
// second one after initial, and each further one after twice the time of the
// one before, up to limit. Each wait is shortened or lengthened at random by up
// to a fifth, so that messages which failed together do not come back together.
func ExponentialRetry(initial, limit time.Duration) RetryPolicy {
	return func(attempt int) time.Duration {
		if attempt <= 1 || initial <= 0 {
			return 0
		}

		d := min(initial, limit)
		for i := 2; i < attempt && d < limit; i++ {
			// Halving the limit instead of doubling d cannot overflow.
			if d > limit/2 {
				d = limit
			} else {
				d *= 2
			}
		}

		return jitter(d)
	}
}

// ConstantRetry returns a policy that always waits for d.
func ConstantRetry(d time.Duration) RetryPolicy {
	return func(int) time.Duration { return d }
}

// jitter changes d by up to a fifth in either direction.
func jitter(d time.Duration) time.Duration {
	if fifth := int64(d) / 5; fifth > 0 {
		return d + time.Duration(rand.Int64N(2*fifth+1)-fifth)
	}

	return d
}
