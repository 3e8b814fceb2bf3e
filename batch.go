package goflux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/foomo/goflux/transport"
)

// Item is one message of a batch.
type Item[T any] struct {
	// Subject is where the message goes.
	Subject string

	// Payload is the value to encode.
	Payload T

	// ID is the message's id, as of [WithMessageID]; an id of ctx is not
	// used, since it names one message. Empty means none, or, with
	// [WithPublishRetry], one that is made up.
	ID string

	// Header is sent with the message; nil means the headers of ctx
	// ([WithHeader]).
	Header Header
}

// Result is what became of one message of a batch.
type Result struct {
	// Receipt is the broker's answer when Err is nil.
	Receipt Receipt

	// Err is nil when the message was published. See
	// [BoundPublisher.Publish] for what it may be.
	Err error
}

// BatchError says that some messages of a batch were not published, or that it
// is not known of some. The results tell which.
type BatchError struct {
	// Failed is how many results have an error; Total how many there are.
	Failed, Total int

	// First is the first of the errors.
	First error

	all []error
}

// Error tells how many failed, and the first reason.
func (e *BatchError) Error() string {
	return fmt.Sprintf("goflux: %d of %d messages of a batch failed; the first: %v", e.Failed, e.Total, e.First)
}

// Unwrap returns all errors: errors.Is and errors.As find what is the matter with
// any of the messages. [ErrPublishUnknown] is found if one may be stored all the
// same.
func (e *BatchError) Unwrap() []error {
	if e.all == nil {
		return []error{e.First}
	}

	return e.all
}

// Pending is a message that was published asynchronously. It is safe for
// concurrent use.
type Pending struct {
	done    chan struct{}
	receipt Receipt
	err     error
}

// Done is closed when the broker has confirmed the message, or it has failed.
// That happens at the latest when the deadline of PublishAsync's ctx is over.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Wait returns the broker's receipt, or why there is none. It blocks no longer
// than ctx; then it returns ctx's error, which says nothing of the message, and
// may be called again.
func (p *Pending) Wait(ctx context.Context) (Receipt, error) {
	select {
	case <-p.done:
		return p.receipt, p.err
	default:
	}

	select {
	case <-p.done:
		return p.receipt, p.err
	case <-ctx.Done():
		return Receipt{}, ctx.Err()
	}
}

func (p *Pending) ended(_ int, r Receipt, err error) {
	p.receipt, p.err = r, err
	close(p.done)
}

// batch collects the results of PublishBatch.
type batch struct {
	results []Result
	left    atomic.Int64
	done    chan struct{}
}

func (b *batch) ended(index int, r Receipt, err error) {
	b.results[index] = Result{r, err}
	b.release()
}

func (b *batch) release() {
	if b.left.Add(-1) == 0 {
		close(b.done)
	}
}

// err sums the results up.
func (b *batch) err() error {
	var all []error

	for _, r := range b.results {
		if r.Err != nil {
			all = append(all, r.Err)
		}
	}

	if all == nil {
		return nil // a typed nil would not be one
	}

	return &BatchError{Failed: len(all), Total: len(b.results), First: all[0], all: all}
}

var _ BatchPublisher[struct{}] = (*BoundPublisher[struct{}])(nil)

// PublishBatch sends the items in order, without waiting for one before the
// next is sent, and returns when each is confirmed or has failed: there is a
// result for each, in the order of the items. At most 4096 messages of a
// publisher are under way at once, and none is added to 64 MiB of payload. An
// item that cannot be sent, because of its subject or its
// payload, say, does not keep the others from being sent. On transports that
// cannot have several messages under way, items are published one by one.
//
// The messages are stored in order, unless one had to be repeated
// ([WithRetryAttempts], [WithPublishRetry]): it then comes after some that
// followed it. Where order matters more than speed, publish one by one.
//
// The error is nil when all were published, else a [*BatchError]. When ctx
// ends, what was not confirmed fails with its error, and with
// [ErrPublishUnknown] if it was sent. Without a deadline each message has the
// time of [WithAckWait].
//
// With [WithFlush] it returns when the server has all messages; the error of
// the flush is that of all that were handed to the client.
func (p *BoundPublisher[T]) PublishBatch(ctx context.Context, items ...Item[T]) ([]Result, error) {
	b := &batch{results: make([]Result, len(items)), done: make(chan struct{})}

	pipe, err := p.pipeline(ctx)
	if err != nil {
		for i := range items {
			b.results[i].Err = publishError(items[i].Subject, err)
		}

		if len(items) > 0 {
			err = b.err()
		}

		return b.results, err
	}

	if pipe == nil {
		p.oneByOne(ctx, items, b.results)

		return b.results, b.err()
	}

	b.left.Store(int64(len(items)) + 1)

	for i := range items {
		if pipe, err = p.launch(ctx, pipe, &items[i], b, i); err != nil {
			b.ended(i, Receipt{}, err)
		}
	}

	b.release()

	select {
	case <-b.done:
	case <-ctx.Done():
		pipe.abandon(b, ctx.Err())
		<-b.done
	}

	return b.results, b.err()
}

// oneByOne publishes a batch on a transport that takes one message at a time.
func (p *BoundPublisher[T]) oneByOne(ctx context.Context, items []Item[T], results []Result) {
	for i := range items {
		f, err := p.prepare(ctx, &items[i])
		if err == nil {
			results[i].Receipt, err = p.handOver(f)
		}

		results[i].Err = err
	}

	if !p.cfg.flush {
		return
	}

	if err := p.flushTransport(ctx); err != nil {
		for i := range results {
			results[i].Err = cmp.Or(results[i].Err, unflushed(items[i].Subject, err))
		}
	}
}

// PublishAsync sends v and returns before the broker has confirmed it. It
// blocks, no longer than ctx, while 4096 messages of this publisher, or 64 MiB
// of payload, are under way. The returned [Pending] is done at the latest when the deadline of ctx is
// over, or the time of [WithAckWait] where it has none; that ctx is cancelled
// earlier does not matter to a message that was taken.
//
// Messages reach the broker in the order of the calls, see
// [BoundPublisher.PublishBatch]. On transports that cannot have several
// messages under way it returns when the message was published, and the
// Pending is done.
//
// An error means that nothing was sent. Close ends what is under way; call
// [BoundPublisher.Flush] before.
func (p *BoundPublisher[T]) PublishAsync(ctx context.Context, subject string, v T) (*Pending, error) {
	pipe, err := p.pipeline(ctx)
	if err != nil {
		return nil, publishError(subject, err)
	}

	pending := &Pending{done: make(chan struct{})}
	item := Item[T]{Subject: subject, Payload: v, ID: outgoingID(ctx)}

	if pipe != nil {
		if _, err := p.launch(ctx, pipe, &item, pending, 0); err != nil {
			return nil, err
		}

		return pending, nil
	}

	f, err := p.prepare(ctx, &item)
	if err != nil {
		return nil, err
	}

	receipt, err := p.handOver(f)
	if err == nil && p.cfg.flush {
		err = unflushed(subject, p.flushTransport(ctx))
	}

	pending.ended(0, receipt, err)

	return pending, nil
}

// Flush returns when everything that was published asynchronously before it has
// been confirmed, or has failed, so that each [Pending] of it is done, or ctx
// ends. Its error is ctx's: the outcome of a message is told by its Pending.
//
// On transports without receipts it returns when the server has what was
// published before, and fails where it cannot be reached. After Close it fails
// with [ErrClosed].
func (s *sender) Flush(ctx context.Context) error {
	if s.err != nil {
		return s.err
	}

	if s.closed.Load() {
		return &Error{Op: "flush", Err: errPublisherClosed}
	}

	s.mu.Lock()
	pipe := s.pipe
	s.mu.Unlock()

	if pipe != nil {
		if err := pipe.flush(ctx); err != nil {
			return &Error{Op: "flush", Err: err}
		}
	}

	return s.flushTransport(ctx)
}

// flushTransport waits until the server has what was handed to the client.
func (s *sender) flushTransport(ctx context.Context) error {
	f, flushes := s.transport.(flusher)
	if !flushes || s.receipts {
		return nil
	}

	ctx, cancel := s.bound(ctx)
	defer cancel()

	return f.Flush(ctx)
}

// prepare encodes an item and makes the message of it.
func (p *BoundPublisher[T]) prepare(ctx context.Context, item *Item[T]) (flight, error) {
	if err := p.ready(ctx, item.Subject); err != nil {
		return flight{}, err
	}

	data, err := p.encode(item.Subject, item.Payload)
	if err != nil {
		return flight{}, err
	}

	h := item.Header
	if h == nil {
		h = HeaderFromContext(ctx)
	}

	msg, err := p.message(item.Subject, item.ID, h, data)
	if err != nil {
		return flight{}, err
	}

	f := flight{msg: msg}
	f.start = p.telemetry.clock(ctx, p.telemetry.sent, p.telemetry.duration)
	f.ctx, f.span = p.telemetry.startSend(ctx, item.Subject, msg.ID)
	f.msg.Header = p.telemetry.inject(f.ctx, msg.Header)

	return f, nil
}

// handOver publishes a message at once.
func (s *sender) handOver(f flight) (Receipt, error) {
	receipt, err := s.deliver(f.ctx, f.msg)

	s.telemetry.endSend(f.ctx, f.span, f.start, err)

	return receipt, err
}

// launch gives an item to the pipeline, and returns the one that it was given to:
// another one where that was closed for want of work.
func (p *BoundPublisher[T]) launch(
	ctx context.Context, pipe *pipeline, item *Item[T], end ending, index int,
) (*pipeline, error) {
	f, err := p.prepare(ctx, item)
	if err != nil {
		return pipe, err
	}

	f.end, f.index = end, index
	f.deadline, _ = ctx.Deadline()

	for {
		if err = pipe.launch(ctx, f); !errors.Is(err, errIdle) {
			break
		}

		p.forget(pipe)

		next, nerr := p.pipeline(ctx)
		if err = nerr; err != nil {
			break
		}

		pipe = next
	}

	if err != nil {
		err = publishError(item.Subject, err)
		p.telemetry.endSend(f.ctx, f.span, f.start, err)
	}

	return pipe, err
}

// forget has the next message open another pipeline.
func (s *sender) forget(p *pipeline) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.pipe == p {
		s.pipe = nil
	}
}

// opening is a pipeline that is being opened.
type opening struct {
	done chan struct{}
	pipe *pipeline
	err  error
}

// pipeline returns the publisher's pipeline, opening it the first time. It is
// nil where the transport has none.
func (s *sender) pipeline(ctx context.Context) (*pipeline, error) {
	if s.err != nil {
		return nil, s.err
	}

	t, piped := s.transport.(transport.Pipeliner)

	s.mu.Lock()

	switch {
	case s.closed.Load():
		s.mu.Unlock()

		return nil, &Error{Op: "publish", Err: errPublisherClosed}
	case s.pipe != nil || !piped:
		pipe := s.pipe
		s.mu.Unlock()

		return pipe, nil
	}

	o := s.opening
	if o == nil {
		o = &opening{done: make(chan struct{})}
		s.opening = o

		// Opening takes its time where the connection takes no more, whatever
		// ctx says.
		go s.open(context.WithoutCancel(ctx), o, t)
	}

	s.mu.Unlock()

	ctx, cancel := s.bound(ctx)
	defer cancel()

	select {
	case <-o.done:
		return o.pipe, o.err
	case <-ctx.Done():
		return nil, &Error{Op: "publish", Err: ctx.Err()}
	}
}

func (s *sender) open(ctx context.Context, o *opening, t transport.Pipeliner) {
	ctx, cancel := s.bound(ctx)
	defer cancel()

	pipe, err := openPipeline(ctx, s, t)

	s.mu.Lock()
	s.opening = nil

	late := err == nil && s.closed.Load()

	switch {
	case err != nil:
		o.err = publishError("", err)
	case late:
		o.err = &Error{Op: "publish", Err: errPublisherClosed}
	default:
		s.pipe, o.pipe = pipe, pipe
	}

	s.mu.Unlock()
	close(o.done)

	if late {
		_ = pipe.close()
	}
}
