package middleware

import (
	"context"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// Key names a message in a [Store].
type Key struct {
	// Scope is the name that was given to [Idempotent]: what one handler has
	// handled, another one has not.
	Scope string

	// ID is the message's id, or where it has none, its place in its stream.
	// Senders choose ids: they may hold any characters and be of any length.
	ID string
}

// Status is what a [Store] knows of a message.
type Status uint8

const (
	// Reserved: the message is the caller's to handle.
	Reserved Status = iota + 1

	// InProgress: somebody else has reserved it.
	InProgress

	// Handled: it has been handled.
	Handled
)

// Reservation is the answer of [Store.Reserve].
type Reservation struct {
	// Status is what the store knows of the message.
	Status Status

	// Token goes with Reserved: it tells this reservation from earlier and
	// later ones of the same message.
	Token uint64

	// Wait goes with InProgress: the time until the reservation of the other
	// one runs out, unless it ends before.
	Wait time.Duration
}

// Store keeps the ids of messages that were handled, and of those that are
// being handled, for [Idempotent]. Replicas of a service share one. This
// package has [MemoryStore], within one process; middleware/kvstore has one
// over a NATS key-value bucket.
//
// All methods may be called concurrently. They return within ctx, and should
// bound themselves where ctx has no deadline. A store that tries again does so
// within the call; its caller does not. Their errors say what the store could
// not do, and never hold a payload.
type Store interface {
	// Reserve reserves a message that is neither handled nor reserved, for
	// the time of lease; it does so for one caller only, however many there
	// are. A reservation that has run out counts as none. When it fails, the
	// message may still have become reserved: nobody handles it for that
	// time.
	Reserve(ctx context.Context, key Key, lease time.Duration) (Reservation, error)

	// Record makes the message handled, for as long as the store keeps
	// records, which must be longer than a message may take to come again. It
	// does so even where the reservation has run out or belongs to somebody
	// else by now: handled is handled.
	Record(ctx context.Context, key Key, token uint64) error

	// Release ends the reservation with this token. It changes nothing where
	// that has run out, belongs to somebody else, or has become a record.
	Release(ctx context.Context, key Key, token uint64) error
}

// ErrInProgress is the reason of the [goflux.RetryAfter] that [Idempotent]
// returns for a message which is being handled elsewhere.
var ErrInProgress = transport.NewSentinel("in_progress", "the message is being handled elsewhere, or was when a process died")

// ErrStoreFull is returned by [MemoryStore] when all it may hold are
// reservations that have not run out.
var ErrStoreFull = transport.NewSentinel("store_full", "the store is full of messages that are being handled")

// keyOf returns the key of a message, if there is anything that tells it from
// others.
func keyOf[T any](scope string, msg goflux.Message[T]) (Key, bool) {
	if id := msg.ID(); id != "" {
		return Key{scope, id}, true
	}

	if id := placeOf(msg.Metadata()); id != "" {
		return Key{scope, id}, true
	}

	return Key{}, false
}
