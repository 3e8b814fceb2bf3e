package jetstream_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/crash"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/jetstream"
)

// The processes of these tests. Their argument is the URL of the server, and
// after a space what else they need.
const (
	// roleResponder says of each request when it is "handled"; of the request
	// "hang" it does so and does not return.
	roleResponder = "responder"

	// roleAwaiter awaits a ticket and says what it got.
	roleAwaiter = "awaiter"
)

func connect(url string) (*nats.Conn, natsjs.JetStream, error) {
	nc, err := nats.Connect(url)
	if err != nil {
		return nil, nil, err
	}

	js, err := natsjs.New(nc)
	if err != nil {
		nc.Close()
	}

	return nc, js, err
}

func answerRequests(ctx context.Context, url string, say func(string)) error {
	nc, js, err := connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()

	consumer, err := js.Consumer(ctx, "REQUESTS", "responders")
	if err != nil {
		return err
	}

	return jetstream.NewResponder(js, consumer, words, words, silent).Serve(ctx, "requests.*",
		func(ctx context.Context, s string) (string, error) {
			say("handled " + s)

			if s == "hang" {
				<-ctx.Done()
			}

			return "re: " + s, nil
		})
}

func awaitTicket(ctx context.Context, arg string, say func(string)) error {
	url, ticket, _ := strings.Cut(arg, " ")

	nc, js, err := connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()

	asking := jetstream.NewRequester(js, words, words, replies)
	defer asking.Close()

	got, err := asking.Await(ctx, ticket)
	if err != nil {
		return err
	}

	say(got)

	return nil
}

// A ticket is good in another process, while nobody has answered and afterwards.
func TestAwaitInAnotherProcess(t *testing.T) {
	t.Parallel()

	e := setupRequestsTCP(t, natsjs.ConsumerConfig{})
	submitting := e.requester(t, replies)

	ticket, err := submitting.Submit(inTime(t), "requests.x", "a")
	must(t, err)
	submitting.Close()

	elsewhere := func() <-chan string {
		said := make(chan string, 1)
		crash.Start(t, roleAwaiter, e.server.URL()+" "+ticket, func(line string) { said <- line })

		return said
	}

	// Whoever awaits looks for the request, when there is no reply yet.
	looked := make(chan struct{}, 100)

	_, err = e.nc.Subscribe("$JS.API.STREAM.MSG.GET.REQUESTS", func(*nats.Msg) { looked <- struct{}{} })
	must(t, err)
	must(t, e.nc.Flush())

	before := elsewhere()

	<-looked
	e.serve(t, answer)

	for _, said := range []<-chan string{before, elsewhere()} {
		select {
		case got := <-said:
			if got != "re: a" {
				t.Errorf("the other one got %q", got)
			}
		case <-time.After(natstest.Limit):
			t.Fatal("the other one gets nothing")
		}
	}
}

func setupRequestsTCP(t *testing.T, cfg natsjs.ConsumerConfig) *requestEnv {
	t.Helper()

	return requestsOn(t, natstest.RunTCP(t), cfg)
}

// A responder that is killed while it handles a request for the last time cannot
// tell anybody. The sweeper does.
func TestRequesterIsToldOfAKilledResponder(t *testing.T) {
	t.Parallel()

	e := setupRequestsTCP(t, natsjs.ConsumerConfig{MaxDeliver: 1, AckWait: 500 * time.Millisecond})
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})
	sweep(t, e.js, e.consumer)

	asking := e.requester(t, replies)

	ticket, err := asking.Submit(goflux.WithMessageID(inTime(t), "o-1"), "requests.x", "hang")
	must(t, err)

	failed := make(chan error, 1)

	go func() {
		_, err := asking.Request(inTime(t), "requests.x", "hang")
		failed <- err
	}()

	natstest.Eventually(t, func() bool { return left(t, e.stream) == 2 }, "the requests to be stored")

	handled := make(chan string, 2)
	child := crash.Start(t, roleResponder, e.server.URL(), func(line string) { handled <- line })

	<-handled
	<-handled
	child.Kill()

	gaveUp := goflux.NewError(http.StatusInternalServerError, "the request was given up; attempts: 1")

	mustBe(t, <-failed, gaveUp)

	msg, err := asking.AwaitMessage(inTime(t), ticket)
	mustBe(t, err, gaveUp)

	if msg.ID() != "o-1" {
		t.Errorf("the reply has the headers %v", msg.Header)
	}

	e.empty(t)

	if dead := letters(t, e.js, 2); len(dead) != 2 || dead[0].Reason != goflux.ReasonExhausted {
		t.Errorf("dead letters %+v", dead)
	}
}

// Responders are processes that are killed at any moment and started again; each
// request gets its reply, and nothing is left.
func TestRequestsSurviveKilledProcesses(t *testing.T) {
	t.Parallel()

	const (
		n          = 500
		responders = 4
		kills      = 6
		requesters = 8
		parallel   = 8
	)

	e := setupRequestsTCP(t, natsjs.ConsumerConfig{AckWait: time.Second})

	var (
		killed, handled atomic.Int64
		serving         sync.WaitGroup
	)

	over := make(chan struct{})

	for range responders {
		serving.Go(func() {
			for {
				due := make(chan struct{})
				alive := 10 + rand.Int64N(40) // requests

				child := crash.Start(t, roleResponder, e.server.URL(), func(string) {
					handled.Add(1)

					if alive--; alive == 0 {
						close(due)
					}
				})

				select {
				case <-over:
					if err := child.Stop(); err != nil {
						t.Errorf("a responder ended with %v", err)
					}

					return
				case <-due:
				}

				if killed.Add(1) > kills {
					killed.Add(-1)
					<-over
					child.Kill()

					return
				}

				child.Kill()
			}
		})
	}

	var (
		next   atomic.Int64
		asking sync.WaitGroup
	)

	for range requesters {
		r := e.requester(t)

		for range parallel {
			asking.Go(func() {
				for i := next.Add(1); i <= n; i = next.Add(1) {
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					s := fmt.Sprint(i)
					got, err := r.Request(ctx, "requests.x", s)

					cancel()

					if err != nil || got != "re: "+s {
						t.Errorf("request %d: reply %q, error %v", i, got, err)
					}
				}
			})
		}
	}

	asking.Wait()
	e.empty(t)
	close(over)
	serving.Wait()

	if killed.Load() == 0 {
		t.Error("nobody was killed")
	}

	t.Logf("%d requests, %d handlings, %d processes killed", n, handled.Load(), killed.Load())
}
