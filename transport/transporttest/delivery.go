package transporttest

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/foomo/goencode/json/v1"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// order is what a service would send.
type order struct {
	ID     int
	Note   string
	Amount float64
	Tags   []string
	Labels map[string]string
}

func arriveUnaltered(e *env) {
	const n = 100

	type arrival struct {
		msg  goflux.Message[order]
		meta goflux.Metadata
	}

	b := e.start(Config{})
	from, to := b.open(), b.open()
	subject := b.subject("orders", "created")

	var got list[arrival]

	subscribe(e, to, json.NewCodec[order](), subject, func(_ context.Context, msg goflux.Message[order]) error {
		got.add(arrival{msg, msg.Metadata()})

		return nil
	})

	var (
		p        = newPublisher(e, from, json.NewCodec[order]())
		sent     [n]order
		headers  [n]goflux.Header
		receipts [n]goflux.Receipt
	)

	for i := range n {
		sent[i] = order{i, "für " + strconv.Itoa(i), float64(i) / 7, numbers(i % 5), map[string]string{"n": strconv.Itoa(i)}}
		headers[i] = goflux.Header{"X-Number": {strconv.Itoa(i)}, "lower-case": numbers(1 + i%3)}

		r, err := p.Send(goflux.WithHeader(e.within(), headers[i]), subject, sent[i])
		e.ok(err, "publish")

		receipts[i] = r
	}

	for i, a := range got.wait(e, n, "100 messages") { //nolint:gocritic // 200 bytes a hundred times
		if a.msg.Subject != subject {
			e.Errorf("message %d has the subject %q, want %q", i, a.msg.Subject, subject)
		}

		if !reflect.DeepEqual(a.msg.Payload, sent[i]) {
			e.Errorf("message %d arrived as %+v, want %+v", i, a.msg.Payload, sent[i])
		}

		if !reflect.DeepEqual(a.msg.Header, headers[i]) {
			e.Errorf("message %d has the headers %v, want %v", i, a.msg.Header, headers[i])
		}

		checkReceipt(e, b, i, receipts[i], a.meta)
	}
}

// checkReceipt holds a receipt against what the receiver was told.
func checkReceipt(e *env, b *broker, i int, r goflux.Receipt, m goflux.Metadata) {
	e.Helper()

	switch {
	case !b.has(transport.Receipts):
		if r != (goflux.Receipt{}) {
			e.Errorf("message %d has the receipt %+v, want none without the capability", i, r)
		}
	case r.Stream == "" || r.Sequence == 0 || r.Duplicate:
		e.Errorf("message %d has the receipt %+v, want a stream, a sequence, and no duplicate", i, r)
	case b.has(transport.Attempts) && (m.Stream != r.Stream || m.Sequence != r.Sequence || m.Timestamp.IsZero()):
		e.Errorf("message %d was stored as %+v and delivered with %+v", i, r, m)
	}

	if !b.has(transport.Attempts) && m != (goflux.Metadata{}) {
		e.Errorf("message %d has the metadata %+v, want none without the capability", i, m)
	}
}

func manySubscribers(e *env) {
	var (
		subscribers = 50
		messages    = e.n(5000, 500)
		publishers  = 50
		b           = e.start(Config{})
		to          = b.open()
		subject     = b.subject("all")
		seen        = make([][]atomic.Uint32, subscribers)
		done        list[int]
	)

	for s := range subscribers {
		seen[s] = make([]atomic.Uint32, messages)

		var count atomic.Int64

		e.subscribe(to, subject, func(_ context.Context, msg goflux.Message[string]) error {
			if i, err := strconv.Atoi(msg.Payload); err == nil && i < messages {
				seen[s][i].Add(1)
			} else {
				e.Errorf("a message %q was never sent", msg.Payload)
			}

			// Progress is told now and then.
			if n := int(count.Add(1)); n%messages == 0 || n%100 == 0 {
				done.add(n)
			}

			return nil
		})
	}

	var publishing sync.WaitGroup

	for p := range publishers {
		t := e.publisher(to)

		publishing.Go(func() {
			for i := p; i < messages; i += publishers {
				if err := t.Publish(e.Context(), subject, strconv.Itoa(i)); err != nil {
					e.Errorf("publish: %v", err)
				}
			}
		})
	}

	publishing.Wait()

	done.until(e, "all subscribers to get everything", func(ns []int) bool {
		complete := 0

		for _, n := range ns {
			if n >= messages {
				complete++
			}
		}

		return complete >= subscribers
	})

	for s := range seen {
		for i := range seen[s] {
			if n := seen[s][i].Load(); n != 1 {
				e.Errorf("subscriber %d got message %d %d times, want once", s, i, n)

				return
			}
		}
	}
}

func subjectsDoNotMix(e *env) {
	const subjects, messages = 20, 25

	b := e.start(Config{})
	from, to := b.open(), b.open()

	var got [subjects]list[string]

	for s := range subjects {
		e.subscribe(to, b.subject("s", strconv.Itoa(s)), func(_ context.Context, msg goflux.Message[string]) error {
			got[s].add(msg.Subject + " " + msg.Payload)

			return nil
		})
	}

	p := e.publisher(from)

	var publishing sync.WaitGroup

	for s := range subjects {
		publishing.Go(func() {
			for i := range messages {
				if err := p.Publish(e.Context(), b.subject("s", strconv.Itoa(s)), strconv.Itoa(i)); err != nil {
					e.Errorf("publish: %v", err)
				}
			}
		})
	}

	publishing.Wait()

	for s := range subjects {
		want := make([]string, messages)
		for i := range want {
			want[i] = fmt.Sprintf("%s %d", b.subject("s", strconv.Itoa(s)), i)
		}

		sameOrder(e, "the subscription to subject "+strconv.Itoa(s), got[s].wait(e, messages, "its messages"), want)
	}
}

func wildcards(e *env) {
	b := e.start(Config{})
	from, to := b.open(), b.open()

	subjects := []string{"a", "b", "A", "a*", "a.b", "a.c", "a.b.c", "b.b", "b.c.d", "a.b.c.d"}
	filters := map[string][]string{
		"a":       {"a"},
		"*":       {"a", "b", "A", "a*"},
		">":       subjects,
		"a.*":     {"a.b", "a.c"},
		"a.>":     {"a.b", "a.c", "a.b.c", "a.b.c.d"},
		"*.b":     {"a.b", "b.b"},
		"*.*.*":   {"a.b.c", "b.c.d"},
		"*.b.>":   {"a.b.c", "a.b.c.d"},
		"a.*.c":   {"a.b.c"},
		"*.c.*":   {"b.c.d"},
		"a.b.c.>": {"a.b.c.d"},
		// Within a token these are ordinary characters.
		"a*": {"a*"},
	}
	got := map[string]*list[string]{}

	for filter := range filters {
		l := &list[string]{}
		got[filter] = l

		e.subscribe(to, b.subject(filter), func(_ context.Context, msg goflux.Message[string]) error {
			l.add(strings.TrimPrefix(msg.Subject, b.subject()+"."))

			return nil
		})
	}

	// What should not have matched in the first round arrives before what has
	// to match in the second.
	for range 2 {
		for _, s := range subjects {
			e.publish(from, b.subject(s), s)
		}
	}

	for filter, want := range filters {
		want = slices.Concat(want, want)
		sameOrder(e, "the filter "+filter, got[filter].wait(e, len(want), "the matches of "+filter), want)
	}
}

func groupsShare(e *env) {
	const messages = 300

	b := e.start(Config{})
	subject := b.subject("jobs")

	if !b.has(transport.Groups) {
		_, err := goflux.NewSubscriber(b.open(), text, goflux.WithQueueGroup(workers))
		e.is(err, goflux.ErrUnsupported, "a queue group without the capability")
	}

	// The group "" is two subscriptions that have nothing to do with each other.
	members := map[string]int{"": 2}
	if b.has(transport.Groups) {
		maps.Copy(members, map[string]int{workers: 3, "auditors": 2})
	}

	got := map[string]*list[string]{}

	for group, n := range members {
		shared := &list[string]{}
		// A member that has one waits until all have one.
		everybody := gather(n)

		for i := range n {
			l, opts, arrive := shared, []goflux.SubscriberOption{}, sync.OnceFunc(everybody.arrive)

			if group == "" {
				l = &list[string]{}
				got["subscription "+strconv.Itoa(i)] = l
			} else {
				got["group "+group] = l
				opts = append(opts, goflux.WithQueueGroup(group))
			}

			e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
				l.add(msg.Payload)
				arrive()

				if !e.happens(everybody.complete) {
					e.Errorf("a member of the group %q gets nothing while the others are busy", group)
				}

				return nil
			}, opts...)
		}
	}

	want := numbers(messages)
	e.publish(b.open(), subject, want...)

	for who, l := range got {
		eachOnce(e, who, l.wait(e, messages, "all messages at "+who), want)
	}
}

func orderIsKept(e *env) {
	b := e.start(Config{})
	subject := b.subject("o")
	want := numbers(e.n(500, 200))

	var got list[string]

	e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg.Payload)

		return nil
	})
	e.publish(b.open(), subject, want...)
	sameOrder(e, "the subscription", got.wait(e, len(want), "all messages"), want)
}

// keyOf returns the ordering key of messages like "key/text".
func keyOf(msg goflux.Message[string]) string {
	key, _, _ := strings.Cut(msg.Payload, "/")

	return key
}

// keyed returns n messages for each key, taking turns, and what each key is to
// get.
func keyed(keys, n int) (all []string, byKey map[string][]string) {
	byKey = map[string][]string{}

	for i := range n {
		for k := range keys {
			s := fmt.Sprintf("key%d/%d", k, i)
			all = append(all, s)
			byKey["key"+strconv.Itoa(k)] = append(byKey["key"+strconv.Itoa(k)], s)
		}
	}

	return all, byKey
}

func orderIsKeptPerKey(e *env) {
	const keys = 10

	b := e.start(Config{})
	subject := b.subject("o")
	all, byKey := keyed(keys, e.n(100, 30))

	var (
		got  list[string]
		busy [keys]atomic.Int32

		// Two keys meet, which proves that lanes run side by side.
		meeting = gather(2)
		arrive  = [2]func(){sync.OnceFunc(meeting.arrive), sync.OnceFunc(meeting.arrive)}
	)

	e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
		k, _ := strconv.Atoi(strings.TrimPrefix(keyOf(msg), "key"))

		if busy[k].Add(1) > 1 {
			e.Errorf("two messages of %s are handled at once", keyOf(msg))
		}
		defer busy[k].Add(-1)

		if k < len(arrive) {
			arrive[k]()

			if !e.happens(meeting.complete) {
				e.Error("two keys are not handled side by side")
			}
		}

		got.add(msg.Payload)

		return nil
	}, goflux.WithConcurrency(8), goflux.WithOrderingKey(keyOf))

	e.publish(b.open(), subject, all...)

	order := map[string][]string{}
	for _, s := range got.wait(e, len(all), "all messages") {
		key, _, _ := strings.Cut(s, "/")
		order[key] = append(order[key], s)
	}

	for key, want := range byKey {
		sameOrder(e, key, order[key], want)
	}
}

func strictOrder(e *env) {
	b := e.start(Config{})
	subject := b.subject("o")

	if !b.has(transport.Redelivery) {
		_, err := goflux.NewSubscriber(b.open(), text, goflux.WithStrictOrder())
		e.is(err, goflux.ErrUnsupported, "strict order without redelivery")

		return
	}

	const keys, n = 4, 10

	all, byKey := keyed(keys, n)

	var (
		got      list[string]
		failures atomic.Int32
		others   = make(chan struct{})
		handled  atomic.Int32
	)

	e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
		// The first of its key fails until the other keys are done with.
		if msg.Payload == "key0/0" {
			select {
			case <-others:
			default:
				failures.Add(1)

				return fmt.Errorf("attempt %d fails", failures.Load())
			}
		} else if keyOf(msg) != "key0" && handled.Add(1) == (keys-1)*n {
			close(others)
		}

		got.add(msg.Payload)

		return nil
	}, goflux.WithConcurrency(2), goflux.WithOrderingKey(keyOf), goflux.WithStrictOrder(),
		goflux.WithRetryPolicy(goflux.ConstantRetry(time.Millisecond)))

	e.publish(b.open(), subject, all...)

	order := map[string][]string{}
	for _, s := range got.wait(e, len(all), "all messages") {
		key, _, _ := strings.Cut(s, "/")
		order[key] = append(order[key], s)
	}

	for key, want := range byKey {
		sameOrder(e, key, order[key], want)
	}
}

func lateSubscribers(e *env) {
	b := e.start(Config{})
	from := b.open()
	subject := b.subject("h")
	before := numbers(5)

	// Somebody listens, so that the broker has reason to take the messages.
	var witness list[string]

	e.subscribe(from, subject, func(_ context.Context, msg goflux.Message[string]) error {
		witness.add(msg.Payload)

		return nil
	})
	e.publish(from, subject, before...)
	witness.wait(e, len(before), "the messages before")

	want := []string{"after"}
	if b.has(transport.Replay) {
		want = slices.Concat(before, want)
	}

	late := map[string][]goflux.SubscriberOption{"a late subscription": nil}
	if b.has(transport.Groups) {
		late["a late group"] = []goflux.SubscriberOption{goflux.WithQueueGroup("late")}
	}

	got := map[string]*list[string]{}

	for who, opts := range late {
		l := &list[string]{}
		got[who] = l

		e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
			l.add(msg.Payload)

			return nil
		}, opts...)
	}

	e.publish(from, subject, "after")

	for who, l := range got {
		sameOrder(e, who, l.until(e, "what was sent after", func(got []string) bool { return slices.Contains(got, "after") }), want)
	}
}

func groupsKeepTheirPlace(e *env) {
	b := e.start(Config{})
	from := b.open()
	subject := b.subject("h")

	if !b.has(transport.Groups) {
		if b.has(transport.Durable) {
			e.Error("a transport without groups claims durable ones")
		}

		return
	}

	var got list[string]

	member := func() *running {
		e.Helper()

		return e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
			got.add(msg.Payload)

			return nil
		}, goflux.WithQueueGroup(workers))
	}

	first := member()

	e.publish(from, subject, "with a member")
	got.wait(e, 1, "a message for the first member")
	e.ok(first.stop(), "stop the first member")
	e.publish(from, subject, "without a member")

	// The broker has seen the publish when a witness gets something behind it.
	if !b.has(transport.Receipts) {
		var witness list[string]

		e.subscribe(from, b.subject("witness"), func(_ context.Context, msg goflux.Message[string]) error {
			witness.add(msg.Payload)

			return nil
		})
		e.publish(from, b.subject("witness"), "now")
		witness.wait(e, 1, "the witness")
	}

	member()
	e.publish(from, subject, "with another member")

	want := []string{"with a member", "without a member", "with another member"}
	if !b.has(transport.Durable) {
		want = slices.Delete(want, 1, 2)
	}

	sameOrder(e, "the group", got.until(e, "the last message", func(got []string) bool {
		return slices.Contains(got, "with another member")
	}), want)

	if !b.has(transport.Durable) {
		return
	}

	// A durable group has one filter: it must not skip, or deliver under a
	// name that nobody asked for.
	s, err := goflux.NewSubscriber(b.open(), text, goflux.WithQueueGroup(workers), goflux.WithLogger(e.log))
	e.ok(err, "make a subscriber")

	err = s.Subscribe(e.within(), b.subject("other"), func(context.Context, goflux.Message[string]) error { return nil })
	e.is(err, goflux.ErrSubjectMismatch, "another subject for a durable group")

	for _, name := range []string{subject, b.subject("other")} {
		if err != nil && !strings.Contains(err.Error(), name) {
			e.Errorf("the error %q does not name %q", err, name)
		}
	}
}
