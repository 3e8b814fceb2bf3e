package jetstream

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// The operations of errors.
const (
	opRequest = "request"
	opSubmit  = "submit"
	opAwait   = "await"
	opReply   = "reply"
)

// The headers of a stored request, beside its deadline. A stream keeps no reply
// subject, hence headers.
const (
	// headerReplyTo is the subject on which the reply is expected.
	headerReplyTo = "Goflux-Reply-To"

	// headerReplyStream names the stream that is to store the reply. Without
	// it the reply goes to a requester that waits.
	headerReplyStream = "Goflux-Reply-Stream"

	// headerCorrelation is the id of the request; its reply has it, too.
	headerCorrelation = "Goflux-Correlation-Id"
)

// requests makes stored requests, and gets their replies.
//
// Replies to Request come to an inbox, as those of core NATS do, but each as a
// request itself that is confirmed: so the responder knows whether it arrived.
// Replies to Submit are stored, each on a subject of its own.
type requests struct {
	t       *Transport
	replies *replyStream // nil when there is none
	key     []byte       // of [WithTicketKey]

	closing chan struct{} // closed when nothing will arrive any more

	mu     sync.Mutex
	prefix string // of reply subjects; empty before the first request
	inbox  *nats.Subscription
	calls  map[string]chan transport.Delivery
	closed bool
}

var _ transport.DurableRequester = (*requests)(nil)

func newRequests(js natsjs.JetStream) (*requests, error) {
	t, err := New(js)
	if err != nil {
		return nil, err
	}

	return &requests{t: t, closing: make(chan struct{}), calls: map[string]chan transport.Delivery{}}, nil
}

// Capabilities implements [transport.Capable].
func (r *requests) Capabilities() transport.Capabilities { return r.t.Capabilities() }

// Request implements [transport.Requester]. It works though no responder is
// there yet: the request waits in its stream. It fails with
// [transport.ErrNoStream] when no stream has the subject, and with
// [transport.ErrDuplicateRequest] when a request with the message id was stored before:
// its reply goes to whoever sent that.
func (r *requests) Request(ctx context.Context, msg transport.Message) (transport.Delivery, error) {
	d, err := r.request(ctx, msg)
	if err != nil {
		return transport.Delivery{}, &transport.Error{Op: opRequest, Subject: msg.Subject, Err: mapError(err)}
	}

	return d, nil
}

func (r *requests) request(ctx context.Context, msg transport.Message) (transport.Delivery, error) {
	id := rand.Text()

	to, reply, err := r.enter(id)
	if err != nil {
		return transport.Delivery{}, err
	}
	defer r.leave(id)

	if at, ok := ctx.Deadline(); ok {
		msg.Header = transport.WriteDeadline(msg.Header, at, time.Now())
	}

	chosen := msg.ID != ""
	if !chosen {
		msg.ID = id
	}

	receipt, err := r.store(ctx, msg, map[string]string{headerReplyTo: to, headerCorrelation: id})

	switch {
	case err != nil:
		return transport.Delivery{}, err
	case chosen && receipt.Duplicate:
		return transport.Delivery{}, transport.ErrDuplicateRequest
	}

	select {
	case d := <-reply:
		return d, nil
	case <-ctx.Done():
		return transport.Delivery{}, ctx.Err()
	case <-r.closing:
		return transport.Delivery{}, transport.ErrClosed
	}
}

// enter makes room for a reply, and returns its subject.
func (r *requests) enter(id string) (subject string, reply <-chan transport.Delivery, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()

	if r.closed {
		return "", nil, transport.ErrClosed
	}

	if r.prefix == "" {
		nc := r.t.js.Conn()
		prefix := nc.NewInbox() + "."

		inbox, err := nc.Subscribe(prefix+"*", r.receive)
		if err != nil {
			return "", nil, err //nolint:wrapcheck // Request does
		}

		inbox.SetClosedHandler(func(string) { r.end() })
		r.prefix, r.inbox = prefix, inbox
	}

	c := make(chan transport.Delivery, 1)
	r.calls[id] = c

	return r.prefix + id, c, nil
}

func (r *requests) leave(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()

	delete(r.calls, id)
}

// receive is the callback of the inbox. The first reply counts; every one is
// confirmed, so that no responder tries again.
func (r *requests) receive(m *nats.Msg) {
	id := strings.TrimPrefix(m.Subject, r.prefix)

	r.mu.Lock()
	c := r.calls[id]
	delete(r.calls, id)
	r.mu.Unlock()

	if c != nil {
		c <- transport.Delivery{Subject: m.Subject, Header: transport.Header(m.Header), Data: m.Data, Settler: unsettled{}}
	}

	// When it fails the responder sends the reply once more.
	_ = m.Respond(nil)
}

// publishAttempt is how long a stream may take to confirm a request before it is
// sent again, under the same id.
const publishAttempt = 2 * time.Second

// store publishes a request, again and again where it is unknown whether it was
// stored: its id makes sure that it is stored once. A receipt tells of a
// duplicate only if it was none of ours.
func (r *requests) store(ctx context.Context, msg transport.Message, headers map[string]string) (transport.Receipt, error) {
	if msg.Header == nil {
		msg.Header = make(transport.Header, len(headers)+1)
	}

	for key, value := range headers {
		msg.Header.Set(key, value)
	}

	for n := 0; ; n++ {
		attempt, cancel := context.WithTimeout(ctx, publishAttempt)
		ack, err := r.t.publish(attempt, msg)
		err = mapError(err)

		cancel()

		switch {
		case err == nil:
			return transport.Receipt{Stream: ack.Stream, Sequence: ack.Sequence, Duplicate: ack.Duplicate && n == 0}, nil
		case ctx.Err() != nil:
			return transport.Receipt{}, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded), inProcess(err):
			// Sent again at once: it has waited already.
		case errors.Is(err, transport.ErrDisconnected):
			if err := wait(ctx, r.closing, reconnectPause); err != nil {
				return transport.Receipt{}, err
			}
		default:
			return transport.Receipt{}, err
		}
	}
}

const reconnectPause = 100 * time.Millisecond

// errCodeInProcess is what a server answers to a message whose id it is just
// storing. nats.go v1.55.0 has no name for it.
const errCodeInProcess natsjs.ErrorCode = 10158

func inProcess(err error) bool {
	var api *natsjs.APIError

	return errors.As(err, &api) && api.ErrorCode == errCodeInProcess
}

func wait(ctx context.Context, closing <-chan struct{}, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
		return nil
	case <-closing:
		return transport.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Submit implements [transport.DurableRequester].
func (r *requests) Submit(ctx context.Context, msg transport.Message) (string, error) {
	t, err := r.submit(ctx, msg)
	if err != nil {
		return "", &transport.Error{Op: opSubmit, Subject: msg.Subject, Err: mapError(err)}
	}

	return t.String(), nil
}

func (r *requests) submit(ctx context.Context, msg transport.Message) (ticket, error) {
	if err := r.ready(ctx); err != nil {
		return ticket{}, err
	}

	if msg.ID == "" {
		msg.ID = rand.Text()
	}

	id := r.correlation(msg.Subject, msg.ID)

	receipt, err := r.store(ctx, msg, map[string]string{
		headerReplyTo: r.replies.subject(id), headerReplyStream: r.replies.cfg.Name, headerCorrelation: id,
	})
	if err != nil {
		return ticket{}, err
	}

	return ticket{stream: receipt.Stream, sequence: receipt.Sequence, id: id}, nil
}

// correlation returns the id of the request that a message id stands for.
func (r *requests) correlation(subject, messageID string) string {
	h := sha256.New()
	if r.key != nil {
		h = hmac.New(sha256.New, r.key)
	}

	// A subject has no NUL. Hashing does not fail.
	_, _ = h.Write([]byte(subject + "\x00" + messageID))

	return hex.EncodeToString(h.Sum(nil)[:correlationBytes])
}

// correlationBytes is how many bytes of a hash make the id of a request.
const correlationBytes = 16

// ready checks what Submit and Await need.
func (r *requests) ready(ctx context.Context) error {
	select {
	case <-r.closing:
		return transport.ErrClosed
	default:
	}

	if r.replies == nil {
		return invalid("there is nowhere to store replies: make the requester with WithReplyStream")
	}

	return r.replies.ensure(ctx, r.t.js)
}

// Await implements [transport.DurableRequester].
func (r *requests) Await(ctx context.Context, s string) (transport.Delivery, error) {
	d, err := r.await(ctx, s)
	if err != nil {
		return transport.Delivery{}, &transport.Error{Op: opAwait, Err: mapError(err)}
	}

	return d, nil
}

func (r *requests) await(ctx context.Context, s string) (transport.Delivery, error) {
	t, err := parseTicket(s)
	if err != nil {
		return transport.Delivery{}, err
	}

	for {
		if err := ctx.Err(); err != nil {
			return transport.Delivery{}, err
		}

		d, err := r.find(ctx, t)
		if err == nil || !passing(err) {
			return d, err
		}

		// Whoever awaits has time, and a server comes back.
		if err := wait(ctx, r.closing, reconnectPause); err != nil {
			return transport.Delivery{}, err
		}
	}
}

// passing reports whether an error is that of a server, or a leader, that is
// away for the moment.
func passing(err error) bool {
	err = mapError(err)

	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, transport.ErrDisconnected) ||
		errors.Is(err, transport.ErrNoResponders) || errors.Is(err, transport.ErrConsumerNotFound)
}

// find returns the reply to the request of a ticket, and waits for it if there
// is to be one.
func (r *requests) find(ctx context.Context, t ticket) (transport.Delivery, error) {
	if err := r.ready(ctx); err != nil {
		return transport.Delivery{}, err
	}

	if d, err := r.replies.get(ctx, r.t.js, t.id); !errors.Is(err, natsjs.ErrMsgNotFound) {
		return d, err
	}

	switch err := r.pending(ctx, t); {
	case err == nil:
		return r.replies.next(ctx, r, t.id)
	case !errors.Is(err, transport.ErrTicketExpired):
		return transport.Delivery{}, err
	}

	// A request is done with only when its reply is stored. So it has been
	// there since, or it never will be.
	d, err := r.replies.get(ctx, r.t.js, t.id)
	if errors.Is(err, natsjs.ErrMsgNotFound) {
		return transport.Delivery{}, fmt.Errorf("%w (its request is not in the stream %q any more)", transport.ErrTicketExpired, t.stream)
	}

	return d, err
}

// pending returns nil when the request of a ticket is still in its stream,
// [transport.ErrTicketExpired] when it has been, and [transport.ErrTicketUnknown]
// when it never was.
func (r *requests) pending(ctx context.Context, t ticket) error {
	m, err := leaderGet(ctx, r.t.js, t.stream, getRequest{Sequence: t.sequence})

	switch {
	case err == nil && m.Header.Get(headerCorrelation) == t.id:
		return nil
	case err == nil, gone(mapError(err)):
		return fmt.Errorf("%w: nothing was submitted under it", transport.ErrTicketUnknown)
	case !errors.Is(err, natsjs.ErrMsgNotFound):
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()

	stream, err := r.t.js.Stream(ctx, t.stream)
	if err != nil {
		return err //nolint:wrapcheck // Await does
	}

	if t.sequence > stream.CachedInfo().State.LastSeq {
		return fmt.Errorf("%w: nothing was submitted under it", transport.ErrTicketUnknown)
	}

	return transport.ErrTicketExpired
}

// Close implements [transport.DurableRequester].
func (r *requests) Close() {
	r.mu.Lock()
	r.closed = true
	inbox := r.inbox
	r.mu.Unlock()

	if inbox != nil {
		_ = inbox.Unsubscribe() // It fails only where there is none any more.
	}

	r.end()

	// It has made nothing but consumers that vanish by themselves.
	_ = r.t.Close()
}

// end ends what waits.
func (r *requests) end() {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.closed = true

	select {
	case <-r.closing:
	default:
		close(r.closing)
	}
}

// unsettled is the settler of replies.
type unsettled struct{}

var errUnsettled = &transport.Error{Op: opSettle, Err: transport.Mark(transport.ErrUnsupported, errors.New("a reply is not settled"))}

// Settle implements [transport.Settler].
func (unsettled) Settle(context.Context, any, transport.Verdict) error { return errUnsettled }

// Metadata implements [transport.Settler].
func (unsettled) Metadata(any) transport.Metadata { return transport.Metadata{} }
