package middleware_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
)

func explode(context.Context, goflux.Message[int]) error { panic("boom") }

func TestRecover(t *testing.T) {
	t.Parallel()

	err := middleware.Recover[int]()(explode)(t.Context(), message(""))

	var p *goflux.PanicError
	if !errors.As(err, &p) || !errors.Is(err, goflux.ErrPanic) || p.Value != "boom" {
		t.Fatalf("got %v", err)
	}

	if !strings.Contains(string(p.Stack), "explode") {
		t.Errorf("the stack does not name the handler:\n%s", p.Stack)
	}
}

func TestRecoverLetsOutcomesPass(t *testing.T) {
	t.Parallel()

	for _, want := range []error{nil, errors.New("boom"), goflux.Reject(nil)} {
		if err := middleware.Recover[int]()(returning(want))(t.Context(), message("")); err != want { //nolint:errorlint // unchanged
			t.Errorf("%v became %v", want, err)
		}
	}
}

// A panic that carries an outcome means it.
func TestRecoverKeepsOutcomeOfPanic(t *testing.T) {
	t.Parallel()

	calls := 0
	h := middleware.Retry[int](3, goflux.ConstantRetry(0))(middleware.Recover[int]()(func(context.Context, goflux.Message[int]) error {
		calls++

		panic(goflux.Reject(errors.New("no such customer")))
	}))

	if err := h(t.Context(), message("")); !errors.Is(err, goflux.ErrPanic) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}
