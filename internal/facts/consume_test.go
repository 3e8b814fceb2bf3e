package facts_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
)

// Both return before they have any effect: until the subscription is gone, and
// that is done by a goroutine of nats.go's, the handler gets buffered messages
// also after Stop. Only Closed tells that there will be no more.
func TestStopDiscardsBufferDrainHandsItOver(t *testing.T) {
	t.Parallel()
	const n = 10
	for name, tt := range map[string]struct {
		end  func(jetstream.ConsumeContext)
		want int32
	}{
		"Stop":  {jetstream.ConsumeContext.Stop, 1},
		"Drain": {jetstream.ConsumeContext.Drain, n},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := setup(t)
			cons := e.consumer(jetstream.ConsumerConfig{AckWait: time.Hour})
			e.publish(n)
			var handled atomic.Int32
			release := make(chan struct{})
			cc := e.consume(cons, func(m jetstream.Msg) {
				handled.Add(1)
				<-release
				_ = m.Ack()
			})
			natstest.Eventually(t, func() bool { return e.info(cons).NumAckPending == n }, "all to be on their way")
			if err := e.nc.FlushTimeout(natstest.Limit); err != nil { // The client has read them.
				t.Fatal(err)
			}
			natstest.Eventually(t, func() bool { return handled.Load() == 1 }, "a handler to run")
			subs := e.nc.NumSubscriptions()
			tt.end(cc) // Returns at once, though a handler is running.
			if name == "Stop" {
				natstest.Eventually(t, func() bool { return e.nc.NumSubscriptions() < subs }, "Stop to take effect")
			}
			close(release)
			receive(e, cc.Closed(), "end of consuming")
			if got := handled.Load(); got != tt.want {
				t.Errorf("%d messages handled, want %d", got, tt.want)
			}
			left := n - int(tt.want)
			natstest.Eventually(t, func() bool { return e.info(cons).NumAckPending == left }, "%d to stay unacknowledged", left)
		})
	}
}

// Whoever relies on errors alone waits for ever: Consume succeeds, each pull
// fails, and consuming never ends.
func TestConsumerAlreadyGoneGivesNoResponders(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{})
	if err := e.stream.DeleteConsumer(t.Context(), "C"); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 100)
	cc := e.consume(cons, func(jetstream.Msg) {}, jetstream.PullExpiry(time.Second),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { errs <- err }))
	closed := cc.Closed()
	if err := receive(e, errs, "error"); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("first error %v", err)
	}
	for range 2 {
		if err := receive(e, errs, "error"); !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, jetstream.ErrNoHeartbeat) {
			t.Errorf("later error %v", err)
		}
	}
	select {
	case <-closed:
		t.Error("consuming ended by itself")
	default:
	}
	if _, err := cons.Info(t.Context()); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("Info tells %v", err)
	}
}

func TestConsumerDeletedWhileConsumingEndsWithErrConsumerDeleted(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{})
	errs, began := make(chan error, 100), make(chan struct{})
	cc := e.consume(cons, func(m jetstream.Msg) {
		_ = m.Ack()
		close(began)
	}, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { errs <- err }))
	e.publish(1)
	receive(e, began, "message")
	if err := e.stream.DeleteConsumer(t.Context(), "C"); err != nil {
		t.Fatal(err)
	}
	if err := receive(e, errs, "error"); !errors.Is(err, jetstream.ErrConsumerDeleted) {
		t.Errorf("error %v", err)
	}
	receive(e, cc.Closed(), "end of consuming")
}

// With the batch as large as the stop, nothing is pulled beyond it. Drain does
// not promise that, see TestDrainCountsDeliveriesNobodySaw.
func TestConsumeStopAfterLosesNothing(t *testing.T) {
	t.Parallel()
	const n, k = 100, 10
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{AckWait: time.Hour})
	e.publish(n)
	var handled atomic.Int32
	cc := e.consume(cons, func(m jetstream.Msg) {
		handled.Add(1)
		_ = m.Ack()
	}, jetstream.StopAfter(k), jetstream.PullMaxMessages(k))
	receive(e, cc.Closed(), "end of consuming")
	if got := handled.Load(); got != k {
		t.Errorf("%d messages handled, want %d", got, k)
	}
	e.settled(cons)
	if info := e.info(cons); info.Delivered.Consumer != k || info.NumPending != n-k {
		t.Errorf("%d delivered, %d pending", info.Delivered.Consumer, info.NumPending)
	}
}

// The second message waits in the client for the first one's handler, meanwhile
// its time is up, and it is handled twice.
func TestAckWaitRunsInClientBuffer(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{AckWait: 250 * time.Millisecond})
	e.publish(2)
	second := make(chan uint64, 10)
	e.consume(cons, func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			t.Error(err)
			return
		}
		if meta.Sequence.Stream == 2 {
			second <- meta.NumDelivered
			_ = m.Ack()
			return
		}
		if meta.NumDelivered == 1 {
			// The lease of the one that is being handled is renewed; that of the
			// one behind it is not.
			ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
			defer cancel()
			if err := natstest.Poll(ctx, func() bool {
				_ = m.InProgress()
				info, err := cons.Info(ctx)
				return err == nil && info.NumRedelivered > 0
			}, "a redelivery"); err != nil {
				t.Error(err)
			}
		}
		_ = m.Ack()
	})
	for want := uint64(1); want <= 2; want++ {
		if got := receive(e, second, "delivery of the second message"); got != want {
			t.Errorf("delivery %d, want %d", got, want)
		}
	}
}

// Where PullMaxMessages is one, no message waits behind another.
func TestOneMessagePullsKeepTheirAckWait(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{})
	e.publish(3)
	sent := make(chan uint64, 3)
	e.consume(cons, func(m jetstream.Msg) {
		if info, err := cons.Info(t.Context()); err != nil {
			t.Error(err)
		} else {
			sent <- info.Delivered.Consumer
		}
		_ = m.Ack()
	}, jetstream.PullMaxMessages(1))
	for want := uint64(1); want <= 3; want++ {
		if got := receive(e, sent, "message"); got != want {
			t.Errorf("the server has sent %d messages while number %d is handled", got, want)
		}
	}
}

func TestFetchTimeoutIsNotAnError(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{})
	batch, err := cons.Fetch(1, jetstream.FetchMaxWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	for m := range batch.Messages() {
		t.Errorf("message %v", m.Subject())
	}
	if err := batch.Error(); err != nil {
		t.Errorf("error %v", err)
	}
}

// A user's message that has no body and a header named Status is taken for one
// of the server's, whatever the header says. It reaches no handler and stays
// unacknowledged.
func TestStatusHeaderWithEmptyBodyIsSwallowed(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{AckWait: time.Hour})
	for _, status := range []string{"503", "100", "paid"} {
		if _, err := e.js.PublishMsg(t.Context(), &nats.Msg{Subject: "s.a", Header: nats.Header{"Status": {status}}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.js.PublishMsg(t.Context(), &nats.Msg{
		Subject: "s.a", Header: nats.Header{"Status": {"503"}}, Data: []byte("a body makes it a message"),
	}); err != nil {
		t.Fatal(err)
	}
	got := make(chan uint64, 10)
	e.consume(cons, func(m jetstream.Msg) {
		if meta, err := m.Metadata(); err == nil {
			got <- meta.Sequence.Stream
		}
		_ = m.Ack()
	})
	if seq := receive(e, got, "message"); seq != 4 {
		t.Errorf("message %d is handed over", seq)
	}
	natstest.Eventually(t, func() bool { return e.info(cons).NumAckPending == 3 }, "three to stay unacknowledged")

	// In a reply it is taken for the absence of responders.
	sub, err := e.nc.Subscribe("q", func(m *nats.Msg) {
		_ = m.RespondMsg(&nats.Msg{Header: nats.Header{"Status": {"503"}}})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
	defer cancel()
	if m, err := e.nc.RequestWithContext(ctx, "q", nil); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("reply %v, error %v", m, err)
	}
}
