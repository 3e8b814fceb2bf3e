package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goencode/json/v1"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
)

// limit ends a test that is stuck; on the clock of a bubble it costs nothing.
const limit = 3 * natstest.Limit

// errDied stands for the end of a process: nothing that comes after it happens.
var errDied = errors.New("the process died")

// death is where the process dies that has a message in hand.
type death int

const (
	nowhere      death = iota
	beforeEffect       // nothing has happened, and the reservation stays
	beforeRecord       // the effect has happened, and the reservation stays
	beforeAck          // the message is recorded
)

// fate is decided by the message, so that a run can be repeated. Each message
// dies at its first delivery at the most.
func fate(id string) death {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))

	return death(h.Sum32() % 4)
}

// graveyard runs messages through Idempotent and lets processes die.
type graveyard struct {
	middleware.Store

	mu       sync.Mutex
	n        int
	dying    map[string]death // of the delivery in hand
	recorded map[string]bool
	handled  map[string]int
	acked    map[string]bool
	again    []string // handled after it was recorded
	all      chan struct{}
}

func newGraveyard(store middleware.Store, n int) *graveyard {
	return &graveyard{
		Store: store, n: n, all: make(chan struct{}),
		dying: map[string]death{}, recorded: map[string]bool{}, handled: map[string]int{}, acked: map[string]bool{},
	}
}

// Record does nothing for a process that has died.
func (g *graveyard) Record(ctx context.Context, key middleware.Key, token uint64) error {
	g.mu.Lock()
	dead := g.dying[key.ID] == beforeRecord
	g.mu.Unlock()

	if dead {
		return errDied
	}

	err := g.Store.Record(ctx, key, token)
	if err == nil {
		g.mu.Lock()
		g.recorded[key.ID] = true
		g.mu.Unlock()
	}

	return err
}

// Release does nothing for a process that has died.
func (g *graveyard) Release(ctx context.Context, key middleware.Key, token uint64) error {
	g.mu.Lock()
	dead := g.dying[key.ID] == beforeEffect
	g.mu.Unlock()

	if dead {
		return errDied
	}

	return g.Store.Release(ctx, key, token)
}

// handle is the effect.
func (g *graveyard) handle(_ context.Context, msg goflux.Message[int]) error {
	g.mu.Lock()
	defer g.mu.Unlock()

	id := msg.ID()
	if g.dying[id] == beforeEffect {
		return errDied
	}

	g.handled[id]++

	if g.recorded[id] {
		g.again = append(g.again, id)
	}

	return nil
}

// process is what one replica runs. Its error is that of a broker which finds
// out that the replica has died.
func (g *graveyard) process(lease time.Duration) goflux.Handler[int] {
	quiet := slog.New(slog.DiscardHandler)
	h := middleware.Idempotent[int](g, "billing", middleware.WithLease(lease), middleware.WithLogger(quiet))(g.handle)

	return func(ctx context.Context, msg goflux.Message[int]) error {
		id, dies := msg.ID(), nowhere
		if msg.Attempt() == 1 {
			dies = fate(id)
		}

		g.mu.Lock()
		g.dying[id] = dies
		g.mu.Unlock()

		err := h(ctx, msg)

		switch {
		case dies != nowhere:
			return errDied
		case err != nil:
			return err
		}

		g.mu.Lock()
		defer g.mu.Unlock()

		if g.acked[id] = true; len(g.acked) == g.n {
			close(g.all)
		}

		return nil
	}
}

// verify checks what is promised: once recorded, never again; and handled once,
// but for those whose process died between the effect and its record.
func (g *graveyard) verify(t *testing.T) {
	t.Helper()

	g.mu.Lock()
	defer g.mu.Unlock()

	if len(g.again) > 0 {
		t.Errorf("handled after they were recorded: %v", g.again)
	}

	if len(g.recorded) != g.n || len(g.acked) != g.n {
		t.Errorf("%d recorded and %d acked of %d", len(g.recorded), len(g.acked), g.n)
	}

	deaths := map[death]int{}

	for id, n := range g.handled {
		deaths[fate(id)]++

		want := 1
		if fate(id) == beforeRecord {
			want = 2
		}

		if n != want {
			t.Errorf("%s, with the fate %d, was handled %d times, want %d", id, fate(id), n, want)
		}
	}

	for _, d := range []death{nowhere, beforeEffect, beforeRecord, beforeAck} {
		if deaths[d] == 0 {
			t.Errorf("no message had the fate %d", d)
		}
	}
}

// run sends the messages to two replicas, and returns when all are acked.
func (g *graveyard) run(t *testing.T, tr transport.Transport, lease time.Duration) {
	t.Helper()

	opts := []goflux.SubscriberOption{goflux.WithConcurrency(8), goflux.WithLogger(slog.New(slog.DiscardHandler))}
	stop := []func(){serve(t, tr, g.process(lease), opts...), serve(t, tr, g.process(lease), opts...)}

	pub, err := goflux.NewPublisher(tr, json.NewCodec[int]())
	must(t, err)

	for i := range g.n {
		must(t, pub.Publish(goflux.WithMessageID(t.Context(), fmt.Sprintf("id-%d", i)), "orders", i))
	}

	select {
	case <-g.all:
	case <-time.After(limit):
		t.Error("not all messages were acked in time")
	}

	for _, stop := range stop {
		stop()
	}

	g.verify(t)
}

func TestCrashMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		newGraveyard(middleware.NewMemoryStore(time.Hour, 0), 2000).run(t, open(t), 25*time.Second)
	})
}

func TestCrashJetStream(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}})

	tr, err := jetstream.New(js)
	must(t, err)
	t.Cleanup(func() { must(t, tr.Close()) })

	newGraveyard(bucket(t, js), 400).run(t, tr, 200*time.Millisecond)
}

// The process is there, but its acks do not arrive: the leases run out.
func TestCrashLosesAcks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 500

		var (
			mu      sync.Mutex
			handled = map[string]int{}
		)

		tr := open(t, memory.WithAckWait(30*time.Second))
		once := middleware.Idempotent[int](middleware.NewMemoryStore(time.Hour, 0), "billing")

		stop := serve(t, &watched{Transport: tr, lose: true}, once(func(_ context.Context, msg goflux.Message[int]) error {
			mu.Lock()
			defer mu.Unlock()

			handled[msg.ID()]++

			return nil
		}), goflux.WithConcurrency(8))

		for i := range n {
			publish(t, tr, fmt.Sprintf("id-%d", i), i)
		}

		time.Sleep(time.Hour)
		stop()

		if len(handled) != n {
			t.Errorf("%d of %d were handled", len(handled), n)
		}

		for id, times := range handled {
			if times != 1 {
				t.Errorf("%s was handled %d times", id, times)
			}
		}
	})
}
