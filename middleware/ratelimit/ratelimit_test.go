package ratelimit_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware/ratelimit"
	"github.com/foomo/goflux/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ok(context.Context, goflux.Message[int]) error { return nil }

var errBoom = errors.New("boom")

func TestWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		h := ratelimit.Middleware[int](rate.NewLimiter(10, 2), nil)(ok)

		for range 12 {
			if err := h(t.Context(), goflux.Message[int]{}); err != nil {
				t.Fatal(err)
			}
		}

		if took := time.Since(start).Round(time.Millisecond); took != time.Second {
			t.Errorf("12 messages, 10 a second and 2 at once, took %v", took)
		}
	})
}

func TestHandlerError(t *testing.T) {
	t.Parallel()

	for _, limiter := range []*rate.Limiter{nil, rate.NewLimiter(1, 1), rate.NewLimiter(rate.Inf, 0)} {
		h := ratelimit.Middleware[int](limiter)(func(context.Context, goflux.Message[int]) error { return errBoom })
		if err := h(t.Context(), goflux.Message[int]{}); err != errBoom { //nolint:errorlint // unchanged
			t.Errorf("got %v", err)
		}
	}
}

func TestTooFarAway(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		limiter  *rate.Limiter
		opts     []ratelimit.Option
		deadline time.Duration
		after    string // how long the message is put off
	}{
		"never wait":       {rate.NewLimiter(1, 1), []ratelimit.Option{ratelimit.WithMaxWait(0)}, 0, "1s"},
		"negative":         {rate.NewLimiter(1, 1), []ratelimit.Option{ratelimit.WithMaxWait(-1)}, 0, "1s"},
		"own maximum":      {rate.NewLimiter(0.5, 1), []ratelimit.Option{ratelimit.WithMaxWait(time.Second)}, 0, "2s"},
		"deadline":         {rate.NewLimiter(0.5, 1), nil, time.Second, "2s"},
		"default maximum":  {rate.NewLimiter(0.01, 1), nil, 0, "1m0s"},
		"nothing may pass": {rate.NewLimiter(0, 1), nil, 0, "1m0s"},
		"no burst":         {rate.NewLimiter(1, 0), nil, 0, "1m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c.limiter.Allow()

				ctx := t.Context()

				if c.deadline > 0 {
					var cancel context.CancelFunc

					ctx, cancel = context.WithTimeout(ctx, c.deadline)
					defer cancel()
				}

				start, calls := time.Now(), 0
				h := ratelimit.Middleware[int](c.limiter, c.opts...)(func(context.Context, goflux.Message[int]) error {
					calls++

					return nil
				})

				for range 3 { // no message takes a token with it, or the time would grow
					err := h(ctx, goflux.Message[int]{})
					if !errors.Is(err, ratelimit.ErrLimited) || !strings.HasPrefix(err.Error(), "retry after "+c.after+":") {
						t.Errorf("got %v", err)
					}

					if typ := transport.ErrorType(err); typ != "rate_limited" {
						t.Errorf("type %q", typ)
					}
				}

				if calls != 0 || time.Since(start) != 0 {
					t.Errorf("%d calls, after %v", calls, time.Since(start))
				}
			})
		})
	}
}

func TestContextEndsWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limiter := rate.NewLimiter(rate.Every(10*time.Second), 1)
		h := ratelimit.Middleware[int](limiter)(ok)

		if err := h(t.Context(), goflux.Message[int]{}); err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(goflux.ErrDraining) })

		start := time.Now()

		err := h(ctx, goflux.Message[int]{})
		if !errors.Is(err, goflux.ErrDraining) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}

		// The next one is not behind the one that left.
		if err := h(t.Context(), goflux.Message[int]{}); err != nil || time.Since(start) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

//nolint:paralleltest // AllocsPerRun counts the allocations of the whole process
func TestAllocations(t *testing.T) {
	h, ctx, msg := ratelimit.Middleware[int](rate.NewLimiter(1e9, 1e9))(ok), context.Background(), goflux.Message[int]{}

	if n := testing.AllocsPerRun(100, func() { _ = h(ctx, msg) }); n != 0 {
		t.Errorf("%v allocations a message", n)
	}
}
