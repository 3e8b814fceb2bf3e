package facts_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// env is a server of the test's own, with a stream "S" of the subjects "s.>".
type env struct {
	*testing.T
	server *natstest.Server
	nc     *nats.Conn
	js     jetstream.JetStream
	stream jetstream.Stream
}

// setup starts the server of a test.
func setup(t *testing.T, opts ...embedded.Option) env {
	t.Helper()
	return setupStream(t, jetstream.StreamConfig{}, opts...)
}

// setupStream is setup with a configuration of the stream; name and subjects
// are filled in.
func setupStream(t *testing.T, cfg jetstream.StreamConfig, opts ...embedded.Option) env {
	t.Helper()
	cfg.Name, cfg.Subjects = "S", []string{"s.>"}
	e := env{T: t, server: natstest.Run(t, opts...)}
	e.nc = natstest.Connect(t, e.server)
	e.js = natstest.JetStream(t, e.nc)
	e.stream = natstest.Stream(t, e.js, cfg)
	return e
}

// publish stores n messages under s.a.
func (e env) publish(n int, opts ...jetstream.PublishOpt) {
	e.Helper()
	for range n {
		if _, err := e.js.Publish(e.Context(), "s.a", []byte("x"), opts...); err != nil {
			e.Fatal(err)
		}
	}
}

func (e env) consumer(cfg jetstream.ConsumerConfig) jetstream.Consumer {
	e.Helper()
	cfg.Durable, cfg.AckPolicy = "C", jetstream.AckExplicitPolicy
	return natstest.Consumer(e, e.stream, cfg)
}

// next waits for one message of cons.
func (e env) next(cons jetstream.Consumer) jetstream.Msg {
	e.Helper()
	m, err := cons.Next(jetstream.FetchMaxWait(natstest.Limit))
	if err != nil {
		e.Fatal(err)
	}
	return m
}

// delivery returns the number of m's delivery, from 1.
func (e env) delivery(m jetstream.Msg) uint64 {
	e.Helper()
	meta, err := m.Metadata()
	if err != nil {
		e.Fatal(err)
	}
	return meta.NumDelivered
}

// consume starts cc and sees to its end, without which its goroutine would
// outlive the connection.
func (e env) consume(cons jetstream.Consumer, h jetstream.MessageHandler, opts ...jetstream.PullConsumeOpt) jetstream.ConsumeContext {
	e.Helper()
	cc, err := cons.Consume(h, opts...)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		cc.Stop()
		<-cc.Closed()
	})
	return cc
}

func (e env) info(cons jetstream.Consumer) *jetstream.ConsumerInfo {
	e.Helper()
	info, err := cons.Info(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	return info
}

// stored returns the number of messages in the stream.
func (e env) stored() uint64 {
	e.Helper()
	info, err := e.stream.Info(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	return info.State.Msgs
}

// disconnect stops the server and waits until nc knows.
func (e env) disconnect(nc *nats.Conn) {
	e.Helper()
	e.server.Stop()
	natstest.Eventually(e, func() bool { return nc.Status() == nats.RECONNECTING }, "the client to notice")
}

// reconnect starts the server again and waits until nc is connected and what it
// had buffered is with the server.
func (e env) reconnect(nc *nats.Conn) {
	e.Helper()
	if err := e.server.Start(); err != nil {
		e.Fatal(err)
	}
	natstest.Eventually(e, nc.IsConnected, "the client to reconnect")
	if err := nc.FlushTimeout(natstest.Limit); err != nil {
		e.Fatal(err)
	}
}

// receive waits for a value and fails the test if none comes.
func receive[T any](e env, c <-chan T, what string) T {
	e.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(natstest.Limit):
		e.Fatalf("no %s", what)
	case <-e.Context().Done():
		e.Fatal(context.Cause(e.Context()))
	}
	panic("unreachable")
}

// settled waits until no delivery of cons is left unsettled: Ack, Nak and Term
// don't wait for the server.
func (e env) settled(cons jetstream.Consumer) {
	e.Helper()
	natstest.Eventually(e, func() bool { return e.info(cons).NumAckPending == 0 }, "the settlements to arrive")
}
