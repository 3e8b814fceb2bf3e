package facts_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
)

// Drain gives up the subscription while a pull request is still open, and the
// server goes on answering that for a moment. What becomes of these messages
// depends on where the client is connected. They are nowhere lost: a work queue
// and a durable consumer keep them.
//
// The first two tests repeat what is a race until they have seen it, so they
// fail only if it does not happen any more.

// A server that leads the consumer itself notices that nobody took the message,
// and delivers it again at once. But the attempt counts: the first handler to
// see the message is told that it is a redelivery.
func TestDrainCountsDeliveriesNobodySaw(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{AckWait: time.Hour})
	e.until("a message counted as delivered that nobody saw", func() bool {
		e.drainMidway(cons)
		return e.rest(cons) > 0
	})
	e.until("the end of redeliveries", func() bool {
		e.rest(cons)
		return e.info(cons).NumAckPending == 0
	})
}

// Through another node the leader learns too late that the client is gone. What
// it has sent by then is delivered again after AckWait, not before.
func TestDrainThroughAnotherNodeLeavesMessagesToAckWait(t *testing.T) {
	t.Parallel()
	e, cons := remote(t)
	e.until("messages that wait for AckWait", func() bool {
		e.drainMidway(cons)
		e.rest(cons)
		return e.info(cons).NumAckPending > 0
	})
}

// A pull request that has been answered in full leaves nothing behind, through
// any node. So it is how to stop taking messages without stranding any.
func TestStopAfterThroughAnotherNodeLeavesNothing(t *testing.T) {
	t.Parallel()
	const k = 100
	e, cons := remote(t)
	e.until("a request that nothing disturbed", func() bool {
		before := e.info(cons).NumAckPending

		// On a busy machine a leader changes or a heartbeat is late: nats.go
		// then asks twice, and the second request is not answered in full.
		var handled, disturbed atomic.Int32
		cc := e.consume(cons, func(m jetstream.Msg) {
			handled.Add(1)
			_ = m.Ack()
		}, jetstream.PullMaxMessages(k), jetstream.StopAfter(k),
			jetstream.ConsumeErrHandler(func(jetstream.ConsumeContext, error) { disturbed.Add(1) }))
		e.backlog(backlog)
		receive(e, cc.Closed(), "end of consuming")
		seen, left := e.rest(cons), e.info(cons).NumAckPending-before
		if disturbed.Load() > 0 {
			return false
		}
		if n := handled.Load(); n != k {
			t.Errorf("%d messages handled, want %d", n, k)
		}
		if seen != 0 {
			t.Errorf("%d messages were delivered before", seen)
		}
		if left != 0 {
			t.Errorf("%d messages wait for AckWait", left)
		}
		return true
	})
}

// backlog is how many messages are published at a time.
const backlog = 1000

// remote returns a consumer as seen through a node of a cluster that does not
// lead it.
func remote(t *testing.T) (env, jetstream.Consumer) {
	t.Helper()
	cluster := natstest.RunCluster(t, 3)
	e := env{T: t, nc: natstest.Connect(t, cluster)}
	e.js = natstest.JetStream(t, e.nc)
	e.stream = natstest.Stream(t, e.js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	e.consumer(jetstream.ConsumerConfig{AckWait: time.Hour})

	other := (cluster.ConsumerLeader("S", "C") + 1) % cluster.Len()
	js := natstest.JetStream(t, natstest.Connect(t, cluster.Node(other)))
	cons, err := js.Consumer(t.Context(), "S", "C")
	if err != nil {
		t.Fatal(err)
	}
	return e, cons
}

// until repeats what until it holds.
func (e env) until(what string, holds func() bool) {
	e.Helper()
	for began := time.Now(); !holds(); {
		if time.Since(began) > natstest.Limit {
			e.Fatalf("never saw %s", what)
		}
	}
}

func (e env) backlog(n int) {
	e.Helper()
	for i, f := range e.publishAsync(n) {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			e.Fatalf("publish %d of %d: %v", i, n, err)
		case <-time.After(natstest.Limit):
			e.Fatalf("no ack for publish %d of %d", i, n)
		}
	}
}

// ack waits for the server, so that its counts are right afterwards.
func (e env) ack(m jetstream.Msg) {
	if err := m.DoubleAck(e.Context()); err != nil {
		e.Error(err)
	}
}

// drainMidway drains while messages come in and are passed on at once.
func (e env) drainMidway(cons jetstream.Consumer) {
	e.Helper()
	var handled atomic.Int32
	started := make(chan jetstream.ConsumeContext, 1)
	cc := e.consume(cons, func(m jetstream.Msg) {
		if handled.Add(1) == 3 {
			(<-started).Drain()
		}
		_ = m.Ack()
	})
	started <- cc
	e.backlog(backlog)
	receive(e, cc.Closed(), "end of consuming")
}

// rest handles everything that the server is ready to deliver, and returns how
// much of it the server says was delivered before.
func (e env) rest(cons jetstream.Consumer) int {
	e.Helper()
	// Redeliveries go first, so with the last message all of them are there.
	last, err := e.js.Publish(e.Context(), "s.last", nil)
	if err != nil {
		e.Fatal(err)
	}
	again := 0
	done := make(chan struct{})
	cc := e.consume(cons, func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			e.Error(err)
			return
		}
		e.ack(m)
		if meta.NumDelivered > 1 {
			again++
		}
		if meta.Sequence.Stream == last.Sequence {
			close(done)
		}
	})
	receive(e, done, "last message")
	cc.Stop()
	receive(e, cc.Closed(), "end of consuming")
	return again
}
