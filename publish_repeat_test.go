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

// sent is how a publish ended.
type sent struct {
	receipt goflux.Receipt
	err     error
}

// sending publishes with retries, and returns when that waits for an answer.
func sending(t *testing.T, ctx context.Context, pub *goflux.BoundPublisher[order]) <-chan sent { //nolint:revive // as in testing
	t.Helper()

	ended := make(chan sent, 1)

	go func() {
		r, err := pub.Send(ctx, "a.b", order{})
		ended <- sent{r, err}
	}()

	synctest.Wait()

	return ended
}

// running reports whether a publish has not ended.
func running(ended <-chan sent) bool {
	synctest.Wait()

	return len(ended) == 0
}

func (w *wire) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()

	return w.closed
}

// A publish that is repeated ends with the answer to whichever attempt is
// answered first.
func TestPublishTakesTheAnswerToAnyAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		ended := sending(t, t.Context(), publisher(t, w, goflux.WithPublishRetry(100*time.Millisecond)))

		time.Sleep(350 * time.Millisecond)
		synctest.Wait()

		tries := w.all(0)
		if len(tries) < 3 {
			t.Fatalf("%d attempts in 350 ms", len(tries))
		}

		for _, s := range tries {
			if s.msg.ID == "" || s.msg.ID != tries[0].msg.ID {
				t.Errorf("the ids are %q and %q", tries[0].msg.ID, s.msg.ID)
			}
		}

		w.confirm(tries[0], 7)

		if r := <-ended; r.err != nil || r.receipt.Sequence != 7 {
			t.Errorf("%+v", r)
		}

		time.Sleep(time.Second)

		if more := w.all(len(tries)); len(more) > 0 {
			t.Errorf("%d attempts after the answer", len(more))
		}
	})
}

// A publish ends with its ctx, and what comes later is nobody's any more.
func TestPublishEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		pub := publisher(t, w, goflux.WithPublishRetry(0))

		ctx, cancel := context.WithCancel(t.Context())
		ended := sending(t, ctx, pub)

		cancel()
		mustFail(t, (<-ended).err, true, context.Canceled)

		// Its place is another one's.
		ended = sending(t, t.Context(), pub)

		w.confirm(w.all(0)[0], 1)

		if !running(ended) {
			t.Fatalf("it ended with the answer to another one: %+v", <-ended)
		}

		w.confirm(w.all(0)[1], 2)

		if r := <-ended; r.err != nil || r.receipt.Sequence != 2 {
			t.Errorf("%+v", r)
		}
	})
}

// Close leaves it to a call that waits to end as it would have.
func TestCloseLeavesCallsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		pub := publisher(t, w, goflux.WithPublishRetry(100*time.Millisecond))
		first, second := sending(t, t.Context(), pub), sending(t, t.Context(), pub)
		pending := async(t, t.Context(), pub, 0)

		synctest.Wait()

		if err := pub.Close(); err != nil {
			t.Error(err)
		}

		_, err := outcome(t, pending)
		mustFail(t, err, true, goflux.ErrClosed)
		mustFail(t, pub.Publish(t.Context(), "a", order{}), false, goflux.ErrClosed)

		w.confirm(w.all(0)[0], 1)

		if r := <-first; r.err != nil || r.receipt.Sequence != 1 {
			t.Errorf("%+v", r)
		}

		time.Sleep(150 * time.Millisecond)

		if !running(second) || w.isClosed() {
			t.Fatalf("Close has ended a call, or the pipeline under it")
		}

		again := w.all(3)
		if len(again) == 0 {
			t.Fatal("it is not repeated any more")
		}

		w.confirm(again[0], 2)

		if r := <-second; r.err != nil || r.receipt.Sequence != 2 {
			t.Errorf("%+v", r)
		}

		if !w.isClosed() {
			t.Error("the last call has left the pipeline open")
		}
	})
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
				if err := pub.Publish(t.Context(), "a.b", order{}); err != nil {
					t.Fatal(err)
				}

				time.Sleep(9 * time.Second)

				if w.isClosed() {
					t.Fatal("it was closed though it was in use")
				}
			}

			time.Sleep(time.Minute)

			if !w.isClosed() || w.opened != round+1 {
				t.Fatalf("after a minute without work it is closed: %v; it was opened %d times", w.isClosed(), w.opened)
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
	})
}

// A connection that drains ends the pipeline, and still takes messages: what was
// under way is published again, under its id, without the pipeline.
func TestPublishAfterThePipeline(t *testing.T) {
	t.Parallel()

	for name, test := range map[string]struct {
		direct error
		check  func(t *testing.T, r sent)
	}{
		"it takes it": {nil, func(t *testing.T, r sent) {
			t.Helper()

			if r.err != nil {
				t.Errorf("%+v", r)
			}
		}},
		"it is closed": {transport.ErrClosed, func(t *testing.T, r sent) {
			t.Helper()
			mustFail(t, r.err, true, goflux.ErrClosed)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				w.err = test.direct

				pub := publisher(t, w, goflux.WithPublishRetry(0))
				ended := sending(t, t.Context(), pub)

				w.ended(&transport.Error{Op: "publish", Err: transport.ErrClosed})
				test.check(t, <-ended)

				if piped := w.all(0)[0].msg; w.last.ID == "" || w.last.ID != piped.ID {
					t.Errorf("the ids are %q and %q", piped.ID, w.last.ID)
				}

				// So is what comes after it.
				err := pub.Publish(t.Context(), "a.b", order{})
				if !errors.Is(err, test.direct) || errors.Is(err, goflux.ErrPublishUnknown) {
					t.Errorf("got %v", err)
				}

				if n := w.recorder.sent.Load(); n != 2 {
					t.Errorf("%d were published without the pipeline", n)
				}
			})
		})
	}
}
