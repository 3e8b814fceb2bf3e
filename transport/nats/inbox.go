package nats

import (
	"context"
	crand "crypto/rand"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/transport"
)

// inbox receives the replies to all requests of a transport, over one
// subscription. Its zero value is ready; it subscribes with the first request.
//
// nats.go v1.55.0 has one, too, but a request whose publishing fails leaves an
// entry in it, and there is no way to tell a responder the deadline but a
// header, which makes a round trip a fifth slower. Here the deadline is in the
// reply subject, see replySubject.
type inbox struct {
	nc *natsgo.Conn

	mu     sync.Mutex
	prefix string // of reply subjects; empty before the first request
	sub    *natsgo.Subscription
	calls  map[uint64]*call
	random *rand.ChaCha8 // makes their ids
	online bool          // what is published is sent rather than buffered
	err    error         // why there will be no replies any more

	quit    chan struct{}
	watcher sync.WaitGroup
}

// call is a request that waits. It is recycled.
type call struct {
	result chan result // one at the most is sent, so it never blocks

	// sent is false for a request in the buffer of a client that is
	// reconnecting: that the connection is lost does not concern it.
	sent bool
}

type result struct {
	msg *natsgo.Msg
	err error
}

var calls = sync.Pool{New: func() any { return &call{result: make(chan result, 1)} }}

// enter makes room for a reply.
func (b *inbox) enter() (id uint64, c *call, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	if b.err != nil {
		return 0, nil, b.err
	}

	if b.prefix == "" {
		if err := b.open(); err != nil {
			return 0, nil, err
		}
	}

	// Whoever gets one request must not be able to tell where the replies to
	// others go, and answer them.
	for id = b.random.Uint64(); b.calls[id] != nil; {
		id = b.random.Uint64()
	}

	c, _ = calls.Get().(*call)
	c.sent = b.online
	b.calls[id] = c

	return id, c, nil
}

// leave takes the room back, whether there was a reply or not.
func (b *inbox) leave(id uint64, c *call) {
	b.mu.Lock()
	delete(b.calls, id)
	b.mu.Unlock()

	// Nobody sends to it any more.
	select {
	case <-c.result:
	default:
	}

	calls.Put(c)
}

// open subscribes. The caller holds the lock.
func (b *inbox) open() error {
	prefix := b.nc.NewInbox() + "."

	sub, err := b.nc.Subscribe(prefix+">", b.receive)
	if err != nil {
		return err //nolint:wrapcheck // Request does
	}

	b.prefix, b.sub, b.calls, b.quit = prefix, sub, map[uint64]*call{}, make(chan struct{})
	b.random = rand.NewChaCha8(seed())
	// The connection was closed, or is draining: it ends its subscriptions then.
	sub.SetClosedHandler(func(string) { b.end(natsgo.ErrConnectionClosed) })

	status := b.nc.StatusChanged(natsgo.CONNECTED, natsgo.RECONNECTING, natsgo.CLOSED)
	b.online = b.nc.IsConnected()

	b.watcher.Go(func() { b.watch(status) })

	return nil
}

func seed() (s [32]byte) {
	_, _ = crand.Read(s[:]) // it does not fail

	return s
}

// watch ends what was sent when the connection is lost: its reply may be lost.
// It returns with the connection's end.
func (b *inbox) watch(status chan natsgo.Status) {
	defer b.nc.RemoveStatusListener(status)

	for !b.nc.IsClosed() {
		select {
		case <-b.quit:
			return
		case now := <-status:
			if now != natsgo.CLOSED {
				b.switched(now == natsgo.CONNECTED)
			}
		}
	}

	b.end(natsgo.ErrConnectionClosed)
}

// switched is told that the connection was lost or restored. In the latter case
// what was buffered has been sent.
func (b *inbox) switched(online bool) {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.online = online

	for id, c := range b.calls {
		switch {
		case online:
			c.sent = true
		case c.sent:
			delete(b.calls, id)
			c.result <- result{err: natsgo.ErrDisconnected}
		}
	}
}

// end ends all that wait, and refuses more.
func (b *inbox) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	if b.err == nil {
		b.err = err
	}

	for id, c := range b.calls {
		delete(b.calls, id)
		c.result <- result{err: b.err}
	}
}

// receive is the callback of the subscription. Only the first reply of a request
// finds somebody who waits.
func (b *inbox) receive(m *natsgo.Msg) {
	token, _, _ := strings.Cut(strings.TrimPrefix(m.Subject, b.prefix), ".")

	id, err := strconv.ParseUint(token, 36, 64)
	if err != nil {
		return
	}

	b.mu.Lock()
	defer b.mu.Unlock()

	if c := b.calls[id]; c != nil {
		delete(b.calls, id)
		c.result <- result{msg: m}
	}
}

// close ends what waits, and returns when nothing of the inbox is left.
func (b *inbox) close() {
	b.end(errTransportClosed)

	b.mu.Lock()
	open := b.prefix != ""
	b.mu.Unlock()

	if open {
		_ = b.sub.Unsubscribe() // It fails only where there is none any more.

		close(b.quit)
		b.watcher.Wait()
	}
}

// timeoutToken begins the last token of a reply subject, and is followed by how
// many milliseconds the requester waits. No other client has "=" in an inbox.
const timeoutToken = ".timeout="

// replySubject returns the subject for the reply to a request, which also tells
// how long it is waited for.
func (b *inbox) replySubject(ctx context.Context, id uint64) string {
	s := make([]byte, 0, 80)
	s = append(s, b.prefix...)
	s = strconv.AppendUint(s, id, 36)

	return string(appendTimeout(ctx, s))
}

// loneSubject returns a reply subject apart from those of the inbox. What
// NewInbox makes follows from what it made before, so it is not enough.
func loneSubject(ctx context.Context, nc *natsgo.Conn) string {
	return string(appendTimeout(ctx, []byte(nc.NewInbox()+"."+crand.Text())))
}

func appendTimeout(ctx context.Context, subject []byte) []byte {
	deadline, ok := ctx.Deadline()
	if !ok {
		return subject
	}

	subject = append(subject, timeoutToken...)

	return strconv.AppendInt(subject, transport.Milliseconds(time.Until(deadline)), 10)
}

// deadline reads what appendTimeout wrote.
func deadline(reply string, arrived time.Time) (time.Time, bool) {
	i := strings.LastIndex(reply, timeoutToken)
	if i < 0 {
		return time.Time{}, false
	}

	d, ok := transport.ParseMilliseconds(reply[i+len(timeoutToken):])
	if !ok {
		return time.Time{}, false
	}

	return arrived.Add(d), true
}
