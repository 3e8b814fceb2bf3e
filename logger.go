package goflux

import (
	"context"
	"log/slog"
)

// log returns the logger, for one record.
func (c *commonConfig) log() *slog.Logger {
	l := c.logger
	if l == nil {
		l = slog.Default()
	}

	return slog.New(safeHandler{l.Handler()})
}

// safeHandler is a handler of logs that may panic: a message must not be lost
// for want of a log.
type safeHandler struct{ slog.Handler }

func (h safeHandler) Enabled(ctx context.Context, level slog.Level) (enabled bool) {
	_ = guard(func() error {
		enabled = h.Handler.Enabled(ctx, level)

		return nil
	})

	return enabled
}

func (h safeHandler) Handle(ctx context.Context, r slog.Record) error {
	return guard(func() error { return h.Handler.Handle(ctx, r) })
}
