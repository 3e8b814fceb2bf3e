package goflux

import (
	"context"
	"sync"
	"time"

	"github.com/foomo/goflux/transport"
)

// Call is a request that is being handled, for what its handler needs besides
// the decoded value. It belongs to the handler's goroutine, and must not be used
// after the handler has returned.
type Call struct {
	// Subject is the subject of the request; a responder that serves one with
	// wildcards tells by it what was asked for.
	Subject string

	// Header holds the headers of the request. Nil when there are none.
	Header Header

	reply   Header
	token   any
	settler transport.Settler
}

// CallFromContext returns the request that is being handled under ctx. Outside
// of a [RequestHandler] it returns an empty one, never nil.
func CallFromContext(ctx context.Context) *Call {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		return &x.call
	}

	return &Call{}
}

// ID returns the id that the caller gave the request, or "".
func (c *Call) ID() string { return headerID(c.Header) }

// Attempt returns how often the request was delivered, this time included. It
// is 0 where the transport does not count.
func (c *Call) Attempt() int {
	if c.settler == nil {
		return 0
	}

	return c.settler.Metadata(c.token).Attempt
}

// ReplyHeader returns the headers that go out with the reply, for the handler to
// add to; they go with an error, too. What [WithHeader] says of names and
// values holds for them: a reply with headers that cannot be sent becomes an
// error of code 500.
func (c *Call) ReplyHeader() Header {
	if c.reply == nil {
		c.reply = Header{}
	}

	return c.reply
}

type exchangeKey struct{}

// exchange is the context of a request's handler. It is one value instead of one
// for each thing it holds, since it is made for every request; and a timer for
// the deadline is made only when somebody asks for Done.
type exchange struct {
	context.Context //nolint:containedctx // it is one

	call   Call
	answer answer // for the handler's caller to fill in
	id     string
	due    time.Time // zero when there is no deadline

	mu      sync.Mutex
	bounded context.Context //nolint:containedctx // with the deadline; nil until it is asked for
	cancel  context.CancelFunc
	ended   bool
}

func newExchange(ctx context.Context, d *transport.Delivery, due time.Time) *exchange {
	return &exchange{
		Context: ctx,
		call:    Call{Subject: d.Subject, Header: d.Header, token: d.Token, settler: d.Settler},
		id:      headerID(d.Header),
		due:     due,
	}
}

// Deadline implements [context.Context], as do the methods below.
func (x *exchange) Deadline() (deadline time.Time, ok bool) {
	if outer, some := x.Context.Deadline(); some && (x.due.IsZero() || outer.Before(x.due)) {
		return outer, true
	}

	return x.due, !x.due.IsZero()
}

// overdue reports whether the deadline has passed.
func (x *exchange) overdue() bool { return !x.due.IsZero() && !time.Now().Before(x.due) }

// Done is closed at the deadline.
func (x *exchange) Done() <-chan struct{} { return x.limited().Done() }

// Err does not need the timer before the deadline.
func (x *exchange) Err() error {
	if !x.due.IsZero() && !x.overdue() {
		x.mu.Lock()
		idle := x.bounded == nil && !x.ended
		x.mu.Unlock()

		if idle {
			return x.Context.Err()
		}
	}

	return x.limited().Err()
}

// Value answers for the call and for the id of the request.
func (x *exchange) Value(key any) any {
	switch key.(type) {
	case exchangeKey:
		return x
	case messageIDKey:
		if x.id != "" {
			return messageID{id: x.id, received: true}
		}
	}

	// Contexts that derive from this one ask Done first and then for what
	// closes it, under a key of package context.
	x.mu.Lock()
	inner := x.bounded
	x.mu.Unlock()

	if inner == nil {
		inner = x.Context
	}

	return inner.Value(key)
}

// limited returns the context that ends at the deadline.
func (x *exchange) limited() context.Context {
	if x.due.IsZero() {
		return x.Context
	}

	x.mu.Lock()
	defer x.mu.Unlock()

	if x.bounded == nil {
		x.bounded, x.cancel = context.WithDeadline(x.Context, x.due)

		if x.ended {
			x.cancel()
		}
	}

	return x.bounded
}

// end releases the timer, if there is one, when the handler has returned.
func (x *exchange) end() {
	if x.due.IsZero() {
		return
	}

	x.mu.Lock()
	defer x.mu.Unlock()

	x.ended = true

	if x.cancel != nil {
		x.cancel()
	}
}
