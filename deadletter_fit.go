package goflux

import (
	"cmp"
	"slices"
)

// shrinkings are the forms in which a dead letter is tried, from the whole one to
// the smallest. A message takes what its sender likes, up to the limits of the
// broker, and its dead letter has more headers: somebody who sends such messages
// must not be able to block a consumer with them.
var shrinkings = []func(dead *DeadLetter[[]byte]){
	func(*DeadLetter[[]byte]) {},
	func(dead *DeadLetter[[]byte]) { dead.Error = "" },
	omitLargest,
	func(dead *DeadLetter[[]byte]) { omit(dead, headersBySize(dead.Header)) },
}

// idRoom is what the id of the dead letter takes, on top of its headers.
const idRoom = 64

// omitLargest leaves out the largest headers of a message until those of the
// dead letter take no more than the message's own did, which the broker has
// taken.
func omitLargest(dead *DeadLetter[[]byte]) {
	room := headerSize(dead.Header)

	bare := *dead
	bare.Header = nil
	need := headerSize(deadHeader(bare)) + len(deadOmitted) + maxOmitted + idRoom

	headers := headersBySize(dead.Header)
	for _, h := range headers {
		need += h.size
	}

	n := 0
	for n < len(headers) && need > room {
		need -= headers[n].size
		n++
	}

	omit(dead, headers[:n])
}

// sized is a header, and what it takes in a dead letter.
type sized struct {
	key  string
	size int
}

// headersBySize returns the headers of a message, the largest one first.
func headersBySize(h Header) []sized {
	headers := make([]sized, 0, len(h))

	for key, values := range h {
		size := headerSize(deadHeader(DeadLetter[[]byte]{Header: Header{key: values}})) - headerSize(deadHeader(DeadLetter[[]byte]{}))
		headers = append(headers, sized{key, size})
	}

	slices.SortFunc(headers, func(a, b sized) int {
		return cmp.Or(cmp.Compare(b.size, a.size), cmp.Compare(a.key, b.key))
	})

	return headers
}

// omit leaves headers out.
func omit(dead *DeadLetter[[]byte], headers []sized) {
	dead.Header, dead.Omitted = dead.Header.Clone(), slices.Clip(dead.Omitted) // the caller's

	for _, h := range headers {
		delete(dead.Header, h.key)
		dead.Omitted = append(dead.Omitted, h.key)
	}
}

// headerSize is what headers take on the wire.
func headerSize(h Header) int {
	size := 0

	for key, values := range h {
		for _, value := range values {
			size += len(key) + len(": ") + len(value) + len("\r\n")
		}
	}

	return size
}
