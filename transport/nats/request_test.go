package nats_test

import (
	"context"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/nats"
)

var (
	words  = json.NewCodec[string]()
	silent = goflux.WithLogger(slog.New(slog.DiscardHandler))
)

// serve runs a responder until the test ends, or until stop.
func serve(
	tb testing.TB, nc *natsgo.Conn, subject string, h goflux.RequestHandler[string, string], opts ...nats.Option,
) (stop func() error) {
	tb.Helper()

	ready := make(chan struct{})
	opts = append([]nats.Option{silent, goflux.WithReady(func() { close(ready) })}, opts...)
	r := nats.NewResponder(nc, words, words, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)

	go func() { served <- r.Serve(ctx, subject, h) }()

	stop = sync.OnceValue(func() error {
		cancel()

		return <-served
	})

	tb.Cleanup(func() {
		if err := stop(); err != nil {
			tb.Error(err)
		}
	})

	select {
	case <-ready:
	case err := <-served:
		served <- nil

		tb.Fatal(err)
	}

	return stop
}

func asker(tb testing.TB, nc *natsgo.Conn) *nats.Requester[string, string] {
	tb.Helper()

	r := nats.NewRequester(nc, words, words)
	tb.Cleanup(r.Close)

	return r
}

func echo(_ context.Context, s string) (string, error) { return s, nil }

// respMap returns how many requests nats.go itself keeps for a connection. There
// must be none under way.
func respMap(nc *natsgo.Conn) int { return reflect.ValueOf(nc).Elem().FieldByName("respMap").Len() }

func requestError(tb testing.TB, tr *nats.Transport, ctx context.Context, msg transport.Message) error { //nolint:revive // as t
	tb.Helper()

	_, err := tr.Request(ctx, msg)

	for d, merr := range tr.RequestMany(ctx, msg) {
		if (merr == nil) != (err == nil) {
			tb.Errorf("Request: %v, RequestMany: %v, %v", err, d, merr)
		}

		break
	}

	return err
}

// A request that the connection cannot take leaves nothing behind, in whatever
// state the connection is, also where nats.go would keep an entry.
func TestRequestIsRefusedNotLeaked(t *testing.T) {
	t.Parallel()

	large := transport.Message{Subject: "s", Data: make([]byte, 1<<20+1)}
	small := transport.Message{Subject: "s", Header: transport.Header{"A": {"b"}}}

	for name, c := range map[string]struct {
		opts  []natsgo.Option
		state func(t *testing.T, s *natstest.Server, nc *natsgo.Conn)
		msg   transport.Message
		want  error
	}{
		"nobody listens": {nil, func(*testing.T, *natstest.Server, *natsgo.Conn) {}, small, transport.ErrNoResponders},
		"too large":      {nil, func(*testing.T, *natstest.Server, *natsgo.Conn) {}, large, transport.ErrTooLarge},
		"closed":         {nil, func(_ *testing.T, _ *natstest.Server, nc *natsgo.Conn) { nc.Close() }, small, transport.ErrClosed},
		"nothing is buffered": {
			[]natsgo.Option{natsgo.ReconnectBufSize(-1)},
			func(t *testing.T, s *natstest.Server, nc *natsgo.Conn) { disconnect(t, s, nc) }, small, transport.ErrBufferFull,
		},
		"the buffer is full": {
			[]natsgo.Option{natsgo.ReconnectBufSize(1)},
			func(t *testing.T, s *natstest.Server, nc *natsgo.Conn) {
				disconnect(t, s, nc)

				if err := nc.Publish("s", []byte("x")); err != nil {
					t.Fatal(err)
				}
			}, small, transport.ErrBufferFull,
		},
	} {
		for _, used := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, inbox open: %v", name, used), func(t *testing.T) {
				t.Parallel()

				s := natstest.RunTCP(t)
				nc := natstest.Connect(t, s, append(c.opts, quiet)...)
				tr := newTransport(t, nc)

				if used {
					wantError(t, requestError(t, tr, limited(t), small), "request", "s", transport.ErrNoResponders)
				}

				c.state(t, s, nc)

				before := nc.NumSubscriptions()

				for range 20 {
					ctx, cancel := context.WithTimeout(limited(t), time.Second)
					wantError(t, requestError(t, tr, ctx, c.msg), "request", "s", c.want)
					cancel()
				}

				if tr.Waiting() != 0 || respMap(nc) != 0 || nc.NumSubscriptions() > max(before, 1) {
					t.Errorf("left are %d calls, %d entries in nats.go, %d subscriptions", tr.Waiting(), respMap(nc), nc.NumSubscriptions())
				}

				if err := s.Start(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// Why the inbox is ours: the client keeps an entry for a request that it could
// not publish, until its connection is lost again.
func TestFactARequestThatCannotBePublishedStaysInTheClient(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)
	nc := natstest.Connect(t, s, natsgo.ReconnectBufSize(-1), quiet)
	disconnect(t, s, nc)

	for range 5 {
		if _, err := nc.RequestWithContext(limited(t), "s", nil); !errors.Is(err, natsgo.ErrReconnectBufExceeded) {
			t.Fatal(err)
		}
	}

	if n := respMap(nc); n != 5 {
		t.Errorf("%d entries: the inbox of our own may not be needed any more", n)
	}

	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
}

func disconnect(t *testing.T, s *natstest.Server, nc *natsgo.Conn) {
	t.Helper()

	s.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client to see that the server is gone")
}

// What was sent when the connection broke is not waited for; what is sent
// meanwhile waits for the connection.
func TestRequestsAroundADisconnect(t *testing.T) {
	t.Parallel()

	s := natstest.RunTCP(t)
	responding := natstest.Connect(t, s, quiet)
	taken := make(chan struct{})
	release := make(chan struct{})

	serve(t, responding, "s", func(_ context.Context, v string) (string, error) {
		if v == "before" {
			close(taken)
			<-release
		}

		return v, nil
	})

	nc := natstest.Connect(t, s, quiet)
	asking := asker(t, nc)

	lost := make(chan error, 1)

	go func() {
		_, err := asking.Request(limited(t), "s", "before")
		lost <- err
	}()

	<-taken
	disconnect(t, s, nc)
	wantError(t, <-lost, "request", "s", transport.ErrDisconnected)

	kept := make(chan error, 1)

	go func() {
		got, err := asking.Request(limited(t), "s", "meanwhile")
		if err == nil && got != "meanwhile" {
			err = fmt.Errorf("the reply is %q", got)
		}

		// Perhaps the responder was not back yet.
		for errors.Is(err, transport.ErrNoResponders) {
			_, err = asking.Request(limited(t), "s", "again")
		}

		kept <- err
	}()

	if err := s.Start(); err != nil {
		t.Fatal(err)
	}

	if err := <-kept; err != nil {
		t.Error(err)
	}

	close(release)
}

func TestRequestEndsWithItsTransport(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		end  func(nc *natsgo.Conn, tr *nats.Transport) error
		want error
	}{
		"the transport is closed":    {func(_ *natsgo.Conn, tr *nats.Transport) error { return tr.Close() }, transport.ErrClosed},
		"the connection is closed":   {func(nc *natsgo.Conn, _ *nats.Transport) error { nc.Close(); return nil }, transport.ErrClosed},
		"the connection is drained":  {func(nc *natsgo.Conn, _ *nats.Transport) error { return nc.Drain() }, transport.ErrClosed},
		"the connection is restored": {func(nc *natsgo.Conn, _ *nats.Transport) error { return nc.ForceReconnect() }, transport.ErrDisconnected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			s := natstest.Run(t)
			taken := make(chan struct{})
			over := make(chan struct{})

			serve(t, natstest.Connect(t, s), "s", func(context.Context, string) (string, error) {
				close(taken)
				<-over

				return "", nil
			})
			t.Cleanup(func() { close(over) })

			nc := natstest.Connect(t, s, quiet)
			tr := newTransport(t, nc)
			failed := make(chan error, 1)

			go func() {
				_, err := tr.Request(limited(t), transport.Message{Subject: "s", Data: []byte(`""`)})
				failed <- err
			}()

			<-taken

			if err := c.end(nc, tr); err != nil {
				t.Fatal(err)
			}

			wantError(t, <-failed, "request", "s", c.want)
			natstest.Eventually(t, func() bool { return tr.Waiting() == 0 }, "nothing to be left")
		})
	}
}

func TestRequestManyEndsWithItsTransport(t *testing.T) {
	t.Parallel()

	for name, end := range map[string]func(nc *natsgo.Conn, tr *nats.Transport) error{
		"the connection is closed":  func(nc *natsgo.Conn, _ *nats.Transport) error { nc.Close(); return nil },
		"the connection is drained": func(nc *natsgo.Conn, _ *nats.Transport) error { return nc.Drain() },
		"the transport is closed":   func(_ *natsgo.Conn, tr *nats.Transport) error { return tr.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			s := natstest.Run(t)
			serve(t, natstest.Connect(t, s), "s", echo)

			nc := natstest.Connect(t, s)
			tr := newTransport(t, nc)
			n := 0

			for _, err := range tr.RequestMany(limited(t), transport.Message{Subject: "s", Data: []byte(`""`)}) {
				if n++; n == 1 && err == nil {
					if err := end(nc, tr); err != nil {
						t.Error(err)
					}

					continue
				}

				wantError(t, err, "request", "s", transport.ErrClosed)
			}

			if n != 2 || (!nc.IsClosed() && nc.NumSubscriptions() != 0) {
				t.Errorf("%d iterations, %d subscriptions", n, nc.NumSubscriptions())
			}
		})
	}
}

// A requester that has the transport for itself ends what is under way.
func TestCloseOfARequesterEndsItsRequests(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	responding := natstest.Connect(t, s)
	taken := make(chan struct{}, 2)

	for _, subject := range []string{"one", "many"} {
		if _, err := responding.Subscribe(subject, func(*natsgo.Msg) { taken <- struct{}{} }); err != nil {
			t.Fatal(err)
		}
	}

	if err := responding.Flush(); err != nil {
		t.Fatal(err)
	}

	nc := natstest.Connect(t, s)
	asking := nats.NewRequester(nc, words, words)
	ended := make(chan error, 2)

	go func() {
		_, err := asking.Request(limited(t), "one", "")
		ended <- err
	}()

	go func() {
		for _, err := range asking.RequestMany(limited(t), "many", "") {
			ended <- err
		}
	}()

	<-taken
	<-taken
	asking.Close()

	for range 2 {
		if err := <-ended; !errors.Is(err, transport.ErrClosed) {
			t.Errorf("error %v", err)
		}
	}

	if !nc.IsConnected() || nc.NumSubscriptions() != 0 {
		t.Errorf("connected %v, with %d subscriptions", nc.IsConnected(), nc.NumSubscriptions())
	}
}

// 10,000 requests at once that are cancelled at random leave nothing.
func TestCancelledRequestsLeaveNothing(t *testing.T) {
	t.Parallel()

	n := 10_000
	if testing.Short() {
		n = 2000
	}

	s := natstest.Run(t)

	stop := serve(t, natstest.Connect(t, s), "s", func(ctx context.Context, v string) (string, error) {
		if rand.N(4) == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(rand.N(20 * time.Millisecond)):
			}
		}

		return v, nil
	}, goflux.WithConcurrency(256))

	nc := natstest.Connect(t, s)
	tr := newTransport(t, nc)
	asking := goflux.BindRequester(tr, nil, words, words)

	if _, err := asking.Request(limited(t), "s", "first"); err != nil {
		t.Fatal(err)
	}

	subscriptions, goroutines := nc.NumSubscriptions(), runtime.NumGoroutine()

	var (
		all               sync.WaitGroup
		answered, givenUp atomic.Int64
	)

	for range n {
		all.Go(func() {
			ctx, cancel := context.WithCancel(limited(t))
			defer cancel()

			switch rand.N(3) {
			case 0:
				cancel()
			case 1:
				time.AfterFunc(rand.N(30*time.Millisecond), cancel)
			}

			switch got, err := asking.Request(ctx, "s", "v"); {
			case err == nil && got == "v":
				answered.Add(1)
			case errors.Is(err, context.Canceled):
				givenUp.Add(1)
			default:
				t.Errorf("reply %q, error %v", got, err)
			}
		})
	}

	all.Wait()

	if answered.Load() == 0 || givenUp.Load() == 0 {
		t.Errorf("%d were answered, %d given up", answered.Load(), givenUp.Load())
	}

	if tr.Waiting() != 0 || respMap(nc) != 0 || nc.NumSubscriptions() != subscriptions {
		t.Errorf("left are %d calls, %d entries in nats.go, %d subscriptions; there were %d",
			tr.Waiting(), respMap(nc), nc.NumSubscriptions(), subscriptions)
	}

	if err := stop(); err != nil {
		t.Error(err)
	}

	natstest.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines }, "the goroutines to be as many as before")
}

// A stream that has the subject answers before any responder can.
func TestRequestOnTheSubjectOfAStream(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	nc := natstest.Connect(t, s)
	natstest.Stream(t, natstest.JetStream(t, nc), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.*"}})

	tr := newTransport(t, nc)

	err := requestError(t, tr, limited(t), transport.Message{Subject: "s.x"})
	wantError(t, err, "request", "s.x", transport.ErrInvalidSubject)

	if !strings.Contains(err.Error(), `"S"`) {
		t.Errorf("%v does not name the stream", err)
	}
}

func TestInboxPrefixIsThatOfTheConnection(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t, embedded.WithConfig(func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Allow: []string{"s", "mine.>"}},
		}}}
	}))
	nc := natstest.Connect(t, s, natsgo.UserInfo("u", "p"), natsgo.CustomInboxPrefix("mine"), quiet)

	// It may not look for services either: requests are answered all the same.
	serve(t, nc, "s", echo, goflux.WithQueueGroup("s"))

	if got, err := asker(t, nc).Request(limited(t), "s", "x"); err != nil || got != "x" {
		t.Errorf("reply %q, error %v", got, err)
	}
}

// Other clients cannot know what stands in our reply subjects, and may tell
// their deadline with a header.
func TestDeadlines(t *testing.T) {
	t.Parallel()

	now := time.Now()
	responder := newTransport(t, natstest.Connect(t, natstest.Run(t))).Responder()
	header := func(v string) transport.Header { return transport.Header{transport.HeaderDeadline: {v}} }
	ms := func(d time.Duration) string { return fmt.Sprint(now.Add(d).UnixMilli()) }

	for _, c := range []struct {
		request transport.Delivery
		left    time.Duration // 0: no deadline
	}{
		{transport.Delivery{Reply: "_INBOX.x.1.timeout=1500"}, 1500 * time.Millisecond},
		{transport.Delivery{Reply: "_INBOX.x.1"}, 0},
		{transport.Delivery{}, 0},
		{transport.Delivery{Reply: "_INBOX.timeout.1500"}, 0},
		{transport.Delivery{Reply: "_INBOX.x.1.timeout=-1"}, 0},
		{transport.Delivery{Reply: "_INBOX.x.1.timeout=99999999999999999999"}, 0},
		{transport.Delivery{Reply: "_INBOX.x.1.timeout=1.5"}, 0},
		{transport.Delivery{Header: header(ms(time.Minute))}, time.Minute},
		{transport.Delivery{Header: header(ms(time.Minute) + " 60000"), Reply: "_INBOX.x.1.timeout=1"}, time.Minute},
		// Of two clocks that differ the one counts that gives more time.
		{transport.Delivery{Header: header(ms(-time.Hour) + " 60000")}, time.Minute},
		{transport.Delivery{Header: header(ms(time.Hour) + " 60000")}, time.Hour},
		{transport.Delivery{Header: header("soon")}, 0},
		{transport.Delivery{Header: header("")}, 0},
	} {
		at, ok := responder.Deadline(c.request, now)
		if left := at.Sub(now); ok != (c.left != 0) || (ok && (left-c.left).Abs() > time.Millisecond) {
			t.Errorf("%q, %v: %v left, %v", c.request.Reply, c.request.Header, left, ok)
		}
	}
}

func FuzzDeadline(f *testing.F) {
	f.Add("_INBOX.x.1.timeout=1500", "1763696400123 5000")
	f.Add(".timeout=", " ")

	tr, err := nats.New(&natsgo.Conn{})
	if err != nil {
		f.Fatal(err)
	}

	now := time.Now()

	f.Fuzz(func(t *testing.T, reply, value string) {
		at, ok := tr.Responder().Deadline(transport.Delivery{Reply: reply, Header: transport.Header{transport.HeaderDeadline: {value}}}, now)
		if ok && at.IsZero() || !ok && !at.IsZero() {
			t.Errorf("%v, %v", at, ok)
		}
	})
}

// micro is the client that NATS brings. There is no type for asking services in
// it: its subjects and its responses are what other clients are built on.
func TestResponderIsAServiceToOthers(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	asked := natstest.Connect(t, s)
	nc := natstest.Connect(t, s, natsgo.Name("orders service"))

	closed, failed := nc.ClosedHandler(), nc.ErrorHandler()

	stop := serve(t, nc, "orders.*", func(_ context.Context, v string) (string, error) {
		if v == "bad" {
			return "", goflux.NewError(http.StatusConflict, "sold out").WithDetails(map[string]int{"left": 0})
		}

		return v, nil
	}, goflux.WithService("orders", "1.2.3", "Takes orders."))

	stopOther := serve(t, nc, "other", echo, goflux.WithQueueGroup("mine"))
	serve(t, nc, "hidden", echo, goflux.WithoutDiscovery())

	if reflect.ValueOf(nc.ClosedHandler()).Pointer() != reflect.ValueOf(closed).Pointer() ||
		reflect.ValueOf(nc.ErrorHandler()).Pointer() != reflect.ValueOf(failed).Pointer() {
		t.Error("the connection's handlers were replaced")
	}

	// It is called, and its errors are seen, as micro has them.
	m, err := asked.RequestWithContext(limited(t), "orders.new", []byte(`"good"`))
	if err != nil || string(m.Data) != `"good"` || m.Header.Get(micro.ErrorHeader) != "" {
		t.Errorf("reply %q %v, error %v", m.Data, m.Header, err)
	}

	m, err = asked.RequestWithContext(limited(t), "orders.new", []byte(`"bad"`))
	if err != nil || string(m.Data) != `{"left":0}` || m.Header.Get(micro.ErrorHeader) != "sold out" || m.Header.Get(micro.ErrorCodeHeader) != "409" {
		t.Errorf("reply %q %v, error %v", m.Data, m.Header, err)
	}

	if m, err = asked.RequestWithContext(limited(t), "orders.new", []byte(`no JSON`)); err != nil || m.Header.Get(micro.ErrorCodeHeader) != "400" {
		t.Errorf("reply %q %v, error %v", m.Data, m.Header, err)
	}

	// It is listed and inspected.
	infos := ask[micro.Info](t, asked, micro.InfoVerb, "", "")
	slices.SortFunc(infos, func(a, b micro.Info) int { return strings.Compare(a.Name, b.Name) })

	if len(infos) != 2 || infos[0].Name != "orders" || infos[1].Name != "orders-service" {
		t.Fatalf("services %+v", infos)
	}

	info, other := infos[0], infos[1]
	if info.Type != micro.InfoResponseType || info.Version != "1.2.3" || info.Description != "Takes orders." || info.ID == "" ||
		len(info.Endpoints) != 1 || info.Endpoints[0].Name != "orders" || info.Endpoints[0].Subject != "orders.*" ||
		info.Endpoints[0].QueueGroup != micro.DefaultQueueGroup {
		t.Errorf("info %+v", info)
	}

	if other.Version != "0.0.0" || other.Endpoints[0].Name != "other" || other.Endpoints[0].QueueGroup != "mine" {
		t.Errorf("info %+v", other)
	}

	for _, to := range [][2]string{{"orders", ""}, {"orders", info.ID}} {
		if pings := ask[micro.Ping](t, asked, micro.PingVerb, to[0], to[1]); len(pings) != 1 ||
			pings[0].Type != micro.PingResponseType || pings[0].ID != info.ID || pings[0].Name != "orders" {
			t.Errorf("pings %+v", pings)
		}

		stats := ask[micro.Stats](t, asked, micro.StatsVerb, to[0], to[1])
		if len(stats) != 1 || stats[0].Type != micro.StatsResponseType || stats[0].Started.IsZero() || len(stats[0].Endpoints) != 1 {
			t.Fatalf("stats %+v", stats)
		}

		if e := stats[0].Endpoints[0]; e.NumRequests != 3 || e.NumErrors != 2 || e.LastError != "400: the request could not be decoded" ||
			e.ProcessingTime <= 0 || e.AverageProcessingTime != e.ProcessingTime/3 || e.Subject != "orders.*" || e.QueueGroup != "q" {
			t.Errorf("stats %+v", e)
		}
	}

	// And gone with Serve.
	if err := stop(); err != nil {
		t.Error(err)
	}

	if got := ask[micro.Info](t, asked, micro.InfoVerb, "", ""); len(got) != 1 || got[0].Name != "orders-service" {
		t.Errorf("services %+v", got)
	}

	if err := stopOther(); err != nil {
		t.Error(err)
	}

	nobodyListens(t, asked, "$SRV.INFO")
}

// ask gathers what services tell of themselves, as the programs do that look for
// them: a question with an inbox, and all answers until it is quiet.
func ask[T any](t *testing.T, nc *natsgo.Conn, verb micro.Verb, name, id string) []T {
	t.Helper()

	subject, err := micro.ControlSubject(verb, name, id)
	if err != nil {
		t.Fatal(err)
	}

	inbox := nc.NewInbox()

	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}

	defer func() {
		if err := sub.Unsubscribe(); err != nil {
			t.Error(err)
		}
	}()

	if err := nc.PublishRequest(subject, inbox, nil); err != nil {
		t.Fatal(err)
	}

	var all []T

	for patience := natstest.Limit; ; patience = 300 * time.Millisecond {
		m, err := sub.NextMsg(patience)
		if errors.Is(err, natsgo.ErrTimeout) || errors.Is(err, natsgo.ErrNoResponders) {
			return all
		}

		if err != nil {
			t.Fatal(err)
		}

		var v T
		if err := stdjson.Unmarshal(m.Data, &v); err != nil {
			t.Fatalf("%q: %v", m.Data, err)
		}

		all = append(all, v)
	}
}

func TestServiceDefaults(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t), natsgo.Name("..."))
	serve(t, nc, "*", func(context.Context, string) (string, error) { return "", nil })

	// Nothing of the connection's name can be used; the program has one.
	infos := ask[micro.Info](t, nc, micro.InfoVerb, "", "")
	if len(infos) != 1 || infos[0].Name == "" || strings.Trim(infos[0].Name, "-_.") != infos[0].Name || infos[0].Endpoints[0].Name != "default" {
		t.Errorf("infos %+v", infos)
	}
}

// A plain service of micro is asked like any other, and its errors are typed.
func TestRequesterAsksMicroServices(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)

	service, err := micro.AddService(natstest.Connect(t, s), micro.Config{
		Name: "plain", Version: "0.1.0",
		Endpoint: &micro.EndpointConfig{Subject: "plain", Handler: micro.HandlerFunc(func(r micro.Request) {
			var err error

			switch string(r.Data()) {
			case `"coded"`:
				err = r.Error("418", "a teapot", []byte(`{"spout":"short"}`))
			case `"named"`:
				err = r.Error("E_BROKEN", "broken", []byte("not JSON"))
			case `"garbled"`:
				err = r.Respond([]byte("not JSON"))
			default:
				err = r.RespondJSON(r.Headers().Get("Tenant"), micro.WithHeaders(micro.Headers{"Seen": {"yes"}}))
			}

			if err != nil {
				t.Error(err)
			}
		})},
	})
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		if err := service.Stop(); err != nil {
			t.Error(err)
		}
	})

	asking := asker(t, natstest.Connect(t, s))

	reply, err := asking.RequestMessage(goflux.WithHeader(limited(t), goflux.Header{"Tenant": {"a"}}), "plain", "ok")
	if err != nil || reply.Payload != "a" || reply.Header.Get("Seen") != "yes" {
		t.Errorf("reply %+v, error %v", reply, err)
	}

	for req, want := range map[string]*goflux.RemoteError{
		"coded": goflux.NewError(418, "a teapot").WithDetails(map[string]string{"spout": "short"}),
		"named": goflux.NewError(500, "broken").WithDetails("not JSON"),
	} {
		_, err := asking.Request(limited(t), "plain", req)

		var got *goflux.RemoteError
		if !errors.As(err, &got) || got.Code != want.Code || got.Message != want.Message || string(got.Details) != string(want.Details) {
			t.Errorf("%s: error %v with %s", req, err, got.Details)
		}
	}

	if _, err := asking.Request(limited(t), "plain", "garbled"); !errors.Is(err, goflux.ErrDecode) {
		t.Errorf("error %v", err)
	}
}

// A message that wants no answer is handled as well.
func TestRequestWithoutReply(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))
	handled := make(chan string, 1)

	serve(t, nc, "s", func(_ context.Context, v string) (string, error) {
		handled <- v

		return v, nil
	})

	if err := nc.Publish("s", []byte(`"command"`)); err != nil {
		t.Fatal(err)
	}

	select {
	case v := <-handled:
		if v != "command" {
			t.Errorf("got %q", v)
		}
	case <-limited(t).Done():
		t.Fatal("it was not handled")
	}
}

func TestDoorsReportWhatIsWrong(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))

	noConn := nats.NewRequester(nil, words, words)
	noConn.Close()

	for name, c := range map[string]struct{ got, want error }{
		"no connection, requester": {second(noConn.Request(t.Context(), "s", "")), goflux.ErrInvalidOption},
		"no connection, responder": {nats.NewResponder(nil, words, words).Serve(t.Context(), "s", echo), goflux.ErrInvalidOption},
		"another role, requester":  {second(nats.NewRequester(nc, words, words, nats.WithQueueGroup("g")).Request(t.Context(), "s", "")), goflux.ErrInvalidOption},
		"another role, responder":  {nats.NewResponder(nc, words, words, goflux.WithManualAck()).Serve(t.Context(), "s", echo), goflux.ErrInvalidOption},
		"nothing to retry":         {nats.NewResponder(nc, words, words, goflux.WithRetryPolicy(goflux.DefaultRetryPolicy)).Serve(t.Context(), "s", echo), goflux.ErrUnsupported},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: error %v, want %v", name, c.got, c.want)
		}
	}

	if !nc.IsConnected() || nc.NumSubscriptions() != 0 {
		t.Errorf("connected %v, with %d subscriptions", nc.IsConnected(), nc.NumSubscriptions())
	}
}

func second[A any](_ A, err error) error { return err }
