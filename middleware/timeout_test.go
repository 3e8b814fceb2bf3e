package middleware_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/transport"
)

func TestTimeout(t *testing.T) {
	t.Parallel()

	boom := errors.New("boom")
	reject := goflux.Reject(boom)

	// Each handler waits for the end of its context, or for 1 s.
	for name, c := range map[string]struct {
		timeout time.Duration
		returns func(ctx context.Context) error
		took    time.Duration
		is      []error
		isNot   []error
	}{
		"in time":                      {2 * time.Second, func(context.Context) error { return nil }, time.Second, nil, nil},
		"none":                         {0, func(context.Context) error { return boom }, time.Second, []error{boom}, []error{context.DeadlineExceeded}},
		"negative":                     {-1, func(context.Context) error { return boom }, time.Second, []error{boom}, []error{context.DeadlineExceeded}},
		"over, with the context's":     {time.Millisecond, context.Context.Err, time.Millisecond, []error{context.DeadlineExceeded}, nil},
		"over, with the cause":         {time.Millisecond, context.Cause, time.Millisecond, []error{context.DeadlineExceeded}, nil},
		"over, with one of its own":    {time.Millisecond, func(context.Context) error { return boom }, time.Millisecond, []error{context.DeadlineExceeded, boom}, nil},
		"over, and handled":            {time.Millisecond, func(context.Context) error { return nil }, time.Millisecond, nil, nil},
		"over, and decided":            {time.Millisecond, func(context.Context) error { return reject }, time.Millisecond, []error{reject}, []error{context.DeadlineExceeded}},
		"a failure that was no matter": {2 * time.Second, func(context.Context) error { return boom }, time.Second, []error{boom}, []error{context.DeadlineExceeded}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()

				err := middleware.Timeout[int](c.timeout)(func(ctx context.Context, _ goflux.Message[int]) error {
					select {
					case <-ctx.Done():
					case <-time.After(time.Second):
					}

					return c.returns(ctx)
				})(t.Context(), message(""))

				if (err == nil) != (c.is == nil) {
					t.Fatalf("got %v", err)
				}

				for _, want := range c.is {
					if !errors.Is(err, want) {
						t.Errorf("%v is not %v", err, want)
					}
				}

				for _, no := range c.isNot {
					if errors.Is(err, no) {
						t.Errorf("%v is %v", err, no)
					}
				}

				if took := time.Since(start); took != c.took {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func TestTimeoutTellsItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		wait := func(ctx context.Context, _ goflux.Message[int]) error {
			<-ctx.Done()

			return ctx.Err()
		}

		err := middleware.Timeout[int](time.Minute)(middleware.Timeout[int](time.Second)(wait))(t.Context(), message(""))
		if text := err.Error(); strings.Count(text, "within 1s") != 1 || strings.Contains(text, "within 1m") {
			t.Errorf("got %q", text)
		}

		if typ := transport.ErrorType(err); typ != "timeout" {
			t.Errorf("type %q", typ)
		}

		// The end of the subscription is not a timeout of the handler.
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(goflux.ErrDraining)

		err = middleware.Timeout[int](time.Minute)(wait)(ctx, message(""))
		if !errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
