package chaos_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
	natsjs "github.com/foomo/goflux/transport/jetstream"
)

// With an ack wait of a second nothing is delivered twice: not what waits for a
// handler, and not what a handler takes long for.
func TestSoakLease(t *testing.T) {
	parallel(t)
	const pace, quick = 150 * time.Millisecond, 100
	for name, c := range map[string]struct {
		total, concurrency int
		takes              time.Duration
		opts               []goflux.SubscriberOption
	}{
		"one at a time": {total: size(20, 100), concurrency: 1, takes: pace},
		"many at once":  {total: size(200, 2000), concurrency: 16, takes: pace},
		"a slow one":    {total: 2, concurrency: 2, takes: size(2500*time.Millisecond, 5*time.Second)},
		// All but one wait for those before them, in the client.
		"one key": {total: size(20, 100), concurrency: 4, takes: pace, opts: []goflux.SubscriberOption{
			goflux.WithOrderingKey(func(goflux.Message[string]) string { return "" }),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			parallel(t)
			s := begin(t)
			js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
			stream := natstest.Stream(t, js, jetstream.StreamConfig{Name: story, Subjects: []string{"story.>", "quick.>"}})
			consumer := natstest.Consumer(t, stream, jetstream.ConsumerConfig{Durable: worker, AckWait: time.Second})
			ledger := chaos.NewChecker(chaos.StoredOnce | chaos.HandledAtLeastOnce)
			tr := s.transportOver(js, natsjs.WithStream(story))

			var handled counter
			sub := s.subscribe(tr, ">", func(ctx context.Context, msg goflux.Message[string]) error {
				takes := c.takes
				if strings.HasPrefix(msg.Subject, "quick.") {
					takes = 0
				}
				select {
				case <-time.After(takes):
				case <-ctx.Done():
					t.Errorf("%s: %v", msg.ID(), context.Cause(ctx))
				}
				ledger.Handled(idOf(msg), uint64(msg.Attempt()))
				handled.Add(1)
				return nil
			}, append(c.opts, goflux.WithQueueGroup(worker), goflux.WithConcurrency(c.concurrency))...)
			// At first some that take no time: the pace of the handlers changes, and
			// what was made for these is used again.
			s.fill(tr, ledger, "quick.", quick, 4)
			s.await(handled.reaches(quick), "the quick ones to be handled")
			total := quick + c.total
			s.fill(tr, ledger, "story.", c.total, 4)
			s.await(handled.reaches(total), "all to be handled")
			s.settled(consumer)
			s.must(sub.stop())

			s.must(ledger.ReadStream(s.ctx, js, story))
			info, err := consumer.Info(s.ctx)
			s.must(err)
			r := s.verify(ledger, fmt.Sprintf("concurrency %d", c.concurrency), fmt.Sprintf("%d deliveries", info.Delivered.Consumer))
			if info.Delivered.Consumer != uint64(total) || r.Handlings != uint64(total) {
				t.Errorf("%d deliveries and %d handlings of %d messages", info.Delivered.Consumer, r.Handlings, total)
			}
		})
	}
}
