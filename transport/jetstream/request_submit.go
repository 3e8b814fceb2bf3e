package jetstream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	wait "github.com/foomo/goflux/internal/pause"
	"github.com/foomo/goflux/transport"
)

// Submit implements [transport.DurableRequester].
func (r *requests) Submit(ctx context.Context, msg transport.Message) (string, error) {
	ctx, release := r.scope(ctx)
	defer release()

	t, err := r.submit(ctx, msg)
	if err != nil {
		return "", r.failure(opSubmit, msg.Subject, err)
	}

	return t.seal(r.key), nil
}

func (r *requests) submit(ctx context.Context, msg transport.Message) (ticket, error) {
	if r.replies == nil {
		return ticket{}, errNoReplyStream
	}

	if msg.ID == "" {
		msg.ID = rand.Text()
	}

	id := r.identify(r.replies.prefix, msg.Subject, msg.ID)

	// A stream of requests remembers ids for a while only. What was answered is
	// remembered by its reply.
	d, err := r.answered(ctx, id)
	if err != nil && !errors.Is(err, natsjs.ErrMsgNotFound) {
		return ticket{}, err
	}

	if t, told := ticketOf(d.Header, id); told {
		return t, nil
	}

	msg.ID = id

	receipt, err := r.store(ctx, msg, map[string]string{
		headerReplyTo: r.replies.subject(id), headerReplyStream: r.replies.cfg.Name, headerCorrelation: id,
	})
	if err != nil {
		return ticket{}, err
	}

	return ticket{stream: receipt.Stream, sequence: receipt.Sequence, id: id}, r.fit(ctx, receipt.Stream)
}

// answered is reply, and waits for a server that is away.
func (r *requests) answered(ctx context.Context, id string) (transport.Delivery, error) {
	for {
		d, err := r.reply(ctx, id)
		if !passing(err) {
			return d, err
		}

		if wait.For(ctx, retryPause) != nil {
			return transport.Delivery{}, transport.Mark(ctx.Err(), err)
		}
	}
}

var errNoReplyStream = invalid("there is nowhere to store replies: make the requester with WithReplyStream")

// reply returns a reply that is stored, or [natsjs.ErrMsgNotFound].
func (r *requests) reply(ctx context.Context, id string) (transport.Delivery, error) {
	if r.closing.Err() != nil {
		return transport.Delivery{}, transport.ErrClosed
	}

	if err := writable(r.t.js.Conn()); err != nil {
		return transport.Delivery{}, err
	}

	if err := r.replies.ensure(ctx, r.t.js); err != nil {
		return transport.Delivery{}, err
	}

	m, err := leaderGet(ctx, r.t.js, r.replies.cfg.Name, getRequest{LastFor: r.replies.subject(id)})

	switch {
	case errors.Is(err, transport.ErrStreamNotFound):
		// It was deleted. Replies that are still to come shall find one.
		r.replies.forget()

		if err := r.replies.ensure(ctx, r.t.js); err != nil {
			return transport.Delivery{}, err
		}

		return transport.Delivery{}, natsjs.ErrMsgNotFound
	case err != nil:
		return transport.Delivery{}, err
	}

	return transport.Delivery{Subject: m.Subject, Header: transport.Header(m.Header), Data: m.Data, Settler: unsettled{}}, nil
}

// passing reports whether an error is that of a server, or a leader, that is
// away for the moment.
func passing(err error) bool {
	err = mapError(err)

	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, transport.ErrDisconnected) ||
		errors.Is(err, transport.ErrNoResponders) || errors.Is(err, transport.ErrBufferFull)
}

// lookAgain is how often Await looks for a reply of which no word has come: when
// nobody may tell it, when the word was lost with a connection, or when there
// will be no reply since the request was deleted. After word of a reply, which
// goes ahead of its storing, it looks sooner.
const lookAgain = 10 * time.Second

// Await implements [transport.DurableRequester]. A reply is published before it
// is stored, so a subscription to its subject tells when to look.
func (r *requests) Await(ctx context.Context, s string) (transport.Delivery, error) {
	ctx, release := r.scope(ctx)
	defer release()

	d, err := r.await(ctx, s)
	if err != nil {
		return transport.Delivery{}, r.failure(opAwait, "", err)
	}

	return d, nil
}

func (r *requests) await(ctx context.Context, s string) (transport.Delivery, error) {
	if r.replies == nil {
		return transport.Delivery{}, errNoReplyStream
	}

	t, err := parseTicket(s, r.key)
	if err != nil {
		return transport.Delivery{}, err
	}

	nc := r.t.js.Conn()
	word := make(chan struct{}, 1)

	sub, err := nc.Subscribe(r.replies.subject(t.id), func(*nats.Msg) {
		select {
		case word <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return transport.Delivery{}, err //nolint:wrapcheck // Await does
	}
	defer func() { _ = sub.Unsubscribe() }() // It fails only where there is none any more.

	changed := nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer nc.RemoveStatusListener(changed)

	// Neither seen nor found at first is a reply that is just being stored.
	for next := r.again / 10; ; {
		d, err := r.find(ctx, t)

		switch {
		case err == nil, !passing(err) && !errors.Is(err, errPending):
			return d, err
		case passing(err):
			next = min(next, retryPause)
		}

		select {
		case <-ctx.Done():
			return transport.Delivery{}, ctx.Err()
		case <-word:
			next = r.again / 1000
		case <-changed:
			next = r.again / 10
		case <-time.After(next):
			next = min(10*next, r.again)
		}
	}
}

// errPending says that there is no reply yet.
var errPending = errors.New("the request is pending")

// find returns the reply to the request of a ticket, [errPending] when there may
// be one later, or why there will be none.
func (r *requests) find(ctx context.Context, t ticket) (transport.Delivery, error) {
	d, err := r.reply(ctx, t.id)
	if !errors.Is(err, natsjs.ErrMsgNotFound) {
		return d, err
	}

	if err := r.pending(ctx, t); !errors.Is(err, transport.ErrTicketExpired) {
		return transport.Delivery{}, err
	}

	// A request is done with only when its reply is stored. So it has been
	// there since, or it never will be.
	d, err = r.reply(ctx, t.id)
	if errors.Is(err, natsjs.ErrMsgNotFound) {
		err = transport.ErrTicketExpired
	}

	return d, err
}

// pending returns [errPending] when the request of a ticket is still in its
// stream, [transport.ErrTicketExpired] when it may have been, and
// [transport.ErrTicketUnknown] when it never was.
//
// Without a key, tickets can be made up. Of what is stored they tell one thing:
// whether a sequence was removed from a stream with work-queue retention.
func (r *requests) pending(ctx context.Context, t ticket) error {
	m, err := leaderGet(ctx, r.t.js, t.stream, getRequest{Sequence: t.sequence})

	switch {
	case err == nil && m.Header.Get(headerCorrelation) == t.id:
		return errPending
	case err == nil, gone(err):
		return errNotSubmitted
	case !errors.Is(err, natsjs.ErrMsgNotFound):
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()

	stream, err := r.t.js.Stream(ctx, t.stream)

	switch err = mapError(err); {
	case gone(err):
		return errNotSubmitted
	case err != nil:
		return err
	}

	info := stream.CachedInfo()
	if info.Config.Retention != natsjs.WorkQueuePolicy || t.sequence > info.State.LastSeq {
		return errNotSubmitted
	}

	return transport.ErrTicketExpired
}

var errNotSubmitted = fmt.Errorf("%w: nothing was submitted under it", transport.ErrTicketUnknown)
