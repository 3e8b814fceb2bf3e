package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux/transport"
)

// pipeline publishes with a reply subject that holds the token, so that nothing
// has to be remembered here for a message that is under way. It does not use
// PublishMsgAsync of nats.go, which fails everything that is under way when the
// connection is lost, and blocks for a fixed time rather than that of a ctx.
type pipeline struct {
	transport *Transport
	nc        *nats.Conn
	prefix    string // of the reply subjects
	sub       *nats.Subscription
	done      func(token uint64, r transport.Receipt, err error)
	ended     func(err error)

	mu     sync.Mutex // held while done or ended is called
	closed bool
}

var _ transport.Pipeliner = (*Transport)(nil)

// OpenPipeline implements [transport.Pipeliner]. It waits for nothing but the
// connection, where that takes no more: no longer than its FlusherTimeout.
func (t *Transport) OpenPipeline(
	_ context.Context, done func(token uint64, r transport.Receipt, err error), ended func(err error),
) (transport.Pipeline, error) {
	p := &pipeline{transport: t, nc: t.js.Conn(), done: done, ended: ended}
	if err := p.open(); err != nil {
		return nil, &transport.Error{Op: opPublish, Err: mapError(err)}
	}

	return p, nil
}

func (p *pipeline) open() error {
	t := p.transport
	if t.closed.Load() {
		return transport.ErrClosed
	}

	p.prefix = p.nc.NewInbox() + "."

	sub, err := p.nc.Subscribe(p.prefix+"*", p.receive)
	if err != nil {
		return err //nolint:wrapcheck // OpenPipeline does
	}

	// Called when the connection is closed for good.
	sub.SetClosedHandler(func(string) { p.end(mapError(nats.ErrConnectionClosed)) })

	// What is under way is bounded by the owner of the pipeline.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return err //nolint:wrapcheck // OpenPipeline does
	}

	p.sub = sub

	// Close goes through the pipelines after it has set closed, so that it sees
	// this one, or this one sees closed.
	t.mu.Lock()
	t.pipelines[p] = struct{}{}
	t.mu.Unlock()

	if t.closed.Load() {
		return errors.Join(transport.ErrClosed, p.Close())
	}

	return nil
}

// end tells that nothing will come any more, because of err, unless it is closed.
func (p *pipeline) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if !p.closed {
		p.closed = true
		p.ended(&transport.Error{Op: opPublish, Err: err})
	}
}

// Send implements [transport.Pipeline].
func (p *pipeline) Send(token uint64, msg transport.Message) error {
	if err := p.send(token, msg); err != nil {
		return &transport.Error{Op: opPublish, Subject: msg.Subject, Err: sendError(err)}
	}

	return nil
}

func (p *pipeline) send(token uint64, msg transport.Message) error {
	switch {
	case p.transport.closed.Load():
		return transport.ErrClosed
	case msg.Reply != "" || msg.Terms != nil:
		return fmt.Errorf("%w: a reply subject or terms in a pipeline", transport.ErrUnsupported)
	}

	if err := writable(p.nc); err != nil {
		return err
	}

	header, err := publishHeader(msg)
	if err != nil {
		return err
	}

	var buf [96]byte

	reply := string(strconv.AppendUint(append(buf[:0], p.prefix...), token, 36))

	if len(header) == 0 {
		return p.nc.PublishRequest(msg.Subject, reply, msg.Data) //nolint:wrapcheck // Send does
	}

	return p.nc.PublishMsg(&nats.Msg{Subject: msg.Subject, Reply: reply, Header: header, Data: msg.Data}) //nolint:wrapcheck // see above
}

// receive is the callback of the reply subjects.
func (p *pipeline) receive(msg *nats.Msg) {
	token, err := strconv.ParseUint(strings.TrimPrefix(msg.Subject, p.prefix), 36, 64)
	if err != nil {
		return // none of ours
	}

	r, err := p.transport.published.parse(msg)
	if err != nil {
		// The subject is known to the owner of the pipeline.
		r, err = transport.Receipt{}, &transport.Error{Op: opPublish, Stream: r.Stream, Err: err}
	}

	p.mu.Lock()
	defer p.mu.Unlock()

	if !p.closed {
		p.done(token, r, err)
	}
}

// Close implements [transport.Pipeline].
func (p *pipeline) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()

	p.transport.mu.Lock()
	_, open := p.transport.pipelines[p]
	delete(p.transport.pipelines, p)
	p.transport.mu.Unlock()

	if !open {
		return nil
	}

	// Nothing is called any more. That the server is told takes until the
	// connection takes it, or is given up.
	told := make(chan error, 1)
	go func() { told <- p.sub.Unsubscribe() }()

	timer := time.NewTimer(unsubscribeTimeout)
	defer timer.Stop()

	select {
	case err := <-told:
		// It is gone already, or going, with its connection.
		if err = mapError(err); err != nil && !errors.Is(err, transport.ErrClosed) {
			return &transport.Error{Op: opClose, Err: err}
		}
	case <-timer.C:
	}

	return nil
}

// unsubscribeTimeout is how long Close waits for a connection that takes no more.
const unsubscribeTimeout = 100 * time.Millisecond
