package memory

import (
	"context"
	"fmt"

	"github.com/foomo/goflux/transport"
)

// Settle implements [transport.Settler]. It carries out the verdict before it
// returns, so ctx plays no part and AckSync is Ack.
//
// It fails with [transport.ErrSettled], with [transport.ErrClosed] when the
// transport is closed, and with [transport.ErrInvalidOption] for a token or an
// action that it does not know.
func (s *subscription) Settle(_ context.Context, token any, v transport.Verdict) error {
	if err := s.settle(token, v); err != nil {
		return s.failed("settle", err)
	}

	return nil
}

func (s *subscription) settle(token any, v transport.Verdict) error {
	d, ok := token.(*delivery)
	if !ok || d == nil {
		return fmt.Errorf("%w: the token %T is not of this transport", transport.ErrInvalidOption, token)
	}

	t, e := s.transport, d.entry

	t.mu.Lock()
	defer t.mu.Unlock()

	switch {
	case d.settled:
		return transport.ErrSettled
	case t.closed:
		return transport.ErrClosed
	}

	switch v.Action {
	case transport.Extend:
		// Once it has run out, the message is on its way to somebody else.
		if e.in == &t.clock.leases {
			t.lease(e)
		}

		return nil
	case transport.Ack, transport.AckSync, transport.Term:
		d.settled = true
		t.finish(e)
	case transport.Nak:
		d.settled = true
		t.retry(e, v.Delay)
		t.deliver(e.queue)
	default:
		return fmt.Errorf("%w: there is no action %d", transport.ErrInvalidOption, v.Action)
	}

	return nil
}

// Metadata implements [transport.Settler]. Pending is how many messages that
// were never delivered waited in the queue when this one was delivered.
func (s *subscription) Metadata(token any) transport.Metadata {
	d, ok := token.(*delivery)
	if !ok || d == nil {
		return transport.Metadata{}
	}

	// All of these were set before the delivery and do not change.
	return transport.Metadata{
		Stream:    Stream,
		Consumer:  d.entry.queue.group,
		Sequence:  d.entry.msg.sequence,
		Attempt:   d.attempt,
		Pending:   d.waiting,
		Timestamp: d.entry.msg.stored,
	}
}
