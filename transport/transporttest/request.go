package transporttest

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// respond serves requests until the item ends, and returns when the broker has
// the subscription.
func respond(
	e *env, t transport.Transport, subject string, h goflux.RequestHandler[string, string], opts ...goflux.ResponderOption,
) {
	e.Helper()

	ready := make(chan struct{})

	s, err := goflux.NewResponder(t, text, text, append([]goflux.ResponderOption{
		goflux.WithLogger(e.log),
		goflux.WithReady(func() { close(ready) }),
	}, opts...)...)
	e.ok(err, "make a responder")

	ctx, cancel := context.WithCancel(e.Context())
	r := &running{e: e, sub: s, cancel: cancel, done: make(chan struct{})}

	go func() {
		defer close(r.done)

		r.err = s.Serve(ctx, subject, h)
	}()

	e.Cleanup(func() {
		cancel()

		if !e.happens(r.done) {
			e.Errorf("Serve(%q) does not return", subject)
		}
	})

	select {
	case <-ready:
	case <-r.done:
		e.Fatalf("Serve(%q) returned before it was ready: %v", subject, r.err)
	case <-time.After(e.harness.patience()):
		e.Fatalf("Serve(%q) does not become ready", subject)
	}
}

func requester(e *env, t transport.Transport) *goflux.BoundRequester[string, string] {
	e.Helper()

	r, err := goflux.NewRequester(t, text, text, goflux.WithLogger(e.log))
	e.ok(err, "make a requester")

	return r
}

// noRequests asserts that a transport without request-reply says so.
func noRequests(e *env, t transport.Transport) {
	e.Helper()

	_, err := goflux.NewRequester(t, text, text)
	e.is(err, goflux.ErrUnsupported, "make a requester")

	_, err = goflux.NewResponder(t, text, text)
	e.is(err, goflux.ErrUnsupported, "make a responder")
}

func requestsAreAnswered(e *env) {
	b := e.start(Config{})
	asking, answering := b.open(), b.open()

	if !b.has(transport.RequestReply) {
		noRequests(e, asking)

		return
	}

	var calls [2]atomic.Int64

	for i := range calls {
		respond(e, answering, b.subject("r", "*"), func(ctx context.Context, s string) (string, error) {
			calls[i].Add(1)

			call := goflux.CallFromContext(ctx)
			call.ReplyHeader()["Many"] = call.Header.Values("Many")

			return call.Subject + " " + call.ID() + " " + s, nil
		})
	}

	const n = 50

	many := []string{"a", "", "b"}
	r := requester(e, asking)

	for i := range n {
		id := strconv.Itoa(i)
		ctx := goflux.WithHeader(goflux.WithMessageID(e.within(), id), goflux.Header{"Many": many})

		reply, err := r.RequestMessage(ctx, b.subject("r", "x"), "body "+id)
		e.ok(err, "request")

		want := b.subject("r", "x") + " " + id + " body " + id
		if reply.Payload != want || reply.ID() != id || !slices.Equal(reply.Header.Values("Many"), many) {
			e.Errorf("reply %q with %v, want %q", reply.Payload, reply.Header, want)
		}
	}

	if sum := calls[0].Load() + calls[1].Load(); sum != n {
		e.Errorf("%d requests were handled %d times: the default group does not share them", n, sum)
	}
}

func requestFailuresDiffer(e *env) {
	b := e.start(Config{})
	t := b.open()

	if !b.has(transport.RequestReply) {
		noRequests(e, t)

		return
	}

	release := make(chan struct{})
	told := goflux.NewError(409, "taken")

	respond(e, t, b.subject("f"), func(_ context.Context, s string) (string, error) {
		switch s {
		case "slow":
			<-release

			return "", nil
		case "told":
			return "", told.WithDetails([]int{7})
		case "kept":
			return "", errors.New("a secret")
		case "panics":
			panic(s) //nolint:forbidigo // what an item is about
		default:
			return s, nil
		}
	})
	e.Cleanup(func() { close(release) })

	r := requester(e, t)
	ask := func(ctx context.Context, subject, s string) error {
		_, err := r.Request(ctx, subject, s)

		return err
	}

	short, cancel := context.WithTimeout(e.within(), 50*time.Millisecond)
	defer cancel()

	ended, end := context.WithCancel(e.within())
	end()

	bad := text
	bad.Decode = func([]byte, *string) error { return errors.New("no reply that I know") }

	unreadable, err := goflux.NewRequester(t, text, bad)
	e.ok(err, "make a requester")

	_, decodeErr := unreadable.Request(e.within(), b.subject("f"), "ok")
	internal := goflux.NewError(500, "internal error")
	unread := goflux.NewError(400, "the request could not be decoded")
	large := string(make([]byte, e.harness.maxPayload()+1))

	for what, c := range map[string]struct{ got, want error }{
		"nobody listens":                      {ask(e.within(), b.subject("nobody"), ""), goflux.ErrNoResponders},
		"no reply in time":                    {ask(short, b.subject("f"), "slow"), context.DeadlineExceeded},
		"a ctx that had ended":                {ask(ended, b.subject("f"), ""), context.Canceled},
		"an error that is told":               {ask(e.within(), b.subject("f"), "told"), told},
		"an error that is kept":               {ask(e.within(), b.subject("f"), "kept"), internal},
		"a panic":                             {ask(e.within(), b.subject("f"), "panics"), internal},
		"a request that does not decode":      {ask(e.within(), b.subject("f"), undecodable), unread},
		"a request that makes a codec panic":  {ask(e.within(), b.subject("f"), explosive), unread},
		"a reply that does not decode":        {decodeErr, goflux.ErrDecode},
		"a request that is too large to send": {ask(e.within(), b.subject("f"), large), goflux.ErrTooLarge},
	} {
		e.is(c.got, c.want, what)
	}

	var remote *goflux.RemoteError
	if err := ask(e.within(), b.subject("f"), "told"); !errors.As(err, &remote) || remote.Code != 409 || string(remote.Details) != "[7]" {
		e.Errorf("error %v, want one with the details", err)
	}
}

func requestsAreGathered(e *env) {
	b := e.start(Config{})
	t := b.open()

	if !b.has(transport.RequestReply) {
		noRequests(e, t)

		return
	}

	const n = 5

	for i := range n {
		respond(e, t, b.subject("m"), func(context.Context, string) (string, error) {
			return strconv.Itoa(i), nil
		}, goflux.WithoutQueueGroup())
	}

	var got []string

	for s, err := range requester(e, t).RequestMany(e.within(), b.subject("m"), "", goflux.WithMaxReplies(n)) {
		e.ok(err, "gather")

		got = append(got, s)
	}

	eachOnce(e, "the requester", got, numbers(n))
}
