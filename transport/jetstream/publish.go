package jetstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// publishes is what publishing to a stream can do.
var publishes = transport.Of(
	transport.Receipts, transport.Deduplication, transport.ExpectedSequence,
	transport.MessageTTL, transport.Scheduling, transport.AtomicBatches,
)

// maxHeader is how many bytes of headers a stream takes, counted as they are on
// the wire (nats-server v2.15.2).
const maxHeader = math.MaxUint16

// Publish implements [transport.Publisher]. Every error is a
// [*transport.Error] around [transport.ErrNoStream], [transport.ErrTooLarge],
// [transport.ErrUnsupported] (a reply subject, which a stream does not keep, or
// terms that the stream does not allow), [*transport.ConflictError],
// [transport.ErrClosed], those of ctx, or what the server refuses as
// [*natsjs.APIError].
//
// The message may be stored all the same if the error is
// [transport.ErrPublishUnknown] as well. When it is published again under the
// same id it is stored once.
//
// Without a connection Publish waits for one; if ctx ends first the error is
// [transport.ErrDisconnected] as well, and nothing of the message is left in
// the client. A network that stalls in the middle of a message holds Publish up
// for the connection's FlusherTimeout (a minute unless set), whatever ctx says.
func (t *Transport) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	r, err := t.publish(ctx, msg)
	if err != nil {
		return transport.Receipt{}, &transport.Error{Op: opPublish, Subject: msg.Subject, Stream: r.Stream, Err: err}
	}

	return r, nil
}

// publish names the stream in the receipt also where it returns an error, if it
// was told.
func (t *Transport) publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	switch {
	case t.closed.Load():
		return transport.Receipt{}, transport.ErrClosed
	case msg.Reply != "":
		return transport.Receipt{}, fmt.Errorf("%w: a stream does not keep the reply subject of a message", transport.ErrUnsupported)
	}

	if _, some := ctx.Deadline(); !some {
		var cancel context.CancelFunc

		ctx, cancel = context.WithTimeout(ctx, t.DefaultTimeout())
		defer cancel()
	}

	if msg.Terms != nil {
		return t.publishOnTerms(ctx, msg)
	}

	header, err := publishHeader(msg)
	if err != nil {
		return transport.Receipt{}, err
	}

	return t.confirm(ctx, msg.Subject, header, msg.Data, msg.Retry)
}

// DefaultTimeout is how long a publish may take where its ctx has no deadline:
// the handle's default timeout, or 5 s where it has none.
func (t *Transport) DefaultTimeout() time.Duration {
	if d := t.js.Options().DefaultTimeout; d > 0 {
		return d
	}

	return 5 * time.Second
}

// confirm publishes a message and returns the receipt of the stream. It repeats
// that, as ADR-22 has it, while no stream answers. nats.go v1.55.0 does so too,
// but not until the deadline, and cannot tell a message that was never sent
// from one that was not confirmed.
func (t *Transport) confirm(
	ctx context.Context, subject string, header nats.Header, data []byte, how *transport.Retry,
) (transport.Receipt, error) {
	reply, err := t.ask(ctx, subject, header, data, how)
	if err != nil {
		return transport.Receipt{}, err
	}

	return t.published.parse(reply)
}

// ask is confirm, and returns the answer as it is.
func (t *Transport) ask(
	ctx context.Context, subject string, header nats.Header, data []byte, retry *transport.Retry,
) (*nats.Msg, error) {
	how := retry.OrDefault()

	var last error // that no stream answered

	for n := 0; ; n++ {
		reply, err := t.askOnce(ctx, subject, header, data)

		switch {
		case err == nil:
			return reply, nil
		case last != nil && ctx.Err() != nil && !errors.Is(err, transport.ErrNoStream):
			return nil, &retriedError{err, last}
		case !errors.Is(err, transport.ErrNoStream), how.Attempts >= 0 && n >= how.Attempts:
			return nil, err
		}

		last = err
		timer := time.NewTimer(how.Wait)

		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()

			return nil, &retriedError{ctx.Err(), err}
		}
	}
}

// retriedError is the end of retries by ctx: why they ended, and why there were
// any. It is of the type of the latter, but for what is unconfirmed.
type retriedError struct{ error, last error }

func (e *retriedError) Error() string   { return e.error.Error() + ": " + e.last.Error() }
func (e *retriedError) Unwrap() []error { return []error{e.error, e.last} }

// askOnce sends a message and returns what is answered.
func (t *Transport) askOnce(ctx context.Context, subject string, header nats.Header, data []byte) (*nats.Msg, error) {
	nc := t.js.Conn()

	if err := connected(ctx, nc); err != nil {
		return nil, err
	}

	// nats.go v1.55.0 looks at the size too, but then keeps an entry in the
	// connection's map of replies for ever.
	if err := checkSize(nc, header, data); err != nil {
		return nil, err
	}

	reply, err := request(ctx, nc, subject, header, data)

	switch {
	case err == nil:
		return reply, nil
	case errors.Is(err, nats.ErrNoResponders):
		return nil, mapError(natsjs.ErrNoStreamResponse)
	case errors.Is(err, ctx.Err()), errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrConnectionClosed):
		return nil, &unconfirmedError{mapError(err)}
	default:
		return nil, sendError(err)
	}
}

// sendError is the error of handing a message to the client. What nats.go has
// no name for comes from the network: the connection broke while it was
// written, and the server may have it.
func sendError(err error) error {
	if err = mapError(err); transport.ErrorType(err) == "_OTHER" {
		return &unconfirmedError{transport.Mark(transport.ErrDisconnected, err)}
	}

	return err
}

func request(ctx context.Context, nc *nats.Conn, subject string, header nats.Header, data []byte) (*nats.Msg, error) {
	if len(header) == 0 {
		return nc.RequestWithContext(ctx, subject, data) //nolint:wrapcheck // askOnce does
	}

	return nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Header: header, Data: data}) //nolint:wrapcheck // see above
}

// unconfirmedError is why a message that was sent is not confirmed.
type unconfirmedError struct{ error }

// Is matches [transport.ErrPublishUnknown].
func (e *unconfirmedError) Is(target error) bool { return target == transport.ErrPublishUnknown }
func (e *unconfirmedError) Unwrap() error        { return e.error }

// ErrorType is that of [transport.ErrPublishUnknown].
func (e *unconfirmedError) ErrorType() string {
	return transport.ErrorType(transport.ErrPublishUnknown)
}

// Error says that the outcome is unknown, and why.
func (e *unconfirmedError) Error() string {
	return transport.ErrPublishUnknown.Error() + ": " + e.error.Error()
}

// writable reports why nothing can be sent at the moment. What is published
// without a connection waits in a buffer of the client, where nobody can tell
// what becomes of it, nor take it out again.
func writable(nc *nats.Conn) error {
	switch nc.Status() {
	case nats.CONNECTED, nats.DRAINING_SUBS:
		return nil
	case nats.CLOSED:
		return mapError(nats.ErrConnectionClosed)
	case nats.DRAINING_PUBS:
		return mapError(nats.ErrConnectionDraining)
	default:
		return transport.ErrDisconnected
	}
}

// connected waits until something can be sent.
func connected(ctx context.Context, nc *nats.Conn) error {
	for {
		if err := writable(nc); !errors.Is(err, transport.ErrDisconnected) {
			return cmp.Or(err, ctx.Err()) //nolint:wrapcheck // Publish does
		}

		changed := nc.StatusChanged(nats.CONNECTED, nats.CLOSED)

		// It may have changed just before.
		if errors.Is(writable(nc), transport.ErrDisconnected) {
			select {
			case <-changed:
			case <-ctx.Done():
				nc.RemoveStatusListener(changed)

				return transport.Mark(ctx.Err(), transport.ErrDisconnected)
			}
		}

		nc.RemoveStatusListener(changed)
	}
}

// publishHeader returns the headers to send: those of the message, and its id
// for the server.
func publishHeader(msg transport.Message) (nats.Header, error) {
	header := nats.Header(msg.Header)

	if msg.ID != "" {
		if header == nil {
			header = make(nats.Header, 1)
		}

		id := header[transport.HeaderMessageID]
		if len(id) != 1 || id[0] != msg.ID {
			id = []string{msg.ID}
		}

		header[natsjs.MsgIDHeader] = id
	}

	return header, checkHeader(header)
}

// checkHeader reports headers that are too large for a stream.
func checkHeader(header nats.Header) error {
	if len(header) == 0 {
		return nil
	}

	if size := headerSize(header); size > maxHeader {
		return fmt.Errorf("%w: %d bytes of headers, a stream takes %d", transport.ErrTooLarge, size, maxHeader)
	}

	return nil
}

// checkSize reports a message that is too large for the server.
func checkSize(nc *nats.Conn, header nats.Header, data []byte) error {
	size := int64(len(data))
	if len(header) > 0 {
		size += int64(headerSize(header))
	}

	if limit := nc.MaxPayload(); size > limit {
		return transport.Mark(transport.ErrTooLarge,
			fmt.Errorf("%w: %d bytes with headers, the server takes %d", nats.ErrMaxPayload, size, limit))
	}

	return nil
}

// headerSize returns the size of headers on the wire.
func headerSize(h nats.Header) int {
	size := len("NATS/1.0\r\n") + len("\r\n")

	for key, values := range h {
		for _, value := range values {
			size += len(key) + len(": ") + len(value) + len("\r\n")
		}
	}

	return size
}

// publishOnTerms publishes a message that asks for more than being stored.
func (t *Transport) publishOnTerms(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	terms := msg.Terms

	if !terms.At.IsZero() {
		return t.schedule(ctx, msg)
	}

	if terms.TTL > 0 {
		if err := requires(t.js.Conn(), 11, "message TTLs (AllowMsgTTL)"); err != nil {
			return transport.Receipt{}, err
		}
	}

	header, err := publishHeader(msg)
	if err != nil {
		return transport.Receipt{}, err
	}

	if header == nil {
		header = make(nats.Header, 2)
	}

	var expected uint64

	if n := terms.LastSequence; n != nil {
		expected = *n
		header.Set(natsjs.ExpectedLastSeqHeader, strconv.FormatUint(expected, 10))
	}

	if n := terms.LastSubjectSequence; n != nil {
		expected = *n
		header.Set(natsjs.ExpectedLastSubjSeqHeader, strconv.FormatUint(expected, 10))
	}

	if terms.TTL > 0 {
		header.Set(natsjs.MsgTTLHeader, strconv.FormatInt(ttlSeconds(terms.TTL), 10))
	}

	if err := checkHeader(header); err != nil {
		return transport.Receipt{}, err
	}

	r, err := t.confirm(ctx, msg.Subject, header, msg.Data, msg.Retry)

	var conflict *transport.ConflictError
	if !errors.As(err, &conflict) {
		return r, err
	}

	// Of two expectations the server does not tell which one failed. A sequence
	// above that of the stream shows that it was that one, and a subject that is
	// as expected was not it.
	if n := terms.LastSequence; n != nil && conflict.Known && (conflict.Last > *n || conflict.Last == expected) {
		expected = *n
	}

	conflict.Expected = expected

	if msg.ID == "" {
		return r, err
	}

	// It may be this very message, of an earlier attempt, that it conflicts
	// with: a server without a cluster looks at the expectation before it
	// looks at the id (nats-server v2.15.2).
	switch old, stored, perr := t.stored(ctx, msg.Subject, msg.ID); {
	case perr != nil:
		return r, transport.Mark(transport.ErrPublishUnknown, transport.Mark(err, perr))
	case stored:
		return old, nil
	default:
		return r, err
	}
}

// ttlSeconds returns a TTL in seconds, rounded up: the server rounds down, and
// adds to the time in nanoseconds, which ends in the year 2262.
func ttlSeconds(d time.Duration) int64 {
	seconds := int64(d / time.Second)
	if d%time.Second > 0 {
		seconds++
	}

	return min(seconds, int64(100*365*24*time.Hour/time.Second))
}

// stored asks the stream of a subject whether it has stored a message id within
// its de-duplication window, and under which sequence.
//
// No API tells that. So it publishes a message under the id that cannot be
// stored, as it demands a roll-up that does not exist: the server looks at the
// id before it looks at that, with a cluster and without one.
func (t *Transport) stored(ctx context.Context, subject, id string) (transport.Receipt, bool, error) {
	header := nats.Header{natsjs.MsgIDHeader: {id}, natsjs.MsgRollup: {"none"}}

	r, err := t.confirm(ctx, subject, header, nil, nil)

	var api *natsjs.APIError

	switch {
	case err == nil && r.Duplicate:
		return r, true, nil
	case err == nil:
		return transport.Receipt{}, false, errors.New("a stream stored a roll-up that does not exist")
	case errors.As(err, &api) && api.ErrorCode == codeRollup:
		return transport.Receipt{}, false, nil
	default:
		return transport.Receipt{}, false, err
	}
}
