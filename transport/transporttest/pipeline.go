package transporttest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// batching returns a publisher of text that is closed with the item.
func (e *env) batching(t transport.Publisher, opts ...goflux.PublisherOption) *goflux.BoundPublisher[string] {
	e.Helper()

	p := newPublisher(e, t, text, opts...)
	e.Cleanup(func() { e.check(p.Close(), "close the publisher") })

	return p
}

// ascending reports receipts that are not those of messages that were stored in
// this order; without the capability, receipts that are any.
func (b *broker) ascending(receipts []goflux.Receipt, what string) {
	b.e.Helper()

	var last uint64

	for i, r := range receipts {
		if !b.has(transport.Receipts) {
			if r != (goflux.Receipt{}) {
				b.e.Errorf("%s: the receipt %d is %+v, want none without the capability", what, i, r)
			}

			continue
		}

		if r.Stream == "" || r.Sequence <= last || r.Duplicate {
			b.e.Errorf("%s: the receipt %d is %+v, want a sequence above %d, and no duplicate", what, i, r, last)
		}

		last = r.Sequence
	}
}

// duplicateOf returns the receipt of what is stored already.
func duplicateOf(r transport.Receipt) transport.Receipt {
	r.Duplicate = true

	return r
}

func batchesAnswerInOrder(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("b")
	got := e.payloads(b.open(), subject)
	p := e.batching(t)

	want := numbers(e.n(1000, 200))
	items := make([]goflux.Item[string], len(want))

	for i, s := range want {
		items[i] = goflux.Item[string]{Subject: subject, Payload: s}

		if i%2 == 0 {
			items[i].ID = "m-" + s
			items[i].Header = goflux.Header{"X-Number": {s}}
		}
	}

	receipts := func(results []goflux.Result) []goflux.Receipt {
		e.Helper()

		rs := make([]goflux.Receipt, len(results))

		for i, r := range results {
			e.check(r.Err, "a message of a batch")
			rs[i] = r.Receipt
		}

		return rs
	}

	results, err := p.PublishBatch(e.within(), items...)
	e.ok(err, "publish a batch")

	once := receipts(results)
	if len(once) != len(items) {
		e.Fatalf("%d results of %d messages", len(once), len(items))
	}

	b.ascending(once, "a batch")
	sameOrder(e, "the subscription", got.wait(e, len(want), "the batch"), want)

	// What has an id is stored once.
	results, err = p.PublishBatch(e.within(), items...)
	e.ok(err, "publish a batch again")

	for i, r := range receipts(results) {
		duplicate := items[i].ID != "" && b.has(transport.Deduplication)

		if r.Duplicate != duplicate || (duplicate && r != duplicateOf(once[i])) {
			e.Errorf("the receipt of message %d is %+v, and %+v when it was published again", i, once[i], r)
		}

		if !duplicate {
			want = append(want, items[i].Payload)
		}
	}

	// What cannot be sent keeps nothing from being sent.
	results, err = p.PublishBatch(e.within(),
		goflux.Item[string]{Subject: subject, Payload: "good"},
		goflux.Item[string]{Subject: "a.*", Payload: "bad"},
		goflux.Item[string]{Subject: subject, Payload: string(make([]byte, e.harness.maxPayload()+1))},
		goflux.Item[string]{Subject: subject, Payload: "better"},
	)
	want = append(want, "good", "better")

	if failed, told := errors.AsType[*goflux.BatchError](err); !told || failed.Failed != 2 || failed.Total != 4 {
		e.Errorf("error %v, want a *BatchError for 2 of 4 messages", err)
	}

	e.refused(results[1].Receipt, results[1].Err, goflux.ErrInvalidSubject, "a message of a batch")
	e.refused(results[2].Receipt, results[2].Err, goflux.ErrTooLarge, "a message of a batch")
	b.ascending(receipts([]goflux.Result{results[0], results[3]}), "the good ones of a batch")

	if b.DeleteStream != nil && b.has(transport.Receipts) {
		results, err = e.batching(t, goflux.WithRetryAttempts(0)).PublishBatch(e.within(),
			goflux.Item[string]{Subject: b.cfg.Prefix + "-nobody.knows", Payload: "lost"},
			goflux.Item[string]{Subject: subject, Payload: "kept"},
		)
		want = append(want, "kept")

		e.is(err, goflux.ErrNoStream, "a batch with a message that no stream stores")
		e.refused(results[0].Receipt, results[0].Err, goflux.ErrNoStream, "a message that no stream stores")
		b.ascending(receipts(results[1:]), "the other message")
	}

	e.publish(t, subject, "behind")
	want = append(want, "behind")
	sameOrder(e, "the subscription", got.wait(e, len(want), "all that was stored"), want)

	// A publisher that is closed, a ctx that has ended.
	ended, end := context.WithCancel(e.within())
	end()

	_, err = p.PublishAsync(ended, subject, "late")
	e.is(err, context.Canceled, "PublishAsync under a ctx that had ended")

	e.ok(p.Close(), "close the publisher")

	_, err = p.PublishAsync(e.within(), subject, "late")
	e.is(err, goflux.ErrClosed, "PublishAsync after closing the publisher")
}

// published is the outcome of a message in a pipeline.
type published struct {
	token   uint64
	receipt transport.Receipt
	err     error
}

// piping is a pipeline whose outcomes are kept.
type piping struct {
	transport.Pipeline

	outcomes list[published]
	ends     list[error]
	within   atomic.Bool // done or ended runs
	closed   atomic.Bool
}

func (e *env) openPipeline(t transport.Pipeliner) *piping {
	e.Helper()

	p := &piping{}

	out, err := t.OpenPipeline(e.within(), func(token uint64, r transport.Receipt, err error) {
		if p.within.Swap(true) {
			e.Error("done is called while it runs")
		}

		if p.closed.Load() {
			e.Error("done is called after Close")
		}

		if p.ends.len() > 0 {
			e.Error("done is called after ended")
		}

		runtime.Gosched()
		p.outcomes.add(published{token, r, err})
		p.within.Store(false)
	}, func(err error) {
		if p.within.Swap(true) {
			e.Error("ended is called while done runs")
		}

		if p.closed.Load() {
			e.Error("ended is called after Close")
		}

		p.ends.add(err)
		p.within.Store(false)
	})
	e.ok(err, "open a pipeline")

	p.Pipeline = out
	e.Cleanup(func() { e.check(p.Close(), "close the pipeline") })

	return p
}

// receipts waits for the outcomes of n messages, and returns their receipts in
// the order of their tokens, which are tokenOf the numbers from first on.
func (p *piping) receipts(e *env, first, n int) []transport.Receipt {
	e.Helper()

	rs := make([]transport.Receipt, n)
	tokens := make([]uint64, 0, n)
	want := make([]uint64, n)

	for i := range want {
		want[i] = tokenOf(first + i)
	}

	for _, o := range p.outcomes.wait(e, first+n, "the outcome of every message")[first:] {
		e.check(o.err, "a message of a pipeline")

		tokens = append(tokens, o.token)

		if i := int(o.token>>40) - first; i >= 0 && i < n {
			rs[i] = o.receipt
		}
	}

	eachOnce(e, "done", tokens, want)

	return rs
}

// tokenOf returns a token that needs all of its bits.
func tokenOf(i int) uint64 { return uint64(i)<<40 | 1<<39 | uint64(i) }

func pipelinesAnswerByToken(e *env) {
	b := e.start(Config{})
	t := b.open()
	subject := b.subject("p")

	pipeliner, piped := t.(transport.Pipeliner)
	if !piped {
		// What is published asynchronously is published at once.
		got := e.payloads(t, subject)

		for _, s := range numbers(10) {
			pending, err := e.batching(t).PublishAsync(e.within(), subject, s)
			e.ok(err, "publish asynchronously")

			select {
			case <-pending.Done():
			default:
				e.Errorf("message %s is under way on a transport without pipelines", s)
			}
		}

		sameOrder(e, "the subscription", got.wait(e, 10, "all messages"), numbers(10))

		return
	}

	var got list[goflux.Message[string]]

	e.subscribe(b.open(), subject, func(_ context.Context, msg goflux.Message[string]) error {
		got.add(msg)

		return nil
	})

	p, other := e.openPipeline(pipeliner), e.openPipeline(pipeliner)
	n := e.n(500, 100)

	// Many are under way before the outcome of one is awaited. The buffers are
	// the caller's again after each.
	send := func(p *piping, first, n int, id, prefix string) (payloads []string) {
		e.Helper()

		data, header := make([]byte, 0, 64), transport.Header{}

		for i := range n {
			msg := transport.Message{Subject: subject}
			number := strconv.Itoa(i)

			data = append(append(data[:0], prefix...), number...)
			msg.Data = data

			if id != "" {
				msg.ID = id + number
				msg.Header = header
				header.Set(transport.HeaderMessageID, msg.ID)
			}

			e.ok(p.Send(tokenOf(first+i), msg), "send")

			payloads = append(payloads, string(data))
			clear(data[:cap(data)])
			clear(header)
		}

		return payloads
	}

	want := send(p, 0, n, "", "plain ")
	b.ascending(p.receipts(e, 0, n), "a pipeline")

	want = append(want, send(p, n, n, "m-", "named ")...)
	once := p.receipts(e, n, n)
	b.ascending(once, "a pipeline with ids")

	// Another pipeline has the same tokens and nothing to do with them. To the
	// broker the ids are the same.
	again := send(other, 0, n, "m-", "again ")
	receipts := other.receipts(e, 0, n)

	if b.has(transport.Deduplication) {
		for i, r := range receipts {
			if r != duplicateOf(once[i]) {
				e.Errorf("the receipt of message %d is %+v, and %+v when it was sent again", i, once[i], r)
			}
		}
	} else {
		b.ascending(receipts, "another pipeline")

		want = append(want, again...)
	}

	// What is refused has no other outcome.
	err := p.Send(tokenOf(2*n), transport.Message{Subject: subject, Data: make([]byte, e.harness.maxPayload()+1)})
	e.is(err, transport.ErrTooLarge, "send what is too large")

	want = append(want, send(p, 2*n+1, 1, "", "behind ")...)
	_ = p.receipts(e, 2*n, 0)

	for _, o := range p.outcomes.wait(e, 2*n+1, "the outcome of the message behind")[2*n:] {
		if o.err != nil || o.token != tokenOf(2*n+1) {
			e.Errorf("the outcome %+v, want that of the message behind", o)
		}
	}

	if b.DeleteStream != nil && b.has(transport.Receipts) {
		e.ok(p.Send(tokenOf(0), transport.Message{Subject: b.cfg.Prefix + "-nobody.knows"}), "send where there is no stream")

		o := p.outcomes.wait(e, 2*n+2, "the outcome of a message that no stream stores")[2*n+1]
		e.refused(o.receipt, o.err, transport.ErrNoStream, "a message that no stream stores")
	}

	var payloads []string

	for _, msg := range got.wait(e, len(want), "all messages") {
		payloads = append(payloads, msg.Payload)

		if number, named := strings.CutPrefix(msg.Payload, "named "); named && msg.ID() != "m-"+number {
			e.Errorf("%q arrived with the id %q", msg.Payload, msg.ID())
		}
	}

	sameOrder(e, "the subscription", payloads, want)

	// After Close nothing is told of what is under way.
	send(other, n, n, "", "untold ")

	for range 2 {
		e.ok(other.Close(), "close the pipeline")
		other.closed.Store(true)
	}

	e.publish(t, subject, numbers(10)...)
	e.ok(t.Close(), "close the transport")
	e.is(p.ends.wait(e, 1, "the end of the pipeline")[0], transport.ErrClosed, "the end of the pipeline of a closed transport")
	e.is(p.Send(tokenOf(0), transport.Message{Subject: subject}), transport.ErrClosed, "send after closing the transport")

	_, err = pipeliner.OpenPipeline(e.within(), func(uint64, transport.Receipt, error) {}, func(error) {})
	e.is(err, transport.ErrClosed, "open a pipeline after closing the transport")
}

func flushedIsThere(e *env) {
	b := e.start(Config{})
	one, two := b.open(), b.open()
	subject := b.subject("f")
	got := e.payloads(b.open(), subject)
	want := numbers(e.n(500, 100))

	if b.has(transport.Receipts) {
		// What is confirmed is there anyway.
		_, err := goflux.NewPublisher(one, text, goflux.WithFlush())
		e.is(err, goflux.ErrInvalidOption, "WithFlush on a transport that confirms")

		p := e.batching(one)
		pending := make([]*goflux.Pending, len(want))

		for i, s := range want {
			pending[i], err = p.PublishAsync(e.within(), subject, s)
			e.ok(err, "publish asynchronously")
		}

		e.ok(p.Flush(e.within()), "flush")

		receipts := make([]goflux.Receipt, len(want))

		for i, p := range pending {
			select {
			case <-p.Done():
			default:
				e.Errorf("message %d is under way after Flush", i)
			}

			receipts[i], err = p.Wait(e.within())
			e.check(err, fmt.Sprintf("message %d", i))
		}

		b.ascending(receipts, "what was flushed")
		sameOrder(e, "the subscription", got.wait(e, len(want), "all messages"), want)

		return
	}

	if !implements[interface {
		Flush(ctx context.Context) error
	}](one) {
		_, err := goflux.NewPublisher(one, text, goflux.WithFlush())
		e.is(err, goflux.ErrUnsupported, "WithFlush on a transport that cannot flush")

		return
	}

	flushing := e.batching(one, goflux.WithFlush())

	// What one client has flushed comes before what another one sends then.
	other := e.batching(two)

	for i, s := range want {
		switch i % 4 {
		case 0:
			e.ok(flushing.Publish(e.within(), subject, s), "publish and flush")
		case 1:
			e.ok(other.Publish(e.within(), subject, s), "publish")
			e.ok(other.Flush(e.within()), "flush")
		case 2:
			_, err := flushing.PublishBatch(e.within(), goflux.Item[string]{Subject: subject, Payload: s})
			e.ok(err, "publish a batch and flush")
		default:
			_, err := other.PublishAsync(e.within(), subject, s)
			e.ok(err, "publish asynchronously")
			e.ok(other.Flush(e.within()), "flush")
		}
	}

	sameOrder(e, "the subscription", got.wait(e, len(want), "all messages"), want)

	ended, end := context.WithCancel(e.within())
	end()
	e.is(other.Flush(ended), context.Canceled, "flush under a ctx that had ended")
	e.ok(one.Close(), "close the transport")
	e.is(flushing.Flush(e.within()), goflux.ErrClosed, "flush after closing the transport")
}
