package chaos_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
	natsjs "github.com/foomo/goflux/transport/jetstream"
)

// replica is a subscriber on a connection of its own.
type replica struct {
	*subscribing
	nc *nats.Conn
	tr *natsjs.Transport
}

// One of two replicas stops under load, again and again, and its connection is
// closed at once. The ack wait is so long that nothing comes again in the time
// of the test but what was handed back.
func TestSoakShutdown(t *testing.T) {
	parallel(t)
	s := begin(t)
	rounds, load := size(15, 200), 300
	server := natstest.Run(t)
	js := natstest.JetStream(t, natstest.Connect(t, server))
	stream := natstest.Stream(t, js, jetstream.StreamConfig{Name: story, Subjects: []string{"story.>"}})
	consumer := natstest.Consumer(t, stream, jetstream.ConsumerConfig{Durable: worker, AckWait: time.Hour})
	ledger := chaos.NewChecker(chaos.StoredOnce | chaos.HandledAtLeastOnce)
	tr := s.transportOver(js)

	var (
		handled, back counter
		late          longest // from the end of a replica until the other one has what it handed back
		mu            sync.Mutex
		ended         time.Time
	)
	handle := func(_ context.Context, msg goflux.Message[string]) error {
		id := idOf(msg)
		mu.Lock()
		if msg.Attempt() > 1 {
			back.Add(1)
			late.note(time.Since(ended))
		}
		mu.Unlock()
		time.Sleep(time.Duration(1+hash(s.seed, id)%4) * time.Millisecond)
		ledger.Handled(id, uint64(msg.Attempt()))
		handled.Add(1)
		return nil
	}
	start := func() *replica {
		nc := natstest.Connect(t, server)
		tr := s.transportOver(natstest.JetStream(t, nc), natsjs.WithStream(story))
		return &replica{s.subscribe(tr, "story.>", handle, goflux.WithQueueGroup(worker), goflux.WithConcurrency(4)), nc, tr}
	}
	replicas := []*replica{start(), start()}
	for round := range rounds {
		s.fill(tr, ledger, fmt.Sprintf("story.%d.", round), load, 4)
		at := round*load + 1 + s.intn(load/2)
		s.await(handled.reaches(at), "message %d", at)

		r := replicas[round%2]
		mu.Lock()
		ended = time.Now()
		mu.Unlock()
		if err := r.stop(); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		r.nc.Close()
		s.await(handled.reaches((round+1)*load), "round %d to be handled by the other replica", round)
		replicas[round%2] = start()
	}
	s.settled(consumer)
	for _, r := range replicas {
		s.must(r.stop())
	}

	s.must(ledger.ReadStream(s.ctx, js, story))
	r := s.verify(ledger, fmt.Sprintf("%d times", rounds), fmt.Sprintf("%d handed back", back.Load()), "the last one after "+late.String())
	if r.Repeated > 0 {
		t.Errorf("%d were handled twice", r.Repeated)
	}
	if back.Load() == 0 {
		t.Error("nothing was ever handed back: the replicas had no load")
	}
	// A second is what is promised. The short form runs beside others, which may
	// have all processors for longer than that.
	if limit := size(5*time.Second, time.Second); late.Load() > int64(limit) {
		t.Errorf("what was handed back came after %v, the limit is %v", &late, limit)
	}
}
