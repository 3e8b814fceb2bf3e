package goflux

import (
	"context"

	"github.com/foomo/goflux/transport"
)

// ReplyWithError answers a request with an error: what a responder does when its
// handler returned one, for those who answer in its place since it died. It does
// not settle the request. Errors are those of the transport's Reply, and nil
// when nobody wants an answer.
func ReplyWithError(ctx context.Context, responder transport.Responder, request transport.Delivery, err *RemoteError) error {
	var header Header

	if id := headerID(request.Header); id != "" && transport.ValidateValue(transport.HeaderMessageID, id) == nil {
		header = Header{transport.HeaderMessageID: {id}}
	}

	return responder.Reply(ctx, request, transport.Message{Header: err.write(header), Data: err.Details})
}
