package nats

import (
	natsgo "github.com/nats-io/nats.go"
)

// limits bounds a queue. A negative value means no limit.
type limits struct{ messages, bytes int }

// queue holds received messages in the order of their arrival. It is a ring
// that grows as needed and gives its memory back when it has become empty.
type queue struct {
	ring  []*natsgo.Msg // its length is a power of two
	head  int
	count int
	bytes int
}

// keepRing is the length up to which an empty ring is kept.
const keepRing = 1024

// fits reports whether m can be added within the limits.
func (q *queue) fits(m *natsgo.Msg, l limits) bool {
	return (l.messages < 0 || q.count < l.messages) && (l.bytes < 0 || q.bytes+m.Size() <= l.bytes)
}

func (q *queue) push(m *natsgo.Msg) {
	if q.count == len(q.ring) {
		grown := make([]*natsgo.Msg, max(16, 2*len(q.ring)))
		n := copy(grown, q.ring[q.head:])
		copy(grown[n:], q.ring[:q.head])
		q.ring, q.head = grown, 0
	}

	q.ring[(q.head+q.count)&(len(q.ring)-1)] = m
	q.count++
	q.bytes += m.Size()
}

// pop returns the oldest message; there must be one.
func (q *queue) pop() *natsgo.Msg {
	m := q.ring[q.head]
	q.ring[q.head] = nil
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.count--
	q.bytes -= m.Size()

	if q.count == 0 && len(q.ring) > keepRing {
		q.ring, q.head = nil, 0
	}

	return m
}
