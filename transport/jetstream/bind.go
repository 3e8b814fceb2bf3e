package jetstream

import (
	"context"
	"fmt"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// Bind returns a subscriber over a consumer that the caller made: what is
// delivered, in which order, how often and with which lease is the consumer's.
// The consumer and its connection stay the caller's; several subscriptions may
// share it.
//
// The subject of a subscription must cover what the consumer selects, or be
// empty. A consumer without a filter selects whatever its stream has, which
// cannot be known beforehand: then a subscription holds for as long as the
// messages are covered by its subject, and ends with
// [transport.ErrSubjectMismatch] at the first that is not, which goes back to
// the server. A group must be the consumer's name, or empty.
//
// A consumer with ack policy none delivers once and takes no settlements; its
// capabilities say so. Subscribe fails with [transport.ErrUnsupported] for
// consumers with ack policy all, where one ack would settle what other handlers
// still work on; for ordered consumers; and for priority groups. It fails with
// [transport.ErrInvalidOption] for a nil consumer.
func Bind(consumer natsjs.Consumer) transport.Subscriber {
	return bound{consumer}
}

// orderedConsumer is the type of ordered consumers. They have the interface of
// the others and nothing that tells them apart, yet serve one Consume only
// (nats.go v1.55.0).
const orderedConsumer = "*jetstream.orderedConsumer"

type bound struct{ consumer natsjs.Consumer }

// Capabilities implements [transport.Capable].
func (b bound) Capabilities() transport.Capabilities {
	if b.consumer != nil {
		if info := b.consumer.CachedInfo(); info != nil && info.Config.AckPolicy == natsjs.AckNonePolicy {
			return consumes &^ transport.Of(
				transport.Acks, transport.Redelivery, transport.DelayedNak, transport.Attempts, transport.Leases)
		}
	}

	return consumes
}

// Subscribe implements [transport.Subscriber].
func (b bound) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	var stream, name string

	if b.consumer != nil {
		if info := b.consumer.CachedInfo(); info != nil {
			stream, name = info.Stream, info.Name
		}
	}

	s, err := b.subscribe(ctx, cfg)
	if err != nil {
		return nil, attachError(cfg, stream, name, err)
	}

	go s.run()

	return s, nil
}

// check reports what is wrong with the consumer without asking the server.
func (b bound) check() error {
	switch {
	case b.consumer == nil:
		return invalid("the consumer is nil")
	case fmt.Sprintf("%T", b.consumer) == orderedConsumer:
		return fmt.Errorf("%w: an ordered consumer begins anew with each request for messages: make one with CreateConsumer",
			transport.ErrUnsupported)
	default:
		return nil
	}
}

func (b bound) subscribe(ctx context.Context, cfg transport.SubscribeConfig) (*subscription, error) {
	if err := b.check(); err != nil {
		return nil, err
	}

	if cfg.Subject != "" {
		if err := transport.ValidateFilter(cfg.Subject); err != nil {
			return nil, err
		}
	}

	info, err := b.consumer.Info(ctx)
	if err != nil {
		return nil, mapError(err)
	}

	if cfg.Group != "" && cfg.Group != info.Name {
		return nil, invalid("the group %q: the members of a group share the consumer of that name, this one is %q", cfg.Group, info.Name)
	}

	return newSubscription(b.consumer, info, cfg, nil)
}
