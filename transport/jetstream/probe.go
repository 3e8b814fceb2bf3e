package jetstream

import (
	"context"
	"errors"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// How long to wait before the consumer is asked for again when something is
// wrong; an answer is waited for twice as long. Right after a change of leader
// nobody answers. When there is no connection for longer, each question stays in
// the client's reconnect buffer, some hundred bytes.
const (
	firstWait   = 250 * time.Millisecond
	longestWait = 2 * time.Second
)

// probe looks for a consumer when something is wrong with its messages.
type probe struct {
	delivered int64 // when it was last begun
	failures  int   // how often it was begun since something was delivered
}

// begin starts looking. The channel gets nil when the consumer is there, so
// that it can be asked again, and an error when the subscription has to end.
func (p *probe) begin(s *subscription, trouble error) <-chan error {
	if delivered := s.delivered.Load(); delivered != p.delivered {
		*p = probe{delivered: delivered}
	}

	var wait time.Duration

	switch {
	case p.failures > 0:
		wait = min(firstWait<<min(p.failures-1, 10), longestWait)
	case errors.Is(trouble, natsjs.ErrServerShutdown):
		// A server on its way out still answers, and to a request for messages,
		// too: what it sends then it forgets to have sent, or never writes, and
		// it stays unsettled until its ack wait is over (nats-server v2.15.2).
		wait = firstWait
	}

	p.failures++

	found := make(chan error, 1)

	go func() { found <- s.look(trouble, wait) }()

	return found
}

// look asks for the consumer until it knows whether there is one.
func (s *subscription) look(trouble error, wait time.Duration) error {
	deleted := errors.Is(trouble, natsjs.ErrConsumerDeleted)

	if trouble = mapError(trouble); errors.Is(trouble, transport.ErrClosed) {
		return trouble
	}

	for missing := 0; ; wait = min(max(2*wait, firstWait), longestWait) {
		timer := time.NewTimer(wait)

		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()

			return nil
		}

		ctx, cancel := context.WithTimeout(s.ctx, 2*max(wait, firstWait))
		info, err := s.consumer.Info(ctx)
		cancel()

		if err == nil {
			s.learn(info)
		}

		switch err = mapError(err); {
		case deleted && errors.Is(err, transport.ErrStreamNotFound):
			return err
		case deleted:
			return trouble
		case err == nil || errors.Is(err, transport.ErrClosed):
			return err
		case gone(err):
			// A server that has just started may not know all of its
			// consumers yet.
			missing++
			if missing > 1 {
				return err
			}
		}
	}
}
