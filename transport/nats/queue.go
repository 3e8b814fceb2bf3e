package nats

import (
	"time"

	natsgo "github.com/nats-io/nats.go"
)

// limits bounds a queue. A negative value means no limit.
type limits struct{ messages, bytes int }

// received is a message, and when it was received if that counts.
type received struct {
	msg *natsgo.Msg
	at  time.Time
}

// queue holds received messages in the order of their arrival. It is a ring
// that grows as needed and gives its memory back when it has become empty.
type queue struct {
	ring  []received // its length is a power of two
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

func (q *queue) push(r received) {
	if q.count == len(q.ring) {
		grown := make([]received, max(16, 2*len(q.ring)))
		n := copy(grown, q.ring[q.head:])
		copy(grown[n:], q.ring[:q.head])
		q.ring, q.head = grown, 0
	}

	q.ring[(q.head+q.count)&(len(q.ring)-1)] = r
	q.count++
	q.bytes += r.msg.Size()
}

// pop returns the oldest message; there must be one.
func (q *queue) pop() received {
	r := q.ring[q.head]
	q.ring[q.head] = received{}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.count--
	q.bytes -= r.msg.Size()

	if q.count == 0 && len(q.ring) > keepRing {
		q.ring, q.head = nil, 0
	}

	return r
}
