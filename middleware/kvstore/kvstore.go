// Package kvstore keeps the ids of handled messages in a NATS key-value bucket,
// for the idempotency of all replicas of a service.
//
// The bucket is the caller's to make, with a TTL, which is how long a record
// lasts:
//
//	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
//		Bucket:   "handled",
//		TTL:      24 * time.Hour,
//		Replicas: 3,
//	})
//	store, err := kvstore.New(ctx, kv)
//	once := middleware.Idempotent[Order](store, "billing")
//
// A message costs two writes, one before and one after it is handled, each with
// a round trip. The bucket holds one entry per message and scope, of some 50
// bytes and the names of bucket, scope and message; nothing is held here. TTLs
// of single keys are not used, so an older server will do.
package kvstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/pause"
	"github.com/foomo/goflux/middleware"
)

const (
	// callTimeout bounds a call where ctx has no deadline.
	callTimeout = 5 * time.Second

	// tryTimeout bounds one try: what is published while a stream changes its
	// leader is lost as a rule, and its answer never comes.
	tryTimeout = time.Second

	// tryPause is the time between two tries, and what a message waits for
	// that others compete for.
	tryPause = 100 * time.Millisecond

	// maxConflicts bounds how often a reservation may come out second.
	maxConflicts = 3
)

// Store is a [middleware.Store] over a key-value bucket. It is safe for
// concurrent use, holds nothing and needs no closing. The bucket and its
// connection stay the caller's.
//
// Its calls end with ctx, after 5 s where ctx has no deadline. Until then they
// try again what fails because the stream of the bucket has no leader or does
// not answer; a reservation that was stored though its answer was lost is
// recognised.
type Store struct {
	kv  jetstream.KeyValue
	ttl time.Duration
}

var _ middleware.Store = (*Store)(nil)

// New returns a store over a bucket, which it asks for its TTL. It fails with
// [goflux.ErrInvalidOption] when kv is nil or the bucket has no TTL, since it
// would grow for ever; otherwise with the error of the client.
//
// The TTL must exceed the longest time after which a message may come again:
// that between its first delivery and its last one, or the re-sending of a
// dead letter. It must also be as long as the lease of [middleware.WithLease],
// else reserving fails with [goflux.ErrInvalidOption].
//
// How old a reservation is, is told by the time of the server, at which it was
// stored, and by the clock of the replica that finds it. Replicas whose clocks
// are ahead by the lease take over what is still being handled: keep them
// synchronised.
func New(ctx context.Context, kv jetstream.KeyValue) (*Store, error) {
	if kv == nil {
		return nil, fmt.Errorf("%w: kvstore: the bucket is nil", goflux.ErrInvalidOption)
	}

	status, err := kv.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("kvstore: the status of the bucket %q: %w", kv.Bucket(), err)
	}

	if status.TTL() <= 0 {
		return nil, fmt.Errorf("%w: kvstore: the bucket %q has no TTL and would keep every id for ever: set one",
			goflux.ErrInvalidOption, kv.Bucket())
	}

	return &Store{kv: kv, ttl: status.TTL()}, nil
}

// Reserve implements [middleware.Store].
func (s *Store) Reserve(ctx context.Context, key middleware.Key, lease time.Duration) (middleware.Reservation, error) {
	if lease > s.ttl {
		return middleware.Reservation{}, fmt.Errorf("%w: kvstore: a lease of %v, and the bucket %q has a TTL of %v: it must not be less",
			goflux.ErrInvalidOption, lease, s.kv.Bucket(), s.ttl)
	}

	ctx, cancel := bound(ctx)
	defer cancel()

	name := subjectOf(key)
	mine := reservation{lease: lease, nonce: rand.Uint64()}.encode()

	for range maxConflicts {
		revision, err := try(ctx, func(ctx context.Context) (uint64, error) { return s.kv.Create(ctx, name, mine) })
		if err == nil {
			return middleware.Reservation{Status: middleware.Reserved, Token: revision}, nil
		}

		if !exists(err) {
			return middleware.Reservation{}, s.failure("reserve", key, err)
		}

		r, settled, err := s.look(ctx, name, mine)
		if err != nil {
			return middleware.Reservation{}, s.failure("reserve", key, err)
		}

		if settled {
			return r, nil
		}
	}

	return middleware.Reservation{Status: middleware.InProgress, Wait: tryPause}, nil
}

// look finds out about a message that is in the bucket, and takes it over when
// its reservation has run out. It is not settled when the message changed under
// its eyes.
//
// A replica of the stream may answer that is behind. That can only hide the
// end of a reservation, or a record, for a moment: what is taken over has to be
// what the leader has.
func (s *Store) look(ctx context.Context, name string, mine []byte) (r middleware.Reservation, settled bool, err error) {
	entry, err := try(ctx, func(ctx context.Context) (jetstream.KeyValueEntry, error) { return s.kv.Get(ctx, name) })

	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return r, false, nil // released, or run out by the TTL
	case err != nil:
		return r, false, err
	case string(entry.Value()) == string(mine):
		// Stored by an earlier try, whose answer was lost.
		return middleware.Reservation{Status: middleware.Reserved, Token: entry.Revision()}, true, nil
	case string(entry.Value()) == handled:
		return middleware.Reservation{Status: middleware.Handled}, true, nil
	}

	theirs, err := decode(entry.Value())
	if err != nil {
		return r, false, err
	}

	if wait := time.Until(entry.Created().Add(theirs.lease)); wait > 0 {
		return middleware.Reservation{Status: middleware.InProgress, Wait: wait}, true, nil
	}

	revision, err := try(ctx, func(ctx context.Context) (uint64, error) {
		return s.kv.Update(ctx, name, mine, entry.Revision())
	})

	switch {
	case errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return r, false, nil
	case err != nil:
		return r, false, err
	default:
		return middleware.Reservation{Status: middleware.Reserved, Token: revision}, true, nil
	}
}

// Record implements [middleware.Store].
func (s *Store) Record(ctx context.Context, key middleware.Key, _ uint64) error {
	ctx, cancel := bound(ctx)
	defer cancel()

	name := subjectOf(key)

	_, err := try(ctx, func(ctx context.Context) (uint64, error) { return s.kv.PutString(ctx, name, handled) })
	if err != nil {
		return s.failure("record", key, err)
	}

	return nil
}

// Release implements [middleware.Store].
func (s *Store) Release(ctx context.Context, key middleware.Key, token uint64) error {
	ctx, cancel := bound(ctx)
	defer cancel()

	name := subjectOf(key)

	_, err := try(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.kv.Delete(ctx, name, jetstream.LastRevision(token))
	})
	if err != nil && !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return s.failure("release", key, err)
	}

	return nil
}

func (s *Store) failure(op string, key middleware.Key, err error) error {
	return fmt.Errorf("kvstore: %s %q of %q in the bucket %q: %w", op, key.ID, key.Scope, s.kv.Bucket(), err)
}

// bound gives a call its deadline.
func bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, bounded := ctx.Deadline(); bounded {
		return ctx, func() {}
	}

	return context.WithTimeout(ctx, callTimeout)
}

// try calls f until it returns something else than that nobody answered.
func try[R any](ctx context.Context, f func(ctx context.Context) (R, error)) (R, error) {
	for {
		trying, cancel := context.WithTimeout(ctx, tryTimeout)
		r, err := f(trying)

		cancel()

		if err == nil || !passing(err) {
			return r, err
		}

		if pause.For(ctx, tryPause) != nil {
			return r, err
		}
	}
}

// passing reports whether an error says that the stream could not be asked for
// the moment. It may have got the request all the same.
func passing(err error) bool {
	for _, p := range []error{
		context.DeadlineExceeded, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrDisconnected, jetstream.ErrNoStreamResponse,
	} {
		if errors.Is(err, p) {
			return true
		}
	}

	return false
}

// exists reports whether a key could not be made because it is there. Where it
// was deleted and made again by somebody else just then, Create hands on the
// API error, which on replicated buckets is not ErrKeyExists (nats.go v1.55.0).
func exists(err error) bool {
	var api *jetstream.APIError

	return errors.Is(err, jetstream.ErrKeyExists) ||
		(errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// handled is the value of a message that was handled.
const handled = "handled"

// reservation is the value of a message that is being handled. It is text, for
// those who look into the bucket.
type reservation struct {
	lease time.Duration
	nonce uint64 // tells the reservations of one message apart
}

const reserved = "reserved"

func (r reservation) encode() []byte {
	b := make([]byte, 0, 48)
	b = append(b, reserved...)
	b = append(b, ' ')
	b = append(b, r.lease.String()...)
	b = append(b, ' ')

	return strconv.AppendUint(b, r.nonce, 16)
}

func decode(value []byte) (reservation, error) {
	fields := strings.Split(string(value), " ")
	if len(fields) != 3 || fields[0] != reserved {
		return reservation{}, errForeign
	}

	lease, err := time.ParseDuration(fields[1])
	if err != nil {
		return reservation{}, errForeign
	}

	nonce, err := strconv.ParseUint(fields[2], 16, 64)
	if err != nil {
		return reservation{}, errForeign
	}

	return reservation{lease, nonce}, nil
}

var errForeign = errors.New("its value is not one of a kvstore: use a bucket for this alone")
