package jetstream

import (
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
)

// Requester makes requests that are stored.
type Requester[Req, Resp any] = goflux.DurableRequester[Req, Resp]

// NewRequester returns a requester over a JetStream handle. Its requests go into
// the stream that has their subject, best one with work-queue retention, and
// wait there for a [NewResponder].
//
// Request waits for the reply, which comes straight to this process; it works
// though no responder is there yet. Submit and Await separate the two, in time
// and place; they need [WithReplyStream], and a stream of requests with
// work-queue retention. The other options are those of goflux that fit
// requesters.
//
// An Await that finds no reply subscribes to the subject of the reply, to be told
// of it. Where the user of the connection may not, it looks every ten seconds.
//
// The handle and its connection stay the caller's: Close leaves them open, and
// ends what waits. What is wrong with the arguments is returned by every call.
func NewRequester[Req, Resp any](
	js natsjs.JetStream, reqCodec goflux.Codec[Req], respCodec goflux.Codec[Resp], opts ...Option,
) *Requester[Req, Resp] {
	r, err := newRequests(js)
	if err == nil {
		opts, err = r.configure(opts)
	}

	if err != nil {
		return goflux.BindDurableRequester[Req, Resp](nil, err, reqCodec, respCodec)
	}

	return goflux.BindDurableRequester(r, nil, reqCodec, respCodec, opts...)
}
