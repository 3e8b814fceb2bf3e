package kvstore_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/middleware/kvstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = middleware.Key{Scope: "billing", ID: "id-1"}

// bucket makes a bucket with a TTL of an hour.
func bucket(t *testing.T, s natstest.Target, replicas int) jetstream.KeyValue {
	t.Helper()

	js := natstest.JetStream(t, natstest.Connect(t, s))

	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "handled", TTL: time.Hour, Replicas: replicas})
	must(t, err)

	return kv
}

func open(t *testing.T, kv jetstream.KeyValue) *kvstore.Store {
	t.Helper()

	s, err := kvstore.New(t.Context(), kv)
	must(t, err)

	return s
}

func must(t *testing.T, err error) {
	t.Helper()

	if err != nil {
		t.Fatal(err)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()

	if _, err := kvstore.New(t.Context(), nil); !errors.Is(err, goflux.ErrInvalidOption) {
		t.Errorf("no bucket: %v", err)
	}

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))

	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "forever"})
	must(t, err)

	if _, err := kvstore.New(t.Context(), kv); !errors.Is(err, goflux.ErrInvalidOption) || !strings.Contains(err.Error(), `"forever"`) {
		t.Errorf("no TTL: %v", err)
	}

	must(t, js.DeleteKeyValue(t.Context(), "forever"))

	if _, err := kvstore.New(t.Context(), kv); !errors.Is(err, jetstream.ErrStreamNotFound) || !strings.Contains(err.Error(), `"forever"`) {
		t.Errorf("bucket gone: %v", err)
	}
}

func TestLeaseExceedsTTL(t *testing.T) {
	t.Parallel()

	s := open(t, bucket(t, natstest.Run(t), 1))

	if _, err := s.Reserve(t.Context(), key, time.Hour+1); !errors.Is(err, goflux.ErrInvalidOption) || !strings.Contains(err.Error(), `"handled"`) {
		t.Errorf("got %v", err)
	}

	if r, err := s.Reserve(t.Context(), key, time.Hour); err != nil || r.Status != middleware.Reserved {
		t.Errorf("%v, %v", r, err)
	}
}

// What is in the bucket can be read by people.
func TestReadable(t *testing.T) {
	t.Parallel()

	kv := bucket(t, natstest.Run(t), 1)
	s := open(t, kv)

	r, err := s.Reserve(t.Context(), middleware.Key{Scope: "billing", ID: "order 17.2"}, time.Minute)
	must(t, err)

	entry, err := kv.Get(t.Context(), "billing.order=2017=2E2")
	must(t, err)

	if !strings.HasPrefix(string(entry.Value()), "reserved 1m0s ") {
		t.Errorf("got %s", entry.Value())
	}

	must(t, s.Record(t.Context(), middleware.Key{Scope: "billing", ID: "order 17.2"}, r.Token))

	entry, err = kv.Get(t.Context(), "billing.order=2017=2E2")
	must(t, err)

	if string(entry.Value()) != "handled" {
		t.Errorf("got %s", entry.Value())
	}
}

func TestForeignValue(t *testing.T) {
	t.Parallel()

	kv := bucket(t, natstest.Run(t), 1)
	s := open(t, kv)

	for _, value := range []string{"", "x", "handled?", "reserved", "reserved 1s", "reserved soon 1", "reserved 1s xyz", "reserved 1s 1 1"} {
		_, err := kv.PutString(t.Context(), "billing.id-1", value)
		must(t, err)

		if r, err := s.Reserve(t.Context(), key, time.Minute); err == nil || !strings.Contains(err.Error(), `"id-1"`) {
			t.Errorf("%q: %v, %v", value, r, err)
		}
	}
}

// forgetful loses the answer to the first write of each kind, or the write.
type forgetful struct {
	jetstream.KeyValue

	stores  bool // whether the write has happened
	created bool
	updated bool
	put     bool
}

func (f *forgetful) Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (uint64, error) {
	if !f.created {
		f.created = true

		if f.stores {
			_, _ = f.KeyValue.Create(ctx, key, value, opts...)
		}

		return 0, context.DeadlineExceeded
	}

	return f.KeyValue.Create(ctx, key, value, opts...)
}

func (f *forgetful) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if !f.updated {
		f.updated = true

		if f.stores {
			_, _ = f.KeyValue.Update(ctx, key, value, revision)
		}

		return 0, jetstream.ErrNoStreamResponse
	}

	return f.KeyValue.Update(ctx, key, value, revision)
}

func (f *forgetful) PutString(ctx context.Context, key, value string) (uint64, error) {
	if !f.put {
		f.put = true

		if f.stores {
			_, _ = f.KeyValue.PutString(ctx, key, value)
		}

		return 0, context.DeadlineExceeded
	}

	return f.KeyValue.PutString(ctx, key, value)
}

// A write whose answer is lost is repeated, and recognised should it have
// happened.
func TestLostAnswers(t *testing.T) {
	t.Parallel()

	for name, stores := range map[string]bool{"answer lost": true, "answer and write lost": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			kv := bucket(t, natstest.Run(t), 1)
			s := open(t, &forgetful{KeyValue: kv, stores: stores})
			fresh, abandoned := key, middleware.Key{Scope: "billing", ID: "id-2"}

			if _, err := open(t, kv).Reserve(t.Context(), abandoned, time.Nanosecond); err != nil {
				t.Fatal(err)
			}

			for _, key := range []middleware.Key{fresh, abandoned} {
				expect := func(want middleware.Status) middleware.Reservation {
					r, err := s.Reserve(t.Context(), key, time.Minute)
					if err != nil || r.Status != want {
						t.Fatalf("%s: got %+v, %v, want %d", key.ID, r, err, want)
					}

					return r
				}

				// The token is that of the reservation that is there.
				must(t, s.Release(t.Context(), key, expect(middleware.Reserved).Token))

				r := expect(middleware.Reserved)
				expect(middleware.InProgress)
				must(t, s.Record(t.Context(), key, r.Token))
				expect(middleware.Handled)
			}
		})
	}
}

// A server that is gone for a moment costs time and no reservation.
func TestServerRestart(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t)
	s := open(t, bucket(t, srv, 1))
	done := make(chan error, 1)

	srv.Stop()

	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), natstest.Limit)
		defer cancel()

		r, err := s.Reserve(ctx, key, time.Minute)
		if err == nil && r.Status == middleware.Reserved {
			err = s.Record(ctx, key, r.Token)
		}

		done <- err
	}()

	must(t, srv.Start())
	must(t, <-done)

	if r, err := s.Reserve(t.Context(), key, time.Minute); err != nil || r.Status != middleware.Handled {
		t.Errorf("got %+v, %v", r, err)
	}
}

// A server that stays away is an error, within the ctx that the caller gave.
func TestServerGone(t *testing.T) {
	t.Parallel()

	srv := natstest.Run(t)
	s := open(t, bucket(t, srv, 1))

	srv.Stop()

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()

	if r, err := s.Reserve(ctx, key, time.Minute); err == nil || !strings.Contains(err.Error(), `"handled"`) {
		t.Errorf("%+v, %v", r, err)
	}

	if err := s.Record(ctx, key, 1); err == nil || !strings.Contains(err.Error(), `"handled"`) {
		t.Errorf("%v", err)
	}

	if err := s.Release(ctx, key, 1); err == nil || !strings.Contains(err.Error(), `"handled"`) {
		t.Errorf("%v", err)
	}
}

// In a cluster the leader may change under a reservation, and a replica that
// answers may be behind.
func TestCluster(t *testing.T) {
	t.Parallel()

	c := natstest.RunCluster(t, 3)
	s := open(t, bucket(t, c, 3))

	contend(t, s)

	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
		done := make(chan error, 1)

		go func() {
			defer close(done)

			for i := range 30 {
				key := middleware.Key{Scope: "billing", ID: time.Now().String() + string(rune('a'+i))}

				r, err := s.Reserve(ctx, key, time.Minute)
				if err != nil || r.Status != middleware.Reserved {
					done <- errors.Join(errors.New("not reserved"), err)

					return
				}

				if err := s.Record(ctx, key, r.Token); err != nil {
					done <- err

					return
				}

				// A replica that is behind may say that it is in progress.
				if r, err := s.Reserve(ctx, key, time.Minute); err != nil || r.Status == middleware.Reserved {
					done <- errors.Join(errors.New("reserved after it was recorded"), err)

					return
				}
			}
		}()

		must(t, c.StepDownStream(ctx, "KV_handled"))
		must(t, <-done)
		cancel()
	}
}

// contend has several replicas take a message and give it back, over and over:
// at any time at most one of them has it.
func contend(t *testing.T, s *kvstore.Store) {
	t.Helper()

	var (
		wg            sync.WaitGroup
		holders, held atomic.Int64
	)

	for range 6 {
		wg.Go(func() {
			for range 50 {
				r, err := s.Reserve(t.Context(), key, time.Minute)
				if err != nil {
					t.Error(err)

					return
				}

				if r.Status != middleware.Reserved {
					continue
				}

				if n := holders.Add(1); n != 1 {
					t.Errorf("%d have reserved it", n)
				}

				held.Add(1)
				holders.Add(-1)

				if err := s.Release(t.Context(), key, r.Token); err != nil {
					t.Error(err)
				}
			}
		})
	}

	wg.Wait()

	if held.Load() < 2 {
		t.Errorf("reserved %d times", held.Load())
	}
}
