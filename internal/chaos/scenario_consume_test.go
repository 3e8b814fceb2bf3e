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

const worker = "worker"

// keyOf is the ordering key of a message.
func keyOf(msg goflux.Message[string]) string { return msg.Payload }

// strict is order within a key, with failures that hold it.
func strict(concurrency int) []goflux.SubscriberOption {
	return []goflux.SubscriberOption{
		goflux.WithConcurrency(concurrency), goflux.WithOrderingKey(keyOf), goflux.WithStrictOrder(),
	}
}

// A subscriber with ordering keys, while the leader of its stream changes and
// its connection stalls. Nothing on its way is lost, and its leases are kept, so
// that order holds within each key.
//
// The leader of the consumer stays: when that of a replicated consumer goes, the
// messages that it was about to send count as delivered, and come when their ack
// wait is over (nats-server v2.15.2).
func TestSoakConsumeInOrder(t *testing.T) {
	parallel(t)
	s := begin(t)
	const ackWait = 20 * time.Second
	s.consuming(chaos.StoredOnce|chaos.HandledAtLeastOnce|chaos.HandledInOrder, ackWait, 1,
		func(c *cluster, _ *counter, _ int) []fault {
			faults := times(size(4, 40), c.stepDownStream(story))
			return append(faults, times(size(2, 6), c.stall(size(200*time.Millisecond, time.Second)))...)
		})
}

// Two subscribers under all faults there are: what was on its way is lost with
// its connection, and comes again, behind others of its key.
func TestSoakConsume(t *testing.T) {
	parallel(t)
	s := begin(t)
	const ackWait = 2 * time.Second
	s.consuming(chaos.StoredOnce|chaos.HandledAtLeastOnce, ackWait, 2,
		func(c *cluster, handled *counter, total int) []fault {
			faults := times(size(2, 15), c.stepDownStream(story))
			faults = append(faults, times(size(2, 15), c.stepDownConsumer(story, worker))...)
			faults = append(faults, times(size(1, 6), c.restart(story, handled, total, total/50))...)
			faults = append(faults, times(size(1, 10), c.cut())...)
			faults = append(faults, times(size(1, 10), c.halfClose())...)
			faults = append(faults, times(size(1, 4), c.drop(ackWait/2))...)
			return append(faults, times(size(1, 4), c.stall(ackWait+ackWait/2))...)
		})
}

// consuming lets subscribers handle what is in a stream, one in twenty times
// without success.
func (s *scenario) consuming(
	promises chaos.Promises, ackWait time.Duration, subscribers int, faults func(c *cluster, handled *counter, total int) []fault,
) {
	s.Helper()
	total, keys := size(4000, 40_000), size(32, 64)
	c := s.cluster()
	direct := natstest.JetStream(s.T, natstest.Connect(s.T, c.Cluster))
	stream := c.stream(direct, story)
	consumer := natstest.Consumer(s.T, stream, jetstream.ConsumerConfig{Durable: worker, AckWait: ackWait, Replicas: 3})
	ledger := chaos.NewChecker(promises)
	s.fill(s.transportOver(direct), ledger, "story.", total, keys)

	var (
		handled counter // messages, not handlings
		mu      sync.Mutex
		known   = map[chaos.ID]bool{}
		failed  = map[chaos.ID]int{}
	)
	handle := func(_ context.Context, msg goflux.Message[string]) error {
		id := idOf(msg)
		time.Sleep(time.Duration(hash(s.seed, id)%2000) * time.Microsecond)
		mu.Lock()
		defer mu.Unlock()
		if s.one(20, id, failed[id]) {
			failed[id]++
			return fmt.Errorf("try %d", failed[id])
		}
		ledger.Handled(id, uint64(msg.Attempt()))
		if !known[id] {
			known[id] = true
			handled.Add(1)
		}
		return nil
	}
	subs := make([]*subscribing, subscribers)
	conns := make([]*nats.Conn, subscribers)
	for i := range subs {
		conns[i] = c.connect()
		tr := s.transportOver(natstest.JetStream(s.T, conns[i]), natsjs.WithStream(story))
		subs[i] = s.subscribe(tr, "story.>", handle, append(strict(8), goflux.WithQueueGroup(worker))...)
	}
	storm := faults(c, &handled, total)
	s.storm(&handled, total, storm)
	s.await(handled.reaches(total), "all to be handled")
	s.settled(consumer)
	for _, sub := range subs {
		if err := sub.stop(); err != nil {
			s.Error(err)
		}
	}

	s.must(c.WaitStream(s.ctx, story, c.Len()))
	s.must(ledger.ReadStream(s.ctx, direct, story))
	s.verify(ledger, fmt.Sprintf("%d subscribers, %d faults", subscribers, len(storm)))
}

// A handler that fails one time in ten.
func TestSoakFailures(t *testing.T) {
	parallel(t)
	s := begin(t)
	total := size(10_000, 100_000)
	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	stream := natstest.Stream(t, js, jetstream.StreamConfig{Name: story, Subjects: []string{"story.>"}})
	consumer := natstest.Consumer(t, stream, jetstream.ConsumerConfig{Durable: worker})
	ledger := chaos.NewChecker(chaos.StoredOnce | chaos.HandledAtLeastOnce)
	tr := s.transportOver(js)
	s.fill(tr, ledger, "story.", total, 100)

	var handled, failed counter
	sub := s.subscribe(tr, "story.>", func(_ context.Context, msg goflux.Message[string]) error {
		id, attempt := idOf(msg), msg.Attempt()
		if s.one(10, id, attempt) {
			failed.Add(1)
			return fmt.Errorf("attempt %d", attempt)
		}
		ledger.Handled(id, uint64(attempt))
		handled.Add(1)
		return nil
	}, goflux.WithQueueGroup(worker), goflux.WithConcurrency(8))
	s.await(handled.reaches(total), "all to be handled")
	s.settled(consumer)
	s.must(sub.stop())

	s.must(ledger.ReadStream(s.ctx, js, story))
	if r := s.verify(ledger, fmt.Sprintf("%d failures", failed.Load())); r.Repeated > 0 {
		t.Errorf("%d were handled again though they had been handled", r.Repeated)
	}
	if n := int(failed.Load()); n < total/20 || n > total/5 {
		t.Errorf("%d failures of %d", n, total)
	}
}

// 64 keys in the strict form: order within each, whatever fails, and never two
// of one key at once.
func TestSoakOrder(t *testing.T) {
	parallel(t)
	s := begin(t)
	const keys = 64
	total := size(4000, 20_000)
	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	stream := natstest.Stream(t, js, jetstream.StreamConfig{Name: story, Subjects: []string{"story.>"}})
	consumer := natstest.Consumer(t, stream, jetstream.ConsumerConfig{Durable: worker})
	ledger := chaos.NewChecker(chaos.StoredOnce | chaos.HandledAtLeastOnce | chaos.HandledInOrder)
	tr := s.transportOver(js)
	s.fill(tr, ledger, "story.", total, keys)

	var (
		handled, failed counter
		mu              sync.Mutex
		running         = map[string]bool{}
		tries           = map[chaos.ID]int{}
	)
	enter := func(id chaos.ID) (try int) {
		mu.Lock()
		defer mu.Unlock()
		if running[id.Key] {
			t.Errorf("%v is handled while another one of its key is", id)
		}
		running[id.Key] = true
		tries[id]++
		return tries[id]
	}
	leave := func(id chaos.ID) {
		mu.Lock()
		defer mu.Unlock()
		running[id.Key] = false
	}
	sub := s.subscribe(tr, "story.>", func(_ context.Context, msg goflux.Message[string]) error {
		id := idOf(msg)
		try := enter(id)
		defer leave(id)
		time.Sleep(time.Duration(hash(s.seed, id)%1000) * time.Microsecond)
		if s.one(10, id, try) {
			failed.Add(1)
			return fmt.Errorf("try %d", try)
		}
		ledger.Handled(id, uint64(msg.Attempt()))
		handled.Add(1)
		return nil
	}, append(strict(32), goflux.WithQueueGroup(worker))...)
	s.await(handled.reaches(total), "all to be handled")
	s.settled(consumer)
	s.must(sub.stop())

	s.must(ledger.ReadStream(s.ctx, js, story))
	if r := s.verify(ledger, fmt.Sprintf("%d failures", failed.Load())); r.Repeated > 0 {
		t.Errorf("%d were handled again though they had been handled", r.Repeated)
	}
	if n := int(failed.Load()); n < total/20 || n > total/5 {
		t.Errorf("%d failures of %d", n, total)
	}
}
