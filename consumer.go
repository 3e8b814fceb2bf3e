package goflux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// BoundConsumer is a [Consumer] bound to a transport. It is safe for concurrent
// use; concurrent Fetch calls take turns.
type BoundConsumer[T any] struct {
	codec     Codec[T]
	transport transport.Subscriber
	subject   string
	cfg       consumerConfig
	err       error // of the construction

	closing context.Context //nolint:containedctx // ends what blocks on Close
	close   context.CancelFunc

	turn  chan struct{} // holds a token while nobody fetches; who has it owns the next two
	sub   transport.Subscription
	inbox *inbox

	where atomic.Pointer[transport.Info] // of the last subscription, for errors

	undertaker undertaker
}

var _ Consumer[struct{}] = (*BoundConsumer[struct{}])(nil)

// NewConsumer returns a consumer of T that fetches what is published on
// subject, which may have wildcards. It needs a transport with fetching, and
// [WithQueueGroup]: the group keeps the messages that nobody has fetched yet.
// It fails with [ErrUnsupported], [ErrInvalidOption] or [ErrInvalidSubject].
//
// The group is attached with the first Fetch. What does not decode is
// terminated, or kept as a dead letter: see [WithDeadLetter].
func NewConsumer[T any](
	t transport.Subscriber, codec Codec[T], subject string, opts ...ConsumerOption,
) (*BoundConsumer[T], error) {
	c := newConsumer(t, codec, subject, opts)

	if c.err == nil {
		if err := transport.ValidateFilter(subject); err != nil {
			c.err = construction("consumer", err)
		} else if c.cfg.group == "" {
			c.err = construction("consumer",
				fmt.Errorf("%w: WithQueueGroup is missing: a consumer fetches what its group has kept", ErrInvalidOption))
		} else if err := c.cfg.deadLetter.checkSubject(t, subject); err != nil {
			c.err = construction("consumer", err)
		}
	}

	if c.err != nil {
		return nil, c.err
	}

	return c, nil
}

// BindConsumer is [NewConsumer] for the constructors of transports that cannot
// return an error, and whose source decides what is delivered: what is wrong
// is returned by every Fetch. err, if not nil, is why there is no transport.
func BindConsumer[T any](t transport.Subscriber, err error, codec Codec[T], opts ...Option) *BoundConsumer[T] {
	fitting, mismatch := optionsOf[ConsumerOption]("consumer", opts)
	if err = cmp.Or(err, mismatch); err != nil {
		return &BoundConsumer[T]{err: construction("consumer", err)}
	}

	return newConsumer(t, codec, "", fitting)
}

func newConsumer[T any](t transport.Subscriber, codec Codec[T], subject string, opts []ConsumerOption) *BoundConsumer[T] {
	c := &BoundConsumer[T]{codec: codec, transport: t, subject: subject, turn: make(chan struct{}, 1)}
	c.closing, c.close = context.WithCancel(context.Background()) //nolint:gosec // Close calls it
	c.turn <- struct{}{}

	switch {
	case t == nil:
		c.err = fmt.Errorf("%w: the transport is nil", ErrInvalidOption)
	case codec.Decode == nil:
		c.err = fmt.Errorf("%w: the codec cannot decode", ErrInvalidOption)
	default:
		c.err = c.configure(opts)
	}

	if c.err != nil {
		c.err = construction("consumer", c.err)
	}

	return c
}

func (c *BoundConsumer[T]) configure(opts []ConsumerOption) error {
	if err := applyOptions(opts, ConsumerOption.applyConsumer, &c.cfg); err != nil {
		return err
	}

	if err := require(c.transport, true, "a consumer", transport.Fetching); err != nil {
		return err
	}

	c.undertaker.cfg = &subscriberConfig{receiverConfig: c.cfg.receiverConfig}
	c.undertaker.caps = c.transport.Capabilities()

	return c.cfg.deadLetter.check(c.transport)
}

// maxFetch bounds one Fetch, and with it what may wait in memory.
const maxFetch = 10_000

// fetchLinger is how long a fetch that has some messages waits for more that
// the broker said are there; another consumer may have taken them.
const fetchLinger = 20 * time.Millisecond

// Fetch returns up to n messages (1 to 10,000), in the order of the broker. It
// blocks until there is at least one or ctx ends, and does not wait for n: it
// returns what is there. Every message has to be settled with one of its verbs.
//
// goflux does not renew the lease of a fetched message. When the ack wait is
// over (30 s by default on JetStream) the broker delivers the message again,
// here or to somebody else, and counts an attempt. Nothing tells who has the
// first copy: acking it returns nil all the same, [Message.AckSync] too, since
// JetStream takes the ack of any attempt. Finish a batch well within the ack
// wait, or call [Message.InProgress] on its messages meanwhile.
//
// A message that does not decode is not returned and does not end the wait. It
// is terminated and logged or, with [WithDeadLetter], stored as a dead letter and
// terminated when the broker has confirmed that. If it cannot be stored, it is
// handed back, to come again after 100 ms at first and 30 s in the end. On its
// last attempt nobody would deliver it again: it is kept here, this and later
// calls of Fetch try on while they wait, at least three times an ack wait and
// with its lease renewed, and Close tries once more. If all that fails it is
// logged and handed back, and the broker gives it up. Where nothing is
// redelivered it is lost, and logged, after six tries. The messages that did
// decode are held up by all this for half the ack wait at the most, and 5 s.
// What decodes and cannot be handled is the caller's to bury: [DeadLetterOf].
//
// Errors are [*Error] values around [ErrInvalidOption] for n, or because the
// consumer would receive its own dead letters, [context.Canceled],
// [context.DeadlineExceeded], [ErrClosed], [ErrConsumerNotFound],
// [ErrStreamNotFound] or [ErrSubjectMismatch]. With an error no message is
// returned, and none is lost: what had arrived is handed back.
func (c *BoundConsumer[T]) Fetch(ctx context.Context, n int) ([]Message[T], error) {
	msgs, err := c.fetch(ctx, n)
	if err != nil && c.err == nil {
		return nil, c.failure(err)
	}

	return msgs, err
}

// Close makes later calls of Fetch fail with [ErrClosed]; one that is blocked
// fails so at once. Messages that were fetched can still be settled. Dead letters
// that could not be stored yet are tried once more, which may take 5 s. The
// transport stays open.
func (c *BoundConsumer[T]) Close() {
	if c.close == nil {
		return
	}

	c.close()

	// The one who holds the turn owns the subscription. After closing it the
	// turn is handed back, so that a second Close finds nothing to do.
	<-c.turn
	defer func() { c.turn <- struct{}{} }()

	if c.sub != nil {
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		defer cancel()

		_ = c.sub.Close(ctx)
		c.inbox.handBack()
		c.sub = nil
	}

	c.undertaker.close()
}

func (c *BoundConsumer[T]) failure(err error) error {
	if c.closing.Err() != nil {
		err = fmt.Errorf("%w: the consumer", ErrClosed)
	}

	if _, told := errors.AsType[*Error](err); told {
		return err
	}

	e := &Error{Op: "fetch", Subject: c.subject, Err: err}
	if where := c.where.Load(); where != nil {
		e.Stream, e.Consumer = where.Stream, where.Consumer
	}

	return e
}

func (c *BoundConsumer[T]) fetch(ctx context.Context, n int) ([]Message[T], error) {
	if c.err != nil {
		return nil, c.err
	}

	if n < 1 || n > maxFetch {
		return nil, fmt.Errorf("%w: fetching %d messages: use 1 to %d", ErrInvalidOption, n, maxFetch)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	stop := context.AfterFunc(c.closing, cancel)
	defer stop()

	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}

	for {
		deliveries, err := c.collect(ctx, n)
		if err != nil {
			return nil, err
		}

		if len(deliveries) == 0 {
			continue
		}

		c.cfg.tel().receive(ctx, c.sub.Info().Filter, deliveries)

		if msgs := c.decode(ctx, deliveries); len(msgs) > 0 {
			return msgs, nil
		}
	}
}

// collect returns at least one delivery, and at most n; none only when it did
// not ask for any, since as much as may wait in memory waits for its burial.
// Credit that is left over is taken back, so that nothing arrives while nobody
// fetches.
func (c *BoundConsumer[T]) collect(ctx context.Context, n int) ([]transport.Delivery, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}

	if c.sub == nil {
		if err := c.attach(ctx); err != nil {
			return nil, err
		}
	}

	c.undertaker.buryDue(ctx)

	n = min(n, maxFetch-len(c.undertaker.unburied))
	c.sub.Request(n)

	waitErr := c.wait(ctx, n)

	if c.inbox.len() < n {
		pausing, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()

		if err := c.sub.Pause(pausing); err != nil && waitErr == nil {
			waitErr = err
		}
	}

	// What arrived before ctx ended is returned rather than handed back.
	if got := c.inbox.take(); len(got) > 0 {
		return got, nil
	}

	if waitErr != nil && c.sub.Err() != nil {
		// It has ended for good: the next Fetch attaches anew, or learns why not.
		c.detach()
	}

	return nil, waitErr
}

// wait waits for deliveries, and stores the dead letters that get due.
func (c *BoundConsumer[T]) wait(ctx context.Context, n int) error {
	for {
		woken, err := c.inbox.wait(ctx, n, c.sub, c.undertaker.wake())
		if !woken {
			return err
		}

		c.undertaker.buryDue(ctx)

		if n < 1 {
			return nil
		}
	}
}

func (c *BoundConsumer[T]) attach(ctx context.Context) error {
	c.inbox = &inbox{arrived: make(chan struct{}, 1)}

	sub, err := c.transport.Subscribe(ctx, transport.SubscribeConfig{
		Subject: c.subject,
		Group:   c.cfg.group,
		Sink:    c.inbox.put,
		Notify: func(err error) {
			c.cfg.log().LogAttrs(context.Background(), slog.LevelWarn, "goflux: a consumer reports",
				slog.String("subject", c.subject), slog.Any("error", err))
		},
	})
	if err != nil {
		return err
	}

	if err := c.cfg.deadLetter.checkLoop(c.subject, sub.Info().Filter); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()

		return errors.Join(err, sub.Close(closing))
	}

	where := sub.Info()

	c.sub = sub
	c.where.Store(&where)
	c.undertaker.attach(sub)

	return nil
}

func (c *BoundConsumer[T]) detach() {
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()

	_ = c.sub.Close(ctx)
	c.sub = nil
}

// decode makes messages of deliveries, and ends those that do not decode. It
// decodes in place: a payload of its own for each would be an allocation.
func (c *BoundConsumer[T]) decode(ctx context.Context, deliveries []transport.Delivery) []Message[T] {
	var (
		msgs   = make([]Message[T], len(deliveries))
		n      int
		failed []undecoded
	)

	for _, d := range deliveries {
		msg := &msgs[n]
		*msg = newMessage[T](d)

		if err := decodeInto(c.codec, d.Data, &msg.Payload); err == nil {
			n++
		} else {
			rejection := &outcome{kind: OutcomeRejected, err: err, undecodable: true}
			failed = append(failed, undecoded{&engine.Job{Delivery: d}, rejection})
		}
	}

	clear(msgs[n:])
	c.undertaker.bury(ctx, failed)

	return msgs[:n]
}

// inbox is where deliveries wait for the fetch that asked for them.
type inbox struct {
	arrived chan struct{}

	mu         sync.Mutex
	deliveries []transport.Delivery
	more       bool // the broker said that there are more
}

func (b *inbox) put(d transport.Delivery) {
	m := d.Settler.Metadata(d.Token)

	b.mu.Lock()
	b.deliveries = append(b.deliveries, d)
	b.more = m.Attempt > 0 && m.Pending > 0
	b.mu.Unlock()

	select {
	case b.arrived <- struct{}{}:
	default:
	}
}

func (b *inbox) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()

	return len(b.deliveries)
}

func (b *inbox) take() []transport.Delivery {
	b.mu.Lock()
	defer b.mu.Unlock()

	got := b.deliveries
	b.deliveries = nil

	return got
}

// wait returns when n deliveries are there, or some and the broker has no more
// for now, when it is woken, or when it cannot go on.
func (b *inbox) wait(
	ctx context.Context, n int, sub transport.Subscription, wake <-chan time.Time,
) (woken bool, err error) {
	var linger <-chan time.Time

	for {
		b.mu.Lock()
		got, more := len(b.deliveries), b.more
		b.mu.Unlock()

		if got > 0 && (got >= n || !more) {
			return false, nil
		}

		if got > 0 {
			linger = time.After(fetchLinger)
		}

		select {
		case <-b.arrived:
		case <-wake:
			return true, nil
		case <-linger:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		case <-sub.Done():
			return false, sub.Err()
		}
	}
}

// handBack returns what nobody fetched.
func (b *inbox) handBack() {
	for _, d := range b.take() {
		_ = d.Settler.Settle(context.Background(), d.Token, transport.Verdict{Action: transport.Nak})
	}
}
