package memory

import (
	"bytes"
	"slices"
	"time"

	"github.com/foomo/goflux/transport"
)

// message is what was published. It does not change once it is stored, and all
// queues share it.
type message struct {
	subject  string
	reply    string
	header   transport.Header
	data     []byte
	sequence uint64
	stored   time.Time
}

// queue holds the messages of one group, or of one ungrouped subscription.
type queue struct {
	group   string // empty for an ungrouped subscription
	filter  string
	members []*subscription
	turn    int // where the search for the next member begins

	fresh   list // never delivered
	again   list // due for redelivery
	pending int  // all that are not done with: fresh, again, leased and delayed

	dropped bool
	handed  bool // to the clock, see handOver
}

// entry is a message on its way through one queue. It stands in exactly one
// place until it is done: in fresh or again of its queue, or in the leases or
// the delays of the clock.
type entry struct {
	msg      *message
	queue    *queue
	attempts int
	done     bool

	due        time.Time // when the lease or the delay ends
	in         *list
	prev, next *entry
	slot       int // place in the delays, from 1; 0 outside of them
}

// delivery is the token: one attempt at an entry.
type delivery struct {
	entry   *entry
	attempt int
	waiting uint64
	settled bool
}

// store appends a new message.
func (q *queue) store(m *message) {
	q.pending++
	q.fresh.push(&entry{msg: m, queue: q})
}

// head is the message to deliver next, or nil.
func (q *queue) head() *entry {
	if q.again.first != nil {
		return q.again.first
	}

	return q.fresh.first
}

// ready is the member whose turn it is, or nil if none can take a message.
func (q *queue) ready() *subscription {
	for i := range q.members {
		j := (q.turn + i) % len(q.members)
		if s := q.members[j]; s.credit > 0 && !s.busy {
			q.turn = j + 1

			return s
		}
	}

	return nil
}

// leave removes a member. The others keep their turns.
func (q *queue) leave(s *subscription) {
	i := slices.Index(q.members, s)
	if i < 0 {
		return
	}

	q.members = slices.Delete(q.members, i, i+1)
	if i < q.turn {
		q.turn--
	}
}

// drop forgets the messages. What is leased or delayed is the clock's.
func (q *queue) drop() {
	// One by one, for who received one may still settle it.
	for q.again.first != nil {
		q.again.remove(q.again.first)
	}

	q.members, q.fresh, q.dropped = nil, list{}, true
}

// burst is how many deliveries one call makes for a queue, lest its caller is
// kept while others publish. The clock makes the rest.
const burst = 256

// deliver calls the sinks of q as long as there is a message and a member that
// can take it. Everything that adds a message or makes a member ready calls it
// afterwards: so no pair of them is left, except where somebody is still in
// this loop, or the clock was told. The lock is held, and given up around each
// call of a sink.
func (t *Transport) deliver(q *queue) {
	for range burst {
		e := q.head()
		if e == nil {
			return
		}

		s := q.ready()
		if s == nil {
			return
		}

		e.attempts++
		t.lease(e)
		t.hand(s, &delivery{entry: e, attempt: e.attempts, waiting: q.fresh.length})
	}

	t.handOver(q)
}

// hand calls the sink of s. Deferred, so that a sink that panics, or that ends
// its goroutine as a failing test does, leaves everything usable.
func (t *Transport) hand(s *subscription, d *delivery) {
	returned := false
	s.credit--
	s.busy = true
	t.mu.Unlock()

	defer func() {
		t.mu.Lock()
		s.rest()

		if !returned {
			t.handOver(s.queue)
		}
	}()

	m := d.entry.msg
	s.sink(transport.Delivery{
		Subject: m.subject,
		Reply:   m.reply,
		Header:  m.header.Clone(),
		Data:    bytes.Clone(m.data),
		Token:   d,
		Settler: s,
	})

	returned = true
}

// lease starts, or starts anew, the time in which e is to be settled.
func (t *Transport) lease(e *entry) {
	t.clock.detach(e)
	e.due = time.Now().Add(t.cfg.ackWait)
	t.clock.leases.push(e)
	t.arm(e.due)
}

// finish is the end of e.
func (t *Transport) finish(e *entry) {
	if e.done {
		return
	}

	t.clock.detach(e)
	e.done = true
	e.queue.pending--
}

// retry puts e up for another attempt after delay, or gives it up.
func (t *Transport) retry(e *entry, delay time.Duration) {
	q := e.queue

	switch {
	case e.done:
	case q.dropped:
		t.finish(e)
	case t.cfg.maxDeliver > 0 && e.attempts >= t.cfg.maxDeliver:
		t.givenUp++
		t.finish(e)
	case delay > 0:
		t.clock.detach(e)
		e.due = time.Now().Add(delay)
		t.clock.delays.push(e)
		t.arm(e.due)
	case e.in != &q.again: // else it keeps its place
		t.clock.detach(e)
		q.again.push(e)
	}
}
