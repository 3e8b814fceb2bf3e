package jetstream

import (
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
)

// Consumer fetches the messages of a JetStream consumer in batches.
type Consumer[T any] = goflux.BoundConsumer[T]

// NewConsumer returns a goflux consumer over a JetStream consumer. Every
// message it fetches has to be settled. The consumer and its connection stay
// the caller's.
//
// What is wrong with the arguments is returned by every Fetch, and by Err.
func NewConsumer[T any](consumer jetstream.Consumer, codec goflux.Codec[T], opts ...Option) *Consumer[T] {
	b := bound{consumer}

	return goflux.BindConsumer(b, b.check(), codec, opts...)
}
