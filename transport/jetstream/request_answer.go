package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// replyAttempt is how long a requester may take to confirm a reply.
const replyAttempt = 2 * time.Second

// Reply implements [transport.Responder]. It fails with
// [transport.ErrNoResponders] when the requester is not there, be it gone or
// about to reconnect.
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
	// Whoever may send requests names this subject. Those of the system are
	// not for them.
	if err := transport.ValidateSubject(to); err != nil || strings.HasPrefix(to, "$") {
		return errUnanswerable
	}

	header := nats.Header(reply.Header)
	if header == nil {
		header = make(nats.Header, 2)
	}

	id := request.Header.Get(headerCorrelation)
	if id != "" && transport.ValidateValue(headerCorrelation, id) == nil {
		header.Set(headerCorrelation, id)
		header.Set(natsjs.MsgIDHeader, id) // of two replies a stream keeps one
	}

	m := &nats.Msg{Subject: to, Header: header, Data: reply.Data}

	if limit := a.t.js.Conn().MaxPayload(); limit > 0 && int64(len(reply.Data)+headerSize(header)) > limit {
		return fmt.Errorf("%w: %d bytes with headers, and the server takes %d",
			transport.ErrTooLarge, len(reply.Data)+headerSize(header), limit)
	}

	if stream := request.Header.Get(headerReplyStream); stream != "" {
		return a.storeReply(ctx, m, stream)
	}

	return a.sendReply(ctx, m)
}

// errUnanswerable is not worth another try: the request is broken.
var errUnanswerable = transport.Mark(transport.ErrInvalidSubject, errors.New("the request names no subject that a reply could go to"))

// storeReply publishes a reply to the stream that the requester has named.
func (a answers) storeReply(ctx context.Context, m *nats.Msg, stream string) error {
	_, err := a.t.js.PublishMsg(ctx, m, natsjs.WithExpectStream(stream))
	if answered(err) {
		return nil
	}

	return err //nolint:wrapcheck // Reply does
}

// answered reports whether a stream refused a reply because it has one. The
// server has no code of its own for that (nats-server v2.15.2).
func answered(err error) bool {
	var api *natsjs.APIError

	return errors.As(err, &api) && api.ErrorCode == errCodeStoreFailed && strings.Contains(api.Description, "per subject")
}

const errCodeStoreFailed natsjs.ErrorCode = 10077

// sendReply sends a reply to a requester that waits, which confirms it.
func (a answers) sendReply(ctx context.Context, m *nats.Msg) error {
	nc := a.t.js.Conn()
	if !nc.IsConnected() {
		return transport.ErrDisconnected
	}

	ctx, cancel := context.WithTimeout(ctx, replyAttempt)
	defer cancel()

	confirmed, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return err //nolint:wrapcheck // Reply does
	}

	// A foreign requester may have named the subject of a stream.
	var ack struct {
		Error *natsjs.APIError `json:"error"`
	}

	if json.Unmarshal(confirmed.Data, &ack) == nil && ack.Error != nil && !answered(ack.Error) {
		return ack.Error
	}

	return nil
}
