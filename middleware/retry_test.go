package middleware_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
)

func TestRetry(t *testing.T) {
	t.Parallel()

	boom := errors.New("boom")
	second := goflux.ConstantRetry(time.Second)

	for name, c := range map[string]struct {
		attempts int
		backoff  goflux.RetryPolicy
		failures int   // how many tries fail
		with     error // with what
		calls    int
		took     time.Duration
	}{
		"success":                  {3, second, 0, boom, 1, 0},
		"success at last":          {3, second, 2, boom, 3, 2 * time.Second},
		"never":                    {3, second, 99, boom, 3, 2 * time.Second},
		"one attempt":              {1, second, 99, boom, 1, 0},
		"no attempt":               {0, second, 99, boom, 1, 0},
		"negative attempts":        {-7, second, 99, boom, 1, 0},
		"too many attempts":        {99, goflux.ConstantRetry(0), 99, boom, middleware.MaxRetryAttempts, 0},
		"negative wait":            {3, goflux.ConstantRetry(-time.Hour), 99, boom, 3, 0},
		"a wait that is too long":  {3, goflux.ConstantRetry(6 * time.Second), 99, boom, 1, 0},
		"waits that are too long":  {9, goflux.ConstantRetry(2 * time.Second), 99, boom, 3, 4 * time.Second},
		"just within the limit":    {9, goflux.ConstantRetry(middleware.MaxRetryTime), 99, boom, 2, middleware.MaxRetryTime},
		"default at once":          {2, nil, 99, boom, 2, 0},
		"RetryAfter ends it":       {3, second, 99, goflux.RetryAfter(0, boom), 1, 0},
		"Reject ends it":           {3, second, 99, goflux.Reject(boom), 1, 0},
		"Drop ends it":             {3, second, 99, goflux.Drop(boom), 1, 0},
		"a panic is tried again":   {3, second, 99, &goflux.PanicError{Value: boom}, 3, 2 * time.Second},
		"a timeout is tried again": {3, second, 99, context.DeadlineExceeded, 3, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start, calls := time.Now(), 0

				err := middleware.Retry[int](c.attempts, c.backoff)(func(context.Context, goflux.Message[int]) error {
					calls++
					if calls <= c.failures {
						return c.with
					}

					return nil
				})(t.Context(), message(""))

				if c.calls > c.failures {
					must(t, err)
				} else if err != c.with { //nolint:errorlint // unchanged
					t.Errorf("got %v", err)
				}

				if took := time.Since(start); calls != c.calls || took != c.took {
					t.Errorf("%d calls in %v, want %d in %v", calls, took, c.calls, c.took)
				}
			})
		})
	}
}

func TestRetryCountsAttempts(t *testing.T) {
	t.Parallel()

	var failed []int

	h := middleware.Retry[int](4, func(attempt int) time.Duration {
		failed = append(failed, attempt)

		return 0
	})(returning(errors.New("boom")))

	if err := h(t.Context(), message("")); err == nil {
		t.Error("no error")
	}

	if len(failed) != 3 || failed[0] != 1 || failed[2] != 3 {
		t.Errorf("the policy was asked for %v", failed)
	}
}

// The time of the tries counts, not only that of the waits between them.
func TestRetryTimeIncludesHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0

		err := middleware.Retry[int](9, goflux.ConstantRetry(0))(func(context.Context, goflux.Message[int]) error {
			calls++

			time.Sleep(3 * time.Second)

			return errors.New("boom")
		})(t.Context(), message(""))
		if err == nil || calls != 2 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
}

func TestRetryEndsWithContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()

		start, calls, boom := time.Now(), 0, errors.New("boom")

		err := middleware.Retry[int](9, goflux.ConstantRetry(time.Second))(func(context.Context, goflux.Message[int]) error {
			calls++

			return boom
		})(ctx, message(""))
		if err != boom || calls != 2 || time.Since(start) != 1500*time.Millisecond { //nolint:errorlint // unchanged
			t.Errorf("%d calls in %v, %v", calls, time.Since(start), err)
		}

		// One that has ended is not used for another try, wait or no wait.
		calls = 0

		if err := middleware.Retry[int](9, goflux.ConstantRetry(0))(func(context.Context, goflux.Message[int]) error {
			calls++

			return boom
		})(ctx, message("")); err != boom || calls != 1 { //nolint:errorlint // unchanged
			t.Errorf("%d calls, %v", calls, err)
		}
	})
}
