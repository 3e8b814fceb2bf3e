package nats

import (
	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
)

// Publisher publishes values of one type over core NATS.
type Publisher[T any] = goflux.BoundPublisher[T]

// NewPublisher returns a publisher over a connection. Publish returns when the
// client has the message: core NATS confirms nothing, and while the connection
// is being re-established the client buffers. The connection stays the
// caller's: Close leaves it open.
//
// What is wrong with the arguments is returned by every Publish, and by Err.
func NewPublisher[T any](nc *natsgo.Conn, codec goflux.Codec[T], opts ...Option) *Publisher[T] {
	t, err := New(nc)

	return goflux.BindPublisher(t, err, codec, opts...)
}
