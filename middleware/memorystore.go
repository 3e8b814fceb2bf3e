package middleware

import (
	"context"
	"strings"
	"sync"
	"time"
)

// The defaults of [NewMemoryStore].
const (
	// DefaultMemoryTTL is how long a record is kept.
	DefaultMemoryTTL = 10 * time.Minute

	// DefaultMemoryEntries is how many messages are known at the most.
	DefaultMemoryEntries = 100_000
)

// MemoryStore is a [Store] within the process, for tests and for services of
// one replica. What it knows is lost with the process: a message that comes
// again after a restart is handled again. It needs no goroutine and no closing.
type MemoryStore struct {
	ttl time.Duration
	max int

	mu      sync.Mutex
	entries map[Key]*entry
	oldest  *entry // in the order in which they became what they are
	newest  *entry
	unused  *entry // chained by next
	tokens  uint64
}

var _ Store = (*MemoryStore)(nil)

// entry is a message that is reserved or recorded.
type entry struct {
	key        Key
	token      uint64
	handled    bool
	until      time.Time
	prev, next *entry
}

// NewMemoryStore returns an empty store that keeps a record for ttl, and knows
// at most maxEntries messages, recorded and reserved ones together. Zero and
// less are [DefaultMemoryTTL] and [DefaultMemoryEntries].
//
// When it is full, the oldest record makes room: the message behind it would be
// handled again. So it should hold what arrives within ttl. An entry takes some
// 200 bytes, and the id.
func NewMemoryStore(ttl time.Duration, maxEntries int) *MemoryStore {
	if ttl <= 0 {
		ttl = DefaultMemoryTTL
	}

	if maxEntries <= 0 {
		maxEntries = DefaultMemoryEntries
	}

	return &MemoryStore{ttl: ttl, max: maxEntries, entries: map[Key]*entry{}}
}

// Len returns how many messages the store knows, recorded and reserved ones
// together. Some may have run out: these go when their place is needed, or when
// all older ones have run out too.
func (s *MemoryStore) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()

	return len(s.entries)
}

// Reserve implements [Store]. It does not block. It fails with [ErrStoreFull]
// when there are only reservations that have not run out.
func (s *MemoryStore) Reserve(_ context.Context, key Key, lease time.Duration) (Reservation, error) {
	now := time.Now()

	s.mu.Lock()
	defer s.mu.Unlock()

	s.forget(now)

	e := s.entries[key]

	switch {
	case e != nil && e.until.After(now) && e.handled:
		return Reservation{Status: Handled}, nil
	case e != nil && e.until.After(now):
		return Reservation{Status: InProgress, Wait: e.until.Sub(now)}, nil
	}

	e, err := s.put(key, e, now)
	if err != nil {
		return Reservation{}, err
	}

	s.tokens++
	e.token, e.handled, e.until = s.tokens, false, now.Add(lease)

	return Reservation{Status: Reserved, Token: e.token}, nil
}

// Record implements [Store]. It does not block. It fails with [ErrStoreFull]
// only where the reservation is gone and there is no room.
func (s *MemoryStore) Record(_ context.Context, key Key, _ uint64) error {
	now := time.Now()

	s.mu.Lock()
	defer s.mu.Unlock()

	e, err := s.put(key, s.entries[key], now)
	if err != nil {
		return err
	}

	e.handled, e.until = true, now.Add(s.ttl)

	return nil
}

// Release implements [Store]. It does not block and does not fail.
func (s *MemoryStore) Release(_ context.Context, key Key, token uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	if e := s.entries[key]; e != nil && !e.handled && e.token == token {
		s.remove(e)
	}

	return nil
}

// forget removes what has run out, from the oldest on.
func (s *MemoryStore) forget(now time.Time) {
	for s.oldest != nil && !s.oldest.until.After(now) {
		s.remove(s.oldest)
	}
}

// put makes the entry of key the newest one, and makes it if e is nil.
func (s *MemoryStore) put(key Key, e *entry, now time.Time) (*entry, error) {
	if e != nil {
		s.unlink(e)
		s.link(e)

		return e, nil
	}

	if len(s.entries) >= s.max && !s.evict(now) {
		return nil, ErrStoreFull
	}

	if e = s.unused; e != nil {
		s.unused, e.next = e.next, nil
	} else {
		e = &entry{}
	}

	// Cloned, as an id may be a piece of all the headers of its message.
	e.key = Key{Scope: key.Scope, ID: strings.Clone(key.ID)}
	s.entries[e.key] = e
	s.link(e)

	return e, nil
}

// evict removes the oldest entry that nobody holds. It passes over as many as
// there are reservations, which the concurrency of the handlers bounds.
func (s *MemoryStore) evict(now time.Time) bool {
	for e := s.oldest; e != nil; e = e.next {
		if e.handled || !e.until.After(now) {
			s.remove(e)

			return true
		}
	}

	return false
}

func (s *MemoryStore) remove(e *entry) {
	delete(s.entries, e.key)
	s.unlink(e)

	*e = entry{next: s.unused}
	s.unused = e
}

func (s *MemoryStore) link(e *entry) {
	e.prev, e.next = s.newest, nil

	if s.newest != nil {
		s.newest.next = e
	} else {
		s.oldest = e
	}

	s.newest = e
}

func (s *MemoryStore) unlink(e *entry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.oldest = e.next
	}

	if e.next != nil {
		e.next.prev = e.prev
	} else {
		s.newest = e.prev
	}

	e.prev, e.next = nil, nil
}
