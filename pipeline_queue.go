package goflux

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
