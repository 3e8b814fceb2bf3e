package middleware_test

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/middleware/kvstore"
)

// stores makes each of the stores, for what has to hold of all.
var stores = map[string]func(t *testing.T) middleware.Store{
	"memory": func(*testing.T) middleware.Store { return middleware.NewMemoryStore(0, 0) },
	"kv": func(t *testing.T) middleware.Store {
		t.Helper()

		return bucket(t, natstest.JetStream(t, natstest.Connect(t, natstest.Run(t))))
	},
}

// bucket makes a store over a new bucket.
func bucket(t *testing.T, js natsjs.JetStream) middleware.Store {
	t.Helper()

	kv, err := js.CreateKeyValue(t.Context(), natsjs.KeyValueConfig{Bucket: "handled", TTL: time.Hour})
	must(t, err)

	store, err := kvstore.New(t.Context(), kv)
	must(t, err)

	return store
}

func onAllStores(t *testing.T, test func(t *testing.T, store middleware.Store)) {
	t.Helper()

	for name, store := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, store(t))
		})
	}
}

// reserve expects an answer, and returns it.
func reserve(t *testing.T, s middleware.Store, key middleware.Key, lease time.Duration, want middleware.Status) middleware.Reservation {
	t.Helper()

	r, err := s.Reserve(t.Context(), key, lease)
	must(t, err)

	if r.Status != want {
		t.Fatalf("%v has the status %d, want %d", key, r.Status, want)
	}

	if waits := r.Wait > 0; waits != (want == middleware.InProgress) || r.Wait > lease {
		t.Errorf("%v has the status %d and a wait of %v", key, r.Status, r.Wait)
	}

	return r
}

func TestStoreReserveRecord(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, s middleware.Store) {
		t.Helper()

		key := middleware.Key{Scope: "billing", ID: "id-1"}

		r := reserve(t, s, key, time.Minute, middleware.Reserved)
		reserve(t, s, key, time.Minute, middleware.InProgress)
		must(t, s.Record(t.Context(), key, r.Token))
		reserve(t, s, key, time.Minute, middleware.Handled)

		// A record stays, whoever gives back a reservation.
		must(t, s.Release(t.Context(), key, r.Token))
		reserve(t, s, key, time.Minute, middleware.Handled)

		// And again changes nothing.
		must(t, s.Record(t.Context(), key, r.Token))
		reserve(t, s, key, time.Minute, middleware.Handled)
	})
}

func TestStoreRelease(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, s middleware.Store) {
		t.Helper()

		key := middleware.Key{Scope: "billing", ID: "id-1"}

		first := reserve(t, s, key, time.Minute, middleware.Reserved)
		must(t, s.Release(t.Context(), key, first.Token))

		second := reserve(t, s, key, time.Minute, middleware.Reserved)
		if second.Token == first.Token {
			t.Error("two reservations have the same token")
		}

		// The first one has nothing to give back any more.
		must(t, s.Release(t.Context(), key, first.Token))
		reserve(t, s, key, time.Minute, middleware.InProgress)

		// Nor has one that never was.
		must(t, s.Release(t.Context(), middleware.Key{Scope: "billing", ID: "id-2"}, 7))

		must(t, s.Release(t.Context(), key, second.Token))
		must(t, s.Release(t.Context(), key, second.Token))
		reserve(t, s, key, time.Minute, middleware.Reserved)
	})
}

func TestStoreLeaseRunsOut(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, s middleware.Store) {
		t.Helper()

		key := middleware.Key{Scope: "billing", ID: "id-1"}
		died := reserve(t, s, key, 50*time.Millisecond, middleware.Reserved)

		var next middleware.Reservation

		natstest.Eventually(t, func() bool {
			r, err := s.Reserve(t.Context(), key, time.Minute)
			must(t, err)

			next = r

			return r.Status == middleware.Reserved
		}, "the reservation to run out")

		// The one that was taken for dead gives nothing back.
		must(t, s.Release(t.Context(), key, died.Token))
		reserve(t, s, key, time.Minute, middleware.InProgress)

		// But what it has handled is handled.
		must(t, s.Record(t.Context(), key, died.Token))
		reserve(t, s, key, time.Minute, middleware.Handled)
		must(t, s.Release(t.Context(), key, next.Token))
		reserve(t, s, key, time.Minute, middleware.Handled)
	})
}

func TestStoreOneOfMany(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, s middleware.Store) {
		t.Helper()

		key := middleware.Key{Scope: "billing", ID: "id-1"}

		race := func(lease time.Duration) int64 {
			var (
				won atomic.Int64
				wg  sync.WaitGroup
			)

			for range 20 {
				wg.Go(func() {
					r, err := s.Reserve(t.Context(), key, lease)
					if err != nil {
						t.Error(err)
					}

					if r.Status == middleware.Reserved {
						won.Add(1)
					}
				})
			}

			wg.Wait()

			return won.Load()
		}

		if won := race(time.Hour); won != 1 {
			t.Errorf("%d have reserved a new message", won)
		}

		// And the same with one whose owner has died.
		key.ID = "id-2"
		reserve(t, s, key, time.Nanosecond, middleware.Reserved)

		var won int64

		natstest.Eventually(t, func() bool {
			won = race(time.Hour)

			return won > 0
		}, "the reservation to run out")

		if won != 1 {
			t.Errorf("%d have reserved a message whose reservation had run out", won)
		}
	})
}

func TestStoreKeys(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, s middleware.Store) {
		t.Helper()

		keys := []middleware.Key{
			{Scope: "", ID: ""}, {Scope: "a", ID: ""}, {Scope: "", ID: "a"}, {Scope: "=empty", ID: "a"},
			{Scope: "a", ID: "b"}, {Scope: "a.b", ID: ""}, {Scope: "a", ID: ".b"}, {Scope: "a.", ID: "b"}, {Scope: "a", ID: "b."},
			{Scope: "a", ID: "b.c"}, {Scope: "a.b", ID: "c"}, {Scope: "a", ID: "b..c"}, {Scope: "a", ID: "b=2Ec"},
			{Scope: "a", ID: "*"}, {Scope: "a", ID: ">"}, {Scope: "a", ID: "$JS.API.>"}, {Scope: "a", ID: "b c"}, {Scope: "a", ID: "B"},
			{Scope: "a", ID: "b\x00\r\n\t\xff"}, {Scope: "ä", ID: "øß€"}, {Scope: "a", ID: "ORDERS/17/1700000000000000000"},
			{Scope: "a", ID: strings.Repeat("x", 60_000)}, {Scope: "a", ID: strings.Repeat("x", 60_001)},
			{Scope: strings.Repeat("s", 5_000), ID: strings.Repeat("x", 512)}, {Scope: strings.Repeat("s", 5_000), ID: strings.Repeat(" ", 171)},
		}
		tokens := make([]uint64, len(keys))

		for i, key := range keys {
			tokens[i] = reserve(t, s, key, time.Minute, middleware.Reserved).Token
		}

		for i, key := range keys {
			reserve(t, s, key, time.Minute, middleware.InProgress)
			must(t, s.Record(t.Context(), key, tokens[i]))
			reserve(t, s, key, time.Minute, middleware.Handled)
		}
	})
}
