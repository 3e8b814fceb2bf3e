package jetstream_test

import (
	"context"
	"encoding/base64"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/jetstream"
)

// awaiting begins an Await, and returns when it has found no reply.
func (e *requestEnv) awaiting(t *testing.T, r *jetstream.Requester[string, string], ticket string) <-chan error {
	t.Helper()

	// The second thing it looks for is the request, and it gets an answer.
	const asks, answers = "$JS.API.STREAM.MSG.GET.REQUESTS", "_INBOX.>"

	looked := make(chan string, 1000)
	observer := natstest.Connect(t, e.server)

	for _, subject := range []string{asks, answers} {
		_, err := observer.Subscribe(subject, func(m *nats.Msg) {
			select {
			case looked <- m.Sub.Subject:
			default:
			}
		})
		must(t, err)
	}

	must(t, observer.Flush())

	done := make(chan error, 1)

	go func() {
		_, err := r.Await(inTime(t), ticket)
		done <- err
	}()

	for _, subject := range []string{asks, answers} {
		for got := ""; got != subject; {
			select {
			case got = <-looked:
			case <-time.After(natstest.Limit):
				t.Fatal("it does not look for the request")
			}
		}
	}

	return done
}

// Who waits is told of the reply, and does not look for it.
func TestAwaitDoesNotPoll(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	asking := e.requester(t, replies, jetstream.WithLookAgain(10*time.Minute))

	goOn := make(chan struct{})

	e.serve(t, func(context.Context, string) (string, error) {
		<-goOn

		return "", nil
	})

	for range 5 {
		ticket, err := asking.Submit(inTime(t), "requests.x", "x")
		must(t, err)

		done := e.awaiting(t, asking, ticket)
		goOn <- struct{}{}

		must(t, <-done)
	}
}

// A reply that came while the connection was lost is found when it is back.
func TestAwaitLooksAfterAReconnect(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	flaky := *e

	lost, goOn := make(chan struct{}, 10), make(chan struct{})
	flaky.nc = natstest.Connect(t, e.server, nats.ReconnectWait(300*time.Millisecond),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { lost <- struct{}{} }))
	flaky.js = natstest.JetStream(t, flaky.nc)
	asking := flaky.requester(t, replies, jetstream.WithLookAgain(10*time.Minute))

	e.serve(t, func(context.Context, string) (string, error) {
		<-goOn

		return "", nil
	})

	ticket, err := asking.Submit(inTime(t), "requests.x", "x")
	must(t, err)

	done := flaky.awaiting(t, asking, ticket)
	id, err := flaky.nc.GetClientID()
	must(t, err)
	must(t, e.server.NATSServer().DisconnectClientByID(id))
	<-lost
	close(goOn)
	must(t, <-done)
}

// A request that is deleted has no reply: whoever waits for it learns that.
func TestAwaitEndsWithItsRequest(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	asking := e.requester(t, replies, jetstream.WithLookAgain(100*time.Millisecond))

	ticket, err := asking.Submit(inTime(t), "requests.x", "x")
	must(t, err)

	done := e.awaiting(t, asking, ticket)
	must(t, e.stream.Purge(inTime(t)))
	mustBe(t, <-done, goflux.ErrTicketExpired)
}

// However many wait, and however they end, nothing of them is left.
func TestAwaitLeavesNothing(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	asking := e.requester(t, replies)

	ticket, err := asking.Submit(inTime(t), "requests.x", "x")
	must(t, err)

	stream, err := e.js.Stream(inTime(t), "REPLIES")
	must(t, err)

	before := e.nc.NumSubscriptions()

	var waiting sync.WaitGroup

	for i := range 300 {
		waiting.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
			defer cancel()

			_, err := asking.Await(ctx, ticket)
			mustBe(t, err, context.DeadlineExceeded)
		})
	}

	waiting.Wait()

	if n := e.nc.NumSubscriptions(); n != before {
		t.Errorf("%d subscriptions, there were %d", n, before)
	}

	if n := responses(e.nc); n != 0 {
		t.Errorf("%d entries in nats.go's map of replies", n)
	}

	if info, err := stream.Info(inTime(t)); err != nil || info.State.Consumers != 0 {
		t.Errorf("%+v, error %v", info.State, err)
	}
}

// Without a connection, and without a buffer that would take the questions, Await
// waits, and leaves nothing in the client.
func TestAwaitWithoutAConnection(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	e.nc = natstest.Connect(t, e.server, nats.ReconnectBufSize(-1))
	e.js = natstest.JetStream(t, e.nc)
	asking := e.requester(t, replies)

	ticket, err := asking.Submit(inTime(t), "requests.x", "a")
	must(t, err)

	e.server.Stop()
	natstest.Eventually(t, e.nc.IsReconnecting, "the client to see that the server is gone")

	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err := asking.Await(ctx, ticket)

		cancel()
		mustBe(t, err, context.DeadlineExceeded)
	}

	if n := responses(e.nc); n != 0 {
		t.Errorf("%d entries in nats.go's map of replies", n)
	}

	awaited := make(chan error, 1)

	go func() {
		_, err := asking.Await(inTime(t), ticket)
		awaited <- err
	}()

	must(t, e.server.Start())
	natstest.Eventually(t, e.nc.IsConnected, "the client to be back")

	e.consumer, err = e.js.Consumer(inTime(t), "REQUESTS", "responders")
	must(t, err)
	e.serve(t, answer)
	must(t, <-awaited)
}

// A reply may be as large as a message.
func TestAwaitALargeReply(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	large := strings.Repeat("x", 1_000_000)

	e.serve(t, func(context.Context, string) (string, error) { return large, nil })

	asking := e.requester(t, replies)
	ticket, err := asking.Submit(inTime(t), "requests.x", "x")
	must(t, err)

	for range 2 {
		if got, err := asking.Await(inTime(t), ticket); err != nil || got != large {
			t.Errorf("%d bytes, error %v", len(got), err)
		}
	}
}

// Tickets that somebody made up tell little, and nothing at all where there is a
// key.
func TestTicketsThatWereMadeUp(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	e.serve(t, answer)

	key := []byte("0123456789abcdef")
	plain := e.requester(t, replies)
	keyed := e.requester(t, replies, jetstream.WithTicketKey(key))
	other := e.requester(t, replies, jetstream.WithTicketKey([]byte("fedcba9876543210")))

	ticket, err := keyed.Submit(inTime(t), "requests.x", "a")
	must(t, err)

	if got, err := e.requester(t, replies, jetstream.WithTicketKey(key)).Await(inTime(t), ticket); err != nil || got != "re: a" {
		t.Errorf("reply %q, error %v", got, err)
	}

	for name, r := range map[string]*jetstream.Requester[string, string]{"no key": plain, "another key": other} {
		if _, err := r.Await(inTime(t), ticket); err == nil {
			t.Errorf("%s: the ticket of another key is good", name)
		} else {
			mustBe(t, err, goflux.ErrTicketUnknown)
		}
	}

	e.empty(t)

	payroll := natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "PAYROLL", Subjects: []string{"payroll"}})

	for range 3 {
		_, err := e.js.Publish(inTime(t), "payroll", []byte("secret"))
		must(t, err)
	}

	must(t, payroll.DeleteMsg(inTime(t), 2))

	asked := make(chan string, 1000)

	_, err = e.nc.Subscribe("$JS.API.STREAM.>", func(m *nats.Msg) { asked <- m.Subject })
	must(t, err)
	must(t, e.nc.Flush())

	madeUp := func(where string) string {
		return "gt1_" + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("0", 32)+"."+where))
	}

	places := []string{"1.PAYROLL", "2.PAYROLL", "9.PAYROLL", "1.NONE", "1.LAST"}

	for _, where := range places {
		_, err := keyed.Await(inTime(t), madeUp(where))
		mustBe(t, err, goflux.ErrTicketUnknown)
	}

	// What is asked from here on is asked without a key.
	_, err = plain.Await(inTime(t), madeUp("1.LAST"))
	mustBe(t, err, goflux.ErrTicketUnknown)

	for subject := ""; subject != "$JS.API.STREAM.MSG.GET.LAST"; {
		if subject = <-asked; strings.HasSuffix(subject, ".PAYROLL") || strings.HasSuffix(subject, ".NONE") {
			t.Errorf("a ticket that was made up leads to %s", subject)
		}
	}

	for _, where := range places {
		_, err = plain.Await(inTime(t), madeUp(where))
		mustBe(t, err, goflux.ErrTicketUnknown)

		if strings.Contains(err.Error(), "PAYROLL") {
			t.Errorf("the error tells of streams: %v", err)
		}
	}
}
