package memory_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goencode/json/v1"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

// answerAll answers what a responder of tr gets on filter, with its own name.
func answerAll(tb testing.TB, tr *memory.Transport, filter, group, name string) transport.Subscription {
	tb.Helper()

	r := tr.Responder()

	sub, err := r.Subscribe(tb.Context(), transport.SubscribeConfig{Subject: filter, Group: group, Sink: func(d transport.Delivery) {
		if err := r.Reply(tb.Context(), d, transport.Message{Data: []byte(name)}); err != nil {
			tb.Error(err)
		}
	}})
	if err != nil {
		tb.Fatal(err)
	}

	sub.Request(1 << 20)

	return sub
}

func request(tb testing.TB, tr *memory.Transport, subject string) (string, error) {
	tb.Helper()

	ctx, cancel := context.WithTimeout(tb.Context(), time.Second)
	defer cancel()

	d, err := tr.Request(ctx, transport.Message{Subject: subject})

	return string(d.Data), err
}

func TestRequestsAreNotMessages(t *testing.T) {
	t.Parallel()

	tr := open(t, memory.WithHistory(10))
	in := &inbox{}
	subscribe(t, tr, transport.SubscribeConfig{Subject: ">", Sink: in.sink}).Request(10)

	if _, err := request(t, tr, "a"); !errors.Is(err, transport.ErrNoResponders) {
		t.Errorf("a subscription is not a responder: %v", err)
	}

	answerAll(t, tr, "a", "", "me")
	publish(t, tr, "a", "message")

	if got, err := request(t, tr, "a"); err != nil || got != "me" {
		t.Errorf("reply %q, error %v", got, err)
	}

	in.want(t, "message")
}

func TestRequestGoesToOneOfEachGroup(t *testing.T) {
	t.Parallel()

	tr := open(t)

	for i := range 3 {
		answerAll(t, tr, "a.*", "g", fmt.Sprint("g", i))
		answerAll(t, tr, "a.>", "h", fmt.Sprint("h", i))
		answerAll(t, tr, "a.b", "", fmt.Sprint("alone", i))
		answerAll(t, tr, "x", "g", "no")
	}

	seen := map[string]int{}

	for range 9 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)

		n := 0

		for d, err := range tr.RequestMany(ctx, transport.Message{Subject: "a.b"}) {
			if err != nil {
				t.Fatal(err)
			}

			seen[string(d.Data)]++

			if n++; n == 5 {
				break
			}
		}

		cancel()
	}

	for i := range 3 {
		for name, want := range map[string]int{"g": 3, "h": 3, "alone": 9} {
			if got := seen[fmt.Sprint(name, i)]; got < want-2 || got > max(want, 5) {
				t.Errorf("%s%d answered %d times of 9", name, i, got)
			}
		}
	}

	if seen["no"] != 0 {
		t.Error("a responder of another subject answered")
	}
}

// A responder that has no credit left keeps what comes, up to the limit.
func TestRequestsWaitForCredit(t *testing.T) {
	t.Parallel()

	tr := open(t, memory.WithMaxPending(2))
	r := tr.Responder()
	in := &inbox{}

	sub, err := r.Subscribe(t.Context(), transport.SubscribeConfig{Subject: "a", Group: "g", Sink: in.sink})
	if err != nil {
		t.Fatal(err)
	}

	ask := func(data string) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()

		_, err := tr.Request(ctx, transport.Message{Subject: "a", Data: []byte(data), Header: transport.Header{"A": {data}}})

		return err
	}

	for _, data := range []string{"1", "2"} {
		if err := ask(data); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	}

	var full *memory.FullError
	if err := ask("3"); !errors.As(err, &full) || full.Group != "g" || full.Filter != "a" || full.Limit != 2 {
		t.Errorf("error %v", err)
	}

	in.want(t)
	sub.Request(0)
	in.want(t)
	sub.Request(1)

	d := in.want(t, "1")[0]
	if d.Header.Get("A") != "1" || d.Reply == "" || d.Settler.Metadata(d.Token) != (transport.Metadata{}) {
		t.Errorf("delivery %+v", d)
	}

	if at, ok := r.Deadline(d, time.Now()); !ok || at.After(time.Now()) {
		t.Errorf("deadline %v, %v", at, ok)
	}

	if err := d.Settler.Settle(t.Context(), d.Token, transport.Verdict{Action: transport.Ack}); !errors.Is(err, transport.ErrUnsupported) {
		t.Errorf("error %v", err)
	}

	if err := sub.Pause(t.Context()); err != nil {
		t.Error(err)
	}

	// Nobody else would get what is left.
	if err := errors.Join(sub.Close(t.Context()), sub.Close(t.Context()), sub.Flush(t.Context())); err != nil {
		t.Error(err)
	}

	in.want(t, "2")
	sub.Request(1)

	if _, err := request(t, tr, "a"); !errors.Is(err, transport.ErrNoResponders) {
		t.Errorf("error %v", err)
	}
}

func TestReplies(t *testing.T) {
	t.Parallel()

	tr := open(t)
	r := tr.Responder()
	got := make(chan transport.Delivery, 1)

	sub, err := r.Subscribe(t.Context(), transport.SubscribeConfig{Subject: "a", Sink: func(d transport.Delivery) { got <- d }})
	if err != nil {
		t.Fatal(err)
	}

	sub.Request(10)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	for name, c := range map[string]struct {
		ctx  context.Context
		msg  transport.Message
		want error
	}{
		"ended":     {ctx, transport.Message{Subject: "a"}, context.Canceled},
		"too large": {t.Context(), transport.Message{Subject: "a", Data: make([]byte, 1<<20+1)}, transport.ErrTooLarge},
	} {
		if _, err := tr.Request(c.ctx, c.msg); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v", name, err)
		}
	}

	asked := make(chan string, 1)

	go func() {
		d, err := tr.Request(t.Context(), transport.Message{Subject: "a"})
		asked <- fmt.Sprint(string(d.Data), d.Header.Get("A"), err)
	}()

	d := <-got

	if _, ok := r.Deadline(d, time.Now()); ok {
		t.Error("there is a deadline")
	}

	for name, c := range map[string]struct {
		d    transport.Delivery
		msg  transport.Message
		want error
	}{
		"of somebody else": {transport.Delivery{Token: 1}, transport.Message{}, transport.ErrInvalidOption},
		"too large":        {d, transport.Message{Data: make([]byte, 1<<20+1)}, transport.ErrTooLarge},
	} {
		if err := r.Reply(t.Context(), c.d, c.msg); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v", name, err)
		}
	}

	if _, ok := r.Deadline(transport.Delivery{}, time.Now()); ok {
		t.Error("there is a deadline")
	}

	data, header := []byte("first"), transport.Header{"A": {" one"}}

	for range 3 {
		if err := r.Reply(t.Context(), d, transport.Message{Data: data, Header: header}); err != nil {
			t.Error(err)
		}

		// What was sent is the transport's own.
		data[0], header["A"] = 'X', nil
	}

	if got := <-asked; got != "first one<nil>" {
		t.Errorf("got %q", got)
	}
}

func TestCloseEndsRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t)
		r := tr.Responder()

		entered, leave := make(chan struct{}), make(chan struct{})

		sub, err := r.Subscribe(t.Context(), transport.SubscribeConfig{Subject: "a", Sink: func(transport.Delivery) {
			close(entered)
			<-leave
		}})
		if err != nil {
			t.Fatal(err)
		}

		idle := answerAll(t, tr, "b", "", "me")

		sub.Request(10)

		failed := make(chan error, 2)

		for range 2 {
			go func() {
				_, err := tr.Request(t.Context(), transport.Message{Subject: "a"})
				failed <- err
			}()
		}

		<-entered
		synctest.Wait()

		if err := errors.Join(tr.Close(), tr.Close()); err != nil {
			t.Error(err)
		}

		<-idle.Done()

		if err := idle.Err(); !errors.Is(err, transport.ErrClosed) {
			t.Errorf("error %v", err)
		}

		// The one whose request is stuck in a sink learns of it with the other.
		select {
		case err := <-failed:
			if !errors.Is(err, transport.ErrClosed) {
				t.Errorf("error %v", err)
			}
		case <-time.After(time.Second):
			t.Error("a request outlives its transport")
		}

		if sub.Err() != nil {
			t.Errorf("it has ended while its sink ran: %v", sub.Err())
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		if err := sub.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}

		close(leave)
		<-sub.Done()

		if err := <-failed; !errors.Is(err, transport.ErrClosed) {
			t.Errorf("error %v", err)
		}

		_, late := r.Subscribe(t.Context(), transport.SubscribeConfig{Subject: "a", Sink: func(transport.Delivery) {}})

		for name, err := range map[string]error{"request": second(tr.Request(t.Context(), transport.Message{Subject: "a"})), "subscribe": late, "flush": sub.Flush(t.Context())} {
			if !errors.Is(err, transport.ErrClosed) {
				t.Errorf("%s: error %v", name, err)
			}
		}
	})
}

// 10,000 requests at once that are cancelled at random leave nothing. The bubble
// would not end with a goroutine or a timer of theirs.
func TestCancelledRequestsLeaveNothing(t *testing.T) {
	t.Parallel()

	n := 10_000
	if testing.Short() {
		n = 2000
	}

	synctest.Test(t, func(t *testing.T) {
		tr := open(t)
		words := json.NewCodec[string]()

		var running atomic.Int64

		responder, err := goflux.NewResponder(tr, words, words, goflux.WithConcurrency(256))
		if err != nil {
			t.Fatal(err)
		}

		requester, err := goflux.NewRequester(tr, words, words)
		if err != nil {
			t.Fatal(err)
		}

		served := make(chan error, 1)

		go func() {
			served <- responder.Serve(context.Background(), "s", func(ctx context.Context, v string) (string, error) {
				running.Add(1)
				defer running.Add(-1)

				if rand.N(4) == 0 {
					select {
					case <-ctx.Done():
					case <-time.After(rand.N(20 * time.Millisecond)):
					}
				}

				return v, nil
			})
		}()

		synctest.Wait()

		var (
			all               sync.WaitGroup
			answered, givenUp atomic.Int64
		)

		for range n {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()

				switch rand.N(3) {
				case 0:
					cancel()
				case 1:
					time.AfterFunc(rand.N(30*time.Millisecond), cancel)
				}

				switch got, err := requester.Request(ctx, "s", "v"); {
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

		// What was given up may still be handled.
		time.Sleep(time.Minute)
		synctest.Wait()

		responders, waiting := tr.Responders()
		if responders != 1 || waiting != 0 || running.Load() != 0 {
			t.Errorf("left are %d responders, %d requests, %d handlers", responders, waiting, running.Load())
		}

		if answered.Load() == 0 || givenUp.Load() == 0 || answered.Load()+givenUp.Load() != int64(n) {
			t.Errorf("%d were answered, %d given up", answered.Load(), givenUp.Load())
		}

		responder.Close()

		if err := <-served; err != nil {
			t.Error(err)
		}

		if responders, waiting := tr.Responders(); responders != 0 || waiting != 0 {
			t.Errorf("left are %d responders, %d requests", responders, waiting)
		}
	})
}

func second[A any](_ A, err error) error { return err }

func TestResponderSubscriptionsRefuse(t *testing.T) {
	t.Parallel()

	sink := func(transport.Delivery) {}
	ended, cancel := context.WithCancel(t.Context())
	cancel()

	for name, c := range map[string]struct {
		ctx  context.Context
		cfg  transport.SubscribeConfig
		want error
	}{
		"ended":   {ended, transport.SubscribeConfig{Subject: "a", Sink: sink}, context.Canceled},
		"subject": {t.Context(), transport.SubscribeConfig{Subject: "a..b", Sink: sink}, transport.ErrInvalidSubject},
		"group":   {t.Context(), transport.SubscribeConfig{Subject: "a", Group: "a b", Sink: sink}, transport.ErrInvalidOption},
		"no sink": {t.Context(), transport.SubscribeConfig{Subject: "a"}, transport.ErrInvalidOption},
	} {
		_, err := open(t).Responder().Subscribe(c.ctx, c.cfg)

		var e *transport.Error
		if !errors.As(err, &e) || !errors.Is(err, c.want) {
			t.Errorf("%s: error %v", name, err)
		}
	}

	if caps := open(t).Responder().Capabilities(); caps.Has(transport.Acks) || !caps.Has(transport.Groups, transport.RequestReply) {
		t.Errorf("capabilities %s", caps)
	}

	if !strings.Contains(open(t).Capabilities().String(), transport.RequestReply.String()) {
		t.Error("the transport does not tell that it has request-reply")
	}
}
