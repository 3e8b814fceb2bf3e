package jetstream_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/jetstream"
)

// A server that has no room for all that is sent to it stores it all the same,
// each message once; where nothing may be repeated, the error says what to do.
func TestServerWithoutRoom(t *testing.T) {
	t.Parallel()

	const n = 10_000

	s := natstest.Run(t, embedded.WithConfig(func(o *server.Options) { o.StreamMaxBufferedMsgs = 200 }))
	js := natstest.JetStream(t, natstest.Connect(t, s))
	stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}})

	tr, err := jetstream.New(js)
	must(t, err)
	t.Cleanup(func() { must(t, tr.Close()) })

	_, err = publisher(t, tr, goflux.WithPublishRetry(0)).PublishBatch(within(t), batchOf("events.a", n)...)
	must(t, err)

	info, err := stream.Info(t.Context())
	must(t, err)

	if info.State.Msgs != n {
		t.Errorf("%d messages are stored, want %d", info.State.Msgs, n)
	}

	results, err := publisher(t, tr).PublishBatch(within(t), batchOf("events.b", n)...)
	if !errors.Is(err, goflux.ErrUnavailable) || !strings.Contains(err.Error(), "WithPublishRetry") {
		t.Errorf("got %v", err)
	}

	stored := n

	for _, r := range results {
		if r.Err == nil {
			stored++
		} else if errors.Is(r.Err, goflux.ErrPublishUnknown) {
			t.Fatalf("got %v, want to know that it is not stored", r.Err)
		}
	}

	info, err = stream.Info(t.Context())
	must(t, err)

	if info.State.Msgs != uint64(stored) {
		t.Errorf("%d messages are stored, want %d", info.State.Msgs, stored)
	}
}

// An error names the subject and the stream, whichever way was taken.
func TestPublishErrorsNameTheStream(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "SMALL", Subjects: []string{"small"}, MaxMsgSize: 100, AllowAtomicPublish: true})

	for name, opts := range map[string][]goflux.PublisherOption{"plain": nil, "safe": {goflux.WithPublishRetry(0)}} {
		pub := publisher(t, e.transport(t), opts...)
		ctx := within(t)
		large := strings.Repeat("x", 200)

		_, async := pub.PublishBatch(ctx, goflux.Item[string]{Subject: "small", Payload: large})
		_, atomic := pub.PublishAtomic(ctx, goflux.Item[string]{Subject: "small", Payload: large})

		for what, err := range map[string]error{"Publish": pub.Publish(ctx, "small", large), "PublishBatch": async, "PublishAtomic": atomic} {
			if d := details(t, err, goflux.ErrTooLarge); d.Subject != "small" || d.Stream != "SMALL" {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

// What answers on the subject and is no stream is asked once, and never believed
// to have stored the message.
func TestAnswersOfOthers(t *testing.T) {
	t.Parallel()

	e := setup(t)

	var (
		answer atomic.Value
		asked  atomic.Int64
	)

	sub, err := e.nc.Subscribe("else", func(m *nats.Msg) {
		asked.Add(1)

		_ = m.Respond([]byte(answer.Load().(string)))
	})
	must(t, err)

	t.Cleanup(func() { must(t, sub.Unsubscribe()) })

	tr := e.transport(t)

	// A stream is known, so that its answers are read without looking twice.
	must(t, publisher(t, tr).Publish(within(t), "events.a", "x"))

	for _, text := range []string{
		"hello", "{}", "null", "[]", `{"stream":"EVENTS"}`, `{"stream":"EVENTS", "seq":0}`, `{"stream":"X","seq":-1}`,
		`{"stream":"EVENTS", "seq":99999999999999999999}`, `{"error":{}}`, `{"error":{"message":"no"},"stream":"X","seq":1}`,
	} {
		answer.Store(text)

		for _, opts := range [][]goflux.PublisherOption{nil, {goflux.WithPublishRetry(0)}} {
			pub := publisher(t, tr, opts...)
			before := asked.Load()
			began := time.Now()

			_, err := pub.Send(within(t), "else", "x")
			if !errors.Is(err, goflux.ErrNoStream) || !errors.Is(err, goflux.ErrPublishUnknown) {
				t.Errorf("%s: got %v", text, err)
			}

			results, err := pub.PublishBatch(within(t), goflux.Item[string]{Subject: "else"})
			if !errors.Is(err, goflux.ErrNoStream) || !errors.Is(err, goflux.ErrPublishUnknown) {
				t.Errorf("%s: got %+v", text, results)
			}

			if n := asked.Load() - before; n != 2 || time.Since(began) > natstest.Limit/2 {
				t.Errorf("%s: asked %d times in %v", text, n, time.Since(began))
			}
		}
	}
}

// A leader that is older than atomic batches stores their first message by
// itself: that is no batch, and not nothing.
func TestAtomicBatchOfAnOldLeader(t *testing.T) {
	t.Parallel()

	e := setup(t)

	var asked atomic.Int64

	sub, err := e.nc.Subscribe("old", func(m *nats.Msg) {
		asked.Add(1)

		_ = m.Respond([]byte(`{"stream":"OLD","seq":7}`))
	})
	must(t, err)

	t.Cleanup(func() { must(t, sub.Unsubscribe()) })

	for _, opts := range [][]goflux.PublisherOption{nil, {goflux.WithPublishRetry(0)}} {
		before := asked.Load()
		_, err := publisher(t, e.transport(t), opts...).PublishAtomic(within(t), batchOf("old", 3)...)

		if !errors.Is(err, goflux.ErrUnsupported) || !errors.Is(err, goflux.ErrPublishUnknown) || !strings.Contains(err.Error(), "as 7") {
			t.Errorf("got %v", err)
		}

		if n := asked.Load() - before; n != 1 {
			t.Errorf("%d messages were sent", n)
		}
	}
}

// oldServer is a server of which there is nothing but its version.
func oldServer(t *testing.T, version string) string {
	t.Helper()

	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)

	var wg sync.WaitGroup

	t.Cleanup(func() {
		_ = l.Close()

		wg.Wait()
	})

	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}

			wg.Go(func() {
				defer func() { _ = c.Close() }()

				_, _ = fmt.Fprintf(c, "INFO {\"server_id\":\"OLD\",\"version\":%q,\"proto\":1,\"headers\":true,\"max_payload\":1048576}\r\n", version)

				for lines := bufio.NewScanner(c); lines.Scan(); {
					if lines.Text() == "PING" {
						_, _ = c.Write([]byte("PONG\r\n"))
					}
				}
			})
		}
	})

	return "nats://" + l.Addr().String()
}

// What an older server would ignore is not sent to it.
func TestOldServers(t *testing.T) {
	t.Parallel()

	for version, test := range map[string]struct{ ttl, atomic bool }{
		"2.10.29": {}, "2.11.4": {ttl: true}, "2.12.0": {true, true}, "3.0.0-beta.1": {true, true}, "next": {true, true},
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()

			nc, err := nats.Connect(oldServer(t, version))
			must(t, err)
			t.Cleanup(nc.Close)

			tr, err := jetstream.New(natstest.JetStream(t, nc))
			must(t, err)

			pub := publisher(t, tr)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			_, ttl := pub.Send(ctx, "a", "x", goflux.TTL(time.Hour))

			cancel()

			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
			_, atomic := pub.PublishAtomic(ctx, batchOf("a", 2)...)

			cancel()

			for what, row := range map[string]struct {
				can  bool
				err  error
				says string
			}{
				"a TTL": {test.ttl, ttl, "nats-server 2.11, this one is " + version}, "a batch": {test.atomic, atomic, "nats-server 2.12, this one is " + version},
			} {
				// One that could do it says nothing at all.
				want := goflux.ErrUnsupported
				if row.can {
					want, row.says = context.DeadlineExceeded, ""
				}

				if !errors.Is(row.err, want) || !strings.Contains(row.err.Error(), row.says) {
					t.Errorf("%s: got %v, want %v and %q", what, row.err, want, row.says)
				}
			}
		})
	}
}

// A cluster that has no leader at the moment is asked again.
func TestScheduleWithoutLeader(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "LATER", Subjects: []string{"later", "schedule.later.*"}, AllowMsgSchedules: true})

	// An API that says so for a while.
	js, err := natsjs.NewWithAPIPrefix(e.nc, "FAKE")
	must(t, err)

	for subject, answer := range map[string]any{
		"FAKE.STREAM.NAMES": map[string]any{"total": 1, "limit": 1024, "streams": []string{"LATER"}},
		"FAKE.STREAM.INFO.LATER": natsjs.StreamInfo{Config: natsjs.StreamConfig{
			Name: "LATER", Subjects: []string{"later", "schedule.later.*"}, AllowMsgSchedules: true,
		}},
	} {
		data, err := json.Marshal(answer)
		must(t, err)

		asked := 0

		sub, err := e.nc.Subscribe(subject, func(m *nats.Msg) {
			if asked++; asked <= 2 {
				_ = m.Respond([]byte(`{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`))
			} else {
				_ = m.Respond(data)
			}
		})
		must(t, err)

		t.Cleanup(func() { must(t, sub.Unsubscribe()) })
	}

	tr, err := jetstream.New(js)
	must(t, err)
	t.Cleanup(func() { must(t, tr.Close()) })

	if err := publisher(t, tr).PublishAfter(within(t), "later", "x", time.Hour); !errors.Is(err, goflux.ErrUnavailable) {
		t.Errorf("got %v", err)
	}

	must(t, publisher(t, tr, goflux.WithPublishRetry(0)).PublishAfter(within(t), "later", "x", time.Hour))
}

// Without a deadline the handle's default counts, for each call.
func TestDefaultTimeout(t *testing.T) {
	t.Parallel()

	e := setup(t)

	js, err := natsjs.New(e.nc, natsjs.WithDefaultTimeout(300*time.Millisecond))
	must(t, err)

	tr, err := jetstream.New(js)
	must(t, err)
	t.Cleanup(func() { must(t, tr.Close()) })

	sub, err := e.nc.Subscribe("mute", func(*nats.Msg) {})
	must(t, err)

	t.Cleanup(func() { must(t, sub.Unsubscribe()) })

	pub := publisher(t, tr)

	for what, publish := range map[string]func() error{
		"Publish": func() error { return pub.Publish(context.Background(), "mute", "x") },
		"PublishBatch": func() error {
			_, err := pub.PublishBatch(context.Background(), batchOf("mute", 1)...)

			return err
		},
	} {
		began := time.Now()
		err := publish()

		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took < 300*time.Millisecond || took > 4*time.Second {
			t.Errorf("%s: %v after %v", what, err, took)
		}
	}

	if tr := e.transport(t); tr.DefaultTimeout() != 5*time.Second {
		t.Errorf("the default is %v", tr.DefaultTimeout())
	}
}
