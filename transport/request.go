package transport

import (
	"context"
	"iter"
	"strconv"
	"strings"
	"time"
)

// Requester sends requests. It is optional: a transport whose requests are
// answered while both sides are there implements it together with
// [RequestReplier] and says so with [RequestReply]; one that stores requests
// implements [DurableRequester].
type Requester interface {
	Capable

	// Request sends msg and returns the first reply. The message's Reply is
	// empty: the transport makes one up, and tells the responder the deadline
	// of ctx, where there is one. The reply need not be settled.
	//
	// Concurrency: any number of calls at once. Blocking: no longer than ctx;
	// when it returns, nothing of the request is left in the client. Retries:
	// none. Buffers and validation are those of [Publisher.Publish]. Errors
	// are [*Error] values around [ErrNoResponders], [ErrTooLarge],
	// [ErrClosed], [ErrDisconnected], [ErrBufferFull] or the error of ctx. A
	// request that could not be handed to the broker leaves nothing behind
	// either.
	Request(ctx context.Context, msg Message) (Delivery, error)
}

// ManyRequester is a [Requester] that can gather the replies of many.
type ManyRequester interface {
	Requester

	// RequestMany sends msg when the iteration starts, and yields replies
	// until ctx ends; then, or when it cannot go on, it yields an error as
	// the last thing. Breaking out ends it, too. Errors are those of
	// [Requester.Request]. When the iteration is over nothing of it is left
	// in the client or at the broker.
	RequestMany(ctx context.Context, msg Message) iter.Seq2[Delivery, error]
}

// RequestReplier is what a [Transport] with [RequestReply] implements.
type RequestReplier interface {
	ManyRequester

	// Responder returns the other side. Its Capabilities are those of the
	// requests it receives, which are not settled where they are fleeting. It
	// lives as long as the transport and is not closed.
	Responder() Responder
}

// Responder receives requests and answers them. A subscription of it delivers
// requests; members of one group share them.
type Responder interface {
	Subscriber

	// Reply answers a request that a subscription of this responder has
	// delivered. It returns nil when nobody waits for an answer.
	//
	// The reply's Subject and Reply are the transport's to fill in. Where
	// requests have [Acks], nil means that the requester, or a broker on its
	// behalf, has confirmed the reply; elsewhere it is in the hands of the
	// client. Concurrency: any number of calls at once, and after the
	// subscription was closed, too. Blocking: no longer than ctx. Buffers are
	// those of [Publisher.Publish]. A reply that is too large is
	// [ErrTooLarge], and nothing was sent. Where requests have [Acks] other
	// errors tell whether to try again: never after [ErrInvalidSubject], since
	// there is no place where the reply could go; as long as it takes after
	// [ErrUnavailable] and [ErrDisconnected], which pass; and for a while
	// after all others, when the requester may come back, or is gone.
	Reply(ctx context.Context, request Delivery, reply Message) error

	// Deadline returns until when the requester waits, by the clock of this
	// machine, as far as that is known. The request arrived at the given time,
	// which is that of its [Delivery], where that has one.
	Deadline(request Delivery, arrived time.Time) (deadline time.Time, ok bool)
}

// DurableRequester is a [Requester] whose requests wait for a responder, and
// whose replies can wait for their requester.
type DurableRequester interface {
	Requester

	// Submit stores msg, and returns what [DurableRequester.Await] needs to
	// find its reply. The same message ID on the same subject again is one
	// request and returns the same ticket, as long as the broker remembers the
	// ID or has the reply.
	Submit(ctx context.Context, msg Message) (ticket string, err error)

	// Await returns the reply to the request of a ticket, and waits for it as
	// long as ctx does. It may be called again, by anybody. The ticket is
	// hostile input. Errors are [*Error] values around [ErrTicketUnknown],
	// [ErrTicketExpired], [ErrClosed], or the error of ctx.
	Await(ctx context.Context, ticket string) (Delivery, error)

	// Close ends calls that wait, with [ErrClosed], and releases what the
	// requester made. Calling it twice is a no-op.
	Close()
}

// HeaderDeadline tells how long the sender of a request waits: the time at which
// it stops, in Unix milliseconds by its clock, and after a space how many
// milliseconds that was ahead when the request was sent. The second part may be
// missing. Transports that have a cheaper way of their own need not write it,
// but understand it.
const HeaderDeadline = "Goflux-Deadline"

// WriteDeadline puts a deadline into the headers of a request, which it makes
// when h is nil, and returns them.
func WriteDeadline(h Header, deadline, now time.Time) Header {
	if h == nil {
		h = make(Header, 1)
	}

	b := make([]byte, 0, 32)
	b = strconv.AppendInt(b, deadline.UnixMilli(), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, Milliseconds(deadline.Sub(now)), 10)
	h.Set(HeaderDeadline, string(b))

	return h
}

// ReadDeadline returns the deadline in the headers of a request that was stored,
// or that arrived, at since; the zero time is unknown. It is the later one of
// what the two parts say: the clocks of two machines differ, and a duration does
// not tell how long a request was under way. To handle a request in vain costs
// less than to drop one that is waited for. What does not make sense is ignored.
func ReadDeadline(h Header, since time.Time) (deadline time.Time, ok bool) {
	if len(h) == 0 {
		return time.Time{}, false
	}

	at, left, both := strings.Cut(h.Get(HeaderDeadline), " ")

	ms, err := strconv.ParseInt(at, 10, 64)
	if err != nil || ms <= 0 {
		return time.Time{}, false
	}

	deadline = time.UnixMilli(ms)

	if both && !since.IsZero() {
		if d, ok := ParseMilliseconds(left); ok && since.Add(d).After(deadline) {
			deadline = since.Add(d)
		}
	}

	return deadline, true
}

// Milliseconds returns d in milliseconds, rounded up and at least 1: a request
// with less left is still waited for.
func Milliseconds(d time.Duration) int64 {
	return max(1, int64((d-1)/time.Millisecond)+1)
}

// ParseMilliseconds is the inverse of [Milliseconds], for input that nobody has
// checked.
func ParseMilliseconds(s string) (time.Duration, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > int64(1<<63-1)/int64(time.Millisecond) {
		return 0, false
	}

	return time.Duration(n) * time.Millisecond, true
}

// Errors of stored requests.
var (
	// ErrDuplicateRequest: a request with this message id was stored on the
	// subject before, by somebody who gets its reply. Submit and Await share
	// one among many.
	ErrDuplicateRequest error = &kind{
		"duplicate_request", "a request with this message id was made before, and its reply goes to whoever made it: " +
			"use another id, or share the reply with Submit and Await",
	}

	// ErrTicketUnknown: the ticket is not one of this kind of requester, is
	// damaged, or nothing was ever submitted under it.
	ErrTicketUnknown error = &kind{
		"ticket_unknown", "unknown ticket: hand over what Submit returned, to a requester with the same reply stream and ticket key",
	}

	// ErrTicketExpired: the request of the ticket is done with, or was
	// deleted, and its reply is not kept any more.
	ErrTicketExpired error = &kind{
		"ticket_expired", "the ticket has expired: its request is done with, or was deleted, and no reply is kept: " +
			"submit again, and await sooner or keep replies longer (MaxAge of the reply stream)",
	}
)

// Announcer is a [Responder] that can make itself discoverable. It is optional.
type Announcer interface {
	// Announce makes the service known until withdraw is called, which
	// returns when nothing of it is left in the client. ctx bounds the call,
	// not the announcement.
	Announce(ctx context.Context, s Service) (withdraw func(), err error)
}

// Service describes a responder to those who look for services.
type Service struct {
	// Name, Version (semantic) and Description are what the user has set;
	// the transport has a default for each that is empty.
	Name, Version, Description string

	// Subject and Group are those of the subscription. An empty group means
	// that every responder answers.
	Subject, Group string

	// Stats returns the counters. It may be called concurrently.
	Stats func() ServiceStats
}

// ServiceStats is what a responder has done so far.
type ServiceStats struct {
	// Requests counts all that were handled, Errors those of them that were
	// answered with an error.
	Requests, Errors int

	// LastError is the last error as callers saw it, as in "404: not found".
	LastError string

	// ProcessingTime is the time spent in handlers, all together.
	ProcessingTime time.Duration
}
