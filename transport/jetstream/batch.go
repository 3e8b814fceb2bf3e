package jetstream

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// How requests for messages live. The server sends a heartbeat to a request that
// waits; when two are missing nobody knows of the request any more: that is how
// long a request stays unnoticed that was lost between two leaders. A request
// that expired is renewed by nats.go.
const (
	pullExpiry    = 30 * time.Second
	pullHeartbeat = 2 * time.Second
)

// maxBatch bounds one request for messages. There is no bound in bytes: the sink
// does not block, so that nothing piles up in the client, and who grants credit
// answers for the size of what it asked for.
const maxBatch = 4096

// batch is one request for messages, renewed by nats.go until it is complete.
// All of its methods may be called on nil, which is no batch.
type batch struct {
	sub     *subscription
	context natsjs.ConsumeContext
	end     <-chan struct{} // closed when nats.go is done with it

	left     int // to be delivered; of the callback
	complete atomic.Bool

	mu     sync.Mutex
	failed error

	draining, ended bool // of run
}

// handle is the callback. nats.go calls it serially.
func (b *batch) handle(msg natsjs.Msg) {
	b.sub.deliver(msg)

	b.left--
	if b.left == 0 {
		b.complete.Store(true)
		b.sub.poke()
	}
}

// fail is what nats.go calls when something is wrong.
func (b *batch) fail(_ natsjs.ConsumeContext, err error) {
	final := errors.Is(err, natsjs.ErrConsumerDeleted) || errors.Is(mapError(err), transport.ErrClosed)

	if !final {
		b.sub.notify(err)
	}

	if errors.Is(err, natsjs.ErrConsumerLeadershipChanged) {
		return // nats.go has asked the new leader
	}

	b.mu.Lock()
	if b.failed == nil || final {
		b.failed = err
	}
	b.mu.Unlock()

	b.sub.poke()
}

// errEnded stands for an end of which nats.go did not tell the reason.
var errEnded = errors.New("the request for messages ended")

// trouble returns what is wrong with the batch, once. After whatever nats.go
// reports, the server does not know of the request any more, or nats.go has
// asked twice, or would ask again only when heartbeats are missing.
func (b *batch) trouble() error {
	if b == nil || b.draining || b.complete.Load() {
		return nil
	}

	b.mu.Lock()
	defer b.mu.Unlock()

	trouble := b.failed
	b.failed = nil

	if trouble == nil && b.ended {
		return errEnded
	}

	return trouble
}

// silent reports whether trouble means that nothing comes from the server,
// mostly for want of a connection.
func silent(trouble error) bool {
	return errors.Is(trouble, natsjs.ErrNoHeartbeat) || errors.Is(trouble, nats.ErrReconnectBufExceeded) || errors.Is(trouble, errEnded)
}

// stop unsubscribes, whatever may be on its way.
func (b *batch) stop() {
	if b != nil {
		b.context.Stop()
	}
}

// over reports whether nothing more will come of the batch. A complete one has
// been unsubscribed by nats.go.
func (b *batch) over() bool {
	return b != nil && (b.ended || (b.complete.Load() && !b.draining))
}

// drain unsubscribes; what the server had sent is delivered before the batch
// ends.
func (b *batch) drain() {
	if b != nil && !b.draining {
		b.draining = true
		b.context.Drain()
	}
}

func (b *batch) drainWithin(limit time.Duration) {
	if b == nil {
		return
	}

	b.drain()

	timer := time.NewTimer(limit)
	defer timer.Stop()

	select {
	case <-b.end:
	case <-timer.C:
	}
}

func (b *batch) closed() <-chan struct{} {
	if b == nil {
		return nil
	}

	return b.end
}
