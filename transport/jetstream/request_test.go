package jetstream_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

var (
	words  = json.NewCodec[string]()
	silent = goflux.WithLogger(slog.New(slog.DiscardHandler))
)

// requestEnv is a server with a work queue of requests and a consumer of it.
type requestEnv struct {
	server   *natstest.Server
	nc       *nats.Conn
	js       natsjs.JetStream
	stream   natsjs.Stream
	consumer natsjs.Consumer
}

// replies is a stream of replies.
var replies = jetstream.WithReplyStream(natsjs.StreamConfig{Name: "REPLIES", Subjects: []string{"replies.*"}})

func setupRequests(t *testing.T, cfg natsjs.ConsumerConfig) *requestEnv {
	t.Helper()

	return requestsOn(t, natstest.Run(t), cfg)
}

func requestsOn(t *testing.T, s *natstest.Server, cfg natsjs.ConsumerConfig) *requestEnv {
	t.Helper()

	nc := natstest.Connect(t, s)
	js := natstest.JetStream(t, nc)
	stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: "REQUESTS", Subjects: []string{"requests.*"}, Retention: natsjs.WorkQueuePolicy})

	cfg.Durable = "responders"

	return &requestEnv{s, nc, js, stream, natstest.Consumer(t, stream, cfg)}
}

func (e *requestEnv) requester(t *testing.T, opts ...jetstream.Option) *jetstream.Requester[string, string] {
	t.Helper()

	r := jetstream.NewRequester(e.js, words, words, opts...)
	t.Cleanup(r.Close)

	return r
}

// serve runs a responder until the test ends, or until stop.
func (e *requestEnv) serve(t *testing.T, h goflux.RequestHandler[string, string], opts ...jetstream.Option) (stop func() error) {
	t.Helper()

	ready := make(chan struct{})
	opts = append([]jetstream.Option{silent, goflux.WithReady(func() { close(ready) })}, opts...)
	r := jetstream.NewResponder(e.js, e.consumer, words, words, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)

	go func() { served <- r.Serve(ctx, "requests.*", h) }()

	stop = sync.OnceValue(func() error {
		cancel()

		return <-served
	})

	t.Cleanup(func() { must(t, stop()) })

	select {
	case <-ready:
	case err := <-served:
		served <- nil

		t.Fatal(err)
	}

	return stop
}

// left returns how many messages a stream has.
func left(t *testing.T, s natsjs.Stream) uint64 {
	t.Helper()

	info, err := s.Info(t.Context())
	must(t, err)

	return info.State.Msgs
}

func (e *requestEnv) empty(t *testing.T) {
	t.Helper()
	natstest.Eventually(t, func() bool { return left(t, e.stream) == 0 }, "the stream of requests to be empty")
}

func inTime(t *testing.T) context.Context {
	t.Helper()

	ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
	t.Cleanup(cancel)

	return ctx
}

func answer(ctx context.Context, s string) (string, error) {
	switch s {
	case "unknown":
		return "", goflux.NewError(http.StatusNotFound, "there is no such thing").WithDetails(1)
	case "rejected":
		return "", goflux.Reject(errors.New("a secret"))
	default:
		goflux.CallFromContext(ctx).ReplyHeader().Set("By", "answer")

		return "re: " + s, nil
	}
}

// The requests are there before anybody who answers.
func TestRequestWaitsForAResponder(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	asking := e.requester(t)

	type outcome struct {
		msg goflux.Message[string]
		err error
	}

	outcomes := map[string]chan outcome{"a": nil, "b": nil, "unknown": nil, "rejected": nil}
	for s := range outcomes {
		c := make(chan outcome, 1)
		outcomes[s] = c

		go func() {
			msg, err := asking.RequestMessage(goflux.WithMessageID(inTime(t), "id of "+s), "requests."+s, s)
			c <- outcome{msg, err}
		}()
	}

	natstest.Eventually(t, func() bool { return left(t, e.stream) == 4 }, "the requests to be stored")
	e.serve(t, func(ctx context.Context, s string) (string, error) {
		call := goflux.CallFromContext(ctx)
		if call.Subject != "requests."+s || call.ID() != "id of "+s || goflux.MessageID(ctx) != call.ID() || call.Attempt() != 1 {
			t.Errorf("call %+v with id %q, attempt %d", call, call.ID(), call.Attempt())
		}

		if at, ok := ctx.Deadline(); !ok || time.Until(at) > natstest.Limit {
			t.Errorf("deadline %v, %v", at, ok)
		}

		return answer(ctx, s)
	})

	for s, c := range outcomes {
		o := <-c

		switch s {
		case "unknown":
			var told *goflux.RemoteError
			if !errors.As(o.err, &told) || told.Code != http.StatusNotFound || string(told.Details) != "1" {
				t.Errorf("%s: error %v", s, o.err)
			}
		case "rejected":
			if !errors.Is(o.err, goflux.NewError(http.StatusInternalServerError, "internal error")) {
				t.Errorf("%s: error %v", s, o.err)
			}
		default:
			if o.err != nil || o.msg.Payload != "re: "+s || o.msg.Header.Get("By") != "answer" || o.msg.ID() != "id of "+s {
				t.Errorf("%s: reply %+v, error %v", s, o.msg, o.err)
			}
		}
	}

	e.empty(t)
}

// The ticket outlives the requester, and the reply is there for whoever has it.
func TestSubmitAndAwaitElsewhere(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	submitting := e.requester(t, replies)

	tickets := map[string]string{}

	for _, s := range []string{"a", "unknown"} {
		ticket, err := submitting.Submit(inTime(t), "requests.x", s)
		must(t, err)

		tickets[s] = ticket
	}

	submitting.Close()

	if _, err := submitting.Submit(inTime(t), "requests.x", "a"); !errors.Is(err, goflux.ErrClosed) {
		t.Errorf("Submit after Close: %v", err)
	}

	if _, err := submitting.Await(inTime(t), tickets["a"]); !errors.Is(err, goflux.ErrClosed) {
		t.Errorf("Await after Close: %v", err)
	}

	// Another process, with a connection of its own.
	elsewhere := *e
	elsewhere.js = natstest.JetStream(t, natstest.Connect(t, e.server))
	awaiting := elsewhere.requester(t, replies)
	early := make(chan error, 1)

	go func() {
		got, err := awaiting.Await(inTime(t), tickets["a"])
		if err == nil && got != "re: a" {
			err = fmt.Errorf("the reply is %q", got)
		}

		early <- err
	}()

	// Nobody answers yet.
	ctx, cancel := context.WithTimeout(inTime(t), 100*time.Millisecond)
	defer cancel()

	_, err := awaiting.Await(ctx, tickets["a"])
	mustBe(t, err, context.DeadlineExceeded)

	e.serve(t, answer)
	must(t, <-early)
	e.empty(t)

	for range 3 {
		msg, err := awaiting.AwaitMessage(inTime(t), tickets["a"])
		if err != nil || msg.Payload != "re: a" || msg.Header.Get("By") != "answer" {
			t.Errorf("reply %+v, error %v", msg, err)
		}

		_, err = awaiting.Await(inTime(t), tickets["unknown"])
		mustBe(t, err, goflux.NewError(http.StatusNotFound, "there is no such thing"))
	}

	wrong := jetstream.NewRequester(e.js, words, json.NewCodec[int](), replies)
	defer wrong.Close()

	_, err = wrong.Await(inTime(t), tickets["a"])
	mustBe(t, err, goflux.ErrDecode)
}

// One message id on one subject is one request and one ticket, also after it was
// handled.
func TestSubmitIsIdempotent(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	a, b := e.requester(t, replies), e.requester(t, replies)

	var handled atomic.Int64

	submit := func(r *jetstream.Requester[string, string], id, subject string) string {
		ticket, err := r.Submit(goflux.WithMessageID(inTime(t), id), subject, "x")
		must(t, err)

		return ticket
	}

	first := submit(a, "1", "requests.x")
	if again := submit(b, "1", "requests.x"); again != first {
		t.Errorf("tickets %q and %q", first, again)
	}

	e.serve(t, func(context.Context, string) (string, error) { return strconv.FormatInt(handled.Add(1), 10), nil })

	got, err := b.Await(inTime(t), first)
	must(t, err)
	e.empty(t)

	if again := submit(a, "1", "requests.x"); again != first {
		t.Errorf("tickets %q and %q", first, again)
	}

	if other := submit(a, "2", "requests.x"); other == first {
		t.Error("two ids have one ticket")
	}

	unnamed, err := a.Submit(inTime(t), "requests.x", "x")
	must(t, err)

	if another, err := a.Submit(inTime(t), "requests.x", "x"); err != nil || another == unnamed {
		t.Errorf("ticket %q, error %v", another, err)
	}

	e.empty(t)

	if again, err := b.Await(inTime(t), first); err != nil || again != got || handled.Load() != 4 {
		t.Errorf("replies %q and %q, error %v, %d were handled", got, again, err, handled.Load())
	}

	// A key keeps those out who know the message id.
	keyed := e.requester(t, replies, jetstream.WithTicketKey([]byte("0123456789abcdef")))
	if guessed := submit(a, "guess", "requests.x"); guessed == submit(keyed, "guess", "requests.x") {
		t.Error("the key makes no difference")
	}

	// The id of a message that is being handled is not that of a request.
	forwarded := make(chan [2]string, 1)
	inner := e.requester(t, replies)

	other := setupRequests(t, natsjs.ConsumerConfig{})
	other.serve(t, func(ctx context.Context, _ string) (string, error) {
		one, err := inner.Submit(ctx, "requests.x", "x")
		must(t, err)

		two, err := inner.Submit(ctx, "requests.x", "x")
		must(t, err)

		forwarded <- [2]string{one, two}

		return "", nil
	})

	_, err = other.requester(t).Request(goflux.WithMessageID(inTime(t), "outer"), "requests.x", "")
	must(t, err)

	if pair := <-forwarded; pair[0] == pair[1] {
		t.Error("two requests of a handler have one ticket")
	}
}

// A second Request under an id would wait for a reply that goes elsewhere.
func TestRequestOfADuplicateID(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	e.serve(t, answer)

	asking := e.requester(t)
	ctx := goflux.WithMessageID(inTime(t), "1")

	_, err := asking.Request(ctx, "requests.x", "a")
	must(t, err)

	_, err = asking.Request(ctx, "requests.x", "a")
	mustBe(t, err, goflux.ErrDuplicateRequest)
}

func TestTicketsThatLeadNowhere(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	asking := e.requester(t, jetstream.WithReplyStream(natsjs.StreamConfig{
		Name: "REPLIES", Subjects: []string{"replies.*"}, MaxAge: time.Second, Duplicates: time.Second,
	}))

	pendingTicket, err := asking.Submit(inTime(t), "requests.x", "pending")
	must(t, err)

	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(pendingTicket, "gt1_"))
	must(t, err)

	id := string(raw[:32])
	forge := func(s string) string { return "gt1_" + base64.RawURLEncoding.EncodeToString([]byte(s)) }

	for name, ticket := range map[string]string{
		"empty":                 "",
		"of nobody":             "hello",
		"another version":       strings.Replace(pendingTicket, "gt1_", "gt2_", 1),
		"cut":                   pendingTicket[:len(pendingTicket)-1],
		"too long":              "gt1_" + strings.Repeat("A", 100_000),
		"another subject":       forge("replies.>.1.REQUESTS"),
		"wildcard":              forge(strings.Repeat("*", 32) + ".1.REQUESTS"),
		"no sequence":           forge(id + ".0.REQUESTS"),
		"another form":          forge(id + ".01.REQUESTS"),
		"a stream of a pattern": forge(id + ".1.*"),
		"no stream":             forge(id + ".1."),
		"another stream":        forge(id + ".1.NONE"),
		"not submitted yet":     forge(id + ".zzz.REQUESTS"),
		"of another request":    forge(strings.Repeat("0", 32) + ".1.REQUESTS"),
		"white space":           pendingTicket + "\n",
	} {
		_, err := asking.Await(inTime(t), ticket)
		if !errors.Is(err, goflux.ErrTicketUnknown) {
			t.Errorf("%s: error %v", name, err)
		}
	}

	stop := e.serve(t, answer)

	got, err := asking.Await(inTime(t), pendingTicket)
	if err != nil || got != "re: pending" {
		t.Errorf("reply %q, error %v", got, err)
	}

	must(t, stop())

	stream, err := e.js.Stream(inTime(t), "REPLIES")
	must(t, err)
	natstest.Eventually(t, func() bool { return left(t, stream) == 0 }, "the reply to expire")

	_, err = asking.Await(inTime(t), pendingTicket)
	mustBe(t, err, goflux.ErrTicketExpired)
}

func FuzzTicket(f *testing.F) {
	s := natstest.Run(f)
	nc := natstest.Connect(f, s)
	js := natstest.JetStream(f, nc)
	natstest.Stream(f, js, natsjs.StreamConfig{Name: "REQUESTS", Subjects: []string{"requests.*"}, Retention: natsjs.WorkQueuePolicy})

	r := jetstream.NewRequester(js, words, words, replies)
	f.Cleanup(r.Close)

	ticket, err := r.Submit(f.Context(), "requests.x", "x")
	if err != nil {
		f.Fatal(err)
	}

	// What else is stored must not be reached.
	if _, err := js.Publish(f.Context(), "replies.secret", []byte(`"secret"`)); err != nil {
		f.Fatal(err)
	}

	f.Add(ticket)
	f.Add("gt1_")
	f.Add("gt1_" + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("a", 32)+".1.REQUESTS")))
	f.Add("gt1_" + base64.RawURLEncoding.EncodeToString([]byte("secret.1.REQUESTS")))

	f.Fuzz(func(t *testing.T, other string) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()

		got, err := r.Await(ctx, other)

		switch {
		case err == nil:
			t.Errorf("the ticket %q leads to %q", other, got)
		case other == ticket:
			mustBe(t, err, context.DeadlineExceeded)
		case !errors.Is(err, goflux.ErrTicketUnknown) && !errors.Is(err, goflux.ErrTicketExpired):
			t.Errorf("the ticket %q: %v", other, err)
		}
	})
}

// The error of the handler is told when there will be no further attempt, not
// before.
func TestFailingRequestsAreRetried(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{MaxDeliver: 3})

	var attempts sync.Map

	attempt := func(s string) int64 {
		n, _ := attempts.LoadOrStore(s, new(atomic.Int64))

		return n.(*atomic.Int64).Add(1)
	}

	e.serve(t, func(ctx context.Context, s string) (string, error) {
		n := attempt(s)
		if int64(goflux.CallFromContext(ctx).Attempt()) != n {
			t.Errorf("%s: attempt %d, counted were %d", s, goflux.CallFromContext(ctx).Attempt(), n)
		}

		switch {
		case s == "recovers" && n < 3, s == "fails":
			return "", errors.New("not yet")
		case s == "panics":
			panic("oops")
		case s == "busy":
			return "", goflux.RetryAfter(time.Millisecond, goflux.NewError(http.StatusServiceUnavailable, "busy"))
		case s == "told":
			return "", goflux.NewError(http.StatusConflict, "no")
		default:
			return s, nil
		}
	}, goflux.WithRetryPolicy(goflux.ConstantRetry(0)))

	internal := goflux.NewError(http.StatusInternalServerError, "internal error")

	for s, want := range map[string]struct {
		err      error
		attempts int64
	}{
		"recovers": {nil, 3},
		"fails":    {internal, 3},
		"panics":   {internal, 3},
		"busy":     {goflux.NewError(http.StatusServiceUnavailable, "busy"), 3},
		"told":     {goflux.NewError(http.StatusConflict, "no"), 1},
	} {
		_, err := e.requester(t).Request(inTime(t), "requests.x", s)
		if !errors.Is(err, want.err) {
			t.Errorf("%s: error %v, want %v", s, err, want.err)
		}

		n, _ := attempts.Load(s)
		if got := n.(*atomic.Int64).Load(); got != want.attempts {
			t.Errorf("%s: %d attempts, want %d", s, got, want.attempts)
		}
	}
}

// What does not decode is answered and terminated; what is rejected goes to the
// dead letters besides.
func TestRequestsThatCannotBeFulfilled(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	dead := natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead"}})
	e.serve(t, answer, goflux.WithDeadLetter("dead"))

	numbers := jetstream.NewRequester(e.js, json.NewCodec[int](), words)
	defer numbers.Close()

	_, err := numbers.Request(inTime(t), "requests.x", 1)
	mustBe(t, err, goflux.NewError(http.StatusBadRequest, "the request could not be decoded"))

	_, err = e.requester(t).Request(inTime(t), "requests.x", "rejected")
	mustBe(t, err, goflux.NewError(http.StatusInternalServerError, "internal error"))

	_, err = e.requester(t).Request(inTime(t), "requests.x", "unknown")
	mustBe(t, err, goflux.NewError(http.StatusNotFound, "there is no such thing"))

	e.empty(t)

	if n := left(t, dead); n != 2 {
		t.Errorf("%d dead letters, want those of the first two", n)
	}
}

// A requester that is gone holds nobody up for long, and one that does not wait
// any more is not handled for.
func TestRequestersThatAreGone(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	gone := *e
	gone.nc = natstest.Connect(t, e.server)
	gone.js = natstest.JetStream(t, gone.nc)

	asking := gone.requester(t)
	failed := make(chan error, 1)

	// It is looked for until then.
	waits, giveUp := context.WithTimeout(t.Context(), 5*time.Second)
	defer giveUp()

	go func() {
		_, err := asking.Request(waits, "requests.x", "abandoned")
		failed <- err
	}()

	natstest.Eventually(t, func() bool { return left(t, e.stream) == 1 }, "the request to be stored")
	gone.nc.Close()
	mustBe(t, <-failed, goflux.ErrClosed)

	impatient, cancel := context.WithTimeout(inTime(t), 50*time.Millisecond)
	defer cancel()

	_, err := e.requester(t).Request(impatient, "requests.x", "late")
	mustBe(t, err, context.DeadlineExceeded)

	var handled sync.Map

	e.serve(t, func(_ context.Context, s string) (string, error) {
		handled.Store(s, true)

		return s, nil
	}, goflux.WithConcurrency(1))

	got, err := e.requester(t).Request(inTime(t), "requests.x", "after")
	if err != nil || got != "after" {
		t.Errorf("reply %q, error %v", got, err)
	}

	e.empty(t)

	_, abandoned := handled.Load("abandoned")
	_, late := handled.Load("late")

	if !abandoned || late {
		t.Errorf("handled the abandoned one: %v, the late one: %v", abandoned, late)
	}
}

// A requester that reconnects gets a reply that could not be delivered before,
// without the handler being called again.
func TestReplyWaitsForAReconnect(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	flaky := *e

	line := make(chan struct{}, 100)
	flaky.nc = natstest.Connect(t, e.server, nats.ReconnectWait(600*time.Millisecond), nats.DisconnectErrHandler(func(*nats.Conn, error) { line <- struct{}{} }))
	flaky.js = natstest.JetStream(t, flaky.nc)

	var handled atomic.Int64

	reached, goOn := make(chan struct{}), make(chan struct{})

	e.serve(t, func(_ context.Context, s string) (string, error) {
		if handled.Add(1) == 1 {
			close(reached)
		}

		<-goOn

		return s, nil
	})

	type outcome struct {
		reply string
		err   error
	}

	asked := make(chan outcome, 1)

	go func() {
		reply, err := flaky.requester(t).Request(inTime(t), "requests.x", "x")
		asked <- outcome{reply, err}
	}()

	<-reached

	// Its server ends the connection; nothing of the requester is there then.
	id, err := flaky.nc.GetClientID()
	must(t, err)
	must(t, e.server.NATSServer().DisconnectClientByID(id))
	<-line
	close(goOn)

	if o := <-asked; o.err != nil || o.reply != "x" || handled.Load() != 1 {
		t.Errorf("reply %q, error %v, handled %d times", o.reply, o.err, handled.Load())
	}

	e.empty(t)
}

// Tickets and their replies survive the server.
func TestAwaitSurvivesARestart(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	asking := e.requester(t, replies)

	ticket, err := asking.Submit(inTime(t), "requests.x", "a")
	must(t, err)

	awaited := make(chan error, 1)

	go func() {
		got, err := asking.Await(inTime(t), ticket)
		if err == nil && got != "re: a" {
			err = fmt.Errorf("the reply is %q", got)
		}

		awaited <- err
	}()

	e.server.Stop()
	natstest.Eventually(t, e.nc.IsReconnecting, "the client to see that the server is gone")
	must(t, e.server.Start())
	natstest.Eventually(t, e.nc.IsConnected, "the client to be back")
	e.serve(t, answer)
	must(t, <-awaited)
}

// Requests of others may ask for anything.
func TestHostileRequests(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	victim := natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "VICTIM", Subjects: []string{"victim"}})
	e.serve(t, answer)

	publish := func(header nats.Header) {
		_, err := e.js.PublishMsg(inTime(t), &nats.Msg{Subject: "requests.x", Header: header, Data: []byte(`"x"`)})
		must(t, err)
	}

	for _, to := range []string{"", "$JS.API.STREAM.DELETE.VICTIM", "a.*", "a b", "a..b", ">"} {
		publish(nats.Header{"Goflux-Reply-To": {to}})
		publish(nats.Header{"Goflux-Reply-To": {to}, "Goflux-Reply-Stream": {"VICTIM"}})
	}

	publish(nats.Header{"Goflux-Deadline": {"tomorrow"}, "Goflux-Correlation-Id": {strings.Repeat("x", 10_000)}})
	publish(nats.Header{"Goflux-Deadline": {"-1 -1"}})
	publish(nil)
	e.empty(t)

	if info, err := victim.Info(inTime(t)); err != nil || info.State.Msgs != 0 {
		t.Errorf("the victim has %+v, error %v", info, err)
	}

	// A foreign requester may take its reply from a stream it has named.
	publish(nats.Header{"Goflux-Reply-To": {"victim"}})
	natstest.Eventually(t, func() bool { return left(t, victim) == 1 }, "the reply to be stored")
	e.empty(t)
}

func TestReplyStreams(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "EVERLASTING", Subjects: []string{"everlasting.*"}})
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "LAST", Subjects: []string{"last.*"}, MaxAge: time.Hour, MaxMsgsPerSubject: 1})

	for name, c := range map[string]struct {
		opts []jetstream.Option
		want error
	}{
		"none":            {nil, goflux.ErrInvalidOption},
		"no name":         {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{})}, goflux.ErrInvalidOption},
		"bad name":        {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "a.b"})}, goflux.ErrInvalidOption},
		"plain subject":   {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "A", Subjects: []string{"a.b"}})}, goflux.ErrInvalidOption},
		"everything":      {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "A", Subjects: []string{">"}})}, goflux.ErrInvalidOption},
		"wild prefix":     {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "A", Subjects: []string{"*.*"}})}, goflux.ErrInvalidOption},
		"negative age":    {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "A", MaxAge: -1})}, goflux.ErrInvalidOption},
		"last wins":       {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "A", MaxMsgsPerSubject: 2})}, goflux.ErrInvalidOption},
		"work queue":      {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "A", Retention: natsjs.WorkQueuePolicy})}, goflux.ErrInvalidOption},
		"exists, no age":  {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "EVERLASTING", Subjects: []string{"everlasting.*"}})}, goflux.ErrInvalidOption},
		"exists, last":    {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "LAST", Subjects: []string{"last.*"}})}, goflux.ErrInvalidOption},
		"exists, subject": {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "LAST", Subjects: []string{"other.*"}})}, goflux.ErrInvalidOption},
		"short key":       {[]jetstream.Option{replies, jetstream.WithTicketKey([]byte("short"))}, goflux.ErrInvalidOption},
		"another role":    {[]jetstream.Option{replies, goflux.WithConcurrency(1)}, goflux.ErrInvalidOption},
		"good":            {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "GOOD"})}, nil},
		"good, deep":      {[]jetstream.Option{jetstream.WithReplyStream(natsjs.StreamConfig{Name: "DEEP", Subjects: []string{"deep.>"}})}, nil},
	} {
		r := e.requester(t, c.opts...)

		_, err := r.Submit(inTime(t), "requests.x", "x")
		if !errors.Is(err, c.want) {
			t.Errorf("%s: Submit: %v, want %v", name, err, c.want)
		}

		if c.want != nil && err == nil {
			t.Errorf("%s: no error", name)
		}
	}

	good, err := e.js.Stream(inTime(t), "GOOD")
	must(t, err)

	if cfg := good.CachedInfo().Config; cfg.MaxAge != 24*time.Hour || len(cfg.Subjects) != 1 || cfg.Subjects[0] != "GOOD.*" {
		t.Errorf("configuration %+v", cfg)
	}

	for name, err := range map[string]error{
		"for a publisher": jetstream.NewPublisher(e.js, words, replies).Publish(t.Context(), "requests.x", "x"),
		"no JetStream":    second(jetstream.NewRequester[string, string](nil, words, words).Request(t.Context(), "requests.x", "x")),
		"no consumer":     jetstream.NewResponder(e.js, nil, words, words).Serve(t.Context(), "requests.x", answer),
		"no handle":       jetstream.NewResponder(nil, e.consumer, words, words).Serve(t.Context(), "requests.x", answer),
		"manual acks":     jetstream.NewResponder(e.js, e.consumer, words, words, jetstream.WithManualAck()).Serve(t.Context(), "requests.x", answer),
	} {
		if !errors.Is(err, goflux.ErrInvalidOption) {
			t.Errorf("%s: error %v", name, err)
		}
	}

	_, err = e.requester(t).Request(inTime(t), "nobody.stores.it", "x")
	mustBe(t, err, goflux.ErrNoStream)
}

func second[A any](_ A, err error) error { return err }

// A stored reply is the first one, whatever comes later and however much later.
func TestFirstReplyCounts(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{AckWait: 200 * time.Millisecond})
	asking := e.requester(t, jetstream.WithReplyStream(natsjs.StreamConfig{
		Name: "REPLIES", Subjects: []string{"replies.*"}, Duplicates: 100 * time.Millisecond,
	}))

	ticket, err := asking.Submit(inTime(t), "requests.x", "x")
	must(t, err)

	// The first one answers, and dies before its ack.
	tr, err := jetstream.New(e.js)
	must(t, err)

	in := newInbox()
	sub := subscribe(t, jetstream.Bind(e.consumer), in.config("requests.*"))
	sub.Request(1)

	first := in.wait(t, 1)[0]
	_, err = tr.Publish(inTime(t), transport.Message{Subject: first.Header.Get("Goflux-Reply-To"), Data: []byte(`"first"`)})
	must(t, err)

	e.serve(t, func(context.Context, string) (string, error) { return "second", nil })
	e.empty(t)

	if got, err := asking.Await(inTime(t), ticket); err != nil || got != "first" {
		t.Errorf("reply %q, error %v", got, err)
	}
}

// Responders die at any moment and are started again; each request gets one
// reply, its own, and nothing is left.
func TestRequestsSurviveTheirResponders(t *testing.T) {
	t.Parallel()

	const (
		requesters = 8
		responders = 4
		parallel   = 32
	)

	n := 20_000
	if testing.Short() {
		n = 2000
	}

	e := setupRequests(t, natsjs.ConsumerConfig{AckWait: time.Second, MaxAckPending: 4000})
	over := make(chan struct{})

	var (
		killers, all   sync.WaitGroup
		kills, handled atomic.Int64
	)

	for range responders {
		killers.Go(func() {
			for {
				// A process of its own: with it goes its connection, and
				// all that it was about to say.
				nc := natstest.Connect(t, e.server, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))

				js, err := natsjs.New(nc)
				if err != nil {
					t.Error(err)

					return
				}

				consumer, err := js.Consumer(inTime(t), "REQUESTS", "responders")
				if err != nil {
					t.Error(err)

					return
				}

				served := make(chan error, 1)
				ctx, stop := context.WithCancel(context.Background())
				r := jetstream.NewResponder(js, consumer, json.NewCodec[int](), json.NewCodec[string](), silent, goflux.WithDrainTimeout(0))

				var alive atomic.Int64

				alive.Store(50 + rand.Int64N(400)) // requests

				dead := make(chan struct{})

				go func() {
					served <- r.Serve(ctx, "requests.*", func(_ context.Context, i int) (string, error) {
						handled.Add(1)

						if alive.Add(-1) == 0 {
							close(dead)
						}

						return "re: " + strconv.Itoa(i), nil
					})
				}()

				select {
				case <-over:
					stop()

					if err := <-served; err != nil {
						t.Errorf("Serve: %v", err)
					}

					nc.Close()

					return
				case <-dead:
				}

				kills.Add(1)
				nc.Close()
				stop()
				<-served
			}
		})
	}

	var next atomic.Int64

	for range requesters {
		all.Go(func() {
			nc := natstest.Connect(t, e.server)

			js, err := natsjs.New(nc)
			if err != nil {
				t.Error(err)

				return
			}

			// It is there until the end, since a reply that comes twice is to be
			// confirmed twice.
			asking := jetstream.NewRequester(js, json.NewCodec[int](), json.NewCodec[string]())
			t.Cleanup(asking.Close)

			var mine sync.WaitGroup

			for range parallel {
				mine.Go(func() {
					for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
						ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
						got, err := asking.Request(ctx, "requests.x", i)

						cancel()

						if err != nil || got != "re: "+strconv.Itoa(i) {
							t.Errorf("request %d: reply %q, error %v", i, got, err)
						}
					}
				})
			}

			mine.Wait()
		})
	}

	all.Wait()
	e.empty(t)
	close(over)
	killers.Wait()

	if kills.Load() == 0 {
		t.Error("nobody was killed")
	}

	t.Logf("%d requests, %d handlings, %d responders killed", n, handled.Load(), kills.Load())
}
