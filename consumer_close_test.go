package goflux_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport/memory"
)

// Close ends the calls that take turns, at once and each with ErrClosed.
func TestCloseEndsFetches(t *testing.T) {
	t.Parallel()

	for range 50 {
		tr, err := memory.New()
		if err != nil {
			t.Fatal(err)
		}

		consumer, err := goflux.NewConsumer(tr, constant(), "a", goflux.WithQueueGroup("workers"))
		if err != nil {
			t.Fatal(err)
		}

		var fetches sync.WaitGroup

		for range 8 {
			fetches.Go(func() {
				_, err := consumer.Fetch(t.Context(), 1)

				var told *goflux.Error
				if !errors.Is(err, goflux.ErrClosed) || !errors.As(err, &told) || told.Op != "fetch" {
					t.Errorf("got %v", err)
				}
			})
		}

		for range 2 {
			fetches.Go(consumer.Close)
		}

		fetches.Wait()

		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}
}
