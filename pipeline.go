package goflux

import (
	"cmp"
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

	// pipelineBytes is how much payload of a publisher may be under way before
	// the next message has to wait. One more always fits, whatever its size.
	pipelineBytes = 64 << 20

	// pipelineRoom is which part of the window has to be free before those who
	// wait for room are woken: waking them for each message costs more than
	// publishing.
	pipelineRoom = 16

	// pipelineTick is how precisely time is kept for messages under way, and
	// how long less room than pipelineRoom may stay unused.
	pipelineTick = 10 * time.Millisecond

	// pipelineIdle is how long a pipeline may have nothing to do before it is
	// closed, to be opened anew when needed: it has a subscription, and memory
	// for as many messages as were under way at once, and publishers are not
	// always closed.
	pipelineIdle = 10 * time.Second
)

// errIdle says that a pipeline was closed for want of work.
var errIdle = errors.New("the pipeline was idle")

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
	fresh   queue   // places whose messages are to be sent for the first time
	again   queue   // those whose messages are to be sent again, before the others
	busy    int     // places with a message
	bytes   int     // of payload in them
	number  uint64  // of the last message
	pace    pace
	sending bool  // the goroutine is there
	stalled bool  // it could not send, and the clock starts it again
	trouble error // why it could not, the last time; nil since something was sent
	waiting bool  // nothing is sent again until the clock rings
	over    error // why nothing more is taken, and nothing is under way; nil before
	left    bool  // the transport's pipeline is closed, or about to be

	room   chan struct{} // closed when there is room; nil if nobody waits
	round  *round        // of the messages launched since the last flush
	rounds []*round      // earlier ones, as far as a message of theirs is under way

	timer *time.Timer
	rings time.Time // when the timer rings; zero when it does not
	rang  time.Time // when it last did
	due   time.Time // the earliest that may be due; zero when nothing is

	idle     time.Time // since when there has been nothing to do, at a ring
	idleLast uint64    // the last message then
}

// state is what a message is waiting for.
type state uint8

const (
	none    state = iota // there is no message
	queued               // for its turn
	sent                 // for its outcome
	quiet                // for its outcome, or a sign that there will be none
	resting              // for another attempt
)

// place is where a message is while it is under way.
type place struct {
	flight

	generation uint32 // outcomes of earlier messages here are ignored
	state      state
	prev, next int32  // in its queue
	number     uint64 // of the message
	round      *round

	handed     time.Time     // when it was last sent
	due        time.Time     // when to look after the attempt, or to end the rest; zero means at the deadline
	attempts   int           // how often it was sent
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

	receipt Receipt
	err     error
	round   *round
}

// round is what was launched between two calls of flush.
type round struct {
	left atomic.Int64 // messages whose end is not told, and one until it is over
	done chan struct{}
}

func newRound() *round {
	r := &round{done: make(chan struct{})}
	r.left.Store(1)

	return r
}

func (r *round) release() {
	if r.left.Add(-1) == 0 {
		close(r.done)
	}
}

// openPipeline opens the pipeline of a publisher.
func openPipeline(ctx context.Context, s *sender, t transport.Pipeliner) (*pipeline, error) {
	p := &pipeline{sender: s, fresh: queue{none: true}, again: queue{none: true}, pace: newPace(), round: newRound()}

	out, err := t.OpenPipeline(ctx, p.confirmed, func(err error) { p.shut(cause(err)) })
	p.out = out

	p.mu.Lock()
	defer p.mu.Unlock()

	if err == nil && p.over == nil {
		p.wake(time.Now().Add(pipelineIdle))
	}

	return p, err
}

// launch takes a message as soon as there is room for it. An error means that
// it was not taken, and that its end will not be told; with errIdle another
// pipeline is to be opened.
func (p *pipeline) launch(ctx context.Context, f flight) error {
	p.mu.Lock()

	for p.over == nil && p.full() {
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

	defer p.mu.Unlock()

	if p.over != nil {
		return p.over
	}

	// The room may be that of messages whose time ended with that of this one,
	// before ctx knew.
	if !f.deadline.IsZero() && !f.deadline.After(p.rang) {
		return context.DeadlineExceeded
	}

	if f.deadline.IsZero() {
		f.deadline = time.Now().Add(p.sender.wait())
	}

	i := p.take()
	p.busy++
	p.bytes += len(f.msg.Data)
	p.number++
	p.round.left.Add(1)

	pl := &p.places[i]
	*pl = place{flight: f, generation: pl.generation + 1, state: queued, number: p.number, round: p.round}

	p.watch(f.deadline)
	p.fresh.push(p.places, i)
	p.start()

	return nil
}

// full reports whether there is no room.
func (p *pipeline) full() bool { return p.busy >= pipelineWindow || p.bytes >= pipelineBytes }

// roomy reports whether there is enough room to wake who waits for it.
func (p *pipeline) roomy() bool {
	return p.busy <= pipelineWindow-pipelineWindow/pipelineRoom && p.bytes <= pipelineBytes-pipelineBytes/pipelineRoom
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

// start lets the goroutine send, if there is something that may be sent.
func (p *pipeline) start() {
	if p.sending || !p.ready() {
		return
	}

	p.sending = true

	go p.send()
}

// ready reports whether there is something that may be sent.
func (p *pipeline) ready() bool {
	return p.over == nil && !p.stalled && p.pace.open() && (!p.fresh.none || p.repeats())
}

// repeats reports whether there is something that may be sent again.
func (p *pipeline) repeats() bool { return !p.again.none && !p.waiting }

// line returns the queue of a place.
func (p *pipeline) line(pl *place) *queue {
	if pl.attempts > 0 {
		return &p.again
	}

	return &p.fresh
}

// become changes what a message is waiting for.
func (p *pipeline) become(pl *place, s state) {
	p.pace.count(pl.state, -1)
	p.pace.count(s, 1)
	pl.state = s
}

// next takes the next place out of its queue.
func (p *pipeline) next() int32 {
	if p.repeats() {
		return p.again.pop(p.places)
	}

	return p.fresh.pop(p.places)
}

// token is what an attempt is sent under. The places are fewer than 1<<16.
func token(i int32, pl *place) uint64 {
	return uint64(pl.generation)<<32 | uint64(uint16(pl.attempts))<<16 | uint64(i) //nolint:gosec // cut off on purpose
}

// send hands the queues to the transport.
func (p *pipeline) send() {
	p.mu.Lock()

	for p.ready() {
		i := p.next()
		pl := &p.places[i]

		// Before it is sent, since its outcome may be here first.
		pl.attempts++
		pl.unanswered++
		pl.due = time.Time{}

		if p.sender.cfg.safe {
			now := time.Now()
			pl.handed, pl.due = now, now.Add(p.sender.cfg.attemptTime(1))
			p.pace.handed(now)
			p.watch(pl.due)
		}

		p.become(pl, sent)

		generation, msg, token := pl.generation, pl.msg, token(i, pl)

		p.mu.Unlock()
		err := p.out.Send(token, msg)
		p.mu.Lock()

		if err == nil {
			p.trouble = nil
		}

		if err == nil || p.over != nil {
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
			p.line(pl).remove(p.places, i)
		}

		pl.attempts--
		pl.unanswered--
		pl.last, pl.due = err, time.Time{}
		p.become(pl, queued)
		p.line(pl).unpop(p.places, i)

		p.stalled, p.trouble = true, err
		p.wake(time.Now().Add(retryPauseMin))
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
	n, attempt, generation := token&0xffff, uint16(token>>16), uint32(token>>32) //nolint:gosec // its parts

	var now time.Time
	if p.sender.cfg.safe {
		now = time.Now()
		p.pace.heard(now)
	}

	if n >= uint64(len(p.places)) {
		return farewell{}, false
	}

	i := int32(n)

	pl := &p.places[i]
	if pl.state == none || pl.generation != generation {
		return farewell{}, false
	}

	last := attempt == uint16(pl.attempts) //nolint:gosec // as it was sent
	if last && p.sender.cfg.safe {
		p.pace.answered(now, pl.handed, err)

		if p.pace.quiet > 0 && p.pace.back() { // those are lost
			p.watch(latest(now, p.rang.Add(pipelineTick)))
		}

		// What was not sent yet may be for another stream, which is there.
		if p.pace.gone(now) {
			p.waiting = true
			p.wake(now.Add(retryPauseMin))
		}
	}

	var (
		f     farewell
		ended = true
	)

	switch {
	case err == nil:
		f = p.end(i, r, nil)
	case last || !repeatable(err):
		f, ended = p.failed(i, err)
	default:
		// The last attempt is under way.
		f, ended = farewell{}, false
		pl.answered(err)
	}

	if p.pace.roomy() {
		p.start()
	}

	return f, ended
}

// answered is called for an attempt that has failed.
func (pl *place) answered(err error) {
	if !errors.Is(err, ErrPublishUnknown) && pl.unanswered > 0 {
		pl.unanswered--
	}
}

// failed lets a message rest, or ends it.
func (p *pipeline) failed(i int32, err error) (farewell, bool) {
	pl := &p.places[i]
	pl.answered(err)

	rest, again := p.rest(pl, err)

	if !again {
		return p.end(i, Receipt{}, refused(pl.msg.Subject, err, pl.unanswered > 0)), true
	}

	if pl.state == sent || pl.state == quiet { // else another attempt is due already
		pl.last, pl.due = err, time.Now().Add(rest)
		p.become(pl, resting)
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
	how := p.sender.cfg.adr22.OrDefault()
	pl.retries++

	return how.Wait, errors.Is(err, ErrNoStream) && pl.unanswered == 0 && (how.Attempts < 0 || pl.retries <= how.Attempts)
}

// end frees a place. Who waits for the message has to be told.
func (p *pipeline) end(i int32, r Receipt, err error) farewell {
	pl := &p.places[i]
	f := farewell{owner: pl.owner, receipt: r, err: err, round: pl.round}

	if pl.state == queued {
		p.line(pl).remove(p.places, i)
	}

	p.become(pl, none)
	p.busy--
	p.bytes -= len(pl.msg.Data)

	*pl = place{generation: pl.generation}
	p.free = append(p.free, i)

	if p.room != nil && p.roomy() {
		close(p.room)
		p.room = nil
	}

	return f
}

// expire ends a message that was not confirmed in time, or will not be.
func (p *pipeline) expire(i int32, ended error) farewell {
	pl := &p.places[i]

	last := pl.last
	if last == nil && pl.state == queued {
		last = p.trouble // which is that of all who wait behind
	}

	return p.end(i, Receipt{}, expired(pl.msg.Subject, ended, last, pl.unanswered > 0))
}

// tell tells the ends of messages. The lock is not held.
func (p *pipeline) tell(fs ...farewell) {
	for _, f := range fs { //nolint:gocritic // rare, and a copy is simpler
		p.sender.telemetry.endSend(f.ctx, f.span, f.start, f.err)
		f.end.ended(f.index, f.receipt, f.err)
		f.round.release()
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

	if p.over != nil {
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

	if p.useless(now) {
		p.over, p.places, p.free = errIdle, nil, nil
		p.timer.Stop() // it may be set for the deadline of a message that has ended
		p.mu.Unlock()
		p.sender.forget(p)

		_ = p.leave() // it was needed for nothing

		return
	}

	p.wake(now.Add(pipelineIdle))

	switch {
	case p.room == nil:
	case !p.full():
		close(p.room)
		p.room = nil
	default:
		p.wake(now.Add(pipelineTick))
	}

	p.stalled, p.waiting = false, false
	p.start()
	p.mu.Unlock()
	p.tell(over...)
}

// useless reports whether there has been nothing to do for a while.
func (p *pipeline) useless(now time.Time) bool {
	if p.busy > 0 || p.number != p.idleLast || p.idle.IsZero() {
		p.idle, p.idleLast = now, p.number
	}

	return p.busy == 0 && now.Sub(p.idle) >= pipelineIdle
}

// look ends the messages whose time is over, and queues those that are to be
// sent again: they have rested, or they are lost.
func (p *pipeline) look(now time.Time) []farewell {
	var (
		over           []farewell
		again, overdue []int32
	)

	p.due = time.Time{}

	for n := range p.places {
		i, pl := int32(n), &p.places[n]

		switch {
		case pl.state == none:
			continue
		case !pl.deadline.After(now):
			over = append(over, p.expire(i, context.DeadlineExceeded))

			continue
		case p.lost(pl), pl.state == resting && !pl.due.After(now):
			again = append(again, i)
			pl.due = time.Time{}

			if pl.state != resting {
				pl.pause = 0
			}
		case pl.due.IsZero() || pl.due.After(now):
		default:
			overdue = append(overdue, i)
			pl.due = now.Add(p.sender.cfg.attemptTime(1) / 4)
		}

		for _, due := range [...]time.Time{pl.deadline, pl.due} {
			if !due.IsZero() && (p.due.IsZero() || due.Before(p.due)) {
				p.due = due
			}
		}
	}

	if len(overdue) > 0 && p.pace.silent(now, p.sender.cfg.attemptTime(1)) {
		again = append(again, p.doubt(now, overdue)...)
	}

	// In their order, as far as it can be kept.
	slices.SortFunc(again, func(i, j int32) int { return cmp.Compare(p.places[i].number, p.places[j].number) })

	for _, i := range again {
		p.places[i].due = time.Time{}
		p.become(&p.places[i], queued)
		p.again.push(p.places, i)
	}

	return over
}

// lost reports whether there will be no answer to a message.
func (p *pipeline) lost(pl *place) bool {
	switch pl.state {
	case sent:
		return p.sender.cfg.safe && p.pace.passed(pl.handed, p.sender.cfg.attemptTime(pl.attempts))
	case quiet:
		return p.pace.back() || p.pace.passed(pl.handed, p.sender.cfg.attemptTime(pl.attempts))
	default:
		return false
	}
}

// doubt is called when the broker is silent. It returns a few of the messages,
// those that were sent the longest time ago, to be sent again: their answers
// tell that the others are lost, and if these are answered first, they are not.
func (p *pipeline) doubt(now time.Time, overdue []int32) []int32 {
	p.pace.stall(now)

	for n := range p.places {
		if pl := &p.places[n]; pl.state == sent {
			p.become(pl, quiet)
		}
	}

	slices.SortFunc(overdue, func(i, j int32) int { return p.places[i].handed.Compare(p.places[j].handed) })

	return overdue[:min(len(overdue), paceProbes)]
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

	p.start()
	p.mu.Unlock()
	p.tell(over...)
}

// flush waits until the end of everything that was launched before is told.
func (p *pipeline) flush(ctx context.Context) error {
	p.mu.Lock()

	p.rounds = slices.DeleteFunc(p.rounds, func(r *round) bool { return r.left.Load() == 0 })

	if p.round.left.Load() > 1 {
		p.round.release()
		p.rounds = append(p.rounds, p.round)
		p.round = newRound()
	}

	rounds := slices.Clone(p.rounds)
	p.mu.Unlock()

	for _, r := range rounds {
		select {
		case <-r.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}

	return nil
}

// close ends everything that is under way.
func (p *pipeline) close() error {
	p.shut(errPublisherClosed)

	return p.leave()
}

// shut takes no more, because of err, and ends with it what is under way.
func (p *pipeline) shut(err error) {
	p.mu.Lock()

	if p.over != nil {
		p.mu.Unlock()

		return
	}

	p.over = err

	if p.timer != nil {
		p.timer.Stop()
	}

	var over []farewell

	for n := range p.places {
		if p.places[n].state != none {
			over = append(over, p.expire(int32(n), err))
		}
	}

	if p.room != nil {
		close(p.room)
		p.room = nil
	}

	p.places, p.free = nil, nil
	p.mu.Unlock()
	p.tell(over...)
}

// leave closes the transport's pipeline, once.
func (p *pipeline) leave() error {
	p.mu.Lock()
	left := p.left
	p.left = true
	p.mu.Unlock()

	if left {
		return nil
	}

	return p.out.Close()
}
