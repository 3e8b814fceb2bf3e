package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// answers receives stored requests from a consumer and sends their replies.
type answers struct {
	bound

	t *Transport
}

var (
	_ transport.Responder = answers{}
	_ transport.Publisher = answers{} // for dead letters
)

// Capabilities implements [transport.Capable].
func (a answers) Capabilities() transport.Capabilities {
	return a.bound.Capabilities() | transport.Of(transport.Receipts, transport.Deduplication)
}

// Publish implements [transport.Publisher].
func (a answers) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	return a.t.Publish(ctx, msg)
}

// Deadline implements [transport.Responder]. What counts is when the stream has
// stored the request.
func (a answers) Deadline(request transport.Delivery, _ time.Time) (time.Time, bool) {
	if _, some := request.Header[transport.HeaderDeadline]; !some {
		return time.Time{}, false
	}

	return transport.ReadDeadline(request.Header, request.Settler.Metadata(request.Token).Timestamp)
}

// How long one attempt at a reply may take. Whoever sends requests names where
// their replies go: nobody who is silent there is to hold up those who answer.
const (
	confirmTime = 500 * time.Millisecond // by the requester, across the world
	storeTime   = time.Second            // by a stream
)

// Reply implements [transport.Responder]. It fails with
// [transport.ErrNoResponders], or [context.DeadlineExceeded], when the requester
// is not there, be it gone or about to reconnect; with
// [transport.ErrUnavailable] when the stream that is to keep the reply is there
// and cannot take it at the moment; and with [transport.ErrInvalidSubject] when
// the reply can never be delivered.
func (a answers) Reply(ctx context.Context, request transport.Delivery, reply transport.Message) error {
	to := request.Header.Get(headerReplyTo)
	if to == "" {
		return nil
	}

	if err := a.reply(ctx, to, request, reply); err != nil {
		return &transport.Error{Op: opReply, Subject: request.Subject, Err: mapError(err)}
	}

	return nil
}

func (a answers) reply(ctx context.Context, to string, request transport.Delivery, reply transport.Message) error {
	// Whoever may send requests names this subject. Those of the system, and
	// of the JetStream API wherever it is, are not for them.
	if transport.ValidateSubject(to) != nil || strings.HasPrefix(to, "$") || strings.HasPrefix(to, apiPrefix(a.t.js)) {
		return undeliverable("the request names no subject that a reply could go to")
	}

	m := &nats.Msg{Subject: to, Header: nats.Header(reply.Header), Data: reply.Data}
	if m.Header == nil {
		m.Header = make(nats.Header, 4)
	}

	id := request.Header.Get(headerCorrelation)
	if id != "" && transport.ValidateValue(headerCorrelation, id) == nil {
		m.Header.Set(headerCorrelation, id)
		m.Header.Set(natsjs.MsgIDHeader, id) // of two replies a stream keeps one
	}

	stream := request.Header.Get(headerReplyStream)
	if stream == "" {
		return a.send(ctx, m)
	}

	if at := place(request.Settler.Metadata(request.Token)); at != "" {
		m.Header.Set(headerRequest, at)
	}

	return a.store(ctx, m, stream)
}

// undeliverable is the error of a reply that is not worth another try: the
// request is broken.
func undeliverable(format string, args ...any) error {
	return transport.Mark(transport.ErrInvalidSubject, fmt.Errorf(format, args...))
}

// send sends a reply to a requester that waits, which confirms it.
func (a answers) send(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTime)
	defer cancel()

	confirmed, err := ask(ctx, a.t.js.Conn(), m)
	if err != nil {
		return err
	}

	// A foreign requester may have named the subject of a stream.
	var ack pubAck

	if json.Unmarshal(confirmed.Data, &ack) == nil && ack.Error != nil && !answered(ack.Error) {
		return ack.Error
	}

	return nil
}

// store publishes a reply to the stream that the requester has named.
func (a answers) store(ctx context.Context, m *nats.Msg, stream string) error {
	if !validStreamName(stream) {
		return undeliverable("the request names no stream that could keep its reply")
	}

	m.Header.Set(natsjs.ExpectedStreamHeader, stream)

	storing, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()

	reply, err := ask(storing, a.t.js.Conn(), m)
	if err == nil {
		_, err = a.t.published.parse(reply)
	}

	var api *natsjs.APIError

	switch {
	case err == nil, answered(err):
		return nil
	case errors.Is(err, transport.ErrTooLarge), errors.Is(err, transport.ErrDisconnected), errors.Is(err, transport.ErrClosed):
		return err
	case errors.As(err, &api) && api.ErrorCode == codeStreamMismatch:
		return undeliverable("the stream %q that is to keep the reply does not have the subject %q", stream, m.Subject)
	case errors.Is(err, natsjs.ErrInvalidJSAck):
		return err // somebody else answered
	}

	return a.unstored(ctx, m.Subject, stream, err)
}

// unstored tells why a reply could not be stored: because of err, for the
// moment, or because the stream does not exist, or not for this subject.
func (a answers) unstored(ctx context.Context, subject, stream string, err error) error {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()

	s, serr := a.t.js.Stream(ctx, stream)

	switch serr = mapError(serr); {
	case gone(serr):
		return serr
	case serr != nil:
		return err // nobody knows
	}

	if slices.ContainsFunc(s.CachedInfo().Config.Subjects, func(f string) bool { return transport.Covers(f, subject) }) {
		return transport.Mark(transport.ErrUnavailable, err)
	}

	return undeliverable("the stream %q that is to keep the reply does not have the subject %q", stream, subject)
}

// codeStreamMismatch is what a stream answers to a message that expects another
// one.
const codeStreamMismatch natsjs.ErrorCode = 10060

// answered reports whether a stream refused a reply because it has one. The
// server has no code of its own for that (nats-server v2.15.2).
func answered(err error) bool {
	var api *natsjs.APIError

	return errors.As(err, &api) && api.ErrorCode == codeStoreFailed && strings.Contains(api.Description, "per subject")
}
