package nats

import (
	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
)

// Subscriber hands messages of core NATS to a handler.
type Subscriber[T any] = goflux.BoundSubscriber[T]

// NewSubscriber returns a subscriber over a connection. There are no acks: a
// message whose handler fails is logged and lost, unless dead letters are
// configured. The connection stays the caller's.
//
// What is wrong with the arguments is returned by every Subscribe, and by Err.
func NewSubscriber[T any](nc *natsgo.Conn, codec goflux.Codec[T], opts ...Option) *Subscriber[T] {
	t, err := New(nc)

	return goflux.BindSubscriber(t, err, codec, opts...)
}
