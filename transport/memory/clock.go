package memory

import (
	"container/heap"
	"slices"
	"time"
)

// clock knows what is to happen later, for the whole transport with one timer.
type clock struct {
	leases list   // in order of their end, since all last as long
	delays delays // the soonest on top

	// handed are queues whose delivery goes on in the timer's goroutine.
	handed []*queue

	timer   *time.Timer
	armed   time.Time // when the timer fires; zero when it does not
	running bool      // the timer's goroutine is at work
}

// arm makes the timer fire at due, or earlier. Leases that are settled in time
// leave it as it is, so that it is set once in an ack wait rather than for
// every message.
func (t *Transport) arm(due time.Time) {
	c := &t.clock
	if t.closed || c.running || (!c.armed.IsZero() && !due.Before(c.armed)) {
		return
	}

	c.armed = due

	// Made here and not in New: a timer belongs to the testing/synctest
	// bubble that made it.
	if wait := max(0, time.Until(due)); c.timer == nil {
		c.timer = time.AfterFunc(wait, t.tick)
	} else {
		c.timer.Reset(wait)
	}
}

// handOver lets the timer's goroutine deliver what is left in q.
func (t *Transport) handOver(q *queue) {
	if t.closed || q.dropped || q.handed {
		return
	}

	q.handed = true
	t.clock.handed = append(t.clock.handed, q)
	t.arm(time.Now())
}

// tick runs in a goroutine of the timer; there is one at a time.
func (t *Transport) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()

	c := &t.clock
	if t.closed || c.running {
		return
	}

	c.running = true

	defer func() {
		c.running = false
		c.armed = time.Time{}

		if due, ok := c.next(); ok {
			t.arm(due)
		}
	}()

	for {
		t.expire(time.Now())

		if t.closed || len(c.handed) == 0 {
			return
		}

		q := c.handed[0]
		c.handed[0] = nil
		c.handed = c.handed[1:]
		q.handed = false
		t.deliver(q)
	}
}

// expire makes everything due whose time has come.
func (t *Transport) expire(now time.Time) {
	c := &t.clock

	for e := c.leases.first; e != nil && !e.due.After(now); e = c.leases.first {
		t.retry(e, 0)
		t.handOver(e.queue)
	}

	for len(c.delays) > 0 && !c.delays[0].due.After(now) {
		e := c.delays[0]
		if e.queue == nil {
			t.release(e, now)

			continue
		}

		t.retry(e, 0)
		t.handOver(e.queue)
	}
}

// next is when the timer has to fire next.
func (c *clock) next() (due time.Time, ok bool) {
	switch {
	case len(c.handed) > 0:
		return time.Now(), true
	case c.leases.first == nil && len(c.delays) == 0:
		return time.Time{}, false
	case len(c.delays) == 0:
		return c.leases.first.due, true
	case c.leases.first == nil || c.delays[0].due.Before(c.leases.first.due):
		return c.delays[0].due, true
	default:
		return c.leases.first.due, true
	}
}

// detach takes e from where it stands, in the clock or in its queue.
func (c *clock) detach(e *entry) {
	switch {
	case e.in != nil:
		e.in.remove(e)
	case e.slot > 0:
		heap.Remove(&c.delays, e.slot-1)
	}
}

// forget removes what belongs to q.
func (c *clock) forget(q *queue) {
	for e := c.leases.first; e != nil; {
		next := e.next
		if e.queue == q {
			c.leases.remove(e)
		}

		e = next
	}

	c.delays = slices.DeleteFunc(c.delays, func(e *entry) bool {
		if e.queue == q {
			e.slot = 0
		}

		return e.queue == q
	})
	for i, e := range c.delays {
		e.slot = i + 1
	}

	heap.Init(&c.delays)
}

// stop ends the timer and forgets everything.
func (c *clock) stop() {
	if c.timer != nil {
		c.timer.Stop()
	}

	c.leases, c.delays, c.handed = list{}, nil, nil
}

// delays is a heap of naked entries, by the end of their delay, and of messages
// that are to be delivered later, which are in no queue.
type delays []*entry

func (d *delays) push(e *entry) { heap.Push(d, e) }

// Len implements [heap.Interface], as do the methods below.
func (d *delays) Len() int { return len(*d) }

// Less orders by due, and by sequence what is due at once.
func (d *delays) Less(i, j int) bool {
	a, b := (*d)[i], (*d)[j]
	if c := a.due.Compare(b.due); c != 0 {
		return c < 0
	}

	return a.msg.sequence < b.msg.sequence
}

// Swap keeps the slots.
func (d *delays) Swap(i, j int) {
	a, b := (*d)[i], (*d)[j]
	(*d)[i], (*d)[j] = b, a
	a.slot, b.slot = j+1, i+1
}

// Push appends an [*entry].
func (d *delays) Push(x any) {
	e, _ := x.(*entry)
	*d = append(*d, e)
	e.slot = len(*d)
}

// Pop removes the last.
func (d *delays) Pop() any {
	last := len(*d) - 1
	e := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	e.slot = 0

	return e
}
