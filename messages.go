package goflux

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync/atomic"

	"github.com/foomo/goflux/internal/engine"
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
// kept until the next iteration. The loop has one message at a time, whatever
// the concurrency of the subscriber.
//
// The loop ends when ctx does; an error, if there is one, comes last, with an
// empty message. After the end of ctx it still yields what the broker would give
// up instead of delivering it again.
//
// Breaking out of the loop, and panicking in it, ends the subscription as the end
// of ctx does. It settles nothing: the message at hand stays as it is, and if it
// was not settled it is delivered again after the ack wait. What was fetched ahead
// is handed back at once. Where the broker limits the deliveries of a message
// (MaxDeliver) nothing is fetched ahead, since handing back uses one up. Where it
// does not redeliver, what the client had received is lost with the loop, and
// logged.
func Messages[T any](ctx context.Context, sub Subscriber[T], subject string) iter.Seq2[Message[T], error] {
	return func(yield func(Message[T], error) bool) {
		l := &loop[T]{offered: make(chan Message[T]), next: make(chan struct{}), left: make(chan struct{}), drains: make(chan struct{})}
		subscribe := func(ctx context.Context) error { return sub.Subscribe(ctx, subject, l.handle) }

		if s, bound := sub.(*BoundSubscriber[T]); !bound {
			close(l.drains) // as far as is known
		} else {
			if err := s.settlesByHand(subject); err != nil {
				yield(Message[T]{}, err)

				return
			}

			subscribe = func(ctx context.Context) error { return s.serveLoop(ctx, subject, l) }
		}

		l.run(ctx, subscribe, yield)
	}
}

// loop hands messages from a subscription over to a loop.
type loop[T any] struct {
	offered chan Message[T]
	next    chan struct{} // the loop is done with what it was offered
	left    chan struct{} // closed when the loop is left, also by a panic
	drains  chan struct{} // closed when the subscription takes nothing new
	lost    atomic.Uint64
}

func (l *loop[T]) run(ctx context.Context, subscribe func(context.Context) error, yield func(Message[T], error) bool) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)

	go func() { ended <- subscribe(ctx) }()

	over := false

	defer func() {
		cancel()
		close(l.left)

		if !over {
			<-ended //nolint:errcheck // the loop was left: there is nobody to tell
		}
	}()

	for {
		select {
		case msg := <-l.offered:
			if !yield(msg, nil) {
				return
			}

			l.next <- struct{}{}
		case err := <-ended:
			over = true

			if err != nil {
				yield(Message[T]{}, err)
			}

			return
		}
	}
}

// handle offers a message to the loop, and returns when the loop is done with it.
func (l *loop[T]) handle(_ context.Context, msg Message[T]) error {
	select {
	case l.offered <- msg:
		select {
		case <-l.next:
		case <-l.left:
			<-l.drains // else the next one would come
		}
	case <-l.left:
		// Of a subscriber that is not ours, or where nobody redelivers.
		if errors.Is(msg.Nak(), ErrUnsupported) {
			l.lost.Add(1)
		}
	}

	return nil
}

// serveLoop is Subscribe for a loop.
func (s *BoundSubscriber[T]) serveLoop(ctx context.Context, subject string, l *loop[T]) error {
	err := s.serve(ctx, subject, looping[T]{&processor[T]{codec: s.codec, handler: l.handle}, l})

	if n := l.lost.Load(); n > 0 {
		s.cfg.log().LogAttrs(ctx, slog.LevelWarn, "goflux: messages were lost: a loop was left, and this transport does not redeliver",
			slog.String("subject", subject), slog.Uint64("count", n))
	}

	return err
}

// looping is the processor of a loop.
type looping[T any] struct {
	*processor[T]

	loop *loop[T]
}

func (l looping[T]) tune(cfg *engine.Config) {
	cfg.Concurrency, cfg.Sparing = 1, true
	cfg.OnDrain = func() { close(l.loop.drains) }
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
