package breaker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
	"go.uber.org/goleak"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/middleware/breaker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBoom = errors.New("boom")

// twice opens after two failures in a row, for 10 s.
func twice() gobreaker.Settings {
	return gobreaker.Settings{
		Name:        "payments",
		Timeout:     10 * time.Second,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= 2 },
	}
}

// script is a handler that returns what it is told, one after the other, and
// then nil.
type script struct {
	errs  []error
	calls int
}

func (s *script) handle(context.Context, goflux.Message[int]) error {
	s.calls++

	if len(s.errs) == 0 {
		return nil
	}

	err := s.errs[0]
	s.errs = s.errs[1:]

	return err
}

// refused expects that the breaker lets nothing through for that long.
func refused(t *testing.T, h goflux.Handler[int], want error, after string) {
	t.Helper()

	err := h(t.Context(), goflux.Message[int]{})
	if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "retry after "+after) || !strings.Contains(err.Error(), `"payments"`) {
		t.Errorf("got %v, want %v after %s", err, want, after)
	}
}

func TestOpensAndCloses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var changes []string

		settings := twice()
		settings.OnStateChange = func(name string, from, to gobreaker.State) {
			changes = append(changes, name+" "+from.String()+" "+to.String())
		}

		b := breaker.New(settings)
		s := &script{errs: []error{errBoom, errBoom, errBoom}}
		h := breaker.Middleware[int](b, nil)(s.handle)

		for range 2 {
			if err := h(t.Context(), goflux.Message[int]{}); err != errBoom { //nolint:errorlint // unchanged
				t.Errorf("got %v", err)
			}
		}

		refused(t, h, gobreaker.ErrOpenState, "10.001s")
		time.Sleep(4 * time.Second)
		refused(t, h, gobreaker.ErrOpenState, "6.001s")

		if s.calls != 2 || b.State() != gobreaker.StateOpen {
			t.Errorf("%d calls, %v", s.calls, b.State())
		}

		// Who comes back when told gets through; it fails, so the breaker opens anew.
		time.Sleep(6*time.Second + time.Millisecond)

		if err := h(t.Context(), goflux.Message[int]{}); err != errBoom { //nolint:errorlint // unchanged
			t.Errorf("got %v", err)
		}

		refused(t, h, gobreaker.ErrOpenState, "10.001s")
		time.Sleep(10*time.Second + time.Millisecond)

		if err := h(t.Context(), goflux.Message[int]{}); err != nil || b.State() != gobreaker.StateClosed || s.calls != 4 {
			t.Errorf("%v, %v, %d calls", err, b.State(), s.calls)
		}

		want := "payments closed open, payments open half-open, payments half-open open, payments open half-open, payments half-open closed"
		if got := strings.Join(changes, ", "); got != want {
			t.Errorf("got %s", got)
		}
	})
}

// While one message tries whether the breaker may close, others wait for it.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(twice())
		s := &script{errs: []error{errBoom, errBoom}}
		h := breaker.Middleware[int](b)(s.handle)

		for range 2 {
			_ = h(t.Context(), goflux.Message[int]{})
		}

		time.Sleep(11 * time.Second)

		probe := breaker.Middleware[int](b)(func(context.Context, goflux.Message[int]) error {
			refused(t, h, gobreaker.ErrTooManyRequests, "1s")

			return nil
		})
		if err := probe(t.Context(), goflux.Message[int]{}); err != nil {
			t.Errorf("got %v", err)
		}

		if err := h(t.Context(), goflux.Message[int]{}); err != nil || s.calls != 3 {
			t.Errorf("%v, %d calls", err, s.calls)
		}
	})
}

func TestWhatCounts(t *testing.T) {
	t.Parallel()

	draining, stop := context.WithCancelCause(context.Background())
	stop(goflux.ErrDraining)

	lost, lose := context.WithCancelCause(context.Background())
	lose(goflux.ErrLeaseLost)

	late, cancel := context.WithTimeout(context.Background(), -1)
	t.Cleanup(cancel)

	for name, c := range map[string]struct {
		ctx      context.Context
		err      error
		settings func(*gobreaker.Settings)
		opens    bool
	}{
		"error":                  {nil, errBoom, nil, true},
		"panic as an error":      {nil, &goflux.PanicError{Value: errBoom}, nil, true},
		"timeout":                {late, context.DeadlineExceeded, nil, true},
		"too long":               {nil, goflux.ErrMaxHandlingTime, nil, true},
		"reject":                 {nil, goflux.Reject(errBoom), nil, false},
		"drop":                   {nil, goflux.Drop(errBoom), nil, false},
		"retry after":            {nil, goflux.RetryAfter(1, errBoom), nil, false},
		"subscription stops":     {draining, context.Canceled, nil, false},
		"lease lost":             {lost, context.Canceled, nil, false},
		"own exclusion":          {nil, errBoom, func(s *gobreaker.Settings) { s.IsExcluded = func(err error) bool { return errors.Is(err, errBoom) } }, false},
		"own inclusion":          {nil, goflux.Reject(errBoom), func(s *gobreaker.Settings) { s.IsExcluded = func(error) bool { return false } }, true},
		"own success":            {nil, errBoom, func(s *gobreaker.Settings) { s.IsSuccessful = func(err error) bool { return errors.Is(err, errBoom) } }, false},
		"another, inner breaker": {nil, gobreaker.ErrOpenState, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			settings := twice()
			if c.settings != nil {
				c.settings(&settings)
			}

			ctx := c.ctx
			if ctx == nil {
				ctx = t.Context()
			}

			b := breaker.New(settings)
			s := &script{errs: []error{c.err, c.err, c.err}}
			h := breaker.Middleware[int](b)(s.handle)

			for range 2 {
				if err := h(ctx, goflux.Message[int]{}); err != c.err { //nolint:errorlint // unchanged
					t.Errorf("%v became %v", c.err, err)
				}
			}

			if opened := b.State() == gobreaker.StateOpen; opened != c.opens || s.calls != 2 {
				t.Errorf("%v, %d calls", b.State(), s.calls)
			}
		})
	}
}

// What counts neither way does not close a breaker that is tried out.
func TestNeutralDoesNotClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(twice())
		s := &script{errs: []error{errBoom, errBoom, goflux.Reject(errBoom), errBoom}}
		h := breaker.Middleware[int](b)(s.handle)

		for range 2 {
			_ = h(t.Context(), goflux.Message[int]{})
		}

		time.Sleep(11 * time.Second)

		if _ = h(t.Context(), goflux.Message[int]{}); b.State() != gobreaker.StateHalfOpen {
			t.Errorf("%v after a rejection", b.State())
		}

		if _ = h(t.Context(), goflux.Message[int]{}); b.State() != gobreaker.StateOpen {
			t.Errorf("%v after a failure", b.State())
		}
	})
}

func TestPanics(t *testing.T) {
	t.Parallel()

	b := breaker.New(twice())
	h := middleware.Recover[int]()(breaker.Middleware[int](b)(explode))

	for range 2 {
		var p *goflux.PanicError
		if err := h(t.Context(), goflux.Message[int]{}); !errors.As(err, &p) || p.Value != "boom" || !strings.Contains(string(p.Stack), "explode") {
			t.Errorf("got %v", err)
		}
	}

	if b.State() != gobreaker.StateOpen {
		t.Errorf("%v after two panics", b.State())
	}
}

func explode(context.Context, goflux.Message[int]) error { panic("boom") }

func TestMaxWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		open := func() *breaker.Breaker {
			b := breaker.New(twice())
			s := &script{errs: []error{errBoom, errBoom}}

			for range 2 {
				_ = breaker.Middleware[int](b)(s.handle)(t.Context(), goflux.Message[int]{})
			}

			return b
		}

		start := time.Now()
		s := &script{}

		if err := breaker.Middleware[int](open(), breaker.WithMaxWait(time.Minute))(s.handle)(t.Context(), goflux.Message[int]{}); err != nil {
			t.Errorf("got %v", err)
		}

		if took := time.Since(start); took != 10*time.Second+time.Millisecond || s.calls != 1 {
			t.Errorf("%d calls, after %v", s.calls, took)
		}

		// Less than the breaker is open for, and less than nothing.
		start = time.Now()

		refused(t, breaker.Middleware[int](open(), breaker.WithMaxWait(5*time.Second))(s.handle), gobreaker.ErrOpenState, "10.001s")
		refused(t, breaker.Middleware[int](open(), breaker.WithMaxWait(-1))(s.handle), gobreaker.ErrOpenState, "10.001s")

		if time.Since(start) != 0 {
			t.Errorf("waited for %v in vain", time.Since(start))
		}

		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(goflux.ErrDraining) })

		err := breaker.Middleware[int](open(), breaker.WithMaxWait(time.Minute))(s.handle)(ctx, goflux.Message[int]{})
		if !errors.Is(err, goflux.ErrDraining) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// The wait ends also where the breaker is tried out over and over.
func TestMaxWaitIsTheWhole(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(twice())
		s := &script{errs: []error{errBoom, errBoom}}

		for range 2 {
			_ = breaker.Middleware[int](b)(s.handle)(t.Context(), goflux.Message[int]{})
		}

		time.Sleep(11 * time.Second)

		leave, done := make(chan struct{}), make(chan error)

		go func() {
			done <- breaker.Middleware[int](b)(func(context.Context, goflux.Message[int]) error {
				<-leave

				return nil
			})(t.Context(), goflux.Message[int]{})
		}()

		synctest.Wait()

		start := time.Now()

		refused(t, breaker.Middleware[int](b, breaker.WithMaxWait(4500*time.Millisecond))(s.handle), gobreaker.ErrTooManyRequests, "1s")

		if waited := time.Since(start); waited != 4*time.Second || s.calls != 2 {
			t.Errorf("%d calls, after %v", s.calls, waited)
		}

		close(leave)

		if err := <-done; err != nil {
			t.Errorf("got %v", err)
		}
	})
}

// Of many that wait, one tries the breaker out, and the others follow when that
// went well.
func TestMaxWaitOfMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(twice())
		s := &script{errs: []error{errBoom, errBoom}}

		for range 2 {
			_ = breaker.Middleware[int](b)(s.handle)(t.Context(), goflux.Message[int]{})
		}

		start := time.Now()
		h := breaker.Middleware[int](b, breaker.WithMaxWait(time.Minute))(func(context.Context, goflux.Message[int]) error {
			time.Sleep(500 * time.Millisecond)

			return nil
		})
		done := make(chan error)

		for range 20 {
			go func() { done <- h(t.Context(), goflux.Message[int]{}) }()
		}

		for range 20 {
			if err := <-done; err != nil {
				t.Errorf("got %v", err)
			}
		}

		if took := time.Since(start).Round(10 * time.Millisecond); took != 11500*time.Millisecond {
			t.Errorf("all were through after %v", took)
		}
	})
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(gobreaker.Settings{Name: "payments"})
		s := &script{errs: []error{errBoom, errBoom, errBoom, errBoom, errBoom, errBoom}}
		h := breaker.Middleware[int](b)(s.handle)

		for range 6 {
			if b.State() != gobreaker.StateClosed {
				t.Errorf("%v after %d failures", b.State(), s.calls)
			}

			_ = h(t.Context(), goflux.Message[int]{})
		}

		refused(t, h, gobreaker.ErrOpenState, "1m0.001s")

		// No breaker is no obstacle.
		if err := breaker.Middleware[int](nil)(s.handle)(t.Context(), goflux.Message[int]{}); err != nil {
			t.Errorf("got %v", err)
		}
	})
}

//nolint:paralleltest // AllocsPerRun counts the allocations of the whole process
func TestAllocations(t *testing.T) {
	h := breaker.Middleware[int](breaker.New(gobreaker.Settings{}))(func(context.Context, goflux.Message[int]) error { return nil })
	ctx, msg := context.Background(), goflux.Message[int]{}

	if n := testing.AllocsPerRun(100, func() { _ = h(ctx, msg) }); n != 0 {
		t.Errorf("%v allocations a message", n)
	}
}
