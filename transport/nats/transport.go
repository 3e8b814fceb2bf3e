// Package nats is the transport of core NATS: fast and fleeting. A message goes
// to whoever is subscribed when it is published, at most once.
//
// There are no acknowledgements, no redelivery and no history, and settling a
// delivery is [transport.ErrUnsupported]; package transport/jetstream has them,
// on the same servers. Members of a queue group share the messages.
//
// Importing the package makes the schemes nats, nats+tls and tls known to
// [transport.Open].
package nats

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natserr"
	"github.com/foomo/goflux/transport"
)

var _ transport.Transport = (*Transport)(nil)

var errTransportClosed = transport.Mark(transport.ErrClosed, errors.New("the transport was closed"))

// Transport is a [transport.Transport] over a connection to NATS. All its
// methods may be called concurrently.
type Transport struct {
	nc     *natsgo.Conn
	limits limits

	// disconnect closes a connection of the transport's own, else it is nil.
	disconnect func() error

	// attaching is held by the one Subscribe that waits for the server's
	// answer: a refusal is told from the connection's last error.
	attaching chan struct{}

	inbox inbox
	free  subjects // of requests whose replies look like those of streams, and are not

	closed  atomic.Bool
	closing chan struct{} // closed with it

	mu   sync.Mutex
	subs map[*subscription]struct{} // nil when closed
}

// New returns a transport over nc, which stays the caller's: Close leaves it
// open, and its handlers and options are not touched. A connection that is
// still being made ([natsgo.RetryOnFailedConnect]) or restored will do.
//
// Errors: [transport.ErrInvalidOption] when nc is nil or an option makes no
// sense.
func New(nc *natsgo.Conn, opts ...TransportOption) (*Transport, error) {
	if nc == nil {
		return nil, &transport.Error{Op: "open", Err: fmt.Errorf("%w: the connection is nil", transport.ErrInvalidOption)}
	}

	t := &Transport{
		nc:        nc,
		limits:    limits{natsgo.DefaultSubPendingMsgsLimit, natsgo.DefaultSubPendingBytesLimit},
		attaching: make(chan struct{}, 1),
		inbox:     inbox{nc: nc},
		closing:   make(chan struct{}),
		subs:      map[*subscription]struct{}{},
	}

	for _, o := range opts {
		if o == nil {
			continue
		}

		if err := o.applyTransport(t); err != nil {
			return nil, &transport.Error{Op: "open", Err: err}
		}
	}

	return t, nil
}

// Capabilities returns [transport.Groups] and [transport.RequestReply], which is
// all that core NATS has.
func (t *Transport) Capabilities() transport.Capabilities {
	return transport.Of(transport.Groups, transport.RequestReply)
}

// Publish hands the message to the client, which sends it in the background.
// The receipt is zero. Nil does not mean that the server has the message: while
// the connection is being restored it means that the client buffers it, up to
// the connection's ReconnectBufSize (8 MB unless set), and what was on its way
// when the connection broke is lost. [Transport.Flush] tells. A server that
// does not allow the subject says so to the connection's error handler only.
//
// A message without headers costs no allocation. The call appends to the write
// buffer of the client. It waits where that is full and the network stalls, for
// the connection's FlusherTimeout (10 s for one of [Connect] or [transport.Open],
// a minute by default of nats.go), and while the client dials, for its Timeout
// (2 s unless set). ctx does not shorten that: it is looked at once, before.
//
// Errors, each in a [*transport.Error]: [transport.ErrTooLarge] when payload
// and encoded headers exceed the server's max_payload, and nothing was sent;
// [transport.ErrBufferFull], also when the connection is being restored and
// was told to buffer nothing; [transport.ErrDisconnected] when the connection
// broke under it, so that it is unknown what the server has;
// [transport.ErrClosed]; the error of ctx.
func (t *Transport) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	err := t.check(ctx)
	if err == nil {
		err = t.publish(msg)
	}

	switch {
	case err == nil:
		return transport.Receipt{}, nil
	case errors.Is(err, transport.ErrBufferFull):
		err = bufferFull(t.nc.Opts.ReconnectBufSize, err)
	case transport.ErrorType(err) == "_OTHER":
		// nats.go found the message in order and could not write it: the
		// connection is broken, which it has not noticed yet.
		err = transport.Mark(transport.ErrDisconnected, err)
	}

	return transport.Receipt{}, &transport.Error{Op: "publish", Subject: msg.Subject, Err: err}
}

// bufferFull says what is the matter with a buffer of so many bytes.
func bufferFull(size int, err error) error {
	const again = "publish again later, or set another ReconnectBufSize"

	if size < 0 {
		return fmt.Errorf("%w: the connection is being restored, and told to buffer nothing meanwhile: %s", err, again)
	}

	return fmt.Errorf("%w: the connection is being restored, and holds %d bytes meanwhile: %s", err, size, again)
}

func (t *Transport) publish(msg transport.Message) error {
	switch {
	case len(msg.Header) > 0:
		return natserr.Map(t.nc.PublishMsg(&natsgo.Msg{
			Subject: msg.Subject, Reply: msg.Reply, Header: natsgo.Header(msg.Header), Data: msg.Data,
		}))
	case msg.Reply != "":
		return natserr.Map(t.nc.PublishRequest(msg.Subject, msg.Reply, msg.Data))
	default:
		return natserr.Map(t.nc.Publish(msg.Subject, msg.Data))
	}
}

// Flush returns nil when the server has everything that was published before.
// While the connection is being restored it waits, as long as ctx allows.
//
// Errors, each in a [*transport.Error]: [transport.ErrDisconnected] when the
// connection broke meanwhile, so that it is unknown what the server has, and
// together with the error of ctx when it was not back in time;
// [transport.ErrClosed]; the error of ctx.
func (t *Transport) Flush(ctx context.Context) error {
	err := t.check(ctx)
	if err == nil {
		err = flush(ctx, t.nc)
	}

	if err != nil {
		return &transport.Error{Op: "publish", Err: fmt.Errorf("flush: %w", err)}
	}

	return nil
}

// Close ends the subscriptions that still run and the requests that wait, with
// [transport.ErrClosed], and closes the connection if [transport.Open] made it:
// what was published is sent first, as far as that takes no longer than two
// seconds. (A network that stalls in the middle of a write holds it up for longer,
// until nats.go gives the write up: for the connection's FlusherTimeout, 10 s for
// one that [transport.Open] made.) A connection that was handed to [New] stays open. A second Close is a
// no-op that returns nil.
func (t *Transport) Close() error {
	if t.closed.Swap(true) {
		return nil
	}

	close(t.closing)

	t.mu.Lock()
	subs := t.subs
	t.subs = nil
	t.mu.Unlock()

	for s := range subs {
		s.abandon()
	}

	t.inbox.close()

	if t.disconnect != nil {
		if err := t.disconnect(); err != nil {
			return &transport.Error{Op: "publish", Err: fmt.Errorf("closing: %w", err)}
		}
	}

	return nil
}

// check tells what stands against an operation from the start.
func (t *Transport) check(ctx context.Context) error {
	if t.closed.Load() {
		return errTransportClosed
	}

	return ctx.Err()
}

// enter adds a subscription to those that Close ends.
func (t *Transport) enter(s *subscription) error {
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.subs == nil {
		return errTransportClosed
	}

	t.subs[s] = struct{}{}

	return nil
}

func (t *Transport) leave(s *subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()

	delete(t.subs, s)
}

// flush waits until the server has answered all that was sent before.
func flush(ctx context.Context, nc *natsgo.Conn) error {
	if err := ctx.Err(); err != nil {
		return err
	}

	if _, ok := ctx.Deadline(); !ok {
		// nats.go insists on a deadline, the contract does not.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 1<<63-1)

		defer cancel()
	}

	err := nc.FlushWithContext(ctx)
	if errors.Is(err, natsgo.ErrConnectionClosed) && !nc.IsClosed() {
		// That is what nats.go v1.55.0 says when the connection broke.
		return transport.Mark(transport.ErrDisconnected, err)
	}

	if err != nil && ctx.Err() != nil && !nc.IsConnected() && !nc.IsClosed() {
		return transport.Mark(ctx.Err(), transport.ErrDisconnected)
	}

	return natserr.Map(err)
}
