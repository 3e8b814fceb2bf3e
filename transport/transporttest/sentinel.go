package transporttest

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// sentinel is a message behind others. Nothing can be waited for that must not
// happen, but what comes behind it can: where leases exist, the sentinel comes
// back once, later than everything whose lease runs out. When it has passed,
// whatever the broker was to deliver again has been delivered again.
type sentinel struct {
	b      *broker
	manual bool // the subscription settles by hand
	seen   atomic.Int32
	once   sync.Once
	passed chan struct{}
}

const sentinelText = "sentinel"

func (b *broker) sentinel() *sentinel { return &sentinel{b: b, passed: make(chan struct{})} }

// guard returns a handler that keeps sentinels from h.
func (s *sentinel) guard(h textHandler) textHandler {
	return func(ctx context.Context, msg goflux.Message[string]) error {
		if msg.Payload == sentinelText {
			return s.handle(msg)
		}

		return h(ctx, msg)
	}
}

func (s *sentinel) handle(msg goflux.Message[string]) error {
	comesBack := s.b.has(transport.Leases, transport.Redelivery, transport.DelayedNak)
	later := s.b.cfg.AckWait + s.b.cfg.AckWait/4

	switch first := s.seen.Add(1) == 1; {
	case first && comesBack && s.manual:
		return msg.NakWithDelay(later)
	case first && comesBack:
		return goflux.RetryAfter(later, nil)
	case s.manual:
		defer s.pass()

		return msg.Ack()
	default:
		s.pass()

		return nil
	}
}

func (s *sentinel) pass() { s.once.Do(func() { close(s.passed) }) }

// behind sends the sentinel and returns when it has passed.
func (s *sentinel) behind(t transport.Publisher, subject string) {
	s.b.e.Helper()
	s.b.e.publish(t, subject, sentinelText)
	s.await()
}

// await returns when a sentinel that was sent has passed.
func (s *sentinel) await() {
	e := s.b.e
	e.Helper()

	// Its delay is no lack of progress.
	select {
	case <-s.passed:
	case <-time.After(e.harness.patience() + 2*min(s.b.cfg.AckWait, leased)):
		e.Fatalf("waited in vain for the sentinel: what is sent behind the others is not handled")
	}
}
