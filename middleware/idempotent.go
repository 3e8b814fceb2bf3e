package middleware

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// DefaultLease is the time that [Idempotent] reserves a message for where
// [WithLease] does not say: a little less than the ack wait of 30 s that
// JetStream has by default, so that the reservation of a process that died is
// over when the broker delivers its messages again.
const DefaultLease = 25 * time.Second

// storeTimeout bounds what a store is told after the handler has returned.
const storeTimeout = 5 * time.Second

// IdempotentOption configures [Idempotent].
type IdempotentOption interface{ applyIdempotent(c *idempotentConfig) }

type idempotentOption func(*idempotentConfig)

func (o idempotentOption) applyIdempotent(c *idempotentConfig) { o(c) }

type idempotentConfig struct {
	lease  time.Duration
	logger *slog.Logger
}

// WithLease sets for how long a message is reserved, and with it how long its
// handler may take: its context ends with the reservation. The default, and
// what zero and less mean, is [DefaultLease].
//
// A message whose process died waits for the rest of its lease. Where the lease
// is longer than the ack wait, that wait costs it another delivery.
func WithLease(d time.Duration) IdempotentOption {
	return idempotentOption(func(c *idempotentConfig) { c.lease = d })
}

// WithLogger sets where it is logged that a handled message could not be
// recorded. Nil, the default, is [slog.Default] at the time of logging.
func WithLogger(logger *slog.Logger) IdempotentOption {
	return idempotentOption(func(c *idempotentConfig) { c.logger = logger })
}

// Idempotent lets the handler see each message once: it records in the store
// which ones were handled, and acks those that come again without handling
// them. A message comes again because its ack was lost, because a process died
// or lost its lease before the ack, or because its sender sent it twice under
// one id.
//
// # What is promised
//
// A message that was recorded is never handled again, as long as the store
// keeps the record. A message is recorded after the handler has returned nil,
// and acked after that. So of a process that dies
//
//   - before the handler had its effect: the message is handled when it comes
//     again, once the reservation has run out;
//   - after the effect and before the record: the message is handled AGAIN, and
//     the effect happens twice. No middleware can close this gap, since effect
//     and record are in different places. Where it matters, make the effect
//     itself repeatable, such as an upsert under the message's id, or write the
//     id in the same database transaction as the effect;
//   - after the record and before the ack: the message is acked and not handled
//     when it comes again.
//
// # What is a message
//
// Its id, see [goflux.WithMessageID]: two messages with one id are one message.
// Without an id, its place in its stream: name, sequence and time of storing,
// which are those of a redelivery too, but not those of a message that was sent
// twice. Where there is neither, as on core NATS, where nothing comes again by
// itself, the message is handled and not recorded.
//
// scope keeps handlers apart that share a store: each needs a name of its own,
// else what one has handled is lost to the other. All replicas of a handler
// have the same, over restarts too. The name of the queue group is a good one.
//
// # While a message is handled
//
// It is reserved, so that replicas which get it at the same time do not both
// handle it: the other one returns [goflux.RetryAfter] with the rest of the
// reservation, because of [ErrInProgress]. That counts as a delivery where
// these are limited (MaxDeliver): a limit needs one to spare.
//
// The reservation lasts for [WithLease], and ends the handler's context: the
// error then matches [context.DeadlineExceeded]. A handler that ignores its
// context can run beyond it, and then side by side with another one.
//
// An error of the handler ends the reservation and is returned as it is, with
// [goflux.Reject] and [goflux.Drop] too: only what was handled is recorded, so
// that a dead letter that is sent again gets its chance. A panic ends the
// reservation and goes on.
//
// # When the store fails
//
// Before the handler: it is not called, and the error of the store is returned,
// so the message is retried. After the handler had success: the message is
// acked all the same and the failure is logged as an error. To return an error
// would have the message handled again for certain; so it is handled again only
// if it also comes again.
//
// # Verbs
//
// Where the handler settles the message itself, its first verb is the verdict,
// not what it returns: Ack and AckSync record the message before they ack it,
// Nak, NakWithDelay and Term end the reservation before they are carried out.
// That holds for verbs that are called after the handler has returned, too: with
// [goflux.WithManualAck], nil without a verb leaves the reservation as it is. A
// message that was handled before is acked here.
//
// A nil store makes every message fail with [goflux.ErrInvalidOption]. Nil
// options are ignored.
func Idempotent[T any](store Store, scope string, opts ...IdempotentOption) goflux.Middleware[T] {
	var c idempotentConfig

	for _, opt := range opts {
		if opt != nil {
			opt.applyIdempotent(&c)
		}
	}

	if c.lease <= 0 {
		c.lease = DefaultLease
	}

	g := &guard{store: store, idempotentConfig: c, over: &timeoutError{
		text: fmt.Sprintf("the handler did not return within %v, for which its message was reserved (see WithLease)", c.lease),
	}}

	return func(next goflux.Handler[T]) goflux.Handler[T] {
		if store == nil {
			return func(context.Context, goflux.Message[T]) error {
				return fmt.Errorf("%w: Idempotent: the store is nil", goflux.ErrInvalidOption)
			}
		}

		return func(ctx context.Context, msg goflux.Message[T]) error {
			key, known := keyOf(scope, msg)
			if !known {
				return next(ctx, msg)
			}

			// The handler's time begins before the store's, so it ends before.
			deadline := time.Now().Add(c.lease)

			token, handled, err := g.reserve(ctx, key)
			if err != nil {
				return err
			}

			switch {
			case handled && msg.ManualAck():
				return msg.Ack()
			case handled:
				return nil // with which it is acked, as the subscription does that
			}

			ctx, cancel := context.WithDeadlineCause(ctx, deadline, g.over)
			defer cancel()

			r := &reservation{guard: g, ctx: ctx, key: key, token: token, subject: msg.Subject, byHand: msg.ManualAck()}
			returned := false

			defer func() {
				if !returned { // it panics
					_ = r.decide(released)
				}
			}()

			err = next(ctx, msg.BeforeSettle(r.settling))
			returned = true

			return r.conclude(err)
		}
	}
}

// guard is what the handlers of one middleware share.
type guard struct {
	idempotentConfig

	store Store
	over  *timeoutError
}

// reserve makes the message the caller's, unless it was handled. The error is
// the outcome of a message that cannot be handled now.
func (g *guard) reserve(ctx context.Context, key Key) (token uint64, handled bool, err error) {
	r, err := g.store.Reserve(ctx, key, g.lease)
	if err != nil {
		return 0, false, fmt.Errorf("idempotency: reserving the message %q: %w", key.ID, err)
	}

	switch r.Status {
	case Reserved:
		return r.Token, false, nil
	case Handled:
		return 0, true, nil
	case InProgress:
		return 0, false, goflux.RetryAfter(r.Wait, ErrInProgress)
	default:
		return 0, false, fmt.Errorf("idempotency: the store returned the unknown status %d for the message %q", r.Status, key.ID)
	}
}

// reservation is a message that is being handled.
type reservation struct {
	*guard

	ctx     context.Context //nolint:containedctx // the handler's, for its values
	key     Key
	token   uint64
	subject string
	byHand  bool        // a verb settles the message, if anything does
	decided atomic.Bool // it is known what becomes of the message
}

// settling hears of each verb before it is carried out.
func (r *reservation) settling(action transport.Action) {
	if action == transport.Extend {
		return
	}

	if err := r.decide(action == transport.Ack || action == transport.AckSync); err != nil {
		r.log("the reservation of a message could not be ended; the message is put off until it runs out", err)
	}
}

// conclude follows from what the handler returned, unless a verb has decided.
func (r *reservation) conclude(err error) error {
	if err == nil {
		if !r.byHand {
			_ = r.decide(recorded)
		}

		return nil
	}

	err = r.over.mark(r.ctx, err)

	if rerr := r.fail(); rerr != nil {
		return fmt.Errorf("%w; idempotency: ending the reservation: %w", err, rerr)
	}

	return err
}

// fail ends the reservation of a message whose handler returned an error. Where
// that does not settle it, a verb may yet do so.
func (r *reservation) fail() error {
	switch {
	case !r.byHand:
		return r.decide(released)
	case r.decided.Load():
		return nil
	default:
		return r.end(released)
	}
}

// recorded and released are the ends of a reservation.
const (
	recorded = true
	released = false
)

// decide ends the reservation unless that was done. Of several who decide, the
// first one does, as with the verbs.
func (r *reservation) decide(record bool) error {
	if r.decided.Swap(true) {
		return nil
	}

	return r.end(record)
}

// end tells the store. Its error is that of a release: a message that could not
// be recorded was handled all the same.
func (r *reservation) end(record bool) error {
	ctx, cancel := detach(r.ctx)
	defer cancel()

	if !record {
		return r.store.Release(ctx, r.key, r.token)
	}

	if err := r.store.Record(ctx, r.key, r.token); err != nil {
		r.log("a message was handled and could not be recorded; it is acked, and handled again should it come again", err)
	}

	return nil
}

func (r *reservation) log(text string, err error) {
	or(r.logger).LogAttrs(r.ctx, slog.LevelError, "goflux: "+text,
		slog.String("subject", r.subject), slog.String("scope", r.key.Scope), slog.String("id", r.key.ID), slog.Any("error", err))
}

// detach returns a context for what has to be told to the store though the
// handler's may have ended.
func detach(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
}

// placeOf returns what tells a stored message without an id from all others, or
// "". The time is part of it because a stream that was deleted and made again
// counts from 1 again, as does one in memory after a restart.
func placeOf(m goflux.Metadata) string {
	if m.Sequence == 0 {
		return ""
	}

	b := make([]byte, 0, len(m.Stream)+42)
	b = append(b, m.Stream...)
	b = append(b, '/')
	b = strconv.AppendUint(b, m.Sequence, 10)
	b = append(b, '/')
	b = strconv.AppendInt(b, m.Timestamp.UnixNano(), 10)

	return string(b)
}
