package jetstream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
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
	replies *replyStream           // nil when there is none
	key     []byte                 // of [WithTicketKey]
	again   time.Duration          // see [lookAgain]
	checked atomic.Pointer[string] // the stream that was last found fit for Submit

	closing context.Context //nolint:containedctx // ends when nothing will arrive any more
	end     context.CancelFunc

	mu     sync.Mutex
	prefix string // of reply subjects; empty before the first request
	inbox  *nats.Subscription
	calls  map[string]call
}

// call is a request that waits for its reply.
type call struct {
	reply   chan transport.Delivery
	arrived func() // is called after reply has it
}

var _ transport.DurableRequester = (*requests)(nil)

func newRequests(js natsjs.JetStream) (*requests, error) {
	t, err := New(js)
	if err != nil {
		return nil, err
	}

	r := &requests{t: t, again: lookAgain, calls: map[string]call{}}
	r.closing, r.end = context.WithCancel(context.Background())

	return r, nil
}

// Capabilities implements [transport.Capable].
func (r *requests) Capabilities() transport.Capabilities { return r.t.Capabilities() }

// scope returns a context that ends with ctx, and when r is closed.
func (r *requests) scope(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(r.closing, cancel)

	return ctx, func() {
		stop()
		cancel()
	}
}

// failure gives an error its circumstances.
func (r *requests) failure(op, subject string, err error) error {
	if errors.Is(err, context.Canceled) && r.closing.Err() != nil {
		err = transport.ErrClosed
	}

	return &transport.Error{Op: op, Subject: subject, Err: mapError(err)}
}

// Request implements [transport.Requester]. It works though no responder is
// there yet: the request waits in its stream. It fails with
// [transport.ErrNoStream] when no stream has the subject, with
// [transport.ErrUnsupported] when its stream confirms nothing, and with
// [transport.ErrDuplicateRequest] when a request with the message id was stored
// on the subject before: its reply goes to whoever sent that.
func (r *requests) Request(ctx context.Context, msg transport.Message) (transport.Delivery, error) {
	ctx, release := r.scope(ctx)
	defer release()

	d, err := r.request(ctx, msg)
	if err != nil {
		return transport.Delivery{}, r.failure(opRequest, msg.Subject, err)
	}

	return d, nil
}

func (r *requests) request(ctx context.Context, msg transport.Message) (transport.Delivery, error) {
	id := rand.Text()

	// A reply confirms that its request was stored.
	storing, arrived := context.WithCancel(ctx)
	defer arrived()

	to, reply, err := r.enter(id, arrived)
	if err != nil {
		return transport.Delivery{}, err
	}
	defer r.leave(id)

	if at, ok := ctx.Deadline(); ok {
		msg.Header = transport.WriteDeadline(msg.Header, at, time.Now())
	}

	chosen := msg.ID != ""
	if chosen {
		msg.ID = r.identify(opRequest, msg.Subject, msg.ID)
	} else {
		msg.ID = id
	}

	receipt, err := r.store(storing, msg, map[string]string{headerReplyTo: to, headerCorrelation: id})
	if err == nil && chosen && receipt.Duplicate && !r.mine(ctx, receipt, id, reply) {
		return transport.Delivery{}, transport.ErrDuplicateRequest
	}

	if err != nil {
		select {
		case d := <-reply:
			return d, nil
		default:
			return transport.Delivery{}, err
		}
	}

	select {
	case d := <-reply:
		return d, nil
	case <-ctx.Done():
		return transport.Delivery{}, ctx.Err()
	}
}

// mine reports whether what was stored under an id of the user's is this very
// request, of an attempt that was not confirmed, and not somebody else's.
func (r *requests) mine(ctx context.Context, receipt transport.Receipt, id string, reply <-chan transport.Delivery) bool {
	m, err := leaderGet(ctx, r.t.js, receipt.Stream, getRequest{Sequence: receipt.Sequence})

	switch {
	case err == nil:
		return m.Header.Get(headerCorrelation) == id
	case errors.Is(err, natsjs.ErrMsgNotFound):
		// It is done with, and nobody is done with a request before its reply
		// was confirmed.
		return len(reply) > 0
	default:
		return true // as far as anybody knows
	}
}

// identify returns the id under which a stream stores a request once. A server
// remembers ids for all subjects of a stream together, so the id is made of all
// that makes two requests different. A subject has no NUL.
func (r *requests) identify(kind, subject, messageID string) string {
	return hex.EncodeToString(keyed(r.key, kind, subject+"\x00"+messageID)[:correlationBytes])
}

// correlationBytes is how many bytes of a hash make the id of a request.
const correlationBytes = 16

// enter makes room for a reply, and returns its subject. arrived is called when
// it is there.
func (r *requests) enter(id string, arrived func()) (subject string, reply <-chan transport.Delivery, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()

	if r.closing.Err() != nil {
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

	c := call{reply: make(chan transport.Delivery, 1), arrived: arrived}
	r.calls[id] = c

	return r.prefix + id, c.reply, nil
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
	c, waits := r.calls[id]
	delete(r.calls, id)
	r.mu.Unlock()

	if waits {
		c.reply <- transport.Delivery{Subject: m.Subject, Header: transport.Header(m.Header), Data: m.Data, Settler: unsettled{}}
		c.arrived()
	}

	// When it fails the responder sends the reply once more.
	_ = m.Respond(nil)
}

// Close implements [transport.DurableRequester].
func (r *requests) Close() {
	r.mu.Lock()
	r.end()
	inbox := r.inbox
	r.mu.Unlock()

	if inbox != nil {
		_ = inbox.Unsubscribe() // It fails only where there is none any more.
	}

	_ = r.t.Close() // It has no subscriptions to end.
}

// unsettled is the settler of what is not there to be settled.
type unsettled struct{ metadata transport.Metadata }

var errUnsettled = &transport.Error{Op: opSettle, Err: transport.Mark(transport.ErrUnsupported, errors.New("a reply is not settled"))}

// Settle implements [transport.Settler].
func (unsettled) Settle(context.Context, any, transport.Verdict) error { return errUnsettled }

// Metadata implements [transport.Settler].
func (u unsettled) Metadata(any) transport.Metadata { return u.metadata }
