package middleware

import (
	"context"
	"log/slog"
	"time"

	"github.com/foomo/goflux"
)

// LogOption configures [Log].
type LogOption interface{ applyLog(c *logConfig) }

type logOption func(*logConfig)

func (o logOption) applyLog(c *logConfig) { o(c) }

type logConfig struct {
	success slog.Leveler
}

// WithSuccessLevel sets the level of messages that were handled; the default,
// and nil, is [slog.LevelInfo]. It is asked for every message, so a
// [slog.LevelVar] may change it.
func WithSuccessLevel(level slog.Leveler) LogOption {
	return logOption(func(c *logConfig) { c.success = level })
}

// Log logs each message when its handler has returned, with the context of the
// handler and never with the payload or the headers:
//
//   - subject: the subject it was published on
//   - id: its id, where it has one
//   - attempt: how often it was delivered, where the transport counts
//   - duration: how long the handler took
//   - outcome: "ok", "failed", "panicked", "delayed" ([goflux.RetryAfter]),
//     "rejected" or "dropped"
//   - error: the handler's error, where there is one
//
// Levels are WARN for failed, delayed and dropped, ERROR for panicked and
// rejected, and [WithSuccessLevel] for ok. Below the level of the logger
// nothing is computed and nothing allocated. The text of an error is the
// handler's: one that quotes the payload puts it into the log. The stack of a
// panic is not logged here: the subscription does that.
//
// The subscription logs by itself what went wrong and what it made of it; Log
// adds what went well, ids and durations. A payload that does not decode never
// reaches a handler, so Log does not see it. A nil logger is [slog.Default] at
// the time of logging. Nil options are ignored.
func Log[T any](logger *slog.Logger, opts ...LogOption) goflux.Middleware[T] {
	var c logConfig

	for _, opt := range opts {
		if opt != nil {
			opt.applyLog(&c)
		}
	}

	if c.success == nil {
		c.success = slog.LevelInfo
	}

	return func(next goflux.Handler[T]) goflux.Handler[T] {
		return func(ctx context.Context, msg goflux.Message[T]) (err error) {
			start := time.Now()
			class := goflux.OutcomePanicked // until the handler has returned

			defer func() {
				level := c.level(class)
				if l := or(logger); l.Enabled(ctx, level) {
					l.LogAttrs(ctx, level, "goflux: handler returned", attrs(msg, time.Since(start), class, err)...)
				}
			}()

			err = next(ctx, msg)
			class = goflux.OutcomeOf(err)

			return err
		}
	}
}

func (c *logConfig) level(class goflux.Outcome) slog.Level {
	switch class {
	case goflux.OutcomeOK:
		return c.success.Level()
	case goflux.OutcomePanicked, goflux.OutcomeRejected:
		return slog.LevelError
	default:
		return slog.LevelWarn
	}
}

func attrs[T any](msg goflux.Message[T], took time.Duration, class goflux.Outcome, err error) []slog.Attr {
	as := make([]slog.Attr, 0, 6)
	as = append(as, slog.String("subject", msg.Subject))

	if id := msg.ID(); id != "" {
		as = append(as, slog.String("id", id))
	}

	if attempt := msg.Attempt(); attempt > 0 {
		as = append(as, slog.Int("attempt", attempt))
	}

	as = append(as, slog.Duration("duration", took), slog.String("outcome", string(class)))

	if err != nil {
		as = append(as, slog.Any("error", err))
	}

	return as
}

// or returns the logger to use where a nil one stands for the default.
func or(logger *slog.Logger) *slog.Logger {
	if logger != nil {
		return logger
	}

	return slog.Default()
}
