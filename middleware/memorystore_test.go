package middleware_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux/middleware"
)

func TestMemoryStoreTTL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := middleware.NewMemoryStore(time.Minute, 0)
		a, b := middleware.Key{ID: "a"}, middleware.Key{ID: "b"}

		must(t, s.Record(t.Context(), a, reserve(t, s, a, time.Second, middleware.Reserved).Token))
		time.Sleep(time.Minute - 1)
		reserve(t, s, a, time.Second, middleware.Handled)
		time.Sleep(time.Nanosecond)

		// Another message has it forgotten, and it is new again.
		reserve(t, s, b, time.Second, middleware.Reserved)

		if got := s.Len(); got != 1 {
			t.Errorf("%d entries", got)
		}

		reserve(t, s, a, time.Second, middleware.Reserved)
	})
}

// The wait of who comes second is exactly what is left of the lease.
func TestMemoryStoreWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, key := middleware.NewMemoryStore(0, 0), middleware.Key{ID: "a"}

		reserve(t, s, key, time.Minute, middleware.Reserved)
		time.Sleep(20 * time.Second)

		r := reserve(t, s, key, time.Minute, middleware.InProgress)
		if r.Wait != 40*time.Second {
			t.Errorf("a wait of %v", r.Wait)
		}

		time.Sleep(r.Wait)
		reserve(t, s, key, time.Minute, middleware.Reserved)
	})
}

// A reservation that outlives what came after it does not keep that forever.
func TestMemoryStoreLongReservation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := middleware.NewMemoryStore(time.Second, 3)

		reserve(t, s, middleware.Key{ID: "long"}, time.Hour, middleware.Reserved)

		for _, id := range []string{"a", "b", "c", "d"} {
			key := middleware.Key{ID: id}
			must(t, s.Record(t.Context(), key, reserve(t, s, key, time.Minute, middleware.Reserved).Token))
			time.Sleep(2 * time.Second)
		}

		if got := s.Len(); got > 3 {
			t.Errorf("%d entries", got)
		}

		reserve(t, s, middleware.Key{ID: "long"}, time.Hour, middleware.InProgress)
	})
}

func TestMemoryStoreForgets(t *testing.T) {
	t.Parallel()

	const n = 10

	s := middleware.NewMemoryStore(time.Hour, n)

	for i := range 100 * n {
		key := middleware.Key{ID: fmt.Sprint(i)}
		must(t, s.Record(t.Context(), key, reserve(t, s, key, time.Minute, middleware.Reserved).Token))

		if got := s.Len(); got != min(i+1, n) {
			t.Fatalf("%d entries after %d messages", got, i+1)
		}
	}

	// The last ones are known, and those before are not.
	for i := 99 * n; i < 100*n; i++ {
		want := middleware.Handled
		if i < 100*n-n {
			want = middleware.Reserved
		}

		reserve(t, s, middleware.Key{ID: fmt.Sprint(i)}, time.Minute, want)
	}
}

func TestMemoryStoreFull(t *testing.T) {
	t.Parallel()

	s := middleware.NewMemoryStore(time.Hour, 3)
	a, b, c, d := middleware.Key{ID: "a"}, middleware.Key{ID: "b"}, middleware.Key{ID: "c"}, middleware.Key{ID: "d"}

	first := reserve(t, s, a, time.Minute, middleware.Reserved)
	second := reserve(t, s, b, time.Minute, middleware.Reserved)
	third := reserve(t, s, c, time.Minute, middleware.Reserved)

	if r, err := s.Reserve(t.Context(), d, time.Minute); err != middleware.ErrStoreFull { //nolint:errorlint // unchanged
		t.Errorf("got %v, %v", r, err)
	}

	if err := s.Record(t.Context(), d, 1); err != middleware.ErrStoreFull { //nolint:errorlint // unchanged
		t.Errorf("got %v", err)
	}

	// What makes room is the record, though the reservations are older.
	must(t, s.Record(t.Context(), c, third.Token))
	reserve(t, s, d, time.Minute, middleware.Reserved)
	reserve(t, s, a, time.Minute, middleware.InProgress)
	reserve(t, s, b, time.Minute, middleware.InProgress)

	// What was reserved can always be recorded and released.
	must(t, s.Record(t.Context(), a, first.Token))
	must(t, s.Release(t.Context(), b, second.Token))

	if got := s.Len(); got != 2 {
		t.Errorf("%d entries", got)
	}
}

// The oldest record is the one that was recorded first, not reserved first.
func TestMemoryStoreEvictsOldestRecord(t *testing.T) {
	t.Parallel()

	s := middleware.NewMemoryStore(time.Hour, 2)
	a, b, c := middleware.Key{ID: "a"}, middleware.Key{ID: "b"}, middleware.Key{ID: "c"}

	first := reserve(t, s, a, time.Minute, middleware.Reserved)
	second := reserve(t, s, b, time.Minute, middleware.Reserved)
	must(t, s.Record(t.Context(), b, second.Token))
	must(t, s.Record(t.Context(), a, first.Token))

	reserve(t, s, c, time.Minute, middleware.Reserved)
	reserve(t, s, a, time.Minute, middleware.Handled)
}

//nolint:paralleltest // AllocsPerRun counts the allocations of the whole process
func TestMemoryStoreAllocations(t *testing.T) {
	s := middleware.NewMemoryStore(time.Hour, 10)
	ctx, i := context.Background(), 0
	ids := make([]string, 1000)

	for i := range ids {
		ids[i] = fmt.Sprintf("id-%d", i)
	}

	run := func() {
		key := middleware.Key{Scope: "billing", ID: ids[i%len(ids)]}
		i++

		r, _ := s.Reserve(ctx, key, time.Minute)
		_ = s.Record(ctx, key, r.Token)
	}

	for range 1000 {
		run()
	}

	// The copy of the id.
	if n := testing.AllocsPerRun(1000, run); n > 1 {
		t.Errorf("%v allocations a message", n)
	}
}
