package jetstream

import (
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
)

// Publisher publishes values of one type to JetStream.
type Publisher[T any] = goflux.BoundPublisher[T]

// NewPublisher returns a publisher over a JetStream handle. Publish returns
// when the server has stored the message. The handle and its connection stay
// the caller's: Close leaves them open.
//
// What is wrong with the arguments is returned by every Publish, and by Err.
func NewPublisher[T any](js jetstream.JetStream, codec goflux.Codec[T], opts ...Option) *Publisher[T] {
	t, err := New(js)

	return goflux.BindPublisher(t, err, codec, opts...)
}
