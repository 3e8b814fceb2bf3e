package goflux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// BoundSubscriber is a [Subscriber] bound to a transport. It is safe for
// concurrent use, and serves any number of Subscribe calls at once.
type BoundSubscriber[T any] struct {
	codec Codec[T]
	receiver
}

var _ Subscriber[struct{}] = (*BoundSubscriber[struct{}])(nil)

// NewSubscriber returns a subscriber of T over any transport. It fails with
// [ErrInvalidOption] for a codec that cannot decode, a nil transport or a bad
// option, and with [ErrUnsupported] for an option that the transport cannot
// honour.
func NewSubscriber[T any](t transport.Subscriber, codec Codec[T], opts ...SubscriberOption) (*BoundSubscriber[T], error) {
	s := newSubscriber(t, codec, opts)
	if s.err != nil {
		return nil, s.err
	}

	return s, nil
}

// BindSubscriber is [NewSubscriber] for the constructors of transports that
// cannot return an error: what is wrong is returned by every
// Subscribe. err, if not nil, is why there is no transport.
func BindSubscriber[T any](t transport.Subscriber, err error, codec Codec[T], opts ...Option) *BoundSubscriber[T] {
	fitting, mismatch := optionsOf[SubscriberOption]("subscriber", opts)
	if err = cmp.Or(err, mismatch); err != nil {
		return &BoundSubscriber[T]{receiver: receiver{err: construction("subscriber", err)}}
	}

	return newSubscriber(t, codec, fitting)
}

func newSubscriber[T any](t transport.Subscriber, codec Codec[T], opts []SubscriberOption) *BoundSubscriber[T] {
	s := &BoundSubscriber[T]{codec: codec, receiver: receiver{
		transport: t,
		cfg:       subscriberConfig{concurrency: 1, retry: DefaultRetryPolicy, drainTimeout: defaultDrainTimeout},
	}}
	s.closing, s.close = context.WithCancel(context.Background())

	switch {
	case t == nil:
		s.err = fmt.Errorf("%w: the transport is nil", ErrInvalidOption)
	case codec.Decode == nil:
		s.err = fmt.Errorf("%w: the codec cannot decode", ErrInvalidOption)
	default:
		s.err = s.configure(opts, keyFits[T])
	}

	if s.err != nil {
		s.err = construction("subscriber", s.err)
	}

	return s
}

// Subscribe serves subject, which may have wildcards, until ctx ends. It
// returns when the subscription is gone from the broker, every handler that
// was running has returned, and its settlement has been sent; messages that
// were not started are handed back at once.
//
// Where the subscriber was built on a consumer, that consumer decides what is
// delivered: subject must cover its filter, and may be empty for "whatever it
// delivers".
//
// It returns nil when ctx ended or Close was called and all was finished, an
// [*Error] around a [*DrainError] when handlers had to be abandoned, and else
// why the subscription could not begin or go on: an [*Error] around
// [ErrInvalidSubject], [ErrInvalidOption] (see [WithDeadLetter]),
// [ErrSubjectMismatch], [ErrConsumerNotFound], [ErrStreamNotFound],
// [ErrUnsupported], [ErrClosed] or ctx's own error.
func (s *BoundSubscriber[T]) Subscribe(ctx context.Context, subject string, handler Handler[T]) error {
	if handler == nil {
		return &Error{Op: "subscribe", Subject: subject, Err: fmt.Errorf("%w: the handler is nil", ErrInvalidOption)}
	}

	return s.serve(ctx, subject, &processor[T]{codec: s.codec, handler: handler})
}

// receiver is what all subscribers share, whatever their type.
type receiver struct {
	transport transport.Subscriber
	cfg       subscriberConfig
	err       error // of the construction

	closing context.Context //nolint:containedctx // ends the subscriptions on Close
	close   context.CancelFunc

	dropped, expired atomic.Uint64
	vitals           vitals
}

// Close ends all running calls, be they of Subscribe or of Serve, as if their ctx
// had ended, and makes later ones fail with [ErrClosed]. It does not wait for
// them, so a handler may call it. The transport stays open.
func (r *receiver) Close() {
	if r.close != nil {
		r.close()
	}
}

// Dropped returns how many messages the client has dropped so far because the
// handlers were too slow for it. They are lost; each episode is also logged. It
// stays 0 on transports with acks, which keep what is not handled.
func (r *receiver) Dropped() uint64 { return r.dropped.Load() }

// Expired returns how many deliveries were not handled because their lease had
// run out before a handler was free. The broker delivers them again.
func (r *receiver) Expired() uint64 { return r.expired.Load() }

// configure applies the options and checks them against what the transport can
// do. keyFits tells whether an ordering key is for the type of the subscriber.
func (r *receiver) configure(opts []SubscriberOption, keyFits func(any) bool) error {
	if err := applyOptions(opts, SubscriberOption.applySubscriber, &r.cfg); err != nil {
		return err
	}

	c := &r.cfg

	if c.manual && c.ackSync {
		return fmt.Errorf("%w: WithAckSync is for automatic acks; with WithManualAck call AckSync on the message", ErrInvalidOption)
	}

	if c.manual && c.strict {
		return fmt.Errorf("%w: WithStrictOrder is for automatic acks: what is settled by hand cannot hold its key", ErrInvalidOption)
	}

	if c.key != nil && !keyFits(c.key) {
		return fmt.Errorf("%w: WithOrderingKey: the key function is a %T, for messages of another type", ErrInvalidOption, c.key)
	}

	if c.strict && c.key == nil && c.concurrency > 1 {
		return fmt.Errorf("%w: WithStrictOrder with a concurrency of %d needs WithOrderingKey", ErrInvalidOption, c.concurrency)
	}

	for _, err := range []error{
		require(r.transport, c.group != "", "WithQueueGroup", transport.Groups),
		require(r.transport, c.manual, "WithManualAck", transport.Acks),
		require(r.transport, c.ackSync, "WithAckSync", transport.Acks),
		require(r.transport, c.retrySet, "WithRetryPolicy", transport.Redelivery),
		require(r.transport, c.strict, "WithStrictOrder", transport.Redelivery),
	} {
		if err != nil {
			return err
		}
	}

	return c.deadLetter.check(r.transport)
}

// work is what a processor does for an engine.
type work interface {
	begin(r *receiver, subject string)
	attach(sub transport.Subscription)
	handle(ctx context.Context, job *engine.Job) (after time.Duration, retry bool)
	crashed(ctx context.Context, job *engine.Job, err error) (after time.Duration, retry bool)
	bring(ctx context.Context, job *engine.Job) engine.Burial
	lane(job *engine.Job) string
	leave()
}

// ender is work that has something to do when the end comes.
type ender interface {
	drain()
	abandon(ctx context.Context, job *engine.Job)
}

// tuner is work that wants its engine otherwise.
type tuner interface{ tune(cfg *engine.Config) }

// serve runs one subscription.
func (r *receiver) serve(ctx context.Context, subject string, w work) (err error) {
	defer func() { r.vitals.ended(err) }()

	if r.err != nil {
		return r.err
	}

	if r.closing.Err() != nil {
		return &Error{Op: "subscribe", Subject: subject, Err: fmt.Errorf("%w: the subscriber", ErrClosed)}
	}

	if subject != "" {
		if err := transport.ValidateFilter(subject); err != nil {
			return &Error{Op: "subscribe", Err: err}
		}
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	stop := context.AfterFunc(r.closing, cancel)
	defer stop()

	if err := r.cfg.deadLetter.checkSubject(r.transport, subject); err != nil {
		return &Error{Op: "subscribe", Subject: subject, Err: err}
	}

	w.begin(r, subject)

	cfg := engine.Config{
		Concurrency:     r.cfg.concurrency,
		Handle:          handling(w),
		Bury:            burying(w),
		BuryRetry:       r.buryRetry,
		Strict:          r.cfg.strict,
		Redelivery:      r.transport.Capabilities().Has(transport.Redelivery),
		DrainTimeout:    r.cfg.drainTimeout,
		MaxHandlingTime: r.cfg.maxHandling,
		OnExpired:       func(d transport.Delivery) { r.onExpired(ctx, d) },
	}
	if r.cfg.key != nil || r.cfg.strict {
		cfg.Lane = w.lane
	}

	if e, some := w.(ender); some {
		cfg.OnDrain, cfg.OnAbandoned = e.drain, e.abandon
	}

	if t, some := w.(tuner); some {
		t.tune(&cfg)
	}

	eng := engine.New(ctx, cfg)

	sub, err := r.transport.Subscribe(ctx, transport.SubscribeConfig{
		Subject: subject,
		Group:   r.cfg.group,
		Sink:    eng.Deliver,
		Notify: func(err error) {
			r.onNotify(ctx, subject, err)
			eng.Wake()
		},
	})
	if err != nil {
		return err
	}

	// Nothing is delivered before the engine asks for it.
	w.attach(sub)

	if err := r.cfg.deadLetter.checkLoop(subject, sub.Info().Filter); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()

		return errors.Join(&Error{Op: "subscribe", Subject: subject, Err: err}, sub.Close(closing))
	}

	defer r.vitals.begin(ctx, sub)()

	if r.cfg.ready != nil {
		r.cfg.ready()
	}

	err = eng.Run(ctx, sub)

	w.leave()

	if _, abandoned := errors.AsType[*DrainError](err); abandoned {
		info := sub.Info()

		return &Error{Op: "drain", Subject: cmp.Or(subject, info.Filter), Stream: info.Stream, Consumer: info.Consumer, Err: err}
	}

	return err
}

// buryRetry returns how long a storage of dead letters is left alone after so many
// failures in a row.
func (r *receiver) buryRetry(failures int) time.Duration {
	if !r.transport.Capabilities().Has(transport.Redelivery) {
		// Messages that nobody keeps are to have all their tries soon.
		failures = min(failures, deadLetterTries)
	}

	return deadLetterRetry(failures + 1)
}

// settles reports whether the deliveries of the transport are settled at all.
func (r *receiver) settles() bool { return r.transport.Capabilities().Has(transport.Acks) }
