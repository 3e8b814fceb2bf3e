package nats

import (
	"context"
	"iter"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natserr"
	"github.com/foomo/goflux/transport"
)

var _ transport.RequestReplier = (*Transport)(nil)

// Request sends a request and returns the first reply.
//
// While the connection is being restored the request waits in the client's
// buffer, as long as ctx allows. One that was sent when the connection broke
// ends with [transport.ErrDisconnected] at once, since its reply may be lost.
// A connection that drains takes no requests.
//
// Errors, each in a [*transport.Error]: [transport.ErrNoResponders], when nobody
// is subscribed to the subject; [transport.ErrTooLarge]; [transport.ErrBufferFull],
// also when the connection is being restored and was told to buffer nothing;
// [transport.ErrDisconnected]; [transport.ErrClosed]; the error of ctx; and
// [transport.ErrInvalidSubject] when a stream has the subject: it answers every
// request with its confirmation, faster than any responder. A reply that could be
// one is handed over when the server says that the stream it names has not the
// subject. That is asked once a minute for a subject, and takes the permission to
// publish to $JS.API.STREAM.INFO.*; without it such a reply is that error, too,
// after 2 s.
func (t *Transport) Request(ctx context.Context, msg transport.Message) (transport.Delivery, error) {
	m, err := t.request(ctx, msg)
	if err != nil {
		return transport.Delivery{}, &transport.Error{Op: "request", Subject: msg.Subject, Err: err}
	}

	return delivery(m), nil
}

func (t *Transport) request(ctx context.Context, msg transport.Message) (*natsgo.Msg, error) {
	m, err := t.exchange(ctx, msg)
	if err != nil {
		return nil, err
	}

	return m, t.streamAnswered(ctx, msg.Subject, m)
}

// exchange sends a message and returns what comes back.
func (t *Transport) exchange(ctx context.Context, msg transport.Message) (*natsgo.Msg, error) {
	if err := t.check(ctx); err != nil {
		return nil, err
	}

	id, c, err := t.inbox.enter()
	if err != nil {
		return nil, natserr.Map(err)
	}
	defer t.inbox.leave(id, c)

	msg.Reply = t.inbox.replySubject(ctx, id)

	if err := t.publish(msg); err != nil {
		return nil, natserr.Map(err)
	}

	select {
	case r := <-c.result:
		switch {
		case r.err != nil:
			return nil, natserr.Map(r.err)
		case noResponders(r.msg):
			return nil, natserr.Map(natsgo.ErrNoResponders)
		default:
			return r.msg, nil
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// RequestMany sends a request and yields the replies that arrive until ctx ends.
// The reply subject is subscribed to for that long. Replies wait for the
// iteration within the limits of nats.go for a subscription.
//
// Errors are those of [Transport.Request].
func (t *Transport) RequestMany(ctx context.Context, msg transport.Message) iter.Seq2[transport.Delivery, error] {
	return func(yield func(transport.Delivery, error) bool) {
		for m, err := range t.requestMany(ctx, msg) {
			if err != nil {
				yield(transport.Delivery{}, &transport.Error{Op: "request", Subject: msg.Subject, Err: err})

				return
			}

			if !yield(delivery(m), nil) {
				return
			}
		}
	}
}

func (t *Transport) requestMany(ctx context.Context, msg transport.Message) iter.Seq2[*natsgo.Msg, error] {
	return func(yield func(*natsgo.Msg, error) bool) {
		if err := t.check(ctx); err != nil {
			yield(nil, err)

			return
		}

		replies := make(chan *natsgo.Msg)
		left := make(chan struct{})
		gone := make(chan struct{})

		msg.Reply = loneSubject(ctx, t.nc)

		sub, err := t.nc.Subscribe(msg.Reply, func(m *natsgo.Msg) {
			select {
			case replies <- m:
			case <-left:
			}
		})
		if err != nil {
			yield(nil, natserr.Map(err))

			return
		}

		// It fails only where there is no subscription any more.
		defer func() { _ = sub.Unsubscribe() }()
		defer close(left)

		sub.SetClosedHandler(func(string) { close(gone) })

		if err := t.publish(msg); err != nil {
			yield(nil, natserr.Map(err))

			return
		}

		for {
			select {
			case m := <-replies:
				if noResponders(m) {
					yield(nil, natserr.Map(natsgo.ErrNoResponders))

					return
				}

				if err := t.streamAnswered(ctx, msg.Subject, m); err != nil {
					yield(nil, err)

					return
				}

				if !yield(m, nil) {
					return
				}
			case <-ctx.Done():
				yield(nil, ctx.Err())

				return
			case <-t.closing:
				yield(nil, errTransportClosed)

				return
			case <-gone:
				yield(nil, natserr.Map(natsgo.ErrConnectionClosed))

				return
			}
		}
	}
}

// noResponders tells the server's answer from that of a responder.
func noResponders(m *natsgo.Msg) bool { return len(m.Data) == 0 && m.Header.Get("Status") == "503" }

func delivery(m *natsgo.Msg) transport.Delivery {
	return transport.Delivery{
		Subject: m.Subject, Reply: m.Reply, Header: transport.Header(m.Header), Data: m.Data, Settler: settler{},
	}
}

// Responder returns the side that answers. Its subscriptions are those of
// [Transport.Subscribe].
func (t *Transport) Responder() transport.Responder { return responder{t} }

type responder struct{ *Transport }

var _ transport.Announcer = responder{}

// Subscribe is that of the transport. Its deliveries tell when they arrived, for
// the patience of their requesters runs from then on.
func (r responder) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	return r.attach(ctx, cfg, true)
}

// Deadline implements [transport.Responder]. It understands what [inbox] puts
// into a reply subject, and the header that others may set.
func (r responder) Deadline(request transport.Delivery, arrived time.Time) (time.Time, bool) {
	if at, ok := transport.ReadDeadline(request.Header, arrived); ok {
		return at, true
	}

	return deadline(request.Reply, arrived)
}

// Reply implements [transport.Responder].
func (r responder) Reply(ctx context.Context, request transport.Delivery, reply transport.Message) error {
	if request.Reply == "" {
		return nil
	}

	reply.Subject, reply.Reply = request.Reply, ""

	err := r.check(ctx)
	if err == nil {
		err = natserr.Map(r.publish(reply))
	}

	if err != nil {
		return &transport.Error{Op: "reply", Subject: request.Subject, Err: err}
	}

	return nil
}
