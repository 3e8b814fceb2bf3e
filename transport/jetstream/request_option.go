package jetstream

import (
	"slices"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
)

// WithReplyStream lets a requester submit requests and await their replies: they
// are stored in the stream of cfg until its MaxAge. The stream is created by
// Submit or Await when it is missing, and left as it is when it is there.
// Requesters that are to understand each other's tickets name the same stream
// and subject.
//
// Only the name is required. What cfg leaves at zero becomes: the subject
// "<name>.*", a MaxAge of 24 hours, and one message per subject, of which the
// first is kept (MaxMsgsPerSubject 1, DiscardNew, DiscardNewPerSubject). The
// first subject must end with a wildcard token, which stands for the id of a
// request. A configuration, or an existing stream, that could lose a reply or
// would keep it for ever is goflux.ErrInvalidOption.
func WithReplyStream(cfg natsjs.StreamConfig) goflux.Option {
	return requesterOption{name: "WithReplyStream", apply: func(r *requests) (err error) {
		r.replies, err = newReplyStream(cfg)

		return err
	}}
}

// WithTicketKey makes the tickets of [Requester.Submit] with a secret of at
// least 16 bytes. Without it, a ticket can be made up by whoever knows the
// subject and the message id of a request; and who tries others than those that
// were issued learns from ErrTicketExpired that a sequence is gone from some
// stream with work-queue retention. That matters where tickets are handed to
// clients that must not read each other's replies, and message ids can be
// guessed; ids that are made up for a Submit without one cannot. All requesters
// that share tickets need the same key: any other ticket is ErrTicketUnknown,
// and nothing is looked up.
func WithTicketKey(key []byte) goflux.Option {
	return requesterOption{name: "WithTicketKey", apply: func(r *requests) error {
		if len(key) < minTicketKey {
			return invalid("WithTicketKey: %d bytes: use at least %d", len(key), minTicketKey)
		}

		r.key = slices.Clone(key)

		return nil
	}}
}

const minTicketKey = 16

// requesterOption is an option of this package among those of goflux.
type requesterOption struct {
	goflux.Option // nil: it is there for the method that only goflux can write

	name  string
	apply func(*requests) error
}

// String returns the option's name.
func (o requesterOption) String() string { return o.name }

// configure applies the options of this package, and returns the others.
func (r *requests) configure(opts []Option) (others []Option, err error) {
	for _, opt := range opts {
		own, is := opt.(requesterOption)
		if !is {
			others = append(others, opt)

			continue
		}

		if err := own.apply(r); err != nil {
			return nil, err
		}
	}

	return others, nil
}
