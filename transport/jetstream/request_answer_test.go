package jetstream_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// forge stores a request of somebody else's making.
func (e *requestEnv) forge(t *testing.T, header nats.Header, body string) {
	t.Helper()

	_, err := e.js.PublishMsg(inTime(t), &nats.Msg{Subject: "requests.x", Header: header, Data: []byte(`"` + body + `"`)})
	must(t, err)
}

// A requester may be away for longer than a few tries take.
func TestReplyWaitsForALateReconnect(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	flaky := *e

	lost := make(chan struct{}, 10)
	flaky.nc = natstest.Connect(t, e.server, nats.ReconnectWait(6*time.Second),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { lost <- struct{}{} }))
	flaky.js = natstest.JetStream(t, flaky.nc)

	var handled atomic.Int64

	reached, goOn := make(chan struct{}), make(chan struct{})

	e.serve(t, func(context.Context, string) (string, error) {
		handled.Add(1)
		close(reached)
		<-goOn

		return "", nil
	})

	asked := make(chan error, 1)

	go func() {
		_, err := flaky.requester(t).Request(inTime(t), "requests.x", "x")
		asked <- err
	}()

	<-reached

	id, err := flaky.nc.GetClientID()
	must(t, err)
	must(t, e.server.NATSServer().DisconnectClientByID(id))
	<-lost
	close(goOn)
	must(t, <-asked)
	e.empty(t)

	if n := handled.Load(); n != 1 {
		t.Errorf("handled %d times", n)
	}
}

// Whatever a request says of where its reply should go, it is handled once, and
// is gone then.
func TestUndeliverableRepliesAreDropped(t *testing.T) {
	t.Parallel()

	soon := func() []string {
		h := transport.WriteDeadline(nil, time.Now().Add(2*time.Second), time.Now())

		return h[transport.HeaderDeadline]
	}

	for name, header := range map[string]nats.Header{
		"a stream without the subject":     {"Goflux-Reply-To": {"victim"}, "Goflux-Reply-Stream": {"OTHER"}},
		"a stream that has another":        {"Goflux-Reply-To": {"silent"}, "Goflux-Reply-Stream": {"OTHER"}},
		"no such stream":                   {"Goflux-Reply-To": {"nowhere"}, "Goflux-Reply-Stream": {"NONE"}, "Goflux-Deadline": soon()},
		"no such stream, but a subscriber": {"Goflux-Reply-To": {"silent"}, "Goflux-Reply-Stream": {"NONE"}, "Goflux-Deadline": soon()},
		"no name of a stream":              {"Goflux-Reply-To": {"victim"}, "Goflux-Reply-Stream": {"a.b"}},
		"nobody":                           {"Goflux-Reply-To": {"_INBOX.dead"}, "Goflux-Deadline": soon()},
		"somebody who is silent":           {"Goflux-Reply-To": {"silent"}, "Goflux-Deadline": soon()},
		"another JetStream API":            {"Goflux-Reply-To": {"JS.acme.API.STREAM.DELETE.VICTIM"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setupRequests(t, natsjs.ConsumerConfig{})
			natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "VICTIM", Subjects: []string{"victim"}})
			natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "OTHER", Subjects: []string{"other"}})

			for _, silent := range []string{"silent", "JS.acme.API.STREAM.DELETE.VICTIM"} {
				_, err := e.nc.Subscribe(silent, func(m *nats.Msg) {
					if m.Subject != "silent" {
						t.Errorf("a reply went to %s", m.Subject)
					}
				})
				must(t, err)
			}

			must(t, e.nc.Flush())

			// What a domain or another account has been imported as.
			if name == "another JetStream API" {
				e.js = e.prefixed(t, "JS.acme.API")
			}

			var handled atomic.Int64

			e.serve(t, func(context.Context, string) (string, error) {
				handled.Add(1)

				return "", nil
			}, goflux.WithRetryPolicy(goflux.ConstantRetry(0)))

			e.forge(t, header, "x")
			e.empty(t)

			if n := handled.Load(); n != 1 {
				t.Errorf("handled %d times", n)
			}
		})
	}
}

// prefixed returns a handle that has the API under another prefix.
func (e *requestEnv) prefixed(t *testing.T, prefix string) natsjs.JetStream {
	t.Helper()

	js, err := natsjs.NewWithAPIPrefix(e.nc, prefix)
	must(t, err)

	return js
}

// Who never confirms their replies does not keep others from getting theirs.
func TestSilentRequestersHoldNobodyUp(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	_, err := e.nc.Subscribe("silent", func(*nats.Msg) {})
	must(t, err)

	for range 30 {
		e.forge(t, nats.Header{"Goflux-Reply-To": {"silent"}}, "x")
	}

	// With ten seconds each it would not be its turn in time.
	e.serve(t, answer, goflux.WithConcurrency(4))

	if got, err := e.requester(t).Request(inTime(t), "requests.x", "a"); err != nil || got != "re: a" {
		t.Errorf("reply %q, error %v", got, err)
	}
}

// A stream of replies that is full takes them when it has room again; nothing is
// handled twice.
func TestReplyWaitsForItsStream(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	full := natstest.Stream(t, e.js, natsjs.StreamConfig{
		Name: "REPLIES", Subjects: []string{"replies.*"}, MaxMsgs: 1, MaxAge: time.Hour,
		MaxMsgsPerSubject: 1, Discard: natsjs.DiscardNew, DiscardNewPerSubject: true,
	})

	var handled atomic.Int64

	e.serve(t, func(_ context.Context, s string) (string, error) {
		handled.Add(1)

		return s, nil
	})

	_, err := e.js.Publish(inTime(t), "replies.other", nil)
	must(t, err)

	asking := e.requester(t, replies)
	refused := make(chan struct{}, 100)

	_, err = e.nc.Subscribe("replies.*", func(*nats.Msg) { refused <- struct{}{} })
	must(t, err)

	ticket, err := asking.Submit(inTime(t), "requests.x", "a")
	must(t, err)

	for range 3 {
		<-refused
	}

	must(t, full.Purge(inTime(t)))

	if got, err := asking.Await(inTime(t), ticket); err != nil || got != "a" {
		t.Errorf("reply %q, error %v", got, err)
	}

	e.empty(t)

	if n := handled.Load(); n != 1 {
		t.Errorf("handled %d times", n)
	}
}

// What a request ends with is up to its handler, not to what becomes of the
// reply.
func TestUndeliveredReplyChangesNoOutcome(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{MaxDeliver: 2})
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})

	e.serve(t, func(context.Context, string) (string, error) { return "", errors.New("the real cause") },
		goflux.WithDeadLetter("dead.orders"), goflux.WithRetryPolicy(goflux.ConstantRetry(0)))

	header := transport.WriteDeadline(nil, time.Now().Add(2*time.Second), time.Now())
	header.Set("Goflux-Reply-To", "_INBOX.dead")
	e.forge(t, nats.Header(header), "x")

	dead := letters(t, e.js, 1)[0]
	if dead.Error != "the real cause" || dead.Reason != goflux.ReasonExhausted || dead.Attempts != 2 {
		t.Errorf("the dead letter tells %+v", dead)
	}

	e.empty(t)
}

// A handler that takes longer than the lease keeps it.
func TestSlowRequestKeepsItsLease(t *testing.T) {
	t.Parallel()

	const lease = 500 * time.Millisecond

	e := setupRequests(t, natsjs.ConsumerConfig{AckWait: lease})

	var handled atomic.Int64

	e.serve(t, func(ctx context.Context, s string) (string, error) {
		handled.Add(1)

		select {
		case <-time.After(4 * lease): // what is tested is that time passes
			return s, nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	})

	if got, err := e.requester(t).Request(inTime(t), "requests.x", "a"); err != nil || got != "a" {
		t.Errorf("reply %q, error %v", got, err)
	}

	e.empty(t)

	if n := handled.Load(); n != 1 {
		t.Errorf("handled %d times", n)
	}
}

// Headers, ids and trace context go both ways through streams, too.
func TestStoredRequestIsTraced(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	spans := tracetest.NewSpanRecorder()
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(spans))

	telemetry, err := goflux.NewTelemetry(goflux.WithTracerProvider(provider), goflux.WithPropagator(propagation.TraceContext{}))
	must(t, err)

	stop := e.serve(t, func(ctx context.Context, s string) (string, error) {
		call := goflux.CallFromContext(ctx)
		if call.Header.Get("Tenant") != "acme" || call.ID() == "" {
			t.Errorf("the call has the headers %v", call.Header)
		}

		call.ReplyHeader().Set("By", call.ID())

		return s, nil
	}, goflux.WithTelemetry(telemetry))

	asking := e.requester(t, replies, goflux.WithTelemetry(telemetry))
	ctx := goflux.WithHeader(inTime(t), goflux.Header{"Tenant": {"acme"}})

	asked, err := asking.RequestMessage(goflux.WithMessageID(ctx, "m1"), "requests.ask", "a")
	must(t, err)

	ticket, err := asking.Submit(goflux.WithMessageID(ctx, "m2"), "requests.submit", "b")
	must(t, err)

	awaited, err := asking.AwaitMessage(inTime(t), ticket)
	must(t, err)
	must(t, stop())

	if asked.Header.Get("By") != "m1" || asked.ID() != "m1" || awaited.Header.Get("By") != "m2" || awaited.ID() != "m2" {
		t.Errorf("the replies have the headers %v and %v", asked.Header, awaited.Header)
	}

	byName := map[string]trace.ReadOnlySpan{}
	processes := map[string]trace.ReadOnlySpan{} // by message id

	for _, s := range spans.Ended() {
		byName[s.Name()] = s

		for _, a := range s.Attributes() {
			if s.Name() == "process requests.*" && a.Key == "messaging.message.id" {
				processes[a.Value.AsString()] = s
			}
		}
	}

	linked := func(from, to trace.ReadOnlySpan) bool {
		return from != nil && to != nil &&
			slices.ContainsFunc(from.Links(), func(l trace.Link) bool { return l.SpanContext.SpanID() == to.SpanContext().SpanID() })
	}

	request, submit := byName["request requests.ask"], byName["send requests.submit"]
	if !linked(processes["m1"], request) || !linked(request, processes["m1"]) || !linked(processes["m2"], submit) {
		t.Errorf("spans %v, %d processes: they are not linked", byName, len(processes))
	}
}

// The reason of a dead letter is that of a subscription's.
func TestUndecodableRequestIsADeadLetter(t *testing.T) {
	t.Parallel()

	e := setupRequests(t, natsjs.ConsumerConfig{})
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})
	e.serve(t, answer, goflux.WithDeadLetter("dead.orders"))

	asking := jetstream.NewRequester(e.js, raw.String(), words)
	defer asking.Close()

	_, err := asking.Request(inTime(t), "requests.x", "no JSON")
	mustBe(t, err, goflux.NewError(400, "the request could not be decoded"))

	if dead := letters(t, e.js, 1)[0]; dead.Reason != goflux.ReasonUndecodable {
		t.Errorf("the reason is %q", dead.Reason)
	}
}
