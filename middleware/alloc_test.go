package middleware_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
)

//nolint:paralleltest // AllocsPerRun counts the allocations of the whole process
func TestAllocations(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)

	for name, m := range map[string]goflux.Middleware[int]{
		"Recover":    middleware.Recover[int](),
		"Retry":      middleware.Retry[int](3, nil),
		"Log":        middleware.Log[int](quiet),
		"no Timeout": middleware.Timeout[int](0),
	} {
		h, msg, ctx := m(returning(nil)), message("id-1"), context.Background()

		if n := testing.AllocsPerRun(100, func() { _ = h(ctx, msg) }); n != 0 {
			t.Errorf("%s allocates %v times a message", name, n)
		}
	}
}
