package goflux_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

func (w *wire) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()

	return w.closed
}

// What is not used is not held, also where nobody closes the publisher.
func TestIdlePipelineIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.send = func(_ int, s shipment) error {
			w.confirm(s, 1)

			return nil
		}

		pub := publisher(t, w, goflux.WithPublishRetry(0))

		for round := range 3 {
			// In use it stays, however long.
			for range 10 {
				if _, err := pub.PublishBatch(t.Context(), items(1)...); err != nil {
					t.Fatal(err)
				}

				time.Sleep(9 * time.Second)

				if w.isClosed() {
					t.Fatal("it was closed though it was in use")
				}
			}

			time.Sleep(time.Minute)

			if !w.isClosed() || w.opened != round+1 || w.closes != w.opened {
				t.Fatalf("after a minute without work it is closed: %v; it was opened %d times and closed %d times",
					w.isClosed(), w.opened, w.closes)
			}

			w.closed = false // it is opened anew
		}

		// A batch goes on where its pipeline was closed meanwhile.
		slow := goflux.Codec[order]{
			Encode: func(o order) ([]byte, error) {
				if o.ID == "slow" {
					time.Sleep(time.Minute)
				}

				return nil, nil
			},
			Decode: constant().Decode,
		}

		patient, err := goflux.NewPublisher(w, slow)
		if err != nil {
			t.Fatal(err)
		}
		defer patient.Close()

		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()

		opened := w.opened

		if _, err := patient.PublishBatch(ctx, goflux.Item[order]{Subject: "a"},
			goflux.Item[order]{Subject: "b", Payload: order{ID: "slow"}}, goflux.Item[order]{Subject: "c"}); err != nil {
			t.Error(err)
		}

		if w.opened != opened+2 {
			t.Errorf("it was opened %d times, want twice", w.opened-opened)
		}
	})
}

// A message whose answer is long in coming is no idleness.
func TestPatientPipelineStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()

		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()

		p := async(t, ctx, publisher(t, w), 0)

		time.Sleep(30 * time.Minute)

		w.confirm(w.all(0)[0], 1)

		if r, err := outcome(t, p); err != nil || r.Sequence != 1 {
			t.Errorf("receipt %+v, error %v", r, err)
		}
	})
}

// With a pipeline everything that is under way ends, at once.
func TestPipelineOfAClosedTransport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.send = func(n int, _ shipment) error {
			if n == 0 {
				return nil
			}

			return transport.ErrDisconnected
		}

		pub := publisher(t, w)
		first, second := async(t, t.Context(), pub, 0), async(t, t.Context(), pub, 1)

		synctest.Wait()
		w.ended(&transport.Error{Op: "publish", Err: transport.ErrClosed})

		_, err := outcome(t, first)
		mustFail(t, err, true, goflux.ErrClosed)

		_, err = outcome(t, second)
		mustFail(t, err, false, goflux.ErrClosed)

		_, err = pub.PublishAsync(t.Context(), "a", order{})
		mustFail(t, err, false, goflux.ErrClosed)

		if err := pub.Flush(t.Context()); err != nil {
			t.Error(err)
		}

		if err := pub.Close(); err != nil || w.closes != 1 {
			t.Errorf("error %v, closed %d times", err, w.closes)
		}
	})
}

// Who waits for room when the pipeline ends does not go on waiting.
func TestPipelineEndsWhileFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		pub := publisher(t, w)

		for i := range window {
			_ = async(t, t.Context(), pub, i)
		}

		blocked := make(chan error, 1)

		go func() {
			_, err := pub.PublishAsync(t.Context(), "a", order{})
			blocked <- err
		}()

		synctest.Wait()
		w.ended(&transport.Error{Op: "publish", Err: transport.ErrClosed})
		synctest.Wait()

		select {
		case err := <-blocked:
			mustFail(t, err, false, goflux.ErrClosed)
		default:
			t.Error("it waits for room that there will never be")
		}
	})
}

// Each message that could not be sent says why, also those behind the first.
func TestUnsentMessagesSayWhy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		away := true
		w.send = func(int, shipment) error {
			if away {
				return transport.ErrDisconnected
			}

			return nil
		}

		pub := publisher(t, w)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		results, err := pub.PublishBatch(ctx, items(3)...)
		mustFail(t, err, false, context.DeadlineExceeded)

		for _, r := range results {
			mustFail(t, r.Err, false, context.DeadlineExceeded, goflux.ErrDisconnected)
		}

		// What is sent, and not answered, has another reason.
		away = false

		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		results, err = pub.PublishBatch(ctx, items(1)...)
		mustFail(t, err, true, context.DeadlineExceeded)

		if errors.Is(results[0].Err, goflux.ErrDisconnected) {
			t.Errorf("got %v", results[0].Err)
		}
	})
}
