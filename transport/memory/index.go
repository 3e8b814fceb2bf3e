package memory

import (
	"slices"
	"strings"

	"github.com/foomo/goflux/transport"
)

// index finds the queues that want a subject. Filters without wildcards, the
// many, are looked up; the others are compared one by one. It is bounded by
// the queues, not by the subjects that are published on.
type index struct {
	exact map[string][]*queue
	wild  []*queue
}

// match appends to buf the queues whose filter selects subject.
func (x *index) match(buf []*queue, subject string) []*queue {
	buf = append(buf, x.exact[subject]...)

	for _, q := range x.wild {
		if transport.Covers(q.filter, subject) {
			buf = append(buf, q)
		}
	}

	return buf
}

func (x *index) add(q *queue) {
	if isWild(q.filter) {
		x.wild = append(x.wild, q)

		return
	}

	if x.exact == nil {
		x.exact = map[string][]*queue{}
	}

	x.exact[q.filter] = append(x.exact[q.filter], q)
}

func (x *index) remove(q *queue) {
	same := func(other *queue) bool { return other == q }

	if isWild(q.filter) {
		x.wild = slices.DeleteFunc(x.wild, same)

		return
	}

	if rest := slices.DeleteFunc(x.exact[q.filter], same); len(rest) > 0 {
		x.exact[q.filter] = rest
	} else {
		delete(x.exact, q.filter)
	}
}

func (x *index) all() []*queue {
	all := slices.Clone(x.wild)
	for _, qs := range x.exact {
		all = append(all, qs...)
	}

	return all
}

// isWild may take a plain filter for a wild one, since "a*" is plain: it is
// then found by comparison.
func isWild(filter string) bool { return strings.ContainsAny(filter, "*>") }
