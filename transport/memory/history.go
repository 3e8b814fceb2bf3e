package memory

import (
	"slices"
	"time"
)

// history retains the last messages.
type history struct {
	limit int
	ring  []*message
	next  int // the oldest, once the ring is full
}

func (h *history) add(m *message) {
	switch {
	case h.limit == 0:
	case len(h.ring) < h.limit:
		h.ring = append(h.ring, m)
	default:
		h.ring[h.next] = m
		h.next = (h.next + 1) % h.limit
	}
}

// all returns the messages from the oldest on.
func (h *history) all() []*message {
	return slices.Concat(h.ring[h.next:], h.ring[:h.next])
}

// maxIDs bounds how many ids are remembered.
const maxIDs = 1 << 16

// ids remembers the message ids of the duplicate window, oldest first.
type ids struct {
	window   time.Duration
	sequence map[string]uint64
	order    []id
	oldest   int // in order; what is before it was forgotten
}

type id struct {
	name string
	at   time.Time
}

// find returns the sequence under which a message with this id was stored
// within the window.
func (w *ids) find(name string, now time.Time) (sequence uint64, known bool) {
	for w.oldest < len(w.order) && now.Sub(w.order[w.oldest].at) >= w.window {
		w.forget()
	}

	sequence, known = w.sequence[name]

	return sequence, known
}

// add remembers an id that find did not know.
func (w *ids) add(name string, sequence uint64, now time.Time) {
	if w.sequence == nil {
		w.sequence = map[string]uint64{}
	}

	if len(w.sequence) == maxIDs {
		w.forget()
	}

	// Move to the front once the forgotten are half of all.
	if w.oldest > len(w.order)/2 {
		kept := copy(w.order, w.order[w.oldest:])
		clear(w.order[kept:])
		w.order, w.oldest = w.order[:kept], 0
	}

	w.sequence[name] = sequence
	w.order = append(w.order, id{name, now})
}

func (w *ids) forget() {
	delete(w.sequence, w.order[w.oldest].name)
	w.order[w.oldest] = id{}
	w.oldest++
}
