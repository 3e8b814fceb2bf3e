package facts_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
)

// So a timeout never says that a message was not stored.
func TestPublishWhileDisconnectedTimesOutYetIsStored(t *testing.T) {
	t.Parallel()
	e := setup(t)
	e.disconnect(e.nc)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if ack, err := e.js.Publish(ctx, "s.a", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ack %+v, error %v", ack, err)
	}
	e.reconnect(e.nc)
	natstest.Eventually(t, func() bool { return e.stored() == 1 }, "the message to be stored")
}

func TestReconnectBufferDisabledFailsAtOnce(t *testing.T) {
	t.Parallel()
	e := setup(t)
	nc := natstest.Connect(t, e.server, nats.ReconnectBufSize(-1))
	e.disconnect(nc)
	if err := nc.Publish("s.a", nil); !errors.Is(err, nats.ErrReconnectBufExceeded) {
		t.Errorf("error %v", err)
	}
	if err := e.server.Start(); err != nil {
		t.Fatal(err)
	}
}

// What was accepted before it was full arrives, in order.
func TestReconnectBufferFullIsErrReconnectBufExceeded(t *testing.T) {
	t.Parallel()
	e := setup(t)
	nc := natstest.Connect(t, e.server, nats.ReconnectBufSize(1<<10))
	sub, err := nc.SubscribeSync("n")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(natstest.Limit); err != nil {
		t.Fatal(err)
	}
	e.disconnect(nc)
	accepted := 0
	for ; err == nil && accepted < 1<<10; accepted++ {
		err = nc.Publish("n", []byte{byte(accepted)})
	}
	accepted-- // The last one was refused.
	if !errors.Is(err, nats.ErrReconnectBufExceeded) || accepted < 1 {
		t.Fatalf("error %v after %d messages", err, accepted)
	}
	e.reconnect(nc)
	for i := range accepted {
		m, err := sub.NextMsg(natstest.Limit)
		if err != nil || m.Data[0] != byte(i) {
			t.Fatalf("message %d of %d: %v, error %v", i, accepted, m, err)
		}
	}
	if n, _, err := sub.Pending(); n != 0 || err != nil {
		t.Errorf("%d more messages, error %v", n, err)
	}
}

// Draining while disconnected loses what is buffered.
func TestDrainWhileReconnectingLosesBuffer(t *testing.T) {
	t.Parallel()
	e := setup(t)
	closed := make(chan struct{})
	nc := natstest.Connect(t, e.server, nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	sub, err := e.nc.SubscribeSync("n")
	if err != nil {
		t.Fatal(err)
	}
	e.disconnect(nc)
	if err := nc.Publish("n", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := nc.Drain(); !errors.Is(err, nats.ErrConnectionReconnecting) {
		t.Errorf("error %v", err)
	}
	receive(e, closed, "end of the connection")
	e.reconnect(e.nc)
	if n, _, err := sub.Pending(); n != 0 || err != nil {
		t.Errorf("%d messages, error %v", n, err)
	}
}

// It is the disconnect, not the reconnect, that fails what waits for its ack,
// and it fails what the server has stored as well.
func TestDisconnectFailsPendingAsyncPublishesThoughStored(t *testing.T) {
	t.Parallel()
	const n = 10
	proxy, err := chaos.NewProxy(natstest.RunTCP(t).URL(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	e := env{T: t, nc: natstest.Connect(t, natstest.URL(proxy.URL()))}
	e.js = natstest.JetStream(t, e.nc)
	e.stream = natstest.Stream(t, e.js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})

	proxy.Stall(chaos.ToClient)
	before := proxy.Stats().ToServer.Forwarded
	futures := e.publishAsync(n)
	natstest.Eventually(t, func() bool {
		s := proxy.Stats()
		return s.ToServer.Forwarded > before && s.ToClient.Stalled > 0
	}, "the server to answer")
	proxy.Cut()
	proxy.Resume()
	for _, f := range futures {
		if err := receive(e, f.Err(), "end of a publish"); !errors.Is(err, nats.ErrDisconnected) {
			t.Errorf("error %v", err)
		}
	}
	natstest.Eventually(t, e.nc.IsConnected, "the client to reconnect")
	if got := e.stored(); got == 0 {
		t.Error("nothing is stored")
	}
}

// What is published while disconnected waits for the reconnect and is acked.
func TestAsyncPublishWhileDisconnectedIsAckedAfterReconnect(t *testing.T) {
	t.Parallel()
	e := setup(t)
	e.disconnect(e.nc)
	futures := e.publishAsync(10)
	e.reconnect(e.nc)
	for i, f := range futures {
		if ack := receive(e, f.Ok(), "ack"); ack.Sequence != uint64(i)+1 {
			t.Errorf("ack %+v of message %d", ack, i)
		}
	}
}

func (e env) publishAsync(n int) (futures []jetstream.PubAckFuture) {
	e.Helper()
	for range n {
		f, err := e.js.PublishAsync("s.a", nil)
		if err != nil {
			e.Fatal(err)
		}
		futures = append(futures, f)
	}
	return futures
}
