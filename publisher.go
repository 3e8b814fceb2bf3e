package goflux

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"
	"time"

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
		p.err = applyOptions(opts, PublisherOption.applyPublisher, &p.cfg)
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
// [context.DeadlineExceeded]. After a deadline or a disconnect the message may
// have been stored all the same: publish again under the same id.
func (p *BoundPublisher[T]) Publish(ctx context.Context, subject string, v T) error {
	_, err := p.PublishReceipt(ctx, subject, v)

	return err
}

// PublishReceipt is [BoundPublisher.Publish] for those who want to know where
// the broker stored the message, or that it was a duplicate.
func (p *BoundPublisher[T]) PublishReceipt(ctx context.Context, subject string, v T) (Receipt, error) {
	if err := p.ready(ctx, subject); err != nil {
		return Receipt{}, err
	}

	data, err := p.codec.Encode(v)
	if err != nil {
		return Receipt{}, &Error{Op: "publish", Subject: subject, Err: transport.Mark(ErrEncode, err)}
	}

	return p.send(ctx, subject, data)
}

// sender is what all publishers share, whatever their type.
type sender struct {
	transport transport.Publisher
	cfg       publisherConfig
	telemetry *Telemetry
	closed    atomic.Bool
	err       error // of the construction
}

// Close makes every later Publish fail with [ErrClosed]; calls that are under
// way end as they would have. The transport stays open. It returns nil.
func (s *sender) Close() error {
	s.closed.Store(true)

	return nil
}

// ready checks what can be checked before the value is encoded.
func (s *sender) ready(ctx context.Context, subject string) error {
	if s.err != nil {
		return s.err
	}

	if s.closed.Load() {
		return &Error{Op: "publish", Subject: subject, Err: fmt.Errorf("%w: the publisher", ErrClosed)}
	}

	if err := transport.ValidateSubject(subject); err != nil {
		return &Error{Op: "publish", Err: err}
	}

	if err := ctx.Err(); err != nil {
		return &Error{Op: "publish", Subject: subject, Err: err}
	}

	return nil
}

func (s *sender) send(ctx context.Context, subject string, data []byte) (Receipt, error) {
	start := time.Now()
	id := outgoingID(ctx)

	header, err := outgoingHeader(ctx, id)
	if err != nil {
		return Receipt{}, &Error{Op: "publish", Subject: subject, Err: err}
	}

	ctx, span := s.telemetry.startSend(ctx, subject, id)
	header = s.telemetry.inject(ctx, header)

	receipt, err := s.transport.Publish(ctx, transport.Message{Subject: subject, Header: header, Data: data, ID: id})

	s.telemetry.endSend(ctx, span, start, err)

	return receipt, err
}

// outgoingHeader returns the headers to send: a copy of those in ctx, and the
// id. It is nil when there are none.
func outgoingHeader(ctx context.Context, id string) (Header, error) {
	h := HeaderFromContext(ctx)
	if len(h) == 0 && id == "" {
		return nil, nil
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
