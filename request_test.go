package goflux_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	jsoncodec "github.com/foomo/goencode/json/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
	corenats "github.com/foomo/goflux/transport/nats"
)

// patience ends a test that is stuck.
const patience = 20 * time.Second

// onEachLive runs a test on every transport with request-reply.
func onEachLive(t *testing.T, test func(t *testing.T, tr transport.Transport)) {
	t.Helper()
	t.Parallel()

	open := map[string]func(t *testing.T) (transport.Transport, error){
		"memory": func(*testing.T) (transport.Transport, error) { return memory.New() },
		"nats": func(t *testing.T) (transport.Transport, error) {
			return corenats.New(natstest.Connect(t, natstest.Run(t)))
		},
	}

	for name, open := range open {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			tr, err := open(t)
			if err != nil {
				t.Fatal(err)
			}

			t.Cleanup(func() {
				if err := tr.Close(); err != nil {
					t.Error(err)
				}
			})

			test(t, tr)
		})
	}
}

func waiting(tb testing.TB) context.Context {
	tb.Helper()

	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	tb.Cleanup(cancel)

	return ctx
}

// serve runs a responder until the test ends, or until stop, which returns what
// Serve returned. It returns when the responder is ready.
func serve[Req, Resp any](
	t *testing.T, tr transport.Transport, reqCodec goflux.Codec[Req], respCodec goflux.Codec[Resp],
	subject string, h goflux.RequestHandler[Req, Resp], opts ...goflux.ResponderOption,
) (r *goflux.BoundResponder[Req, Resp], stop func() error) {
	t.Helper()

	ready := make(chan struct{})
	all := append([]goflux.ResponderOption{silent(), goflux.WithReady(func() { close(ready) })}, opts...)

	r, err := goflux.NewResponder(tr, reqCodec, respCodec, all...)
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)

	go func() { served <- r.Serve(ctx, subject, h) }()

	stop = sync.OnceValue(func() error {
		cancel()

		return <-served
	})

	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})

	select {
	case <-ready:
	case err := <-served:
		served <- nil

		t.Fatal(err)
	}

	return r, stop
}

func asker[Req, Resp any](
	t *testing.T, tr transport.Transport, reqCodec goflux.Codec[Req], respCodec goflux.Codec[Resp],
) *goflux.BoundRequester[Req, Resp] {
	t.Helper()

	r, err := goflux.NewRequester(tr, reqCodec, respCodec, silent())
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(r.Close)

	return r
}

var words = jsoncodec.NewCodec[string]()

func echo(_ context.Context, s string) (string, error) { return s, nil }

func TestRequestTravelsBothWays(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		serve(t, tr, words, jsoncodec.NewCodec[int](), "length.*", func(ctx context.Context, s string) (int, error) {
			call := goflux.CallFromContext(ctx)
			if call.Subject != "length.bytes" || call.ID() != "id-1" || call.Header.Get("Tenant") != "a" || goflux.MessageID(ctx) != "id-1" {
				t.Errorf("call %+v with id %q", call, goflux.MessageID(ctx))
			}

			if goflux.HeaderFromContext(ctx) != nil || call.Attempt() != 0 {
				t.Errorf("what came in goes out: %v, attempt %d", goflux.HeaderFromContext(ctx), call.Attempt())
			}

			call.ReplyHeader().Add("Unit", "byte")
			call.ReplyHeader().Add("Unit", "octet")

			return len(s), nil
		})

		ctx := goflux.WithHeader(goflux.WithMessageID(waiting(t), "id-1"), goflux.Header{"Tenant": {"a"}})

		reply, err := asker(t, tr, words, jsoncodec.NewCodec[int]()).RequestMessage(ctx, "length.bytes", "héllo")
		if err != nil || reply.Payload != 6 || reply.ID() != "id-1" || !slices.Equal(reply.Header.Values("Unit"), []string{"byte", "octet"}) {
			t.Errorf("reply %+v, error %v", reply, err)
		}

		if err := reply.Ack(); !errors.Is(err, goflux.ErrUnsupported) {
			t.Errorf("acking a reply: %v", err)
		}
	})
}

func TestCallOutsideOfAHandler(t *testing.T) {
	t.Parallel()

	c := goflux.CallFromContext(t.Context())
	if c.Subject != "" || c.ID() != "" || c.Attempt() != 0 {
		t.Errorf("call %+v", c)
	}

	c.ReplyHeader().Set("Harmless", "yes")
}

var errSecret = errors.New("password is hunter2")

// The four kinds of failure are four kinds of error.
func TestRequestFailures(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		told := goflux.NewError(http.StatusConflict, "already shipped")

		foreign := &goflux.RemoteError{}

		handlers := map[string]goflux.RequestHandler[string, string]{
			"told":    func(context.Context, string) (string, error) { return "", told.WithDetails(map[string]int{"order": 7}) },
			"wrapped": func(context.Context, string) (string, error) { return "", fmt.Errorf("%w: %w", errSecret, told) },
			"reject":  func(context.Context, string) (string, error) { return "", goflux.Reject(told) },
			"plain":   func(context.Context, string) (string, error) { return "", errSecret },
			"panic":   func(context.Context, string) (string, error) { panic(told) },
			"passed on": func(ctx context.Context, _ string) (string, error) {
				_, err := asker(t, tr, words, words).Request(ctx, "told", "")

				return "", err
			},
			"large": func(context.Context, string) (string, error) { return strings.Repeat("x", 2<<20), nil },
			"bad header": func(ctx context.Context, _ string) (string, error) {
				goflux.CallFromContext(ctx).ReplyHeader().Set("Nats-TTL", "1")
				return "", nil
			},
			"told with a bad header": func(ctx context.Context, _ string) (string, error) {
				goflux.CallFromContext(ctx).ReplyHeader().Set("a b", "1")

				return "", told
			},
			"no message": func(context.Context, string) (string, error) {
				return "", goflux.NewError(http.StatusTeapot, "\r\n\x00")
			},
			"no meaning": func(context.Context, string) (string, error) { return "", goflux.NewError(799, "") },
			"no code":    func(context.Context, string) (string, error) { return "", goflux.NewError(-1, "") },
			"long code":  func(context.Context, string) (string, error) { return "", goflux.NewError(1000, "long") },
			"long": func(context.Context, string) (string, error) {
				return "", goflux.NewError(100, strings.Repeat("ä", 5000))
			},
			"nil": func(context.Context, string) (string, error) {
				var none *goflux.RemoteError

				return "", none
			},
			"nil within": func(context.Context, string) (string, error) {
				var none *goflux.RemoteError

				return "", goflux.Reject(fmt.Errorf("%w: %w", errSecret, none))
			},
			"exit":  func(context.Context, string) (string, error) { runtime.Goexit(); return "", nil },
			"words": echo,
			"undecodable elsewhere": func(ctx context.Context, _ string) (string, error) {
				_, err := asker(t, tr, words, jsoncodec.NewCodec[int]()).Request(ctx, "words", "no number")
				if !errors.Is(err, goflux.ErrDecode) {
					t.Errorf("error %v", err)
				}

				return "", fmt.Errorf("asking for words: %w", err)
			},
			"own type": func(context.Context, string) (string, error) {
				return "", &goflux.RemoteError{Code: 404, Message: "a\nb"}
			},
			"details that JSON cannot hold": func(context.Context, string) (string, error) { return "", told.WithDetails(func() {}) },
		}

		for subject, h := range handlers {
			serve(t, tr, words, words, strings.ReplaceAll(subject, " ", "-"), h)
		}

		internal := goflux.NewError(http.StatusInternalServerError, "internal error")

		for subject, want := range map[string]*goflux.RemoteError{
			"told": told, "wrapped": told, "reject": told, "told with a bad header": told, "details that JSON cannot hold": told,
			"plain": internal, "panic": internal, "passed on": internal, "bad header": internal,
			"nil": internal, "nil within": internal, "exit": internal, "undecodable elsewhere": internal,
			"large":      goflux.NewError(http.StatusInternalServerError, "the reply is too large"),
			"no message": goflux.NewError(http.StatusTeapot, "i'm a teapot"),
			"no meaning": goflux.NewError(799, "error"),
			"no code":    goflux.NewError(http.StatusInternalServerError, "internal server error"),
			"long code":  goflux.NewError(http.StatusInternalServerError, "long"),
			"long":       goflux.NewError(100, strings.Repeat("ä", 512)),
			"own type":   goflux.NewError(404, "a b"),
		} {
			msg, err := asker(t, tr, words, words).RequestMessage(waiting(t), strings.ReplaceAll(subject, " ", "-"), "")

			if !errors.As(err, &foreign) || !errors.Is(err, want) || transport.ErrorType(err) != "remote_error" {
				t.Errorf("%s: error %v, want %v", subject, err, want)

				continue
			}

			if strings.Contains(fmt.Sprint(msg.Header, err, string(foreign.Details)), "hunter2") {
				t.Errorf("%s: a secret crossed: %v %v", subject, msg.Header, err)
			}

			if subject == "told" && string(foreign.Details) != `{"order":7}` {
				t.Errorf("details %s", foreign.Details)
			}

			if want == internal && foreign.Details != nil {
				t.Errorf("%s: details %s", subject, foreign.Details)
			}
		}

		serve(t, tr, words, words, "slow", func(ctx context.Context, _ string) (string, error) {
			<-ctx.Done()

			return "", ctx.Err()
		})

		serve(t, tr, words, words, "echo", echo)

		asking := asker(t, tr, words, words)
		short, cancel := context.WithTimeout(waiting(t), 50*time.Millisecond)
		defer cancel()

		canceled, cancelNow := context.WithCancel(waiting(t))
		cancelNow()

		_, noResponders := asking.Request(waiting(t), "nobody.is.here", "")
		_, timeout := asking.Request(short, "slow", "")
		_, remote := asking.Request(waiting(t), "told", "")
		_, undecodable := asker(t, tr, words, jsoncodec.NewCodec[int]()).Request(waiting(t), "echo", "no number")
		_, ended := asking.Request(canceled, "echo", "")

		if !strings.Contains(noResponders.Error(), "is one running") {
			t.Errorf("%v does not say what to look at", noResponders)
		}

		kinds := []error{goflux.ErrNoResponders, context.DeadlineExceeded, told, goflux.ErrDecode, context.Canceled}
		for i, err := range []error{noResponders, timeout, remote, undecodable, ended} {
			var e *goflux.Error
			if !errors.As(err, &e) || e.Op != "request" || e.Subject == "" {
				t.Errorf("error %v has no circumstances", err)
			}

			for j, kind := range kinds {
				if errors.Is(err, kind) != (i == j) {
					t.Errorf("error %v is %v: %v", err, kind, i != j)
				}
			}
		}
	})
}

func TestUndecodableRequestIsCode400(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		serve(t, tr, jsoncodec.NewCodec[int](), words, "number", func(context.Context, int) (string, error) {
			t.Error("it was handled")

			return "", nil
		})

		explosive := goflux.Codec[string]{Encode: words.Encode, Decode: func([]byte, *string) error { panic(errSecret) }}
		serve(t, tr, explosive, words, "explosive", echo)

		for _, subject := range []string{"number", "explosive"} {
			_, err := asker(t, tr, words, words).Request(waiting(t), subject, "x")
			if !errors.Is(err, goflux.NewError(http.StatusBadRequest, "the request could not be decoded")) {
				t.Errorf("%s: error %v", subject, err)
			}
		}
	})
}

func TestReplyThatCannotBeEncoded(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		serve(t, tr, words, jsoncodec.NewCodec[any](), "x", func(context.Context, string) (any, error) { return func() {}, nil })

		if _, err := asker(t, tr, words, words).Request(waiting(t), "x", ""); !errors.Is(err, goflux.NewError(500, "internal error")) {
			t.Errorf("error %v", err)
		}
	})
}

func TestRequestsThatAreNotSent(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		serve(t, tr, words, words, "ok", func(context.Context, string) (string, error) {
			t.Error("it was sent")

			return "", nil
		})

		closed := asker(t, tr, words, words)
		closed.Close()
		closed.Close()

		unencodable, err := goflux.NewRequester(tr, jsoncodec.NewCodec[func()](), words)
		if err != nil {
			t.Fatal(err)
		}

		ctx := waiting(t)
		ask := func(ctx context.Context, r *goflux.BoundRequester[string, string], subject, v string) error {
			_, err := r.Request(ctx, subject, v)

			return err
		}
		open := asker(t, tr, words, words)
		_, encodeErr := unencodable.Request(ctx, "ok", func() {})

		for name, c := range map[string]struct{ got, want error }{
			"closed":        {ask(ctx, closed, "ok", ""), goflux.ErrClosed},
			"wildcard":      {ask(ctx, open, "ok.*", ""), goflux.ErrInvalidSubject},
			"no subject":    {ask(ctx, open, "", ""), goflux.ErrInvalidSubject},
			"bad header":    {ask(goflux.WithHeader(ctx, goflux.Header{"Goflux-Deadline": {"1"}}), open, "ok", ""), goflux.ErrInvalidHeader},
			"bad id":        {ask(goflux.WithMessageID(ctx, "a\nb"), open, "ok", ""), goflux.ErrInvalidHeader},
			"too large":     {ask(ctx, open, "ok", strings.Repeat("x", 2<<20)), goflux.ErrTooLarge},
			"not encodable": {encodeErr, goflux.ErrEncode},
		} {
			if !errors.Is(c.got, c.want) {
				t.Errorf("%s: error %v, want %v", name, c.got, c.want)
			}
		}
	})
}

// Members of the default group share requests; without a group all answer.
func TestReplicasShareRequests(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		var alone, together [3]atomic.Int64

		for i := range 3 {
			serve(t, tr, words, words, "shared", func(context.Context, string) (string, error) {
				together[i].Add(1)

				return strconv.Itoa(i), nil
			})
			serve(t, tr, words, words, "all", func(context.Context, string) (string, error) {
				alone[i].Add(1)

				return strconv.Itoa(i), nil
			}, goflux.WithoutQueueGroup())
		}

		asking := asker(t, tr, words, words)

		for range 300 {
			if _, err := asking.Request(waiting(t), "shared", ""); err != nil {
				t.Fatal(err)
			}
		}

		var got []string

		for resp, err := range asking.RequestMany(waiting(t), "all", "", goflux.WithMaxReplies(3)) {
			if err != nil {
				t.Fatal(err)
			}

			got = append(got, resp)
		}

		slices.Sort(got)

		if !slices.Equal(got, []string{"0", "1", "2"}) {
			t.Errorf("replies %v", got)
		}

		sum := int64(0)
		for i := range 3 {
			sum += together[i].Load()

			if together[i].Load() == 0 || alone[i].Load() != 1 {
				t.Errorf("responder %d answered %d and %d requests", i, together[i].Load(), alone[i].Load())
			}
		}

		if sum != 300 {
			t.Errorf("%d requests were handled, want 300", sum)
		}
	})
}

func TestRequestMany(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		number := jsoncodec.NewCodec[int]()
		over := make(chan struct{})

		for i := range 4 {
			serve(t, tr, words, number, "count", func(ctx context.Context, s string) (int, error) {
				goflux.CallFromContext(ctx).ReplyHeader().Set("I", strconv.Itoa(i))

				switch {
				case s == "one fails" && i == 0:
					return 0, goflux.NewError(503, "busy")
				case s == "nobody answers", s == "two answer" && i > 1:
					<-over
				}

				return i, nil
			}, goflux.WithoutQueueGroup())
		}

		t.Cleanup(func() { close(over) })

		asking := asker(t, tr, words, number)

		type outcome struct {
			values []int
			errs   []error
		}

		gather := func(ctx context.Context, subject, req string, opts ...goflux.ManyOption) (o outcome) {
			for v, err := range asking.RequestMany(ctx, subject, req, opts...) {
				if err != nil {
					o.errs = append(o.errs, err)
				} else {
					o.values = append(o.values, v)
				}
			}

			slices.Sort(o.values)

			return o
		}

		soon := func() context.Context {
			ctx, cancel := context.WithTimeout(waiting(t), 300*time.Millisecond)
			t.Cleanup(cancel)

			return ctx
		}

		stall := goflux.WithStall(100 * time.Millisecond)

		for name, c := range map[string]struct {
			got  outcome
			want []int
			err  error
		}{
			"count":                {gather(waiting(t), "count", "", goflux.WithMaxReplies(4)), []int{0, 1, 2, 3}, nil},
			"deadline":             {gather(soon(), "count", ""), []int{0, 1, 2, 3}, nil},
			"stall":                {gather(waiting(t), "count", "two answer", stall), []int{0, 1}, nil},
			"one fails":            {gather(waiting(t), "count", "one fails", goflux.WithMaxReplies(4)), []int{1, 2, 3}, goflux.NewError(503, "busy")},
			"nobody in time":       {gather(soon(), "count", "nobody answers", stall), nil, context.DeadlineExceeded},
			"nobody there":         {gather(waiting(t), "nobody", "", stall), nil, goflux.ErrNoResponders},
			"count, no deadline":   {gather(t.Context(), "count", "", goflux.WithMaxReplies(4)), []int{0, 1, 2, 3}, nil},
			"endless":              {gather(t.Context(), "count", ""), nil, goflux.ErrInvalidOption},
			"perhaps endless":      {gather(t.Context(), "count", "", stall), nil, goflux.ErrInvalidOption},
			"no count":             {gather(soon(), "count", "", goflux.WithMaxReplies(0)), nil, goflux.ErrInvalidOption},
			"no stall":             {gather(soon(), "count", "", goflux.WithStall(0)), nil, goflux.ErrInvalidOption},
			"nil":                  {gather(soon(), "count", "", nil), nil, goflux.ErrInvalidOption},
			"wildcard":             {gather(soon(), "count.*", ""), nil, goflux.ErrInvalidSubject},
			"too large":            {gather(waiting(t), "count", strings.Repeat("x", 2<<20)), nil, goflux.ErrTooLarge},
			"ended from the start": {gather(canceled(t), "count", "", goflux.WithMaxReplies(1)), nil, context.Canceled},
		} {
			if !slices.Equal(c.got.values, c.want) {
				t.Errorf("%s: values %v, want %v", name, c.got.values, c.want)
			}

			if (c.err == nil) != (len(c.got.errs) == 0) || len(c.got.errs) > 1 || (c.err != nil && !errors.Is(c.got.errs[0], c.err)) {
				t.Errorf("%s: errors %v, want %v", name, c.got.errs, c.err)
			}
		}

		for range asking.RequestMany(waiting(t), "count", "", goflux.WithMaxReplies(4)) {
			break
		}

		ctx, cancel := context.WithCancel(waiting(t))
		defer cancel()

		n := 0

		for _, err := range asking.RequestMany(ctx, "count", "two answer", goflux.WithMaxReplies(4)) {
			if n++; n == 2 {
				cancel()
			}

			if n == 3 && !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		}

		if n != 3 {
			t.Errorf("%d iterations, want two replies and an error", n)
		}

		wrong := asker(t, tr, words, words)
		for v, err := range wrong.RequestMany(waiting(t), "count", "", goflux.WithMaxReplies(1)) {
			if !errors.Is(err, goflux.ErrDecode) {
				t.Errorf("reply %q, error %v", v, err)
			}
		}
	})
}

func canceled(t *testing.T) context.Context {
	t.Helper()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	return ctx
}

// A request that nobody waits for any more is not started, however long the
// handlers of others take.
func TestLateRequestsAreSkipped(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		busy, goOn := make(chan struct{}), make(chan struct{})

		var handled sync.Map

		r, _ := serve(t, tr, words, words, "x", func(_ context.Context, s string) (string, error) {
			handled.Store(s, true)

			if s == "first" {
				close(busy)
				<-goOn
			}

			return s, nil
		}, goflux.WithConcurrency(1))
		asking := asker(t, tr, words, words)
		first := make(chan error, 1)

		go func() {
			_, err := asking.Request(waiting(t), "x", "first")
			first <- err
		}()

		<-busy

		for i := range 5 {
			ctx, cancel := context.WithTimeout(waiting(t), 20*time.Millisecond)
			defer cancel()

			if _, err := asking.Request(ctx, "x", fmt.Sprint("late ", i)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		}

		// By the responder's clock they have as long as when they were sent, from
		// when they arrived; nothing tells when that was.
		gaveUp := time.Now()
		natstest.Eventually(t, func() bool { return time.Since(gaveUp) > 500*time.Millisecond }, "the last of them to be late")

		close(goOn)

		if _, err := asking.Request(waiting(t), "x", "last"); err != nil {
			t.Error(err)
		}

		if err := <-first; err != nil {
			t.Error(err)
		}

		got := slices.Sorted(maps.Keys(collect(&handled)))
		if r.Late() != 5 || !slices.Equal(got, []string{"first", "last"}) {
			t.Errorf("%d were late, handled were %v", r.Late(), got)
		}
	})
}

func collect(m *sync.Map) map[string]bool {
	all := map[string]bool{}

	m.Range(func(k, _ any) bool {
		all[k.(string)] = true

		return true
	})

	return all
}

// Serve returns when all that it took is answered. What it does not take is
// refused; nothing is lost in between.
func TestServeDrains(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		const n = 50

		started, goOn := make(chan struct{}, n), make(chan struct{})

		var running, handled atomic.Int64

		_, stop := serve(t, tr, words, words, "x", func(_ context.Context, s string) (string, error) {
			if running.Add(1) > 4 {
				t.Error("more handlers run than may")
			}

			defer running.Add(-1)

			started <- struct{}{}
			<-goOn
			handled.Add(1)

			return s, nil
		}, goflux.WithConcurrency(4))
		asking := asker(t, tr, words, words)

		var answered atomic.Int64

		var all sync.WaitGroup

		for i := range n {
			all.Go(func() {
				got, err := asking.Request(waiting(t), "x", strconv.Itoa(i))

				switch {
				case err == nil && got == strconv.Itoa(i):
					answered.Add(1)
				case !errors.Is(err, goflux.ErrNoResponders):
					t.Errorf("reply %q, error %v", got, err)
				}
			})
		}

		for range 4 {
			<-started
		}

		stopped := make(chan error, 1)

		go func() { stopped <- stop() }()

		refused := func() bool {
			ctx, cancel := context.WithTimeout(waiting(t), 50*time.Millisecond)
			defer cancel()

			_, err := asking.Request(ctx, "x", "too late")

			return errors.Is(err, goflux.ErrNoResponders)
		}

		for !refused() { //nolint:revive // it waits
		}

		select {
		case err := <-stopped:
			t.Errorf("Serve returned while its handlers ran: %v", err)
		default:
		}

		close(goOn)

		if err := <-stopped; err != nil {
			t.Errorf("error %v", err)
		}

		if late := handled.Load(); running.Load() != 0 || late < 4 {
			t.Errorf("%d handlers run, %d have run", running.Load(), late)
		}

		all.Wait()

		if answered.Load() < 4 {
			t.Errorf("%d answers", answered.Load())
		}
	})
}

func TestServeGivesUpAtTheDrainTimeout(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		started := make(chan struct{})

		r, err := goflux.NewResponder(tr, words, words, silent(), goflux.WithDrainTimeout(10*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}

		served := make(chan error, 1)

		go func() {
			served <- r.Serve(t.Context(), "x", func(ctx context.Context, _ string) (string, error) {
				close(started)
				<-ctx.Done()

				if !errors.Is(context.Cause(ctx), goflux.ErrDraining) {
					t.Errorf("cause %v", context.Cause(ctx))
				}

				return "", goflux.NewError(503, "shutting down")
			})
		}()

		asking := asker(t, tr, words, words)
		asked := make(chan error, 1)

		go func() {
			for {
				_, err := asking.Request(waiting(t), "x", "")
				if !errors.Is(err, goflux.ErrNoResponders) {
					asked <- err

					return
				}
			}
		}()

		<-started
		r.Close()
		r.Close()

		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}

		if err := <-asked; !errors.Is(err, goflux.NewError(503, "shutting down")) {
			t.Errorf("Request: %v", err)
		}

		if err := r.Serve(t.Context(), "x", echo); !errors.Is(err, goflux.ErrClosed) {
			t.Errorf("Serve after Close: %v", err)
		}
	})
}

// A handler that ends its goroutine, as FailNow of package testing does, has
// failed. Somebody else takes the next request, and the end is in order.
func TestResponderOutlivesGoexit(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		_, stop := serve(t, tr, words, words, "x", func(_ context.Context, s string) (string, error) {
			if s == "exit" {
				runtime.Goexit()
			}

			return s, nil
		}, goflux.WithConcurrency(1))

		asking := asker(t, tr, words, words)

		for range 3 {
			if _, err := asking.Request(waiting(t), "x", "exit"); !errors.Is(err, goflux.NewError(http.StatusInternalServerError, "internal error")) {
				t.Errorf("error %v", err)
			}

			if got, err := asking.Request(waiting(t), "x", "stay"); err != nil || got != "stay" {
				t.Errorf("reply %q, error %v", got, err)
			}
		}

		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// The context of a handler ends with the patience of its caller, and is one that
// others can derive from.
func TestHandlerContextHasTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, err := memory.New()
		if err != nil {
			t.Fatal(err)
		}

		defer tr.Close()

		type key struct{}

		var kept, derived context.Context

		ended := make(chan error, 1)

		_, stop := serve(t, tr, words, words, "x", func(ctx context.Context, s string) (string, error) {
			at, bounded := ctx.Deadline()
			if bounded != (s != "unbounded") || (bounded && time.Until(at) != time.Second) {
				t.Errorf("%s: deadline in %v: %v", s, time.Until(at), bounded)
			}

			kept = ctx //nolint:fatcontext // to see what becomes of it

			if err := ctx.Err(); err != nil {
				t.Errorf("%s: %v", s, err)
			}

			switch s {
			case "slow":
				var cancel context.CancelFunc

				derived, cancel = context.WithCancel(context.WithValue(ctx, key{}, 1))
				defer cancel()

				<-derived.Done()
				ended <- context.Cause(derived)
			case "sleepy":
				time.Sleep(2 * time.Second)
				ended <- ctx.Err()
			}

			return s, nil
		})
		defer func() { _ = stop() }()

		r, err := goflux.NewRequester(tr, words, words)
		if err != nil {
			t.Fatal(err)
		}

		for _, s := range []string{"quick", "slow", "sleepy", "unbounded"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)

			if s == "unbounded" {
				ctx = t.Context()
			}

			_, err := r.Request(ctx, "x", s)

			cancel()

			switch slow := s == "slow" || s == "sleepy"; {
			case !slow && err != nil, s == "sleepy" && !errors.Is(err, context.DeadlineExceeded):
				t.Errorf("%s: error %v", s, err)
			case slow:
				if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: the handler's context ended with %v", s, err)
				}
			}

			synctest.Wait()

			// Nothing of it runs on: a timer would keep the bubble alive.
			if s != "unbounded" {
				select {
				case <-kept.Done():
				default:
					t.Errorf("%s: the context outlives its handler", s)
				}

				if kept.Err() == nil || context.Cause(kept) == nil {
					t.Errorf("%s: after its end the context has no error", s)
				}
			}
		}
	})
}

func TestRequestIsTraced(t *testing.T) {
	onEachLive(t, func(t *testing.T, tr transport.Transport) {
		spans := tracetest.NewSpanRecorder()
		provider := trace.NewTracerProvider(trace.WithSpanProcessor(spans))

		telemetry, err := goflux.NewTelemetry(goflux.WithTracerProvider(provider), goflux.WithPropagator(propagation.TraceContext{}))
		if err != nil {
			t.Fatal(err)
		}

		_, stop := serve(t, tr, words, words, "x.*", func(_ context.Context, s string) (string, error) {
			if s == "fail" {
				return "", goflux.NewError(404, "none")
			}

			return s, nil
		}, goflux.WithTelemetry(telemetry))

		asking, err := goflux.NewRequester(tr, words, words, goflux.WithTelemetry(telemetry))
		if err != nil {
			t.Fatal(err)
		}

		ctx := goflux.WithMessageID(waiting(t), "m1")

		if _, err := asking.Request(ctx, "x.y", "ok"); err != nil {
			t.Fatal(err)
		}

		if _, err := asking.Request(ctx, "x.y", "fail"); err == nil {
			t.Fatal("no error")
		}

		if err := stop(); err != nil {
			t.Fatal(err)
		}

		byName := map[string][]trace.ReadOnlySpan{}
		for _, s := range spans.Ended() {
			byName[s.Name()] = append(byName[s.Name()], s)
		}

		requests, processes := byName["request x.y"], byName["process x.*"]
		if len(requests) != 2 || len(processes) != 2 {
			t.Fatalf("spans %v", slices.Sorted(maps.Keys(byName)))
		}

		for i := range 2 {
			request, process := requests[i], processes[i]

			if request.SpanKind() != oteltrace.SpanKindProducer || process.SpanKind() != oteltrace.SpanKindConsumer {
				t.Errorf("kinds %v and %v", request.SpanKind(), process.SpanKind())
			}

			linked := func(from, to trace.ReadOnlySpan) bool {
				return slices.ContainsFunc(from.Links(), func(l trace.Link) bool { return l.SpanContext.SpanID() == to.SpanContext().SpanID() })
			}

			if !linked(process, request) || !linked(request, process) {
				t.Errorf("links %v and %v", process.Links(), request.Links())
			}

			failed := func(s trace.ReadOnlySpan) bool {
				return slices.ContainsFunc(s.Attributes(), func(a attribute.KeyValue) bool {
					return a.Key == "error.type" && a.Value.AsString() == "remote_error"
				})
			}

			if failed(request) != (i == 1) || failed(process) != (i == 1) {
				t.Errorf("attributes %v and %v", request.Attributes(), process.Attributes())
			}
		}
	})
}

func TestRequestConstructorsRefuse(t *testing.T) {
	t.Parallel()

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}

	defer tr.Close()

	mute := bare{tr}

	for name, c := range map[string]struct{ got, want error }{
		"requester, no transport": {second(goflux.NewRequester(nil, words, words)), goflux.ErrInvalidOption},
		"requester, no encode":    {second(goflux.NewRequester(tr, goflux.Codec[string]{}, words)), goflux.ErrInvalidOption},
		"requester, no decode":    {second(goflux.NewRequester(tr, words, goflux.Codec[string]{})), goflux.ErrInvalidOption},
		"requester, nil option":   {second(goflux.NewRequester(tr, words, words, nil)), goflux.ErrInvalidOption},
		"requester, unsupported":  {second(goflux.NewRequester(mute, words, words)), goflux.ErrUnsupported},
		"responder, no transport": {second(goflux.NewResponder(nil, words, words)), goflux.ErrInvalidOption},
		"responder, no decode":    {second(goflux.NewResponder(tr, goflux.Codec[string]{}, words)), goflux.ErrInvalidOption},
		"responder, no encode":    {second(goflux.NewResponder(tr, words, goflux.Codec[string]{})), goflux.ErrInvalidOption},
		"responder, nil option":   {second(goflux.NewResponder(tr, words, words, nil)), goflux.ErrInvalidOption},
		"responder, unsupported":  {second(goflux.NewResponder(mute, words, words)), goflux.ErrUnsupported},
		"concurrency":             {second(goflux.NewResponder(tr, words, words, goflux.WithConcurrency(0))), goflux.ErrInvalidOption},
		"group":                   {second(goflux.NewResponder(tr, words, words, goflux.WithQueueGroup("a b"))), goflux.ErrInvalidOption},
		"retry policy":            {second(goflux.NewResponder(tr, words, words, goflux.WithRetryPolicy(goflux.DefaultRetryPolicy))), goflux.ErrUnsupported},
		"ack sync":                {second(goflux.NewResponder(tr, words, words, goflux.WithAckSync())), goflux.ErrUnsupported},
		"dead letters":            {second(goflux.NewResponder(tr, words, words, goflux.WithDeadLetter("dead"))), goflux.ErrUnsupported},
		"service name":            {second(goflux.NewResponder(tr, words, words, goflux.WithService("a.b", "", ""))), goflux.ErrInvalidOption},
		"service version":         {second(goflux.NewResponder(tr, words, words, goflux.WithService("", "v1", ""))), goflux.ErrInvalidOption},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: error %v, want %v", name, c.got, c.want)
		}
	}

	if _, err := goflux.NewResponder(tr, words, words, goflux.WithService("a-b_C", "1.2.3-rc.1+7", "does things"), goflux.WithoutDiscovery()); err != nil {
		t.Error(err)
	}

	// The doors of transports report the same with each call.
	for name, c := range map[string]struct{ got, want error }{
		"requester, of another role": {
			second(goflux.BindRequester(tr, nil, words, words, goflux.WithConcurrency(1)).Request(t.Context(), "x", "")), goflux.ErrInvalidOption,
		},
		"requester, no transport": {
			second(goflux.BindRequester(nil, errSecret, words, words).Request(t.Context(), "x", "")), errSecret,
		},
		"responder, of another role": {
			goflux.BindResponder(tr.Responder(), nil, words, words, goflux.WithManualAck()).Serve(t.Context(), "x", echo), goflux.ErrInvalidOption,
		},
		"responder, no transport": {goflux.BindResponder(nil, errSecret, words, words).Serve(t.Context(), "x", echo), errSecret},
		"no handler":              {goflux.BindResponder(tr.Responder(), nil, words, words).Serve(t.Context(), "x", nil), goflux.ErrInvalidOption},
		"no subject":              {goflux.BindResponder(tr.Responder(), nil, words, words).Serve(t.Context(), "a..b", echo), goflux.ErrInvalidSubject},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: error %v, want %v", name, c.got, c.want)
		}
	}

	for _, err := range goflux.BindRequester(nil, errSecret, words, words).RequestMany(t.Context(), "x", "") {
		if !errors.Is(err, errSecret) {
			t.Errorf("error %v", err)
		}
	}

	broken := goflux.BindDurableRequester(nil, errSecret, words, words)
	broken.Close()

	if _, err := broken.Submit(t.Context(), "x", ""); !errors.Is(err, errSecret) {
		t.Errorf("error %v", err)
	}

	if _, err := broken.Await(t.Context(), "x"); !errors.Is(err, errSecret) {
		t.Errorf("error %v", err)
	}
}

// bare has nothing but what every transport has.
type bare struct{ transport.Transport }

func TestRemoteError(t *testing.T) {
	t.Parallel()

	e := goflux.NewError(409, "taken")
	with := e.WithDetails([]int{1})

	if e.Details != nil || string(with.Details) != "[1]" || with.Error() != "remote error 409: taken" {
		t.Errorf("%v %s, %v", e, e.Details, with)
	}

	for target, want := range map[error]bool{
		with: true, goflux.NewError(409, "taken"): true, goflux.NewError(409, "other"): false,
		goflux.NewError(404, "taken"): false, errSecret: false,
	} {
		if errors.Is(fmt.Errorf("%w", e), target) != want {
			t.Errorf("is %v: %v", target, !want)
		}
	}

	if d := e.WithDetails(func() {}).Details; !json.Valid(d) {
		t.Errorf("details %s", d)
	}

	// Nobody has to look for a nil pointer before an error is logged or compared.
	var none *goflux.RemoteError
	if none.Error() == "" || errors.Is(none, e) || errors.Is(e, none) {
		t.Errorf("a nil one is %q, and like another: %v, %v", none.Error(), errors.Is(none, e), errors.Is(e, none))
	}
}
