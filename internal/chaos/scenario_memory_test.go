package chaos_test

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/crash"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
	natsjs "github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
	corenats "github.com/foomo/goflux/transport/nats"
)

// roleServer is a NATS server in a process of its own, so that its memory is not
// that of the test. It says its URL; arg is the directory of its store.
const roleServer = "server"

func serve(ctx context.Context, arg string, say func(string)) error {
	s, err := embedded.Start(ctx, embedded.WithStoreDir(arg), embedded.WithListen("127.0.0.1", 0))
	if err != nil {
		return err
	}
	say(s.ClientURL())
	<-ctx.Done()
	return s.Shutdown()
}

// server starts one and returns its URL.
func (s *scenario) server() natstest.URL {
	s.Helper()
	url := make(chan string, 1)
	child := crash.Start(s.T, roleServer, s.TempDir(), func(line string) { url <- line })
	s.Cleanup(func() {
		if err := child.Stop(); err != nil {
			s.Error(err)
		}
	})
	select {
	case u := <-url:
		return natstest.URL(u)
	case <-child.Ended():
	case <-s.ctx.Done():
	}
	s.Fatal("the server did not start")
	return ""
}

// What is kept for messages, subjects and ordering keys is let go of when they
// are done with.
func TestSoakMemory(t *testing.T) {
	for name, open := range map[string]func(s *scenario) transport.Transport{
		"jetstream": func(s *scenario) transport.Transport {
			js := natstest.JetStream(t, natstest.Connect(t, s.server()))
			natstest.Stream(t, js, jetstream.StreamConfig{
				Name: story, Subjects: []string{"story.>"}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.MemoryStorage,
			})
			tr, err := natsjs.New(js)
			s.must(err)
			return tr
		},
		"nats": func(s *scenario) transport.Transport {
			tr, err := corenats.New(natstest.Connect(t, s.server()))
			s.must(err)
			return tr
		},
		"memory": func(s *scenario) transport.Transport {
			// Else it remembers the ids of two minutes.
			tr, err := memory.New(memory.WithDuplicateWindow(1))
			s.must(err)
			return tr
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t)
			tr := open(s)
			s.Cleanup(func() {
				if err := tr.Close(); err != nil {
					t.Error(err)
				}
			})
			s.flat(tr)
		})
	}
}

// flat sends messages through a transport, with new subjects and keys all the
// time, and compares the heap after a fifth of them with that after all.
func (s *scenario) flat(tr transport.Transport) {
	s.Helper()
	const batch = 1000
	total, subjects := size(50_000, 1_000_000), size(5000, 100_000)
	limit := size[int64](2<<20, 4<<20)

	var handled counter
	opts := []goflux.SubscriberOption{goflux.WithConcurrency(8), goflux.WithOrderingKey(func(m goflux.Message[string]) string { return m.Subject })}
	if tr.Capabilities().Has(transport.Durable) {
		opts = append(opts, goflux.WithQueueGroup(worker))
	}
	sub := s.subscribe(tr, "story.>", func(_ context.Context, msg goflux.Message[string]) error {
		if tr.Capabilities().Has(transport.Redelivery) && s.one(100, msg.Payload, msg.Attempt()) {
			return errors.New("one in a hundred")
		}
		handled.Add(1)
		return nil
	}, opts...)
	pub, err := goflux.NewPublisher(tr, raw.String())
	s.must(err)

	var before int64
	items := make([]goflux.Item[string], batch)
	for i := range total / batch {
		if i == total/batch/5 {
			before = heap()
		}
		for j := range items {
			n := i*batch + j
			items[j] = goflux.Item[string]{
				Subject: "story." + strconv.Itoa(n*subjects/total), Payload: strconv.Itoa(n), ID: strconv.Itoa(n),
			}
		}
		_, err := pub.PublishBatch(s.ctx, items...)
		s.must(err)
		s.await(handled.reaches((i+1)*batch), "message %d", (i+1)*batch)
	}
	grown := heap() - before
	s.Logf("%d messages, %d subjects and keys: from %d to %d KB in use", total, subjects, before>>10, (before+grown)>>10)
	if grown > limit {
		s.Errorf("the heap has grown by %d KB, limit %d", grown>>10, limit>>10)
	}
	s.must(pub.Close())
	s.must(sub.stop())
}

// heap returns the bytes in use.
func heap() int64 {
	var m runtime.MemStats
	// The second time frees what the first one let pools go of.
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
