package chaos_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
	natsjs "github.com/foomo/goflux/transport/jetstream"
)

// Publishers and subscribers at once, over the same cluster and under the same
// faults: what was accepted is stored once, and what is stored is handled.
func TestSoakFlow(t *testing.T) {
	parallel(t)
	s := begin(t)
	publishers, each := size(8, 32), size(200, 2000)
	p := s.publishing(chaos.StoredOnce|chaos.StoredInOrder|chaos.HandledAtLeastOnce, publishers*each)
	p.faults = append(p.faults, times(size(2, 15), p.stepDownConsumer(story, worker))...)

	stream, err := natstest.JetStream(t, p.conns[0]).Stream(s.ctx, story)
	s.must(err)
	consumer := natstest.Consumer(t, stream, jetstream.ConsumerConfig{Durable: worker, AckWait: 2 * time.Second, Replicas: 3})

	subs := make([]*subscribing, 2)
	for i := range subs {
		tr := s.transportOver(natstest.JetStream(t, p.connect()), natsjs.WithStream(story))
		subs[i] = s.subscribe(tr, "story.>", func(_ context.Context, msg goflux.Message[string]) error {
			id := idOf(msg)
			if s.one(50, id, msg.Attempt()) {
				return fmt.Errorf("attempt %d", msg.Attempt())
			}
			p.checker.Handled(id, uint64(msg.Attempt()))
			return nil
		}, goflux.WithQueueGroup(worker), goflux.WithConcurrency(8))
	}

	quiet := p.settle
	p.settle = func() {
		quiet()
		s.settled(consumer)
		for _, sub := range subs {
			if err := sub.stop(); err != nil {
				t.Error(err)
			}
		}
	}
	p.run(publishers, func(n int) {
		if pub := p.publisher(p.conns[n%len(p.conns)]); pub != nil {
			p.publishEach(pub, fmt.Sprint("publisher-", n), each)
		}
	})
}
