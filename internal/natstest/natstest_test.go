package natstest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/natstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRestartKeepsClientsAndStore(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]func() *natstest.Server{
		"in process": func() *natstest.Server { return natstest.Run(t) },
		"tcp":        func() *natstest.Server { return natstest.RunTCP(t) },
	} {
		s := run()
		url, down, up := s.URL(), make(chan struct{}, 1), make(chan struct{}, 1)
		nc := natstest.Connect(t, s,
			nats.DisconnectErrHandler(func(*nats.Conn, error) { down <- struct{}{} }),
			nats.ReconnectHandler(func(*nats.Conn) { up <- struct{}{} }))
		js := natstest.JetStream(t, nc)
		natstest.Stream(t, js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
		if _, err := js.Publish(t.Context(), "s", nil); err != nil {
			t.Fatal(err)
		}

		s.Stop()
		s.Stop() // Nothing to do.
		<-down
		if s.NATSServer() != nil {
			t.Errorf("%s: a stopped server is there", name)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		<-up
		if s.URL() != url {
			t.Errorf("%s: moved from %s to %s", name, url, s.URL())
		}
		ack, err := js.Publish(t.Context(), "s", nil)
		if err != nil || ack.Sequence != 2 {
			t.Errorf("%s: ack %+v, error %v", name, ack, err)
		}

		before := s.NATSServer()
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		<-down
		<-up
		if s.NATSServer() == before {
			t.Errorf("%s: not restarted", name)
		}
	}
}

func TestPollEndsWithContext(t *testing.T) {
	t.Parallel()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := natstest.Poll(ctx, func() bool { return false }, "%d sheep", 3); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
	if err := natstest.Poll(ctx, func() bool { return true }, "nothing"); err != nil {
		t.Errorf("error %v for a condition that holds", err)
	}
}

func TestFreePortsDiffer(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 100 {
		p := natstest.FreePort(t)
		if seen[p] {
			t.Fatalf("port %d twice", p)
		}
		seen[p] = true
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	c := natstest.RunCluster(t, 3)
	t.Logf("up in %v", time.Since(began))
	if len(c.URLs()) != c.Len() || c.Len() != 3 {
		t.Fatalf("%d nodes, URLs %v", c.Len(), c.URLs())
	}
	nc := natstest.Connect(t, c)
	js := natstest.JetStream(t, nc)
	stream := natstest.Stream(t, js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
	natstest.Consumer(t, stream, jetstream.ConsumerConfig{Durable: "c"})

	sent := 0
	publish := func() {
		t.Helper()
		// One id for all attempts, as a timeout does not tell whether it was stored.
		id := jetstream.WithMsgID(fmt.Sprint(sent))
		for {
			try, cancel := context.WithTimeout(ctx, 400*time.Millisecond)
			_, err := js.Publish(try, "s", nil, id)
			cancel()
			if err == nil {
				sent++
				return
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	publish()

	old := c.StreamLeader("S")
	if err := c.StepDownStream(ctx, "S"); err != nil {
		t.Fatal(err)
	}
	if now := c.StreamLeader("S"); now == old {
		t.Errorf("node %d leads as before", now)
	}
	if err := c.StepDownConsumer(ctx, "S", "c"); err != nil {
		t.Fatal(err)
	}
	publish()

	gone := c.StreamLeader("S")
	c.StopNode(gone)
	publish()
	if err := c.StartNode(ctx, gone); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitStream(ctx, "S", 3); err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil || info.State.Msgs != uint64(sent) {
		t.Errorf("stream %+v, error %v, want %d messages", info, err, sent)
	}
}

func TestClusterErrors(t *testing.T) {
	t.Parallel()
	c := natstest.RunCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for name, err := range map[string]error{
		"step down stream":   c.StepDownStream(ctx, "none"),
		"step down consumer": c.StepDownConsumer(ctx, "none", "none"),
		"wait for stream":    c.WaitStream(ctx, "none", 1),
	} {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
