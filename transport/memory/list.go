package memory

// list is a queue of entries that are linked themselves: adding and removing
// costs the same wherever an entry stands, and nothing is left behind.
type list struct {
	first, last *entry
	length      uint64
}

func (l *list) push(e *entry) {
	e.in, e.prev, e.next = l, l.last, nil
	if l.last == nil {
		l.first = e
	} else {
		l.last.next = e
	}

	l.last = e
	l.length++
}

func (l *list) remove(e *entry) {
	if e.prev == nil {
		l.first = e.next
	} else {
		e.prev.next = e.next
	}

	if e.next == nil {
		l.last = e.prev
	} else {
		e.next.prev = e.prev
	}

	e.in, e.prev, e.next = nil, nil, nil
	l.length--
}
