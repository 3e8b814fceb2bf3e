package goflux

import (
	"context"
	"fmt"
	"iter"
)

// Messages serves a subject as a loop instead of a handler:
//
//	for msg, err := range goflux.Messages(ctx, sub, "orders.created") {
//		if err != nil {
//			return err
//		}
//		// ... handle msg.Payload ...
//		if err := msg.Ack(); err != nil { ... }
//	}
//
// Every message has to be settled in the loop, so the subscriber is built with
// [WithManualAck], except on transports without acks. The lease of a message is
// kept until the next iteration. The loop ends when ctx does; an error, if there
// is one, comes last, with an empty message.
//
// Breaking out of the loop ends the subscription as the end of ctx does. It
// settles nothing: the message at hand stays as it is, and if it was not
// settled it is delivered again after the ack wait. What was fetched ahead is
// handed back at once.
func Messages[T any](ctx context.Context, sub Subscriber[T], subject string) iter.Seq2[Message[T], error] {
	return func(yield func(Message[T], error) bool) {
		if s, bound := sub.(*BoundSubscriber[T]); bound {
			if err := s.settlesByHand(subject); err != nil {
				yield(Message[T]{}, err)

				return
			}
		}

		ctx, cancel := context.WithCancel(ctx)
		defer cancel()

		offered := make(chan Message[T])
		consumed := make(chan struct{})

		left := make(chan struct{}) // closed when the loop is left, also by a panic
		defer close(left)

		ended := make(chan error, 1)

		go func() {
			ended <- sub.Subscribe(ctx, subject, func(_ context.Context, msg Message[T]) error {
				select {
				case offered <- msg:
					select {
					case <-consumed:
					case <-left:
					}
				case <-ctx.Done():
					// Nobody will see it here. Without acks this fails, and
					// the message is lost with the loop.
					_ = msg.Nak()
				}

				return nil
			})
		}()

		for {
			select {
			case msg := <-offered:
				more := yield(msg, nil)
				consumed <- struct{}{}

				if !more {
					cancel()
					<-ended //nolint:errcheck // the loop is over: there is nobody to tell

					return
				}
			case err := <-ended:
				if err != nil {
					yield(Message[T]{}, err)
				}

				return
			}
		}
	}
}

// settlesByHand reports when a loop could not settle: with automatic acks a
// message would be acked whether it was handled or not.
func (s *BoundSubscriber[T]) settlesByHand(subject string) error {
	if s.err != nil || s.cfg.manual || !s.settles() {
		return s.err
	}

	return &Error{Op: "subscribe", Subject: subject, Err: fmt.Errorf(
		"%w: a loop settles by hand: build the subscriber with WithManualAck", ErrInvalidOption)}
}
