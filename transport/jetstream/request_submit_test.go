package jetstream_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/jetstream"
)

// A stream remembers ids for all of its subjects together. Requests that are not
// the same are stored all the same.
func TestOneIDForSeveralRequests(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	ctx := goflux.WithMessageID(inTime(t), "order-7")

	var handled sync.Map

	e.serve(t, func(ctx context.Context, s string) (string, error) {
		handled.Store(goflux.CallFromContext(ctx).Subject+" "+s, goflux.MessageID(ctx))

		return "re: " + s, nil
	})

	elsewhere := jetstream.WithReplyStream(natsjs.StreamConfig{Name: "ELSEWHERE"})
	key := jetstream.WithTicketKey([]byte("0123456789abcdef"))
	tickets := map[string]bool{}

	for _, c := range []struct {
		subject, body string
		asking        *jetstream.Requester[string, string]
	}{
		{"requests.charge", "a", e.requester(t, replies)},
		{"requests.ship", "b", e.requester(t, replies)},
		{"requests.ship", "another stream of replies", e.requester(t, elsewhere)},
		{"requests.ship", "a key", e.requester(t, replies, key)},
		{"requests.ship", "asked, not submitted", e.requester(t)},
		{"requests.charge", "asked, not submitted", e.requester(t)},
	} {
		var (
			got, ticket string
			err         error
		)

		if c.body == "asked, not submitted" {
			got, err = c.asking.Request(ctx, c.subject, c.body)
		} else if ticket, err = c.asking.Submit(ctx, c.subject, c.body); err == nil {
			if tickets[ticket] {
				t.Errorf("%s, %s: the ticket of another one", c.subject, c.body)
			}

			tickets[ticket] = true
			got, err = c.asking.Await(ctx, ticket)
		}

		if err != nil || got != "re: "+c.body {
			t.Errorf("%s, %s: reply %q, error %v", c.subject, c.body, got, err)
		}

		if id, _ := handled.Load(c.subject + " " + c.body); id != "order-7" {
			t.Errorf("%s, %s: handled under the id %v", c.subject, c.body, id)
		}
	}

	e.empty(t)
}

// What was answered is remembered by its reply, longer than its stream remembers
// ids.
func TestSubmitAgainAfterTheReply(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	cfg := e.stream.CachedInfo().Config
	cfg.Duplicates = 100 * time.Millisecond

	_, err := e.js.UpdateStream(inTime(t), cfg)
	must(t, err)

	var handled atomic.Int64

	e.serve(t, func(context.Context, string) (string, error) {
		handled.Add(1)

		return "done", nil
	})

	asking := e.requester(t, replies)
	ctx := goflux.WithMessageID(inTime(t), "1")

	first, err := asking.Submit(ctx, "requests.x", "x")
	must(t, err)

	_, err = asking.Await(inTime(t), first)
	must(t, err)

	// An id that was stored later is forgotten; so is that one.
	natstest.Eventually(t, func() bool {
		ack, err := e.js.Publish(inTime(t), "requests.probe", []byte(`"probe"`), natsjs.WithMsgID("probe"))
		must(t, err)

		return ack.Sequence > 2 && !ack.Duplicate
	}, "the window to be over")
	e.empty(t)

	before := handled.Load()

	if again, err := e.requester(t, replies).Submit(ctx, "requests.x", "x"); err != nil || again != first {
		t.Errorf("tickets %q and %q, error %v", first, again, err)
	}

	if n := left(t, e.stream); n != 0 || handled.Load() != before {
		t.Errorf("it was stored, or handled, twice: %d are left", n)
	}
}

// Only a work queue tells what is done with.
func TestSubmitNeedsAWorkQueue(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})

	for name, retention := range map[string]natsjs.RetentionPolicy{"LIMITS": natsjs.LimitsPolicy, "INTEREST": natsjs.InterestPolicy} {
		natstest.Stream(t, e.js, natsjs.StreamConfig{Name: name, Subjects: []string{name}, Retention: retention})

		_, err := e.requester(t, replies).Submit(inTime(t), name, "x")
		mustBe(t, err, goflux.ErrInvalidOption)
	}
}

// A stream of replies that was deleted is made again, for requests that are
// submitted afterwards and for those that wait.
func TestReplyStreamThatWasDeleted(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})

	// In memory: what was in a file may be there again when the stream is made
	// at once (nats-server v2.15.2).
	asking := e.requester(t, jetstream.WithReplyStream(natsjs.StreamConfig{
		Name: "REPLIES", Subjects: []string{"replies.*"}, Storage: natsjs.MemoryStorage,
	}))

	before, err := asking.Submit(inTime(t), "requests.x", "before")
	must(t, err)
	must(t, e.js.DeleteStream(inTime(t), "REPLIES"))

	after, err := asking.Submit(inTime(t), "requests.x", "after")
	must(t, err)

	e.serve(t, answer)

	for ticket, want := range map[string]string{before: "re: before", after: "re: after"} {
		if got, err := asking.Await(inTime(t), ticket); err != nil || got != want {
			t.Errorf("reply %q, error %v, want %q", got, err, want)
		}
	}

	must(t, e.js.DeleteStream(inTime(t), "REPLIES"))

	_, err = asking.Await(inTime(t), before)
	mustBe(t, err, goflux.ErrTicketExpired)
}

// Who subscribes to the subject of requests hides that no stream has it.
func TestRequestsThatNoStreamConfirms(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	natstest.Stream(t, e.js, natsjs.StreamConfig{
		Name: "MUTE", Subjects: []string{"mute"}, Retention: natsjs.WorkQueuePolicy, NoAck: true,
	})

	var published atomic.Int64

	_, err := e.nc.Subscribe("core", func(*nats.Msg) { published.Add(1) })
	must(t, err)

	for subject, want := range map[string]error{"core": goflux.ErrNoStream, "mute": goflux.ErrUnsupported} {
		t.Run(subject, func(t *testing.T) {
			t.Parallel()

			asking := e.requester(t, replies)

			_, err := asking.Submit(inTime(t), subject, "x")
			mustBe(t, err, want)

			// In the time that there is, too.
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()

			_, err = asking.Request(ctx, subject, "x")
			mustBe(t, err, want)
		})
	}

	t.Run("closed meanwhile", func(t *testing.T) {
		t.Parallel()

		asking := e.requester(t, replies)
		failed := make(chan error, 1)
		before := published.Load()

		go func() {
			_, err := asking.Submit(context.Background(), "core", "x")
			failed <- err
		}()

		natstest.Eventually(t, func() bool { return published.Load() > before }, "the request to be sent")
		asking.Close()
		mustBe(t, <-failed, goflux.ErrClosed)
	})
}

// The reply confirms the request where its stream does not.
func TestRequestOverAStreamWithoutAcks(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	cfg := e.stream.CachedInfo().Config
	cfg.NoAck = true

	_, err := e.js.UpdateStream(inTime(t), cfg)
	must(t, err)
	e.serve(t, answer)

	if got, err := e.requester(t).Request(inTime(t), "requests.x", "a"); err != nil || got != "re: a" {
		t.Errorf("reply %q, error %v", got, err)
	}

	e.empty(t)
}

// A request that was sent twice finds out whether it is a duplicate of itself.
func TestDuplicateOfARequestThatWasNotConfirmed(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	nc := natstest.Connect(t, s)
	js := natstest.JetStream(t, nc)

	reached := make(chan struct{}, 100)

	// There is no stream yet, and somebody who keeps quiet.
	sub, err := nc.Subscribe("requests.x", func(*nats.Msg) { reached <- struct{}{} })
	must(t, err)
	must(t, nc.Flush())

	asking := jetstream.NewRequester(js, words, words)
	defer asking.Close()

	ctx := goflux.WithMessageID(inTime(t), "1")
	ask := func() chan error {
		failed := make(chan error, 1)

		go func() {
			_, err := asking.Request(ctx, "requests.x", "a")
			failed <- err
		}()

		return failed
	}

	first := ask()

	<-reached
	must(t, sub.Unsubscribe())
	must(t, nc.Flush())

	stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: "REQUESTS", Subjects: []string{"requests.*"}, Retention: natsjs.WorkQueuePolicy})
	second := ask() // is stored while the first one waits for its confirmation

	natstest.Eventually(t, func() bool { return left(t, stream) == 1 }, "the second one to be stored")
	mustBe(t, <-first, goflux.ErrDuplicateRequest)

	e := &requestEnv{s, nc, js, stream, natstest.Consumer(t, stream, natsjs.ConsumerConfig{Durable: "responders"})}
	e.serve(t, answer)
	must(t, <-second)
}
