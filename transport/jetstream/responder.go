package jetstream

import (
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
)

// Responder answers requests that are stored.
type Responder[Req, Resp any] = goflux.BoundResponder[Req, Resp]

// NewResponder returns a responder to the requests that consumer delivers. Over
// js it sends their replies: to the requester, or to the stream that keeps them,
// whose confirmation it awaits before the request is acked. So a request is
// answered at least once, and its requester keeps the first reply.
//
// It is a subscription like any other: the consumer decides what is delivered
// and how often, its replicas share the requests, the lease of a request is kept
// while its handler runs, a failing one is tried again, and dead letters work as
// they do elsewhere. A handler may run twice for one request: when a process
// dies, and when a reply is not confirmed for long.
//
// A requester that does not wait any more is not an error: what was to be its
// reply is dropped after some tries over four seconds.
//
// js, the consumer and their connection stay the caller's. What is wrong with
// the arguments is returned by every Serve.
func NewResponder[Req, Resp any](
	js natsjs.JetStream, consumer natsjs.Consumer, reqCodec goflux.Codec[Req], respCodec goflux.Codec[Resp], opts ...Option,
) *Responder[Req, Resp] {
	t, err := New(js)
	if err == nil && consumer == nil {
		err = invalid("the consumer is nil")
	}

	return goflux.BindResponder(answers{bound{consumer}, t}, err, reqCodec, respCodec, opts...)
}
