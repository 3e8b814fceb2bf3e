package nats

import (
	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// Responder answers requests over core NATS.
type Responder[Req, Resp any] = goflux.BoundResponder[Req, Resp]

// NewResponder returns a responder over a connection. It is a member of the
// queue group "q", handles 64 requests at once, and shows among the NATS
// services (nats service ls); see [goflux.WithQueueGroup],
// [goflux.WithConcurrency] and [goflux.WithService]. The connection stays the
// caller's, and so do its handlers.
//
// What is wrong with the arguments is returned by every Serve, and by Err.
func NewResponder[Req, Resp any](
	nc *natsgo.Conn, reqCodec goflux.Codec[Req], respCodec goflux.Codec[Resp], opts ...Option,
) *Responder[Req, Resp] {
	t, err := New(nc)
	if err != nil {
		return goflux.BindResponder[Req, Resp](nil, err, reqCodec, respCodec, opts...)
	}

	return goflux.BindResponder[Req, Resp](transport.Responder(responder{t}), nil, reqCodec, respCodec, opts...)
}
