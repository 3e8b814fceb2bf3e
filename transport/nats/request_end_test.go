package nats_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/nats"
)

// Who gets a request learns nothing about where the replies to others go.
func TestRepliesCannotBeForged(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	forger, honest := natstest.Connect(t, s), natstest.Connect(t, s)
	told := make(chan string, 1)

	_, err := forger.Subscribe("ads", func(m *natsgo.Msg) {
		told <- m.Reply

		_ = m.Respond([]byte(`"an ad"`))
	})
	if err == nil {
		err = forger.Flush()
	}

	if err != nil {
		t.Fatal(err)
	}

	serve(t, honest, "balance", func(context.Context, string) (string, error) {
		prefix, id := splitReply(t, <-told)

		// All of these are there before the answer is.
		for i := int64(-500); i <= 500; i++ {
			near := new(big.Int).Add(id, big.NewInt(i))

			for _, suffix := range []string{"", ".timeout=1000"} {
				if err := forger.Publish(prefix+near.Text(36)+suffix, []byte(`"forged"`)); err != nil {
					t.Error(err)
				}
			}
		}

		return "honest", forger.Flush()
	})

	asking := asker(t, natstest.Connect(t, s))

	for range 5 {
		if got, err := asking.Request(limited(t), "ads", ""); err != nil || got != "an ad" {
			t.Errorf("reply %q, error %v", got, err)
		}

		if got, err := asking.Request(limited(t), "balance", ""); err != nil || got != "honest" {
			t.Errorf("reply %q, error %v", got, err)
		}
	}
}

// splitReply takes the id of a request out of its reply subject.
func splitReply(t *testing.T, reply string) (prefix string, id *big.Int) {
	t.Helper()

	reply, _, _ = strings.Cut(reply, ".timeout=")
	i := strings.LastIndex(reply, ".") + 1

	id, ok := new(big.Int).SetString(reply[i:], 36)
	if !ok {
		t.Errorf("the id of %q is not a number: what is forged here, then?", reply)

		return "", new(big.Int)
	}

	return reply[:i], id
}

// The subjects of all calls differ in as many places as chance has it, those of
// RequestMany too, which have subscriptions of their own.
func TestReplySubjectsAreRandom(t *testing.T) {
	t.Parallel()

	const n = 200

	s := natstest.Run(t)
	replies := make(chan string, 2*n)
	responding := natstest.Connect(t, s)

	_, err := responding.Subscribe("s", func(m *natsgo.Msg) {
		replies <- m.Reply

		_ = m.Respond([]byte(`""`))
	})
	if err == nil {
		err = responding.Flush()
	}

	if err != nil {
		t.Fatal(err)
	}

	asking := asker(t, natstest.Connect(t, s))
	near := new(big.Int).Lsh(big.NewInt(1), 32)

	var (
		last    = new(big.Int)
		inboxes = map[string]bool{}
	)

	for range n {
		if _, err := asking.Request(context.Background(), "s", ""); err != nil {
			t.Fatal(err)
		}

		// Of two numbers with 64 bits, these are that close once in 2^31 times.
		prefix, id := splitReply(t, <-replies)
		if new(big.Int).Sub(id, last).CmpAbs(near) < 0 {
			t.Errorf("%v follows %v", id, last)
		}

		last, inboxes[prefix] = id, true
	}

	if len(inboxes) != 1 {
		t.Errorf("%d inboxes, want one", len(inboxes))
	}

	secrets := map[string]bool{}

	for range n {
		for _, err := range asking.RequestMany(context.Background(), "s", "", goflux.WithMaxReplies(1)) {
			if err != nil {
				t.Fatal(err)
			}
		}

		reply := <-replies
		secret := reply[strings.LastIndex(reply, ".")+1:]

		if secrets[secret] || len(secret) < 26 {
			t.Errorf("%q is no secret", secret)
		}

		secrets[secret] = true

		for inbox := range inboxes {
			if strings.HasPrefix(reply, inbox) {
				t.Errorf("%q is in the inbox of single replies", reply)
			}
		}
	}
}

// A foreign responder's text and code stay within bounds.
func TestForeignErrorsAreBounded(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	nc := natstest.Connect(t, s)

	_, err := nc.Subscribe("s", func(m *natsgo.Msg) {
		r := natsgo.NewMsg(m.Reply)
		r.Header = natsgo.Header{micro.ErrorHeader: {strings.Repeat("ä", 300_000)}, micro.ErrorCodeHeader: {strings.Trim(string(m.Data), `"`)}}
		_ = m.RespondMsg(r)
	})
	if err == nil {
		err = nc.Flush()
	}

	if err != nil {
		t.Fatal(err)
	}

	asking := asker(t, natstest.Connect(t, s))

	for code, want := range map[string]int{
		"404": 404, "100": 100, "999": 999, "99": 500, "1000": 500, "-404": 500, "99999999999999999999": 500, "": 500, "E_BAD": 500,
	} {
		_, err := asking.Request(limited(t), "s", code)

		remote, ok := errors.AsType[*goflux.RemoteError](err)
		if !ok || remote.Code != want || remote.Message != strings.Repeat("ä", 512) || len(err.Error()) > 1100 {
			t.Errorf("%q: %.100v", code, err)
		}
	}
}

// Requests that wait for a handler are bounded like messages, in bytes too.
func TestWaitingRequestsAreBounded(t *testing.T) {
	t.Parallel()

	const (
		n      = 100
		limit  = 16 << 10
		length = 1 << 10
	)

	s := natstest.Run(t)
	goOn, ready := make(chan struct{}), make(chan struct{})

	var handled atomic.Uint64

	r, err := goflux.NewResponder(newTransport(t, natstest.Connect(t, s, quiet), nats.WithPendingLimits(-1, limit)), words, words,
		silent, goflux.WithConcurrency(2), goflux.WithReady(func() { close(ready) }))
	if err != nil {
		t.Fatal(err)
	}

	served := make(chan error, 1)

	go func() {
		served <- r.Serve(context.Background(), "s", func(_ context.Context, v string) (string, error) {
			<-goOn
			handled.Add(1)

			return v, nil
		})
	}()

	<-ready

	nc := natstest.Connect(t, s)

	for range n {
		if err := nc.Publish("s", []byte(`"`+strings.Repeat("x", length)+`"`)); err != nil {
			t.Fatal(err)
		}
	}

	// Two are with handlers, and no more than the limit waits.
	least := uint64(n - 2 - limit/length)
	natstest.Eventually(t, func() bool { return r.Dropped() >= least }, "what is beyond the limit to be dropped")

	close(goOn)
	natstest.Eventually(t, func() bool { return handled.Load()+r.Dropped() == n }, "all to be handled or dropped")
	r.Close()

	if err := <-served; err != nil {
		t.Error(err)
	}

	if handled.Load() < 2 || r.Late() != 0 {
		t.Errorf("%d handled, %d late", handled.Load(), r.Late())
	}
}

// The time that a request waited for credit is part of its requester's patience.
func TestRequestsTellWhenTheyArrived(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	nc := natstest.Connect(t, s)
	tr := newTransport(t, nc)
	requests, messages := newInbox(t), newInbox(t)

	sub, err := tr.Responder().Subscribe(limited(t), requests.config("s", ""))
	if err != nil {
		t.Fatal(err)
	}

	defer closeNow(t, sub)

	subscribe(t, tr, messages.config("s", "")).Request(1)

	before := time.Now()

	if err := nc.PublishRequest("s", "r.timeout=60000", nil); err != nil {
		t.Fatal(err)
	}

	if d := messages.next(); !d.Arrived.IsZero() {
		t.Errorf("a message tells of %v", d.Arrived)
	}

	if err := tr.Flush(limited(t)); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, func() bool { return time.Since(before) > 50*time.Millisecond }, "some time to pass")
	credited := time.Now()

	sub.Request(1)

	d := requests.next()
	if d.Arrived.Before(before) || !d.Arrived.Before(credited) {
		t.Errorf("arrived %v after it was sent, %v before there was credit", d.Arrived.Sub(before), credited.Sub(d.Arrived))
	}

	if at, ok := tr.Responder().Deadline(d, d.Arrived); !ok || at.Sub(d.Arrived) != time.Minute {
		t.Errorf("the deadline is %v, %v", at, ok)
	}
}

// With the end, a responder is not to be found any more, while handlers run; and
// who it could not start is told so.
func TestDrainingResponder(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	asked := natstest.Connect(t, s)
	ready := make(chan struct{})

	r := nats.NewResponder(natstest.Connect(t, s), words, words, silent, goflux.WithConcurrency(1),
		goflux.WithDrainTimeout(500*time.Millisecond), goflux.WithReady(func() { close(ready) }))
	started := make(chan string, 10)
	served := make(chan error, 1)

	go func() {
		served <- r.Serve(context.Background(), "s", func(ctx context.Context, v string) (string, error) {
			started <- v

			<-ctx.Done()

			return v, nil
		})
	}()

	<-ready

	inbox, err := asked.SubscribeSync("inbox.*")
	if err != nil {
		t.Fatal(err)
	}

	const queued = 20

	for i := range queued + 1 {
		if err := asked.PublishRequest("s", fmt.Sprint("inbox.", i), fmt.Appendf(nil, "%q", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}

	if err := asked.Flush(); err != nil {
		t.Fatal(err)
	}

	if v := <-started; v != "0" {
		t.Errorf("%s was started first", v)
	}

	r.Close()
	nobodyListens(t, asked, "$SRV.INFO")

	select {
	case err := <-served:
		t.Errorf("Serve returned before it was not to be found any more: %v", err)
	default:
	}

	codes := map[string]int{}

	for range queued + 1 {
		m, err := inbox.NextMsg(natstest.Limit)
		if err != nil {
			t.Fatal(err)
		}

		codes[m.Header.Get(micro.ErrorCodeHeader)+m.Header.Get(micro.ErrorHeader)+string(m.Data)]++
	}

	if codes["503the responder is stopping"] != queued || codes[`"0"`] != 1 {
		t.Errorf("answers %v", codes)
	}

	var drain *goflux.DrainError
	if err := <-served; !errors.As(err, &drain) || drain.Abandoned != queued || len(started) != 0 {
		t.Errorf("Serve: %v; %d more were started", err, len(started))
	}
}
