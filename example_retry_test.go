package goflux_test

import (
	"fmt"
	"testing"
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

// What docs/retries-and-dead-letters.md and docs/operations.md say of how long an
// outage is survived: the sum of the waits, each of which is changed by up to a
// fifth.
func TestDocsOutage(t *testing.T) {
	t.Parallel()

	patient := goflux.ExponentialRetry(time.Second, 5*time.Minute)

	for _, row := range []struct {
		name       string
		policy     goflux.RetryPolicy
		maxDeliver int
		want       time.Duration
	}{
		{"default", goflux.DefaultRetryPolicy, 5, 700 * time.Millisecond},
		{"default", goflux.DefaultRetryPolicy, 10, 25500 * time.Millisecond},
		{"default", goflux.DefaultRetryPolicy, 12, 81100 * time.Millisecond},
		{"default", goflux.DefaultRetryPolicy, 15, 171100 * time.Millisecond},
		{"patient", patient, 5, 7 * time.Second},
		{"patient", patient, 10, 255 * time.Second},
		{"patient", patient, 12, 811 * time.Second},
		{"patient", patient, 15, 1711 * time.Second},
	} {
		var sum time.Duration

		for attempt := 1; attempt < row.maxDeliver; attempt++ {
			sum += row.policy(attempt)
		}

		if sum < row.want*4/5 || sum > row.want*6/5 {
			t.Errorf("%s with %d deliveries waits for %v, want %v, a fifth less or more", row.name, row.maxDeliver, sum, row.want)
		}
	}
}
