package transporttest

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport"
)

func bodiesRoundTrip(e *env) {
	b := e.start(Config{})
	from, to := b.open(), b.open()
	subject := b.subject("b")
	limit := e.harness.maxPayload()

	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}

	bodies := [][]byte{ //nolint:prealloc // a table, and one more
		nil,
		{},
		{0},
		[]byte("text"),
		[]byte("naïve – ☃ \U0001F600"),
		[]byte("\xff\xfe not UTF-8 \xc3\x28"),
		[]byte("line\r\nbreaks\n\r\n"),
		every,
		bytes.Repeat(every, 400), // 100 KB
		bytes.Repeat([]byte{'x'}, limit),
	}

	var got list[[]byte]

	subscribe(e, to, raw.Bytes(), subject, func(_ context.Context, msg goflux.Message[[]byte]) error {
		got.add(msg.Payload)

		return nil
	})

	p := newPublisher(e, from, raw.Bytes())

	for _, body := range bodies {
		e.ok(p.Publish(e.within(), subject, body), "publish")
	}

	// What is too large is refused, and nothing of it is sent.
	e.is(p.Publish(e.within(), subject, make([]byte, limit+1)), goflux.ErrTooLarge, "a body over the limit")

	// Headers count.
	withHeader := goflux.WithHeader(e.within(), goflux.Header{"X-Header": {"value"}})
	e.is(p.Publish(withHeader, subject, make([]byte, limit)), goflux.ErrTooLarge, "a body at the limit with headers")
	e.ok(p.Publish(e.within(), subject, []byte("behind")), "publish")

	bodies = append(bodies, []byte("behind"))

	for i, body := range got.wait(e, len(bodies), "all bodies") {
		if !bytes.Equal(body, bodies[i]) {
			e.Errorf("body %d arrived as %d bytes %.20q..., want %d bytes %.20q...", i, len(body), body, len(bodies[i]), bodies[i])
		}
	}
}

func headersRoundTrip(e *env) {
	b := e.start(Config{})
	from, to := b.open(), b.open()
	subject := b.subject("h")

	headers := []goflux.Header{
		nil,
		{"One": {"value"}},
		{"Many": {"b", "a", "b", ""}},
		{"Empty": {""}},
		{"lower": {"1"}, "UPPER": {"2"}, "MiXed-cAsE": {"3"}},
		{"case": {"1"}, "Case": {"2"}, "CASE": {"3"}},
		{"!#$%&'*+-.^_`|~09azAZ": {"odd but legal"}},
		{"Values": {`with "quotes", commas; semicolons: colons = and \ more`, "inner  spaces\tand a tab", "für ☃"}},
		{"Long": {strings.Repeat("x", 10_000)}},
	}

	var got list[goflux.Header]

	e.subscribe(to, subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Header)

		return nil
	})

	p := e.publisher(from)

	for _, h := range headers {
		sent := h.Clone()
		e.ok(p.Publish(goflux.WithHeader(e.within(), h), subject, ""), "publish")

		if !reflect.DeepEqual(h, sent) {
			e.Errorf("publishing changed the caller's header to %v, it was %v", h, sent)
		}
	}

	for i, h := range got.wait(e, len(headers), "all messages") {
		if len(h)+len(headers[i]) > 0 && !reflect.DeepEqual(h, headers[i]) {
			e.Errorf("the headers %s arrived as %s", brief(headers[i]), brief(h))
		}
	}
}

func foreignHeaders(e *env) {
	b := e.start(Config{})
	from, to := b.open(), b.open()
	subject := b.subject("h")
	foreign := b.PublishForeign

	if foreign == nil {
		foreign = func(_ testing.TB, subject string, header map[string][]string, data []byte) {
			_, err := from.Publish(e.within(), transport.Message{Subject: subject, Header: header, Data: data})
			e.ok(err, "publish")
		}
	}

	header := map[string][]string{
		"X-Foreign":       {"1", "2"},
		"lower-case":      {"kept"},
		"X-Empty":         {""},
		"Nats-Msg-Id":     {"foreign-1"},
		"Goflux-Whatever": {"not ours"},
	}

	var got list[goflux.Message[string]]

	e.subscribe(to, subject, func(ctx context.Context, msg goflux.Message[string]) error {
		if id := goflux.MessageID(ctx); id != msg.ID() {
			e.Errorf("the id in the handler's context is %q, the message's is %q", id, msg.ID())
		}

		got.add(msg)

		return nil
	})
	foreign(e, subject, header, []byte("payload"))
	foreign(e, subject, nil, []byte("bare"))

	msgs := got.wait(e, 2, "the messages of a foreign client")

	for key, values := range header {
		if !slices.Equal(msgs[0].Header[key], values) {
			e.Errorf("the header %q arrived as %q, want %q", key, msgs[0].Header[key], values)
		}
	}

	if id := msgs[0].ID(); id != "foreign-1" {
		e.Errorf("the id of a foreign message is %q, want its Nats-Msg-Id", id)
	}

	if msgs[0].Payload != "payload" || msgs[1].Payload != "bare" || len(msgs[1].Header) != 0 {
		e.Errorf("got %+v, want what the foreign client sent", msgs)
	}
}

func badHeaders(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("h")

	var got list[string]

	e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	})

	p := e.publisher(t)

	for name, ctx := range map[string]context.Context{
		"an empty key":             goflux.WithHeader(e.within(), goflux.Header{"": {"v"}}),
		"a key with a space":       goflux.WithHeader(e.within(), goflux.Header{"a b": {"v"}}),
		"a key with a colon":       goflux.WithHeader(e.within(), goflux.Header{"a:": {"v"}}),
		"a key with a line break":  goflux.WithHeader(e.within(), goflux.Header{"a\r\nb": {"v"}}),
		"a key that is not ASCII":  goflux.WithHeader(e.within(), goflux.Header{"ä": {"v"}}),
		"a key without values":     goflux.WithHeader(e.within(), goflux.Header{"a": {}}),
		"a value with a CR":        goflux.WithHeader(e.within(), goflux.Header{"a": {"x\ry"}}),
		"a value with an LF":       goflux.WithHeader(e.within(), goflux.Header{"a": {"fine", "x\ny"}}),
		"a leading space":          goflux.WithHeader(e.within(), goflux.Header{"a": {" x"}}),
		"a trailing tab":           goflux.WithHeader(e.within(), goflux.Header{"a": {"x\t"}}),
		"a server's header":        goflux.WithHeader(e.within(), goflux.Header{"Nats-Msg-Id": {"1"}}),
		"goflux's header":          goflux.WithHeader(e.within(), goflux.Header{"goflux-x": {"1"}}),
		"the id's header":          goflux.WithHeader(e.within(), goflux.Header{"x-message-id": {"1"}}),
		"the trace's header":       goflux.WithHeader(e.within(), goflux.Header{"Traceparent": {"1"}}),
		"a status":                 goflux.WithHeader(e.within(), goflux.Header{"Status": {"503"}}),
		"an id with a line break":  goflux.WithMessageID(e.within(), "a\nb"),
		"an id that ends in space": goflux.WithMessageID(e.within(), "a "),
	} {
		e.is(p.Publish(ctx, subject, name), goflux.ErrInvalidHeader, name)
	}

	e.publish(t, subject, "behind")
	sameOrder(e, "the subscription", got.wait(e, 1, "the message behind"), []string{"behind"})
}

func badSubjects(e *env) {
	b := e.start(Config{})
	t := b.open()
	p := e.publisher(t)

	bad := []string{"", ".", "a..b", ".a", "a.", "a b", " a", "a\tb", "a\nb", "a\r\nb", "a\x00b", "a\x7fb"}

	for _, subject := range slices.Concat(bad, []string{"*", ">", "a.*", "a.>", "*.a", "a.*.b"}) {
		e.is(p.Publish(e.within(), subject, ""), goflux.ErrInvalidSubject, "publish on "+subject)
	}

	sub, err := goflux.NewSubscriber(t, text, goflux.WithLogger(e.log))
	e.ok(err, "make a subscriber")

	for _, subject := range slices.Concat(bad, []string{">.a", "a.>.b", "a..>", ">.>"}) {
		err := sub.Subscribe(e.within(), subject, func(context.Context, goflux.Message[string]) error { return nil })
		e.is(err, goflux.ErrInvalidSubject, "subscribe to "+subject)

		if b.has(transport.Fetching) {
			_, err = goflux.NewConsumer(t, text, subject, goflux.WithQueueGroup("g"))
			e.is(err, goflux.ErrInvalidSubject, "a consumer of "+subject)
		}
	}

	if b.has(transport.Groups) {
		for _, group := range []string{"", "a.b", "a*", "a>", "a b", "a/b", `a\b`, "a\x00"} {
			_, err := goflux.NewSubscriber(t, text, goflux.WithQueueGroup(group))
			e.is(err, goflux.ErrInvalidOption, "the group "+group)
		}
	}
}

func traceAndID(e *env) {
	b := e.start(Config{})
	from, to := b.open(), b.open()
	subject := b.subject("t")

	tel, err := goflux.NewTelemetry(goflux.WithPropagator(propagation.TraceContext{}))
	e.ok(err, "make a telemetry")

	sender := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4, 5, 6}, TraceFlags: trace.FlagsSampled,
	})

	type arrival struct {
		msg goflux.Message[string]
		id  string
	}

	var (
		got       list[arrival]
		forwarded list[string]
	)

	// What a handler publishes does not go out under the id it handles: to a
	// broker that stores an id once it would be the same message.
	forward := newPublisher(e, to, text, goflux.WithTelemetry(tel))

	e.subscribe(to, b.subject("forwarded"), func(_ context.Context, msg goflux.Message[string]) error {
		forwarded.add(msg.ID())

		return nil
	})
	e.subscribe(to, subject, func(ctx context.Context, msg goflux.Message[string]) error {
		got.add(arrival{msg, goflux.MessageID(ctx)})

		return forward.Publish(ctx, b.subject("forwarded"), msg.Payload)
	}, goflux.WithTelemetry(tel))

	ctx := trace.ContextWithSpanContext(goflux.WithMessageID(e.within(), "id-1"), sender)
	e.ok(newPublisher(e, from, text, goflux.WithTelemetry(tel)).Publish(ctx, subject, "traced"), "publish")
	e.publish(from, subject, "plain")

	arrivals := got.wait(e, 2, "both messages")

	if a := arrivals[0]; a.id != "id-1" || a.msg.ID() != "id-1" || a.msg.Header.Get(transport.HeaderMessageID) != "id-1" {
		e.Errorf("the id arrived as %q in the context, %q in the message, with the headers %v", a.id, a.msg.ID(), a.msg.Header)
	}

	// Lowercase, as W3C Trace Context has it.
	if tp := arrivals[0].msg.Header.Get("traceparent"); !strings.Contains(tp, sender.TraceID().String()) {
		e.Errorf("the trace context arrived as %q, want trace %v", tp, sender.TraceID())
	}

	if a := arrivals[1]; a.id != "" || a.msg.ID() != "" || len(a.msg.Header) != 0 {
		e.Errorf("a message without id and trace arrived with the id %q and the headers %v", a.id, a.msg.Header)
	}

	sameOrder(e, "the ids of forwarded messages", forwarded.wait(e, 2, "what was forwarded"), []string{"", ""})
}

func sameID(e *env) {
	b := e.start(Config{})
	from, other := b.open(), b.open()
	subject := b.subject("i")

	var got list[string]

	e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.ID() + " " + msg.Payload)

		return nil
	})

	var want []string

	send := func(t transport.Transport, id, payload string, duplicate bool) {
		e.Helper()

		r, err := e.publisher(t).Send(goflux.WithMessageID(e.within(), id), subject, payload)
		e.ok(err, "publish")

		if r.Duplicate != (duplicate && b.has(transport.Deduplication)) {
			e.Errorf("the receipt of %q under the id %q is %+v", payload, id, r)
		}

		if !r.Duplicate {
			want = append(want, id+" "+payload)
		}
	}

	send(from, "a", "first", false)
	send(from, "a", "second", true)
	send(from, "b", "first", false)
	send(from, "", "first", false)
	send(from, "", "first", false)

	if b.has(transport.Deduplication) {
		send(other, "a", "third", true) // by another client
	}

	send(from, "c", "behind", false)
	sameOrder(e, "the subscription", got.wait(e, len(want), "all that was stored"), want)
}

func concurrencyIsBounded(e *env) {
	b := e.start(Config{})
	t := b.open()

	for _, n := range []int{1, 4} {
		var (
			subject = b.subject("c", numbers(n + 1)[n])
			busy    atomic.Int32
			got     list[string]
			arrived atomic.Int32
			opts    []goflux.SubscriberOption
		)

		if n > 1 { // the default is 1
			opts = append(opts, goflux.WithConcurrency(n))
		}

		// The first n wait for each other, which proves that n are reached.
		meeting := gather(n)

		e.subscribe(t, subject, func(_ context.Context, msg goflux.Message[string]) error {
			if now := busy.Add(1); int(now) > n {
				e.Errorf("%d handlers run at once, want %d at the most", now, n)
			}
			defer busy.Add(-1)

			if int(arrived.Add(1)) <= n {
				meeting.arrive()

				if !e.happens(meeting.complete) {
					e.Errorf("not as many as %d handlers run at once", n)
				}
			}

			got.add(msg.Payload)

			return nil
		}, opts...)

		want := numbers(100)
		e.publish(t, subject, want...)
		eachOnce(e, "the subscription", got.wait(e, len(want), "all messages"), want)
	}

	for _, n := range []int{0, -1, 1 << 30} {
		_, err := goflux.NewSubscriber(t, text, goflux.WithConcurrency(n))
		e.is(err, goflux.ErrInvalidOption, "a senseless concurrency")
	}
}

func missingStream(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("m")
	ignore := func(context.Context, goflux.Message[string]) error { return nil }

	if b.DeleteStream == nil {
		// There is no such thing as a stream that could be missing: any
		// subject is as good as another.
		e.ok(e.publisher(t).Publish(e.within(), b.cfg.Prefix+"-nobody.knows", ""), "publish on a subject nobody knows")
		e.ok(e.subscribe(t, b.cfg.Prefix+"-nobody.knows", ignore).stop(), "subscribe to it")

		return
	}

	info := e.attach(t, transport.SubscribeConfig{Subject: subject, Group: groupIf(b), Sink: func(transport.Delivery) {}}).Info()
	b.DeleteStream(e, info)

	names := func(err error, name, what string) {
		e.Helper()

		if err != nil && !strings.Contains(err.Error(), name) {
			e.Errorf("%s: the error %q does not name %q", what, err, name)
		}
	}

	// All of them fail long before patience ends.
	for _, subject := range []string{subject, b.cfg.Prefix + "-nobody.knows"} {
		err := e.publisher(t).Publish(e.within(), subject, "")
		e.is(err, goflux.ErrNoStream, "publish without a stream")
		names(err, subject, "publish without a stream")
	}

	for what, opts := range map[string][]goflux.SubscriberOption{
		"subscribe without a stream":    nil,
		"join a group without a stream": grouped(b),
	} {
		sub, err := goflux.NewSubscriber(t, text, append(opts, goflux.WithLogger(e.log))...)
		e.ok(err, "make a subscriber")

		err = sub.Subscribe(e.within(), subject, ignore)
		e.is(err, goflux.ErrStreamNotFound, what)
		names(err, subject, what)

		if told, ok := errors.AsType[*goflux.Error](err); ok && told.Stream != "" && told.Stream != info.Stream {
			e.Errorf("%s: the error names the stream %q, want %q", what, told.Stream, info.Stream)
		}
	}

	if b.has(transport.Fetching) {
		_, err := e.consumer(t, subject, fetchers).Fetch(e.within(), 1)
		e.is(err, goflux.ErrStreamNotFound, "fetch without a stream")
		names(err, subject, "fetch without a stream")
	}
}
