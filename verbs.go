package goflux

import (
	"context"

	"github.com/foomo/goflux/transport"
)

// ManualAck reports whether settling the message is up to who has it: it came
// by a subscription with [WithManualAck], or was fetched. Otherwise the outcome
// of the handler settles it, unless the handler has called a verb before. It is
// false for a message that was not received but composed, as in a test.
//
// It is for middlewares: one that ends a message without its handler returns nil
// where this is false, and calls Ack where it is true.
func (m Message[T]) ManualAck() bool { return m.settler != nil && !m.automatic }

// BeforeSettle returns the message with f added to its verbs: f is called with
// the action of a verb before that is carried out, in the goroutine that called
// the verb, at any time until the last copy of the message is gone. Nothing calls
// f for a message that is settled by the outcome of its handler, nor for the
// copies of the message that were made before. InProgress is a verb as well
// ([transport.Extend]).
//
// It is for middlewares that have to know what a handler made of a message, and
// hand the returned one on to it. After the first verb that settles, others are
// refused with [ErrSettled]; f is called for these too.
func (m Message[T]) BeforeSettle(f func(action transport.Action)) Message[T] {
	if m.settler != nil {
		m.settler = toldSettler{m.settler, f}
	}

	return m
}

// toldSettler tells somebody before it settles.
type toldSettler struct {
	transport.Settler

	tell func(transport.Action)
}

func (s toldSettler) Settle(ctx context.Context, token any, v transport.Verdict) error {
	s.tell(v.Action)

	return s.Settler.Settle(ctx, token, v)
}
