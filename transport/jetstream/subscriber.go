package jetstream

import (
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
)

// Subscriber hands the messages of a consumer to a handler.
type Subscriber[T any] = goflux.BoundSubscriber[T]

// NewSubscriber returns a subscriber over a consumer, which decides what is
// delivered, how often, and when a delivery counts as lost. The subject of
// Subscribe must cover the consumer's filter, or be empty; otherwise Subscribe
// returns goflux.ErrSubjectMismatch.
//
// A handler's nil acks, its error naks with the delay of the retry policy, a
// payload that does not decode is terminated; see [WithManualAck] for settling
// by hand. The consumer and its connection stay the caller's.
//
// What is wrong with the arguments is returned by every Subscribe, and by Err.
func NewSubscriber[T any](consumer jetstream.Consumer, codec goflux.Codec[T], opts ...Option) *Subscriber[T] {
	b := bound{consumer}

	return goflux.BindSubscriber(b, b.check(), codec, opts...)
}
