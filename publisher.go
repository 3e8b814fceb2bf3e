package goflux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/foomo/goflux/transport"
)

// BoundPublisher is a [Publisher] bound to a transport. It is safe for
// concurrent use.
type BoundPublisher[T any] struct {
	codec Codec[T]
	sender
}

var _ Publisher[struct{}] = (*BoundPublisher[struct{}])(nil)

// NewPublisher returns a publisher of T over any transport. It fails with
// [ErrInvalidOption] for a codec that cannot encode, a nil transport or a bad
// option.
func NewPublisher[T any](t transport.Publisher, codec Codec[T], opts ...PublisherOption) (*BoundPublisher[T], error) {
	p := newPublisher(t, codec, opts)
	if p.err != nil {
		return nil, p.err
	}

	return p, nil
}

// BindPublisher is [NewPublisher] for the constructors of transports that
// cannot return an error: what is wrong is returned by every Publish.
// err, if not nil, is why there is no transport.
func BindPublisher[T any](t transport.Publisher, err error, codec Codec[T], opts ...Option) *BoundPublisher[T] {
	fitting, mismatch := optionsOf[PublisherOption]("publisher", opts)
	if err = cmp.Or(err, mismatch); err != nil {
		return &BoundPublisher[T]{sender: sender{err: construction("publisher", err)}}
	}

	return newPublisher(t, codec, fitting)
}

func newPublisher[T any](t transport.Publisher, codec Codec[T], opts []PublisherOption) *BoundPublisher[T] {
	p := &BoundPublisher[T]{codec: codec, sender: sender{transport: t}}

	switch {
	case t == nil:
		p.err = fmt.Errorf("%w: the transport is nil", ErrInvalidOption)
	case codec.Encode == nil:
		p.err = fmt.Errorf("%w: the codec cannot encode", ErrInvalidOption)
	default:
		p.receipts = t.Capabilities().Has(transport.Receipts)

		if p.err = applyOptions(opts, PublisherOption.applyPublisher, &p.cfg); p.err == nil {
			p.err = p.cfg.check(t)
		}
	}

	if p.err != nil {
		p.err = construction("publisher", p.err)
	}

	p.telemetry = p.cfg.tel()

	return p
}

// Publish encodes v and sends it on subject, under the id and headers of ctx
// ([WithMessageID], [WithHeader]) and its trace context.
//
// On transports with receipts, nil means that the broker has stored the
// message, or had one with this id before. On others it means that the client
// has taken it. Errors are [*Error] values around [ErrInvalidSubject],
// [ErrInvalidHeader], [ErrEncode], [ErrTooLarge], [ErrNoStream], [ErrClosed],
// [ErrDisconnected], [ErrBufferFull], [context.Canceled] or
// [context.DeadlineExceeded]. On transports with receipts the message may be
// stored all the same if, and only if, the error is [ErrPublishUnknown] as
// well: publish it again under the same id, or see [WithPublishRetry].
func (p *BoundPublisher[T]) Publish(ctx context.Context, subject string, v T) error {
	_, err := p.publish(ctx, subject, v, nil)

	return err
}

func (p *BoundPublisher[T]) publish(ctx context.Context, subject string, v T, terms *transport.Terms) (Receipt, error) {
	if err := p.ready(ctx, subject); err != nil {
		return Receipt{}, err
	}

	data, err := p.encode(subject, v)
	if err != nil {
		return Receipt{}, err
	}

	return p.send(ctx, subject, data, terms)
}

func (p *BoundPublisher[T]) encode(subject string, v T) ([]byte, error) {
	data, err := p.codec.Encode(v)
	if err != nil {
		return nil, &Error{Op: "publish", Subject: subject, Err: transport.Mark(ErrEncode, err)}
	}

	return data, nil
}

// sender is what all publishers share, whatever their type.
type sender struct {
	transport transport.Publisher
	receipts  bool // what was published is confirmed
	cfg       publisherConfig
	telemetry *Telemetry
	closed    atomic.Bool
	ids       idSource
	err       error // of the construction

	mu      sync.Mutex
	pipe    *pipeline // nil while nothing goes through it
	opening *opening  // nil but while one is opened
}

var errPublisherClosed = fmt.Errorf("%w: the publisher", ErrClosed)

// Close makes every later Publish and Flush fail with [ErrClosed]; calls that are
// under way end as they would have. What was published asynchronously and is not
// confirmed ends with [ErrClosed], and [ErrPublishUnknown] if it was sent: call
// Flush before. The transport stays open.
func (s *sender) Close() error {
	s.closed.Store(true)

	s.mu.Lock()
	pipe := s.pipe
	s.pipe = nil
	s.mu.Unlock()

	if pipe == nil {
		return nil
	}

	return pipe.close()
}

// ready checks what can be checked before the value is encoded.
func (s *sender) ready(ctx context.Context, subject string) error {
	if s.err != nil {
		return s.err
	}

	if s.closed.Load() {
		return &Error{Op: "publish", Subject: subject, Err: errPublisherClosed}
	}

	if err := transport.ValidateSubject(subject); err != nil {
		return &Error{Op: "publish", Err: err}
	}

	if err := ctx.Err(); err != nil {
		return &Error{Op: "publish", Subject: subject, Err: err}
	}

	return nil
}

func (s *sender) send(ctx context.Context, subject string, data []byte, terms *transport.Terms) (Receipt, error) {
	msg, err := s.message(subject, outgoingID(ctx), HeaderFromContext(ctx), data)
	if err != nil {
		return Receipt{}, err
	}

	msg.Terms = terms

	start := s.telemetry.clock(ctx, s.telemetry.sent, s.telemetry.duration)
	ctx, span := s.telemetry.startSend(ctx, subject, msg.ID)
	msg.Header = s.telemetry.inject(ctx, msg.Header)

	if s.cfg.flush {
		var cancel context.CancelFunc

		ctx, cancel = s.bound(ctx)
		defer cancel()
	}

	receipt, err := s.deliver(ctx, msg)
	if err == nil && s.cfg.flush {
		err = unflushed(subject, s.flushTransport(ctx))
	}

	s.telemetry.endSend(ctx, span, start, err)

	return receipt, err
}

// unflushed makes the error of a publish of that of the flush after it: the
// client has the message, and may yet send it.
func unflushed(subject string, err error) error {
	if err == nil {
		return nil
	}

	if e, told := errors.AsType[*Error](err); told {
		err = e.Err
	}

	return &Error{Op: "publish", Subject: subject, Err: transport.Mark(ErrPublishUnknown, err)}
}

// message makes the message to send.
func (s *sender) message(subject, id string, h Header, data []byte) (transport.Message, error) {
	if s.cfg.safe && id == "" {
		id = s.ids.next()
	}

	header, err := outgoingHeader(h, id)
	if err != nil {
		return transport.Message{}, &Error{Op: "publish", Subject: subject, Err: err}
	}

	return transport.Message{Subject: subject, Header: header, Data: data, ID: id, Retry: s.cfg.adr22}, nil
}

// outgoingHeader returns the headers to send: a copy of h, with the id. It is
// nil when there are none.
func outgoingHeader(h Header, id string) (Header, error) {
	if len(h) == 0 && id == "" {
		return nil, nil //nolint:nilnil // no headers
	}

	if err := h.ValidateUser(); err != nil {
		return nil, err
	}

	h = h.Clone()
	if id == "" {
		return h, nil
	}

	if h == nil {
		h = Header{}
	}

	h.Set(transport.HeaderMessageID, id)

	return h, transport.ValidateValue(transport.HeaderMessageID, id)
}

// construction wraps what was wrong when a thing was built.
func construction(what string, err error) error {
	return &Error{Op: "new " + what, Err: err}
}
