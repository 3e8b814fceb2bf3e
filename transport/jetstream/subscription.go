package jetstream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// subscription turns credit into requests for messages: a batch asks for what
// was granted, and the next one, when it is complete, for what was granted
// meanwhile. There is one batch at a time, since a server shares messages
// among requests in turn, which would mix up their order.
//
// One goroutine, run, owns the batches: see [pump]. Everybody else leaves word
// under state and wakes it.
type subscription struct {
	consumer natsjs.Consumer
	cfg      transport.SubscribeConfig
	subjects []string // of the stream, if they are known and the consumer has no filter
	settler  *settler

	known atomic.Pointer[known]
	asked atomic.Int64 // when the consumer was asked for, in nanoseconds

	release  func(context.Context) error // deletes the consumer; nil if it stays
	released atomic.Bool
	forget   func(*subscription) // tells the transport; may be nil

	// These count from the beginning. What was granted, and neither delivered
	// nor revoked, is the credit. idle is true while run starts a batch as
	// soon as there is some.
	granted, delivered, revoked atomic.Int64
	idle                        atomic.Bool

	// sink serialises the deliveries, which come from one batch at a time but
	// for stragglers of the last one.
	sink  sync.Mutex
	muted bool // nothing may be delivered any more

	wake  chan struct{} // holds a token when state changed
	state sync.Mutex
	word  word

	ctx     context.Context //nolint:containedctx // ends with the subscription
	cancel  context.CancelFunc
	stopped chan struct{} // closed when run has returned
	done    chan struct{} // closed when the subscription has ended by itself
	err     error         // why; set before done is closed
}

// word is what others tell run.
type word struct {
	closing bool    // Close was called
	ending  error   // the subscription is to end with this
	pauses  []pause // in order
}

// pause takes back the credit that was granted before it, and says when.
type pause struct {
	granted int64
	done    chan struct{}
}

// newSubscription prepares a subscription, which begins with run. subjects are
// those of the stream, if they are known and the consumer has no filter.
func newSubscription(
	consumer natsjs.Consumer, info *natsjs.ConsumerInfo, cfg transport.SubscribeConfig, subjects []string,
) (*subscription, error) {
	if cfg.Sink == nil {
		return nil, invalid("the sink is nil")
	}

	k, err := describe(info, cfg.Subject, subjects)
	if err != nil {
		return nil, err
	}

	s := &subscription{
		consumer: consumer,
		cfg:      cfg,
		subjects: subjects,
		wake:     make(chan struct{}, 1),
		stopped:  make(chan struct{}),
		done:     make(chan struct{}),
	}

	s.known.Store(k)

	s.settler = &settler{stream: info.Stream, consumer: info.Name, known: &s.known}

	s.ctx, s.cancel = context.WithCancel(context.Background())

	return s, nil
}

// Info implements [transport.Subscription].
func (s *subscription) Info() transport.Info { return s.known.Load().info }

// Done implements [transport.Subscription].
func (s *subscription) Done() <-chan struct{} { return s.done }

// Err implements [transport.Subscription].
func (s *subscription) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Request implements [transport.Subscription].
func (s *subscription) Request(n int) {
	if n < 1 {
		return
	}

	s.granted.Add(int64(min(n, math.MaxInt32)))

	// run looks at the credit after it has set idle, so that one of the two
	// sees the other. While a batch is active there is no need to wake it.
	if s.idle.Load() {
		s.poke()
	}
}

func (s *subscription) credit() int64 { return s.creditOf(s.granted.Load()) }

// creditOf is what is left of what had been granted at some time.
func (s *subscription) creditOf(granted int64) int64 {
	return granted - s.revoked.Load() - s.delivered.Load()
}

func (s *subscription) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// tell leaves word for run.
func (s *subscription) tell(say func(*word)) {
	s.state.Lock()
	say(&s.word)
	s.state.Unlock()
	s.poke()
}

// end lets the subscription end by itself, with err.
func (s *subscription) end(err error) {
	s.tell(func(w *word) {
		if w.ending == nil {
			w.ending = err
		}
	})
}

// Pause implements [transport.Subscription]. What the server was sending
// arrives before it returns; what it had not sent yet goes to whoever asks
// next. Of the latter the server may have prepared a few: it requeues them at
// once, perhaps behind others, and counts that as their first attempt
// (nats-server v2.15.2, didNotDeliver), so that a consumer with a MaxDeliver of
// one gives them up. When ctx ends first the pause goes on, and credit that is
// granted afterwards stays.
func (s *subscription) Pause(ctx context.Context) error {
	p := pause{granted: s.granted.Load(), done: make(chan struct{})}
	s.tell(func(w *word) { w.pauses = append(w.pauses, p) })

	select {
	case <-p.done:
		return nil
	case <-s.stopped:
		return nil
	case <-ctx.Done():
		return s.failure(opPause, ctx.Err())
	}
}

// Flush implements [transport.Subscription]. It asks the server for the
// consumer, over the connection on which the settlements went before.
func (s *subscription) Flush(ctx context.Context) error {
	info, err := s.consumer.Info(ctx)
	if err != nil {
		return s.failure(opFlush, err)
	}

	s.learn(info)

	select {
	case <-s.stopped:
		return s.failure(opFlush, s.dispose(ctx))
	default:
		return nil
	}
}

// Close implements [transport.Subscription]. A consumer that was made for the
// subscription is deleted when everything it delivered is settled: here, or in
// a Flush afterwards. Else its inactive threshold removes it.
func (s *subscription) Close(ctx context.Context) error {
	s.tell(func(w *word) { w.closing = true })

	select {
	case <-s.stopped:
		return s.failure(opClose, s.dispose(ctx))
	case <-ctx.Done():
		s.mute()

		return s.failure(opClose, ctx.Err())
	}
}

// mute keeps everything from the sink, from its return on.
func (s *subscription) mute() {
	s.sink.Lock()
	defer s.sink.Unlock()

	s.muted = true
}

// dispose deletes the consumer that was made for the subscription, once, if
// nothing that it delivered is still to be settled.
func (s *subscription) dispose(ctx context.Context) error {
	if s.release == nil || s.settler.unsettled.Load() > 0 || s.released.Swap(true) {
		return nil
	}

	// It is as good as deleted where it is gone, or the connection is closed.
	if err := mapError(s.release(ctx)); err != nil && !gone(err) && !errors.Is(err, transport.ErrClosed) {
		return err
	}

	return nil
}

// failure gives an error its circumstances. Nil stays nil.
func (s *subscription) failure(op string, err error) error {
	if err == nil {
		return nil
	}

	info := s.Info()

	return &transport.Error{Op: op, Subject: info.Filter, Stream: info.Stream, Consumer: info.Consumer, Err: mapError(err)}
}

func (s *subscription) notify(err error) {
	if s.cfg.Notify != nil {
		s.cfg.Notify(s.failure(opSubscribe, err))
	}
}

// deliver hands a message to the sink.
func (s *subscription) deliver(msg natsjs.Msg) {
	s.sink.Lock()
	defer s.sink.Unlock()

	k := s.known.Load()
	if k.acks {
		s.suspect(msg)
	}

	switch {
	case s.muted:
		s.refuse(msg)
	case k.acks && s.credit() < 1:
		// Asked for twice, around a reconnect. Without acks nobody else
		// would get it.
		s.refuse(msg)
	case k.match != "" && !transport.Covers(k.match, msg.Subject()):
		s.refuse(msg)
		s.end(fmt.Errorf("%w: the consumer has no filter and delivered a message on %q, which %q does not cover: "+
			"give the consumer a filter, or subscribe to all of its stream", transport.ErrSubjectMismatch, msg.Subject(), k.match))
	default:
		s.delivered.Add(1)

		if s.settler.unsettled != nil {
			s.settler.unsettled.Add(1)
		}

		s.cfg.Sink(transport.Delivery{
			Subject: msg.Subject(),
			Header:  transport.Header(msg.Headers()),
			Data:    msg.Data(),
			Token:   msg,
			Settler: s.settler,
		})
	}
}

// refuse gives a message back. When that fails its ack wait does it.
func (s *subscription) refuse(msg natsjs.Msg) {
	if s.known.Load().acks {
		_ = msg.Nak()
	}
}
