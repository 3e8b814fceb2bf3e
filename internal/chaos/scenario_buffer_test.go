package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
	corenats "github.com/foomo/goflux/transport/nats"
)

// Publishers of core NATS go on while their server is stopped: what they publish
// once the loss of the connection was noticed is buffered, and arrives.
func TestSoakBuffer(t *testing.T) {
	parallel(t)
	for name, c := range map[string]struct {
		opts []nats.Option
		full bool // the buffer gets full
	}{
		"default": {},
		"64 KB":   {[]nats.Option{nats.ReconnectBufSize(64 << 10)}, true},
	} {
		t.Run(name, func(t *testing.T) { buffer(t, c.full, c.opts) })
	}
}

const (
	publishersPerConn = 10
	conns             = 5
)

func buffer(t *testing.T, full bool, opts []nats.Option) {
	parallel(t)
	s := begin(t)
	server := natstest.RunTCP(t)
	ledger := chaos.NewChecker(chaos.HandledAtLeastOnce | chaos.HandledInOrder)
	padding := strings.Repeat(".", 100)

	var (
		noticed, buffered, refused counter
		received, first            sync.Map // IDs; first are the first that were refused
		stop                       atomic.Bool
		wg                         sync.WaitGroup
		all                        []*corenats.Transport
	)
	for i := range conns {
		lost := make(chan struct{})
		var once sync.Once
		nc := natstest.Connect(t, server, append(opts, nats.DisconnectErrHandler(func(*nats.Conn, error) {
			once.Do(func() {
				noticed.Add(1)
				close(lost)
			})
		}))...)
		tr, err := corenats.New(nc)
		s.must(err)
		s.Cleanup(func() {
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
		})
		all = append(all, tr)
		// On the same connection: nats.go subscribes again before it sends the
		// buffer, so that nothing can be missed for want of a subscription.
		subject := fmt.Sprintf("core.%d.", i)
		s.subscribe(tr, subject+">", func(_ context.Context, msg goflux.Message[string]) error {
			id := idOf(msg)
			ledger.Handled(id, 1)
			received.Store(id, true)
			return nil
		})
		for n := range publishersPerConn {
			pub, err := goflux.NewPublisher(tr, raw.String())
			s.must(err)
			wg.Go(func() {
				key := fmt.Sprintf("%s%d", subject, n)
				for !stop.Load() {
					id := ledger.Send(key)
					after := isClosed(lost)
					err := pub.Publish(goflux.WithMessageID(s.ctx, id.String()), key, padding)
					switch {
					case err == nil && after:
						ledger.Published(id, chaos.Accepted, 0)
						buffered.Add(1)
					case err == nil, errors.Is(err, goflux.ErrDisconnected):
						ledger.Published(id, chaos.Unknown, 0) // it may have been on its way
					case full && errors.Is(err, goflux.ErrBufferFull):
						ledger.Published(id, chaos.Failed, 0)
						first.Store(id, true)
						refused.Add(1)
						return // what was accepted is the prefix
					default:
						t.Errorf("%v: %v", id, err)
						return
					}
					// All of it has to fit into the buffers, each of 8 MB by default.
					time.Sleep(time.Duration(1+hash(s.seed, id)%3) * time.Millisecond)
				}
			})
		}
	}

	s.await(func() bool { _, some := received.Load(chaos.ID{Key: "core.0.0", Seq: 10}); return some }, "some to be received")
	server.Stop()
	s.await(noticed.reaches(conns), "the connections to be lost")
	if full {
		s.await(refused.reaches(conns*publishersPerConn), "all publishers to be refused")
	} else {
		stopped := time.NewTimer(size(0, 5*time.Second))
		<-stopped.C
		s.await(buffered.reaches(5000), "messages to be buffered")
	}
	s.must(server.Start())
	for _, tr := range all {
		s.must(tr.Flush(s.ctx))
	}
	stop.Store(true)
	wg.Wait()
	for _, tr := range all {
		s.must(tr.Flush(s.ctx))
	}

	// What was flushed is with the subscribers, or on its way to them.
	due := ledger.Verify
	s.await(func() bool { r := due(); return r.Violations[chaos.NotHandled] == 0 }, "all that was accepted to be received")
	r := s.verify(ledger, fmt.Sprintf("%d publishers", conns*publishersPerConn), fmt.Sprintf("%d buffered", buffered.Load()),
		fmt.Sprintf("%d refused", refused.Load()))
	if r.Repeated > 0 {
		t.Errorf("%d were received twice", r.Repeated)
	}
	first.Range(func(id, _ any) bool {
		if _, arrived := received.Load(id); arrived {
			t.Errorf("%v was refused, and arrived", id)
		}
		return true
	})
	if buffered.Load() == 0 {
		t.Error("nothing was buffered")
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
