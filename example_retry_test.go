package goflux_test

import (
	"fmt"
	"time"

	"github.com/foomo/goflux"
)

// The wait before the next delivery follows from the attempt that failed. It is
// changed by up to a fifth at random, so the middle of many is shown here.
func ExampleExponentialRetry() {
	policy := goflux.ExponentialRetry(time.Second, time.Minute)

	for attempt := 1; attempt <= 9; attempt++ {
		shortest, longest := time.Hour, time.Duration(0)
		for range 1000 {
			wait := policy(attempt)
			shortest, longest = min(shortest, wait), max(longest, wait)
		}

		fmt.Println(attempt, ((shortest + longest) / 2).Round(time.Second))
	}

	// Output:
	// 1 0s
	// 2 1s
	// 3 2s
	// 4 4s
	// 5 8s
	// 6 16s
	// 7 32s
	// 8 1m0s
	// 9 1m0s
}

// A policy is a function: this one gives others time to repair something.
func ExampleRetryPolicy() {
	// region policy
	var patient goflux.RetryPolicy = func(attempt int) time.Duration {
		if attempt < 3 {
			return time.Second
		}

		return 10 * time.Minute
	}
	// endregion

	fmt.Println(patient(1), patient(2), patient(3))

	// Output:
	// 1s 1s 10m0s
}
