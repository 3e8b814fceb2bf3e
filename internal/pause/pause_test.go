package pause_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/internal/pause"
)

func TestFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()

		if err := pause.For(t.Context(), time.Minute); err != nil || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}

		if err := pause.For(t.Context(), -1); err != nil {
			t.Error(err)
		}

		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })

		for range 2 {
			if err := pause.For(ctx, time.Hour); !errors.Is(err, cause) {
				t.Errorf("got %v", err)
			}
		}
	})
}
