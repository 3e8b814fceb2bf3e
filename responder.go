package goflux

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/foomo/goflux/transport"
)

// defaultGroup is the queue group of responders, as NATS services have it.
const defaultGroup = "q"

// defaultResponders is how many handlers of a responder run at once.
const defaultResponders = 64

// BoundResponder is a [Responder] bound to a transport. It is safe for
// concurrent use, and serves any number of Serve calls at once.
type BoundResponder[Req, Resp any] struct {
	reqCodec  Codec[Req]
	respCodec Codec[Resp]
	replier
}

var _ Responder[struct{}, struct{}] = (*BoundResponder[struct{}, struct{}])(nil)

// NewResponder returns a responder over any transport with request-reply. It
// fails with [ErrUnsupported] for a transport without and for an option that
// the transport cannot honour, and with [ErrInvalidOption] for a codec that
// lacks the direction it is used in, a nil transport or a bad option.
//
// By default it is a member of the queue group "q", so that the replicas of a
// service share its requests, handles 64 requests at once, and can be found by
// those who look for NATS services.
func NewResponder[Req, Resp any](
	t transport.Transport, reqCodec Codec[Req], respCodec Codec[Resp], opts ...ResponderOption,
) (*BoundResponder[Req, Resp], error) {
	rt, err := requestReplier(t)
	if err != nil {
		return nil, construction("responder", err)
	}

	r := newResponder(rt.Responder(), reqCodec, respCodec, opts)
	if r.err != nil {
		return nil, r.err
	}

	return r, nil
}

// BindResponder is [NewResponder] for the constructors of transports that cannot
// return an error: what is wrong is returned by every Serve. err, if not nil, is
// why there is no transport. Where the transport has durable groups there is no
// default group.
func BindResponder[Req, Resp any](
	t transport.Responder, err error, reqCodec Codec[Req], respCodec Codec[Resp], opts ...Option,
) *BoundResponder[Req, Resp] {
	fitting, mismatch := optionsOf[ResponderOption]("responder", opts)
	if err = cmp.Or(err, mismatch); err != nil {
		return &BoundResponder[Req, Resp]{replier: replier{receiver: receiver{err: construction("responder", err)}}}
	}

	return newResponder(t, reqCodec, respCodec, fitting)
}

func newResponder[Req, Resp any](
	t transport.Responder, reqCodec Codec[Req], respCodec Codec[Resp], opts []ResponderOption,
) *BoundResponder[Req, Resp] {
	r := &BoundResponder[Req, Resp]{
		reqCodec: reqCodec, respCodec: respCodec,
		replier: replier{responder: t, receiver: receiver{transport: t}},
	}
	r.closing, r.close = context.WithCancel(context.Background())

	switch {
	case t == nil:
		r.err = fmt.Errorf("%w: the transport is nil", ErrInvalidOption)
	case reqCodec.Decode == nil:
		r.err = fmt.Errorf("%w: the codec of the requests cannot decode", ErrInvalidOption)
	case respCodec.Encode == nil:
		r.err = fmt.Errorf("%w: the codec of the replies cannot encode", ErrInvalidOption)
	default:
		r.err = r.configure(opts)
	}

	if r.err != nil {
		r.err = construction("responder", r.err)
	}

	return r
}

// Serve answers the requests on subject, which may have wildcards
// ([CallFromContext] tells the subject of a request), until ctx ends. It returns
// when the subscription is gone from the broker and every request it had taken
// was answered.
//
// What the handler returns is the reply. An error made with [NewError] is told
// to the caller; any other, and a panic, is logged here and crosses as code 500
// with a generic text. A request that does not decode is answered with code 400.
// The handler's ctx ends at the deadline of the caller; a request whose deadline
// has passed is not started, see [BoundResponder.Late]. A request that nobody
// wants an answer to is handled as well.
//
// Requests that are stored are settled as the messages of a subscription are
// ([BoundSubscriber.Subscribe]): acked when the reply was confirmed, and tried
// again after an error that is not for the caller. The caller is told of an
// error when no further attempt will be made.
//
// When the end begins, the responder is no longer discoverable and takes no new
// requests. Live requests that it had taken and could not start until the drain
// timeout was over are answered with code 503; stored ones are handed back.
//
// Serve returns nil when ctx ended or Close was called and all was handled, an
// [*Error] around a [*DrainError] when requests had to be abandoned, and else why
// it could not begin or go on: an [*Error] around [ErrInvalidSubject],
// [ErrUnsupported], [ErrClosed], [ErrConsumerNotFound], [ErrStreamNotFound] or
// ctx's own error.
func (r *BoundResponder[Req, Resp]) Serve(ctx context.Context, subject string, handler RequestHandler[Req, Resp]) error {
	switch {
	case r.err != nil:
		return r.err
	case handler == nil:
		return &Error{Op: "serve", Subject: subject, Err: fmt.Errorf("%w: the handler is nil", ErrInvalidOption)}
	case r.closing.Err() != nil:
		return &Error{Op: "serve", Subject: subject, Err: fmt.Errorf("%w: the responder", ErrClosed)}
	}

	a := &answerer[Req, Resp]{
		reqCodec: r.reqCodec, respCodec: r.respCodec, handler: handler,
		answering: answering{replier: &r.replier},
	}
	defer a.drain() // once more, for an end that came before anything was served

	return r.serve(ctx, subject, a)
}

// ServeTask returns a [Task] that serves requests, for [Run].
func ServeTask[Req, Resp any](r Responder[Req, Resp], subject string, handler RequestHandler[Req, Resp]) Task {
	return func(ctx context.Context) error { return r.Serve(ctx, subject, handler) }
}

// WithoutQueueGroup lets every replica of a responder answer every request, for
// callers that gather replies ([BoundRequester.RequestMany]).
func WithoutQueueGroup() ResponderOption {
	return responderOption{"WithoutQueueGroup", func(c *responderConfig) error {
		c.group = ""

		return nil
	}}
}

// WithService sets how the responder appears to those who look for NATS services
// (as nats service ls does; ADR-32). Responders of one name are one service;
// each Serve is an instance of it with one endpoint. The name has letters,
// digits, "-" and "_"; the version is a semantic one. What is empty is left at
// its default: the name of the connection or else of the program, the version
// of the program's module or else 0.0.0, no description.
//
// Transports without discovery ignore it, and so do stored requests.
func WithService(name, version, description string) ResponderOption {
	return responderOption{"WithService", func(c *responderConfig) error {
		c.service = transport.Service{Name: name, Version: version, Description: description}

		if name != "" && !serviceName.MatchString(name) {
			return fmt.Errorf("%w: the name %q: use letters, digits, - and _", ErrInvalidOption, name)
		}

		if version != "" && !serviceVersion.MatchString(version) {
			return fmt.Errorf("%w: the version %q: use a semantic one, as in 1.2.3", ErrInvalidOption, version)
		}

		return nil
	}}
}

// WithoutDiscovery keeps the responder from appearing among the NATS services.
func WithoutDiscovery() ResponderOption {
	return responderOption{"WithoutDiscovery", func(c *responderConfig) error {
		c.hidden = true

		return nil
	}}
}

// What ADR-32 demands of names and versions.
var (
	serviceName    = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	serviceVersion = regexp.MustCompile(`^(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}(-` + identifiers + `)?(\+` + identifiers + `)?$`)
)

// identifiers are what a semantic version has after "-" and "+".
const identifiers = `[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*`

type responderConfig struct {
	subscriberConfig

	service transport.Service
	hidden  bool
}

type responderOption struct {
	named

	apply func(*responderConfig) error
}

func (o responderOption) applyResponder(c *responderConfig) error { return o.apply(c) }

// replier is what all responders share, whatever their types: they are
// receivers that answer.
type replier struct {
	responder transport.Responder
	service   transport.Service
	hidden    bool
	late      atomic.Uint64
	receiver
}

// Late returns how many requests were not handled because their deadline had
// passed before a handler was free. Their callers do not wait any more.
func (r *replier) Late() uint64 { return r.late.Load() }

func (r *replier) configure(opts []ResponderOption) error {
	c := responderConfig{subscriberConfig: subscriberConfig{
		concurrency: defaultResponders, retry: DefaultRetryPolicy, drainTimeout: defaultDrainTimeout,
	}}

	caps := r.transport.Capabilities()
	if !caps.Has(transport.Durable) {
		c.group = defaultGroup
	}

	if err := applyOptions(opts, ResponderOption.applyResponder, &c); err != nil {
		return err
	}

	if c.deadLetter != nil && !caps.Has(transport.Acks) {
		return fmt.Errorf("WithDeadLetter: %w: the caller of a request that is not stored gets the error", ErrUnsupported)
	}

	r.cfg, r.service, r.hidden = c.subscriberConfig, c.service, c.hidden

	return r.receiver.configure(nil, nil)
}

// counters are the statistics of one Serve.
type counters struct {
	requests, errors, took atomic.Int64
	lastError              atomic.Pointer[RemoteError]
}

func (c *counters) count(took time.Duration, told *RemoteError) {
	c.requests.Add(1)
	c.took.Add(int64(took))

	if told != nil {
		c.errors.Add(1)
		c.lastError.Store(told)
	}
}

func (c *counters) stats() transport.ServiceStats {
	s := transport.ServiceStats{
		Requests: int(c.requests.Load()), Errors: int(c.errors.Load()), ProcessingTime: time.Duration(c.took.Load()),
	}

	if e := c.lastError.Load(); e != nil {
		s.LastError = fmt.Sprintf("%d: %s", e.code(), e.text())
	}

	return s
}
