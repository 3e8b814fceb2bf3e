package goflux_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

// One that ends its goroutine at the last moment has failed like any other.
func TestGoexitAtTheDrainTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, err := memory.New()
		if err != nil {
			t.Fatal(err)
		}

		defer tr.Close()

		responder, err := goflux.NewResponder(tr, words, words, silent(), goflux.WithConcurrency(1), goflux.WithDrainTimeout(time.Second))
		if err != nil {
			t.Fatal(err)
		}

		served := make(chan struct{})

		go func() {
			defer close(served)

			// Whether that counts as abandoned is a matter of who is faster.
			_ = responder.Serve(t.Context(), "x", func(ctx context.Context, _ string) (string, error) {
				<-ctx.Done()
				runtime.Goexit()

				return "", nil
			})
		}()

		synctest.Wait()

		asked := make(chan error, 1)

		go func() {
			_, err := asker(t, tr, words, words).Request(t.Context(), "x", "")
			asked <- err
		}()

		synctest.Wait()
		responder.Close()

		if err := <-asked; !errors.Is(err, goflux.NewError(http.StatusInternalServerError, "internal error")) {
			t.Errorf("error %v", err)
		}

		<-served
	})
}

// Who was taken and could not be started in the time of the drain is told so, and
// not left to the deadline.
func TestDrainAnswersWhatItDoesNotStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, err := memory.New()
		if err != nil {
			t.Fatal(err)
		}

		defer tr.Close()

		const queued = 5

		begin := time.Now()

		var handled []string

		responder, err := goflux.NewResponder(tr, words, words,
			silent(), goflux.WithConcurrency(1), goflux.WithDrainTimeout(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}

		served := make(chan error, 1)

		go func() {
			served <- responder.Serve(t.Context(), "x", func(ctx context.Context, s string) (string, error) {
				handled = append(handled, s)

				<-ctx.Done()

				// Its last words are heard, for a moment.
				return s, nil
			})
		}()

		synctest.Wait()

		asking := asker(t, tr, words, words)

		type reply struct {
			got string
			err error
			at  time.Duration
		}

		ask := func(s string, patience time.Duration) <-chan reply {
			replies := make(chan reply, 1)

			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()

				got, err := asking.Request(ctx, "x", s)
				replies <- reply{got, err, time.Since(begin)}
			}()

			synctest.Wait() // it is taken

			return replies
		}

		running := ask("running", time.Minute)
		impatient := ask("impatient", time.Second)

		var waiting []<-chan reply
		for i := range queued {
			waiting = append(waiting, ask(fmt.Sprint(i), time.Minute))
		}

		responder.Close()

		for _, replies := range waiting {
			r := <-replies
			if !errors.Is(r.err, goflux.NewError(http.StatusServiceUnavailable, "the responder is stopping")) || r.at != 10*time.Second {
				t.Errorf("after %v: reply %q, error %v", r.at, r.got, r.err)
			}
		}

		if r := <-running; r.err != nil || r.got != "running" {
			t.Errorf("reply %q, error %v", r.got, r.err)
		}

		if r := <-impatient; !errors.Is(r.err, context.DeadlineExceeded) || r.at != time.Second {
			t.Errorf("after %v: reply %q, error %v", r.at, r.got, r.err)
		}

		var drain *goflux.DrainError
		if err := <-served; !errors.As(err, &drain) || drain.Abandoned != queued+1 {
			t.Errorf("Serve: %v", err)
		}

		if !slices.Equal(handled, []string{"running"}) || responder.Late() != 1 {
			t.Errorf("handled were %v, %d were late", handled, responder.Late())
		}
	})
}

// announcing is a responder's transport with discovery.
type announcing struct {
	transport.Responder

	announce func(ctx context.Context, s transport.Service) (withdraw func(), err error)
}

func (a announcing) Announce(ctx context.Context, s transport.Service) (withdraw func(), err error) {
	return a.announce(ctx, s)
}

// That a service cannot be announced keeps it from nothing, and is tried again.
// It is withdrawn when the end begins, not when it is over.
func TestAnnouncement(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		failures int // of announcing
		want     []time.Duration
	}{
		"at once":       {0, []time.Duration{0}},
		"in the end":    {3, []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}},
		"after a while": {8, []time.Duration{0, 1e9, 3e9, 7e9, 15e9, 31e9, 63e9, 123e9, 183e9}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr, err := memory.New()
				if err != nil {
					t.Fatal(err)
				}

				defer tr.Close()

				var (
					begin     = time.Now()
					tries     []time.Duration
					withdrawn int
					logs      bytes.Buffer
				)

				r := goflux.BindResponder(transport.Responder(announcing{tr.Responder(), func(_ context.Context, s transport.Service) (func(), error) {
					if tries = append(tries, time.Since(begin)); len(tries) <= c.failures {
						return nil, errSecret
					}

					if s.Name != "orders" || s.Subject != "x" || s.Group != "q" || s.Stats().Requests != 0 {
						t.Errorf("service %+v", s)
					}

					return func() { withdrawn++ }, nil
				}}), nil, words, words, goflux.WithService("orders", "", ""), goflux.WithLogger(slog.New(slog.NewTextHandler(&logs, nil))))

				goOn, served := make(chan struct{}), make(chan error, 1)

				go func() {
					served <- r.Serve(t.Context(), "x", func(_ context.Context, s string) (string, error) {
						<-goOn

						return s, nil
					})
				}()

				time.Sleep(10 * time.Minute)
				synctest.Wait()

				if !slices.Equal(tries, c.want) || withdrawn != 0 {
					t.Errorf("tried at %v, want %v; withdrawn %d times", tries, c.want, withdrawn)
				}

				asked := make(chan error, 1)

				go func() {
					_, err := asker(t, tr, words, words).Request(t.Context(), "x", "")
					asked <- err
				}()

				synctest.Wait()
				r.Close()
				synctest.Wait()

				select {
				case <-served:
					t.Error("Serve returned while its handler ran")
				default:
				}

				if withdrawn != 1 {
					t.Errorf("withdrawn %d times while the handler runs", withdrawn)
				}

				close(goOn)

				if err := errors.Join(<-asked, <-served); err != nil {
					t.Error(err)
				}

				if withdrawn != 1 || strings.Count(logs.String(), "could not be announced") != c.failures {
					t.Errorf("withdrawn %d times, log:\n%s", withdrawn, &logs)
				}
			})
		})
	}
}

// The end does not wait for an announcement that does not come about.
func TestEndDuringAnnouncement(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, err := memory.New()
		if err != nil {
			t.Fatal(err)
		}

		defer tr.Close()

		var (
			logs bytes.Buffer
			n    int
		)

		r := goflux.BindResponder(transport.Responder(announcing{tr.Responder(), func(ctx context.Context, _ transport.Service) (func(), error) {
			if n++; n == 1 {
				return nil, errSecret
			}

			<-ctx.Done()

			return nil, ctx.Err()
		}}), nil, words, words, goflux.WithLogger(slog.New(slog.NewTextHandler(&logs, nil))))

		served := make(chan error, 1)

		go func() { served <- r.Serve(t.Context(), "x", echo) }()

		time.Sleep(1500 * time.Millisecond)

		begin := time.Now()

		r.Close()

		if err := <-served; err != nil || time.Since(begin) != 0 {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}

		// What the end interrupts is no failure.
		if n != 2 || strings.Count(logs.String(), "could not be announced") != 1 {
			t.Errorf("tried %d times, log:\n%s", n, &logs)
		}
	})
}

// One that is not to be found is not announced.
func TestHiddenResponderIsNotAnnounced(t *testing.T) {
	t.Parallel()

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}

	defer tr.Close()

	ready := make(chan struct{})
	r := goflux.BindResponder(transport.Responder(announcing{tr.Responder(), func(context.Context, transport.Service) (func(), error) {
		t.Error("it was announced")

		return func() {}, nil
	}}), nil, words, words, goflux.WithoutDiscovery(), goflux.WithReady(func() { close(ready) }))

	served := make(chan error, 1)

	go func() { served <- r.Serve(t.Context(), "x", echo) }()

	<-ready
	r.Close()

	if err := <-served; err != nil {
		t.Error(err)
	}
}
