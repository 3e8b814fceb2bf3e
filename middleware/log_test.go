package middleware_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
)

// logged calls the handler under Log, and returns what was logged from INFO up.
func logged(t *testing.T, msg goflux.Message[int], h goflux.Handler[int], opts ...middleware.LogOption) (map[string]any, error) {
	t.Helper()

	var out bytes.Buffer

	logger := slog.New(slog.NewJSONHandler(&out, nil))
	err := middleware.Log[int](logger, opts...)(h)(t.Context(), msg)

	if out.Len() == 0 {
		return nil, err
	}

	var line map[string]any

	must(t, json.Unmarshal(out.Bytes(), &line))
	delete(line, "time")

	return line, err
}

func TestLog(t *testing.T) {
	t.Parallel()

	boom := errors.New("boom")

	for name, c := range map[string]struct {
		err            error
		level, outcome string
	}{
		"ok":       {nil, "INFO", "ok"},
		"failed":   {boom, "WARN", "failed"},
		"delayed":  {goflux.RetryAfter(time.Second, boom), "WARN", "delayed"},
		"dropped":  {goflux.Drop(boom), "WARN", "dropped"},
		"rejected": {goflux.Reject(boom), "ERROR", "rejected"},
		"panicked": {&goflux.PanicError{Value: boom}, "ERROR", "panicked"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				msg := message("id-1")
				msg.Payload = 4711

				line, err := logged(t, msg, func(context.Context, goflux.Message[int]) error {
					time.Sleep(time.Second)

					return c.err
				})
				if err != c.err { //nolint:errorlint // unchanged
					t.Errorf("%v became %v", c.err, err)
				}

				want := map[string]any{
					"level": c.level, "msg": "goflux: handler returned", "subject": "orders", "id": "id-1",
					"duration": float64(time.Second), "outcome": c.outcome,
				}
				if c.err != nil {
					want["error"] = c.err.Error()
				}

				if len(line) != len(want) {
					t.Errorf("got %v", line)
				}

				for k, v := range want {
					if line[k] != v {
						t.Errorf("%s: %v, want %v", k, line[k], v)
					}
				}
			})
		})
	}
}

func TestLogAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer

		tr := open(t)
		h := middleware.Log[int](slog.New(slog.NewTextHandler(&out, nil)))(func(_ context.Context, msg goflux.Message[int]) error {
			if msg.Attempt() == 1 {
				return errors.New("boom")
			}

			return nil
		})

		stop := serve(t, tr, h, goflux.WithLogger(slog.New(slog.DiscardHandler)))
		publish(t, tr, "", 4711)
		synctest.Wait()
		stop()

		text := out.String()
		if !strings.Contains(text, "attempt=1 duration=0s outcome=failed error=boom") || !strings.Contains(text, "attempt=2 duration=0s outcome=ok") {
			t.Errorf("got %s", text)
		}

		if strings.Contains(text, "4711") || strings.Contains(text, "id=") {
			t.Errorf("got %s", text)
		}
	})
}

func TestLogLevels(t *testing.T) {
	t.Parallel()

	var level slog.LevelVar

	level.Set(slog.LevelDebug)

	opts := []middleware.LogOption{nil, middleware.WithSuccessLevel(&level)}

	if line, _ := logged(t, message(""), returning(nil), opts...); line != nil {
		t.Errorf("logged below the level: %v", line)
	}

	level.Set(slog.LevelError)

	if line, _ := logged(t, message(""), returning(nil), opts...); line["level"] != "ERROR" {
		t.Errorf("got %v", line)
	}

	if line, _ := logged(t, message(""), returning(nil), middleware.WithSuccessLevel(nil)); line["level"] != "INFO" {
		t.Errorf("got %v", line)
	}
}

// A panic that nobody made an error of passes, with a line but without its value.
func TestLogLetsPanicsPass(t *testing.T) {
	t.Parallel()

	var out bytes.Buffer

	h := middleware.Log[int](slog.New(slog.NewTextHandler(&out, nil)))(explode)

	if err := middleware.Recover[int]()(h)(t.Context(), message("")); !errors.Is(err, goflux.ErrPanic) {
		t.Errorf("got %v", err)
	}

	if text := out.String(); !strings.Contains(text, "outcome=panicked") || strings.Contains(text, "boom") {
		t.Errorf("got %s", text)
	}
}

//nolint:paralleltest // it sets the default logger
func TestLogDefault(t *testing.T) {
	var out bytes.Buffer

	h := middleware.Log[int](nil)(returning(nil))

	before := slog.Default()
	defer slog.SetDefault(before)

	slog.SetDefault(slog.New(slog.NewTextHandler(&out, nil)))
	must(t, h(t.Context(), message("")))

	if !strings.Contains(out.String(), "outcome=ok") {
		t.Errorf("got %q", out.String())
	}
}
