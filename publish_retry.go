package goflux

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux/internal/pause"
	"github.com/foomo/goflux/transport"
)

// WithRetryWait sets the time between two tries of a publish that no stream
// answered for (ADR-22). The default is 250 ms. It needs a transport with
// receipts.
func WithRetryWait(d time.Duration) PublisherOption {
	return publisherOption{"WithRetryWait", func(c *publisherConfig) error {
		c.retry().Wait = d

		if d <= 0 {
			return fmt.Errorf("%w: a wait of %v", ErrInvalidOption, d)
		}

		return nil
	}}
}

// WithRetryAttempts sets how many tries may follow the first one when no stream
// answers (ADR-22): the subject has none, or its leader is being elected. The
// default is 2. Zero turns retries off; -1 retries until the deadline of
// Publish's ctx, or for the time of [WithAckWait] where it has none.
//
// Nothing was stored when no stream answered, so these retries need no message
// id. They do not cover a leader that took the message and went away: see
// [WithPublishRetry]. When they are used up the error is [ErrNoStream]; when
// the deadline comes first it is [context.DeadlineExceeded] as well.
func WithRetryAttempts(n int) PublisherOption {
	return publisherOption{"WithRetryAttempts", func(c *publisherConfig) error {
		c.retry().Attempts = n

		if n < -1 {
			return fmt.Errorf("%w: %d attempts: use 0 or more, or -1 for until the deadline", ErrInvalidOption, n)
		}

		return nil
	}}
}

// WithAckWait sets how long a publish or a flush may take where its ctx has no
// deadline, whatever the method: Publish, Send and PublishAtomic as a whole,
// each message of PublishBatch and PublishAsync, Flush. The default is that of
// the transport, on JetStream the handle's DefaultTimeout, and else 5 s. On
// transports without receipts there is nothing to wait for but a flush; where
// they cannot flush either, it is refused with [ErrUnsupported].
func WithAckWait(d time.Duration) PublisherOption {
	return publisherOption{"WithAckWait", func(c *publisherConfig) error {
		c.ackWait = d

		if d <= 0 {
			return fmt.Errorf("%w: an ack wait of %v", ErrInvalidOption, d)
		}

		return nil
	}}
}

// WithPublishRetry makes publishing survive what a cluster goes through: an
// attempt that is not confirmed within the given time, that no stream answered
// for, that the server had no room for, or that found no connection, is repeated
// until ctx ends (or the ack wait, see [WithAckWait], where it has no deadline).
// Zero means 500 ms. Where attempts end in silence the next ones are given more
// time: up to four times as much, an atomic batch as much as ctx allows.
//
// Where many messages are under way ([BoundPublisher.PublishBatch],
// [BoundPublisher.PublishAsync]) an attempt lasts for as long as the broker
// answers to those that were sent before: a server that is slow is not sent
// everything twice. After silence, and when the server says that it has no room
// (API error 10167), fewer messages are under way at once, until it answers
// again.
//
// Repeating is safe because each message has an id, under which the broker
// stores it once: the one of [WithMessageID], else one that is made up. Hence
// it needs a transport with de-duplication, and ctx should end well within the
// stream's de-duplication window (2 minutes by default). When ctx ends before
// the broker has answered for good, the error says so: [ErrPublishUnknown].
// Every other error means that the message is not stored. What is answered by
// something that is no stream is not repeated. A receipt may say
// that the message is a duplicate, of an attempt whose receipt was lost.
//
// It replaces the retries of ADR-22, and cannot be combined with
// [WithRetryWait] and [WithRetryAttempts].
func WithPublishRetry(attempt time.Duration) PublisherOption {
	return publisherOption{"WithPublishRetry", func(c *publisherConfig) error {
		c.safe, c.attempt = true, attempt

		if attempt < 0 {
			return fmt.Errorf("%w: %v for an attempt", ErrInvalidOption, attempt)
		}

		return nil
	}}
}

// WithFlush makes Publish return only when the server has the message, on
// transports that would else only hand it to the client (core NATS). It costs
// a round trip and shows a lost connection; it does not tell whether somebody
// received the message. When the flush fails the error is [ErrPublishUnknown] as
// well: the client has the message, and may yet send it. Transports with
// receipts refuse it with
// [ErrInvalidOption]: they always do.
func WithFlush() PublisherOption {
	return publisherOption{"WithFlush", func(c *publisherConfig) error {
		c.flush = true

		return nil
	}}
}

// flusher is a transport whose Flush returns when the server has what was
// published before.
type flusher interface {
	Flush(ctx context.Context) error
}

// timed is a transport with a default of its own for how long a publish may take
// where ctx has no deadline.
type timed interface {
	DefaultTimeout() time.Duration
}

const (
	defaultAckWait = 5 * time.Second
	defaultAttempt = 500 * time.Millisecond
)

// retry returns the retries of ADR-22, to be changed.
func (c *publisherConfig) retry() *transport.Retry {
	if c.adr22 == nil {
		c.adr22 = new(c.adr22.OrDefault())
	}

	return c.adr22
}

// check reports options that do not fit each other or the transport.
func (c *publisherConfig) check(t transport.Publisher) error {
	if c.safe && c.adr22 != nil {
		return fmt.Errorf("%w: WithPublishRetry replaces WithRetryWait and WithRetryAttempts", ErrInvalidOption)
	}

	if c.flush && t.Capabilities().Has(transport.Receipts) {
		return fmt.Errorf("%w: WithFlush: this transport confirms every publish anyway", ErrInvalidOption)
	}

	_, flushes := t.(flusher)
	if c.flush && !flushes {
		return fmt.Errorf("WithFlush: %w", ErrUnsupported)
	}

	return errors.Join(
		require(t, c.adr22 != nil, "WithRetryWait, WithRetryAttempts", transport.Receipts),
		require(t, c.ackWait > 0 && !flushes, "WithAckWait", transport.Receipts),
		require(t, c.safe, "WithPublishRetry", transport.Receipts, transport.Deduplication),
	)
}

// deliver publishes a message in the way that the options say.
func (s *sender) deliver(ctx context.Context, msg transport.Message) (Receipt, error) {
	if s.cfg.safe {
		msg.Retry = &noRetry

		return s.persist(ctx, msg, doublings, func(ctx context.Context) (Receipt, error) {
			return s.transport.Publish(ctx, msg)
		})
	}

	if s.cfg.ackWait > 0 || s.cfg.adr22 != nil {
		var cancel context.CancelFunc

		ctx, cancel = s.bound(ctx)
		defer cancel()
	}

	return s.transport.Publish(ctx, msg)
}

// bound gives ctx a deadline if it has none.
func (s *sender) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, some := ctx.Deadline(); some {
		return ctx, func() {}
	}

	return context.WithTimeout(ctx, s.wait())
}

// wait is how long a publish may take without a deadline.
func (s *sender) wait() time.Duration {
	var own time.Duration
	if t, some := s.transport.(timed); some {
		own = t.DefaultTimeout()
	}

	return cmp.Or(s.cfg.ackWait, own, defaultAckWait)
}

// How often the time of an attempt doubles while attempts end in silence: a broker
// that is slow rather than gone is not asked in vain for ever, and one that is
// back is not waited for too long.
const (
	doublings      = 2
	batchDoublings = 8 // a large atomic batch takes its time, and is of no use in parts
)

// attemptTime is the time that the n-th attempt has, from 1, where those before
// ended in silence.
func (c *publisherConfig) attemptTime(n int) time.Duration { return c.doubled(n, doublings) }

// doubled is attemptTime that doubles so often at the most.
func (c *publisherConfig) doubled(n, most int) time.Duration {
	return cmp.Or(c.attempt, defaultAttempt) << min(n-1, most)
}

// noRetry leaves the retries to persist.
var noRetry transport.Retry

// persist repeats attempt until the broker has confirmed it, has refused it, or ctx
// ends. Each attempt is made under the same message ids; msg is the first of the
// messages, and most how often the time of an attempt may double.
func (s *sender) persist(
	ctx context.Context, msg transport.Message, most int, attempt func(ctx context.Context) (Receipt, error),
) (Receipt, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()

	unknown := false
	silent := 0 // attempts

	for wait := retryPauseMin; ; wait = min(2*wait, retryPauseMax) {
		trying, stop := context.WithTimeout(ctx, s.cfg.doubled(1+silent, most))
		receipt, err := attempt(trying)

		stop()

		if err == nil {
			return receipt, nil
		}

		timedOut := errors.Is(err, context.DeadlineExceeded)
		unknown = unknown || errors.Is(err, ErrPublishUnknown)

		switch {
		case ctx.Err() != nil:
			return Receipt{}, expired(msg.Subject, ctx.Err(), err, unknown)
		case !timedOut && !repeatable(err):
			return Receipt{}, refused(msg.Subject, err, unknown && !overtaken(err, msg.Terms))
		case timedOut:
			wait = retryPauseMin // it has waited

			if !unsent(err) { // else nobody was asked
				silent++
			}
		}

		if pause.For(ctx, jitter(wait)) != nil {
			return Receipt{}, expired(msg.Subject, ctx.Err(), err, unknown)
		}
	}
}

const (
	retryPauseMin = 20 * time.Millisecond //nolint:revive // the least pause
	retryPauseMax = time.Second
)

// repeatable reports whether a publish failed for now.
func repeatable(err error) bool {
	return !transport.IsFinal(err) &&
		(errors.Is(err, ErrPublishUnknown) || errors.Is(err, ErrNoStream) || errors.Is(err, ErrUnavailable) || unsent(err))
}

// unsent reports whether a publish failed for want of a way to the broker.
func unsent(err error) bool {
	return errors.Is(err, ErrDisconnected) || errors.Is(err, ErrBufferFull)
}

// refused is the error of a publish that the broker refused. What became of an
// earlier attempt is not known by that; unknown says that there was one that may
// be stored.
func refused(subject string, err error, unknown bool) error {
	if unknown && !errors.Is(err, ErrDuplicate) && !errors.Is(err, ErrPublishUnknown) {
		err = transport.Mark(ErrPublishUnknown, cause(err))
	}

	return publishError(subject, err)
}

// overtaken reports a conflict which shows that no earlier attempt that is still
// on its way will be stored: the last sequence is above that which the stream was
// expected to have, and only ever grows. That of a subject may shrink again, when
// its last message is deleted.
func overtaken(err error, terms *transport.Terms) bool {
	conflict, some := errors.AsType[*ConflictError](err)

	return some && conflict.Known && terms != nil && terms.LastSequence != nil && conflict.Last > *terms.LastSequence
}

// expired is the error of a publish that was repeated until ctx ended. last is
// what the last attempt ended with, nil if there was none.
func expired(subject string, ended, last error, unknown bool) error {
	err := ended

	switch last = cause(last); {
	case last == nil:
	case errors.Is(last, ended):
		err = last
	default:
		err = transport.Mark(ended, last)
	}

	if unknown && !errors.Is(err, ErrPublishUnknown) {
		err = transport.Mark(ErrPublishUnknown, err)
	}

	return publishError(subject, err)
}

// publishError gives err its circumstances, as far as it has none.
func publishError(subject string, err error) error {
	if e, told := err.(*Error); told { //nolint:errorlint // around all of it
		if e.Subject != "" || e.Op != "publish" {
			return err
		}

		named := *e
		named.Subject = subject

		return &named
	}

	return &Error{Op: "publish", Subject: subject, Err: err}
}

// cause is what an error is about, without its circumstances.
func cause(err error) error {
	if e, told := err.(*Error); told { //nolint:errorlint // what is inside is kept
		return e.Err
	}

	return err
}

// idSource makes up message ids: 130 random bits, and a number. It costs less
// than random bits for each.
type idSource struct {
	once   sync.Once
	prefix string
	last   atomic.Uint64
}

func (s *idSource) next() string {
	s.once.Do(func() { s.prefix = rand.Text() + "-" })

	var buf [48]byte

	return string(strconv.AppendUint(append(buf[:0], s.prefix...), s.last.Add(1), 36))
}
