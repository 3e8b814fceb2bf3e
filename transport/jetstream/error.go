package jetstream

import (
	"errors"
	"fmt"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natserr"
	"github.com/foomo/goflux/transport"
)

// errCodeHeaderTooLarge is what a server answers to headers of more than 64 KB.
// nats.go v1.55.0 has no name for it.
const errCodeHeaderTooLarge natsjs.ErrorCode = 10097

// apiErrors pairs the error codes of the JetStream API with the sentinels.
var apiErrors = map[natsjs.ErrorCode]error{
	natsjs.JSErrCodeStreamNotFound:              transport.ErrStreamNotFound,
	natsjs.JSErrCodeConsumerNotFound:            transport.ErrConsumerNotFound,
	natsjs.JSErrCodeConsumerDoesNotExist:        transport.ErrConsumerNotFound,
	natsjs.JSErrCodeStreamMessageExceedsMaximum: transport.ErrTooLarge,
	errCodeHeaderTooLarge:                       transport.ErrTooLarge,
}

// clientErrors pairs the errors of nats.go's jetstream package that do not come
// from the API.
var clientErrors = []struct{ nats, sentinel error }{
	{natsjs.ErrNoStreamResponse, transport.ErrNoStream},
	// Somebody answered who is not a stream.
	{natsjs.ErrInvalidJSAck, transport.ErrNoStream},
	{natsjs.ErrConsumerDeleted, transport.ErrConsumerNotFound},
	{natsjs.ErrMsgAlreadyAckd, transport.ErrSettled},
	{natsjs.ErrConnectionClosed, transport.ErrClosed},
	{natsjs.ErrNoHeartbeat, transport.ErrDisconnected},
	{natsjs.ErrServerShutdown, transport.ErrDisconnected},
	{natsjs.ErrInvalidSubject, transport.ErrInvalidSubject},
	{natsjs.ErrInvalidOption, transport.ErrInvalidOption},
	{natsjs.ErrInvalidStreamName, transport.ErrInvalidOption},
	{natsjs.ErrStreamNameRequired, transport.ErrInvalidOption},
	{natsjs.ErrInvalidConsumerName, transport.ErrInvalidOption},
	{natsjs.ErrNotPullConsumer, transport.ErrInvalidOption},
}

// The operations of errors.
const (
	opOpen      = "open"
	opPublish   = "publish"
	opSubscribe = "subscribe"
	opPause     = "pause"
	opFlush     = "flush"
	opClose     = "close"
	opSettle    = "settle"
)

// mapError returns err together with the sentinel that names it. Errors without
// one, errors that have theirs already, and nil, are returned as they are.
func mapError(err error) error {
	var named interface{ ErrorType() string }
	if err == nil || errors.As(err, &named) {
		return err
	}

	for _, row := range clientErrors {
		if errors.Is(err, row.nats) {
			return transport.Mark(row.sentinel, err)
		}
	}

	if api, ok := errors.AsType[*natsjs.APIError](err); ok {
		if sentinel, ok := apiErrors[api.ErrorCode]; ok {
			return transport.Mark(sentinel, err)
		}

		return err
	}

	return natserr.Map(err)
}

// gone reports whether err says that the consumer, or its stream, is not there.
func gone(err error) bool {
	return errors.Is(err, transport.ErrConsumerNotFound) || errors.Is(err, transport.ErrStreamNotFound)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{transport.ErrInvalidOption}, args...)...)
}
