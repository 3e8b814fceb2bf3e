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
// they do elsewhere. A handler may run twice for one request when a process dies,
// loses its lease, or stops while it still tries to deliver the answer, never
// because nobody takes the answer.
//
// A requester has half a second to confirm its answer. One that is away is looked
// for until its deadline, two minutes at the most, since it may reconnect; one
// that says nothing, and what exceeds eight times the concurrency in that time,
// for some seconds. Then the answer is dropped and logged. An answer that a
// stream is to keep waits for that stream as long as it takes. One for a stream
// that does not exist, or for a subject that it does not have, is dropped.
//
// The process that dies with a request on its last attempt (the consumer's
// MaxDeliver) tells nobody. [NewSweeper] answers in its place.
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
