package goflux

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/foomo/goflux/transport"
)

const (
	// pipelineWindow is how many messages of a publisher may be under way at
	// once.
	pipelineWindow = 4096

	// pipelineRoom is how many places have to be free before those who wait
	// for one are woken: waking them for each costs more than publishing.
	pipelineRoom = 256

	// pipelineTick is how precisely time is kept for messages under way, and
	// how long fewer free places than pipelineRoom may stay unused.
	pipelineTick = 10 * time.Millisecond
)

// pipeline publishes without waiting for receipts. It bounds what is under way,
// keeps the time of each message, and repeats those that may be repeated.
//
// Messages go to the transport in order, one after the other, from a goroutine
// of their own: a connection that takes no more holds up that one and nobody
// who has a deadline. It ends when there is nothing to send. The clock is a
// timer; it needs a goroutine only when it rings.
//
// A message has a place from its launch to its end, and none afterwards,
// whatever the broker does then.
type pipeline struct {
	sender *sender
	out    transport.Pipeline

	mu      sync.Mutex
	places  []place // grows with need, up to the window
	free    []int32 // places without a message
	queue   queue   // places whose messages are to be sent
	busy    int     // places with a message
	number  uint64  // of the last message
	sending bool    // the goroutine is there
	stalled bool    // it could not send, and the clock starts it again
	closed  bool

	room     chan struct{} // closed when there is room; nil if nobody waits
	barriers []*barrier

	timer *time.Timer
	rings time.Time // when the timer rings; zero when it does not
	rang  time.Time // when it last did
	due   time.Time // the earliest that may be due; zero when nothing is
}

// state is what a message is waiting for.
type state uint8

const (
	none    state = iota // there is no message
	queued               // for its turn
	sent                 // for its outcome
	resting              // for another attempt
)

// place is where a message is while it is under way.
type place struct {
	flight

	generation uint32 // outcomes of earlier messages here are ignored
	state      state
	prev, next int32  // in the queue
	number     uint64 // of the message

	due        time.Time     // when the attempt or the rest is over; zero means at the deadline
	attempt    time.Duration // what it was given
	pause      time.Duration // the last rest
	retries    int           // after nobody answered
	unanswered int           // attempts that may have stored the message
	last       error         // why it was not done yet
}

// flight is a message that is to be published.
type flight struct {
	owner

	msg      transport.Message
	deadline time.Time // when it has to be confirmed; zero means the ack wait
}

// owner is who is told of the end of a message.
type owner struct {
	end   ending
	index int // of the message, for end

	ctx   context.Context //nolint:containedctx // the span of the message ends under it
	span  trace.Span
	start time.Time
}

// ending is told of the ends of messages. It does not block.
type ending interface {
	ended(index int, r Receipt, err error)
}

// farewell is the end of a message, to be told when the lock is not held.
type farewell struct {
	owner

	receipt  Receipt
	err      error
	barriers []*barrier
}

// barrier waits until the end of all messages up to a number has been told.
type barrier struct {
	upTo uint64
	left atomic.Int64
	done chan struct{}
}

// openPipeline opens the pipeline of a publisher.
func openPipeline(ctx context.Context, s *sender, t transport.Pipeliner) (*pipeline, error) {
	p := &pipeline{sender: s, queue: queue{none: true}}

	out, err := t.OpenPipeline(ctx, p.confirmed)
	p.out = out

	return p, err
}

// launch takes a message as soon as there is room for it. An error means that
// it was not taken, and that its end will not be told.
func (p *pipeline) launch(ctx context.Context, f flight) error {
	p.mu.Lock()

	for !p.closed && len(p.free) == 0 && len(p.places) == pipelineWindow {
		if p.room == nil {
			p.room = make(chan struct{})
			p.wake(time.Now().Add(pipelineTick))
		}

		room := p.room
		p.mu.Unlock()

		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}

		p.mu.Lock()
	}

	if p.closed {
		p.mu.Unlock()

		return errPublisherClosed
	}

	// The room may be that of messages whose time ended with that of this one,
	// before ctx knew.
	if !f.deadline.IsZero() && !f.deadline.After(p.rang) {
		p.mu.Unlock()

		return context.DeadlineExceeded
	}

	if f.deadline.IsZero() {
		f.deadline = time.Now().Add(p.sender.cfg.wait())
	}

	i := p.take()
	p.busy++
	p.number++

	pl := &p.places[i]
	*pl = place{flight: f, generation: pl.generation + 1, state: queued, number: p.number}

	p.watch(f.deadline)
	p.queue.push(p.places, i)

	start := !p.sending && !p.stalled
	p.sending = p.sending || start

	p.mu.Unlock()

	if start {
		go p.send()
	}

	return nil
}

// take returns a place for a message. There is one.
func (p *pipeline) take() int32 {
	if last := len(p.free) - 1; last >= 0 {
		i := p.free[last]
		p.free = p.free[:last]

		return i
	}

	p.places = append(p.places, place{})

	return int32(len(p.places) - 1) //nolint:gosec // bounded by the window
}

// send hands the queue to the transport.
func (p *pipeline) send() {
	p.mu.Lock()

	for !p.closed && !p.queue.none {
		i := p.queue.pop(p.places)
		pl := &p.places[i]
		generation, msg := pl.generation, pl.msg

		// Before it is sent, since its outcome may be here first.
		pl.state, pl.due = sent, time.Time{}
		pl.unanswered++

		if p.sender.cfg.safe {
			if pl.attempt == 0 {
				pl.attempt = p.sender.cfg.firstAttempt()
			}

			pl.due = time.Now().Add(pl.attempt)
			p.watch(pl.due)
		}

		p.mu.Unlock()
		err := p.out.Send(uint64(generation)<<32|uint64(i), msg) //nolint:gosec // i is not negative
		p.mu.Lock()

		if err == nil || p.closed {
			continue
		}

		pl = &p.places[i]
		if pl.state == none || pl.generation != generation {
			continue // it has ended meanwhile
		}

		if !unsent(err) || errors.Is(err, ErrPublishUnknown) {
			f, ended := p.failed(i, err)

			p.mu.Unlock()

			if ended {
				p.tell(f)
			}

			p.mu.Lock()

			continue
		}

		// Those behind it would fare no better, and the order is kept, also
		// where it took so long that another attempt is due.
		if pl.state == queued {
			p.queue.remove(p.places, i)
		}

		pl.unanswered--
		pl.state, pl.last, pl.due = queued, err, time.Time{}
		p.queue.unpop(p.places, i)

		p.stalled = true
		p.wake(time.Now().Add(retryPauseMin))

		break
	}

	p.sending = false
	p.mu.Unlock()
}

// confirmed is told by the transport what became of a message.
func (p *pipeline) confirmed(token uint64, r Receipt, err error) {
	p.mu.Lock()
	f, ended := p.outcome(token, r, err)
	p.mu.Unlock()

	if ended {
		p.tell(f)
	}
}

func (p *pipeline) outcome(token uint64, r Receipt, err error) (farewell, bool) {
	n, generation := token&0xffffffff, uint32(token>>32)
	if n >= uint64(len(p.places)) {
		return farewell{}, false
	}

	i := int32(n) //nolint:gosec // bounded by the window

	pl := &p.places[i]
	if pl.state == none || pl.generation != generation {
		return farewell{}, false
	}

	if err == nil {
		return p.end(i, r, nil), true
	}

	return p.failed(i, err)
}

// failed lets a message rest, or ends it.
func (p *pipeline) failed(i int32, err error) (farewell, bool) {
	pl := &p.places[i]

	if !errors.Is(err, ErrPublishUnknown) && pl.unanswered > 0 {
		pl.unanswered--
	}

	rest, again := p.rest(pl, err)

	if !again {
		return p.end(i, Receipt{}, p.refused(pl, err)), true
	}

	if pl.state == sent { // else another attempt is due already
		pl.state, pl.last = resting, err
		pl.due = time.Now().Add(rest)
		p.watch(pl.due)
	}

	return farewell{}, false
}

// rest returns how long a message rests after err, and whether it is to be sent
// again at all.
func (p *pipeline) rest(pl *place, err error) (time.Duration, bool) {
	if p.sender.cfg.safe {
		pl.pause = min(max(2*pl.pause, retryPauseMin), retryPauseMax)

		return jitter(pl.pause), repeatable(err)
	}

	// The retries of ADR-22: nothing was stored.
	how := p.sender.cfg.adr22
	if how == nil {
		how = &adr22
	}

	pl.retries++

	return how.Wait, errors.Is(err, ErrNoStream) && pl.unanswered == 0 && (how.Attempts < 0 || pl.retries <= how.Attempts)
}

func (p *pipeline) refused(pl *place, err error) error {
	return refused(pl.msg.Subject, err, pl.unanswered > 0)
}

// end frees a place. Who waits for the message has to be told.
func (p *pipeline) end(i int32, r Receipt, err error) farewell {
	pl := &p.places[i]
	f := farewell{owner: pl.owner, receipt: r, err: err}

	for _, b := range p.barriers {
		if pl.number <= b.upTo {
			f.barriers = append(f.barriers, b)
		}
	}

	if pl.state == queued {
		p.queue.remove(p.places, i)
	}

	*pl = place{generation: pl.generation}
	p.free = append(p.free, i)
	p.busy--

	if p.room != nil && len(p.free) >= pipelineRoom {
		close(p.room)
		p.room = nil
	}

	return f
}

// expire ends a message that was not confirmed in time, or will not be.
func (p *pipeline) expire(i int32, ended error) farewell {
	pl := &p.places[i]

	return p.end(i, Receipt{}, expired(pl.msg.Subject, ended, pl.last, pl.unanswered > 0))
}

// tell tells the ends of messages. The lock is not held.
func (p *pipeline) tell(fs ...farewell) {
	for _, f := range fs { //nolint:gocritic // rare, and a copy is simpler
		p.sender.telemetry.endSend(f.ctx, f.span, f.start, f.err)
		f.end.ended(f.index, f.receipt, f.err)

		for _, b := range f.barriers {
			if b.left.Add(-1) == 0 {
				close(b.done)
			}
		}
	}
}

// watch lets the clock look after the messages at the given time.
func (p *pipeline) watch(due time.Time) {
	if p.due.IsZero() || due.Before(p.due) {
		p.due = due
		p.wake(due)
	}
}

// wake lets the clock ring at the given time, or earlier. That most messages
// end before their time leaves it as it is: it is not set for each.
func (p *pipeline) wake(at time.Time) {
	if !p.rings.IsZero() && !at.Before(p.rings) {
		return
	}

	p.rings = at

	if wait := max(0, time.Until(at)); p.timer == nil {
		p.timer = time.AfterFunc(wait, p.ring)
	} else {
		p.timer.Reset(wait)
	}
}

// ring is the clock.
func (p *pipeline) ring() {
	p.mu.Lock()

	p.rings = time.Time{}

	if p.closed {
		p.mu.Unlock()

		return
	}

	now := time.Now()
	p.rang = now

	var over []farewell
	if !p.due.IsZero() && !p.due.After(now) {
		over = p.look(now)
	}

	if !p.due.IsZero() {
		p.wake(latest(p.due, now.Add(pipelineTick)))
	}

	switch {
	case p.room == nil:
	case len(p.free) > 0:
		close(p.room)
		p.room = nil
	default:
		p.wake(now.Add(pipelineTick))
	}

	p.stalled = false

	if !p.sending && !p.queue.none {
		p.sending = true

		go p.send()
	}

	p.mu.Unlock()
	p.tell(over...)
}

// look ends the messages whose time is over, and queues those that are to be
// sent again.
func (p *pipeline) look(now time.Time) []farewell {
	var over []farewell

	p.due = time.Time{}

	for n := range p.places {
		i, pl := int32(n), &p.places[n]

		switch {
		case pl.state == none:
			continue
		case !pl.deadline.After(now):
			over = append(over, p.expire(i, context.DeadlineExceeded))

			continue
		case !pl.due.IsZero() && !pl.due.After(now):
			if pl.state == sent {
				pl.attempt = p.sender.cfg.longer(pl.attempt)
			}

			pl.state, pl.due = queued, time.Time{}
			p.queue.push(p.places, i)
		}

		for _, due := range [...]time.Time{pl.deadline, pl.due} {
			if !due.IsZero() && (p.due.IsZero() || due.Before(p.due)) {
				p.due = due
			}
		}
	}

	return over
}

// abandon ends the messages that end is told of.
func (p *pipeline) abandon(end ending, ended error) {
	p.mu.Lock()

	var over []farewell

	for n := range p.places {
		if pl := &p.places[n]; pl.state != none && pl.end == end {
			over = append(over, p.expire(int32(n), ended))
		}
	}

	p.mu.Unlock()
	p.tell(over...)
}

// flush waits until the end of everything that was launched before is told.
func (p *pipeline) flush(ctx context.Context) error {
	p.mu.Lock()

	if p.busy == 0 {
		p.mu.Unlock()

		return nil
	}

	b := &barrier{upTo: p.number, done: make(chan struct{})}
	b.left.Store(int64(p.busy))
	p.barriers = append(p.barriers, b)
	p.mu.Unlock()

	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()

		p.barriers = slices.DeleteFunc(p.barriers, func(other *barrier) bool { return other == b })
	}()

	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close ends everything that is under way.
func (p *pipeline) close() error {
	p.mu.Lock()

	p.closed = true

	if p.timer != nil {
		p.timer.Stop()
	}

	var over []farewell

	for n := range p.places {
		if p.places[n].state != none {
			over = append(over, p.expire(int32(n), errPublisherClosed))
		}
	}

	if p.room != nil {
		close(p.room)
		p.room = nil
	}

	p.places, p.free = nil, nil
	p.mu.Unlock()
	p.tell(over...)

	return p.out.Close()
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}

	return b
}

// queue is a list of places, in the order in which their messages are sent. It
// is linked within the places, so that a message that ends while it is queued
// leaves nothing behind.
type queue struct {
	first, last int32
	none        bool
}

func (q *queue) push(places []place, i int32) {
	if q.none {
		*q = queue{first: i, last: i}

		return
	}

	places[i].prev, places[q.last].next, q.last = q.last, i, i
}

// unpop undoes a pop.
func (q *queue) unpop(places []place, i int32) {
	if q.none {
		*q = queue{first: i, last: i}

		return
	}

	places[i].next, places[q.first].prev, q.first = q.first, i, i
}

func (q *queue) pop(places []place) int32 {
	i := q.first
	q.remove(places, i)

	return i
}

func (q *queue) remove(places []place, i int32) {
	pl := &places[i]

	switch {
	case q.first == q.last:
		q.none = true
	case i == q.first:
		q.first = pl.next
	case i == q.last:
		q.last = pl.prev
	default:
		places[pl.prev].next, places[pl.next].prev = pl.next, pl.prev
	}
}
