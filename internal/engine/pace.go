package engine

import "time"

const (
	// prefetchAhead is how much work may be fetched ahead of the handlers:
	// enough to hide the way to the server, little enough that replicas
	// share a backlog.
	prefetchAhead = 100 * time.Millisecond

	// maxPrefetch and maxPrefetchBytes bound what is fetched ahead.
	maxPrefetch      = 512
	maxPrefetchBytes = 16 << 20
)

// pace measures how long a message takes and how large it is, as moving
// averages, and derives from them how much to fetch ahead.
type pace struct {
	took     time.Duration
	bytes    int
	measured bool
}

// handled records the time of one handling.
func (p *pace) handled(took time.Duration) {
	if !p.measured {
		p.took, p.measured = took, true

		return
	}

	if took > p.took {
		// Slowing down counts at once, so that no more is fetched than can
		// be handled.
		p.took += (took - p.took) / 2

		return
	}

	p.took -= (p.took - took) / 8
}

// size records the size of a message. As with the time, more counts sooner than
// less.
func (p *pace) size(n int) {
	switch {
	case p.bytes == 0:
		p.bytes = n
	case n > p.bytes:
		p.bytes += (n - p.bytes + 1) / 2
	default:
		p.bytes -= (p.bytes - n) / 8
	}
}

// window returns how many messages may be held or be on their way, and by how
// many that must fall short before more are asked for. Before anything was
// handled nothing is fetched ahead, so a slow handler never finds a full
// buffer behind it.
func (p *pace) window(concurrency int, ackWait time.Duration) (size, step int) {
	if !p.measured {
		return concurrency, 1
	}

	ahead := prefetchAhead
	if ackWait > 0 {
		ahead = min(ahead, ackWait/4)
	}

	n := int64(maxPrefetch)
	if p.took > 0 {
		n = min(n, int64(ahead)*int64(concurrency)/int64(p.took))
	}

	if p.bytes > 0 {
		n = min(n, int64(maxPrefetchBytes/p.bytes))
	}

	return concurrency + int(n), max(1, int(n)/2)
}
