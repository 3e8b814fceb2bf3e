package nats

import (
	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
)

// Requester asks over core NATS and waits for the reply.
type Requester[Req, Resp any] = goflux.BoundRequester[Req, Resp]

// NewRequester returns a requester over a connection. Any NATS service can be
// asked: errors that it reports as the services of NATS do (ADR-32) arrive as
// [*goflux.RemoteError]. The connection stays the caller's: Close leaves it open.
//
// What is wrong with the arguments is returned by every request, and by Err.
func NewRequester[Req, Resp any](
	nc *natsgo.Conn, reqCodec goflux.Codec[Req], respCodec goflux.Codec[Resp], opts ...Option,
) *Requester[Req, Resp] {
	t, err := New(nc)

	return goflux.BindRequester(t, err, reqCodec, respCodec, opts...)
}
