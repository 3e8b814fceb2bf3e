// Package natserr translates the errors of nats.go into the sentinels of the
// transport contract. Every transport that speaks NATS uses it, so that one
// failure has one name whichever way a message travels.
package natserr

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux/transport"
)

// table pairs the errors of nats.go v1.55.0 with what they are called here. The
// first match counts.
var table = []struct{ nats, sentinel error }{
	{nats.ErrMaxPayload, transport.ErrTooLarge},
	{nats.ErrReconnectBufExceeded, transport.ErrBufferFull},
	{nats.ErrNoResponders, transport.ErrNoResponders},
	{nats.ErrBadSubject, transport.ErrInvalidSubject},
	{nats.ErrBadQueueName, transport.ErrInvalidOption},
	{nats.ErrBadHeaderMsg, transport.ErrInvalidHeader},
	{nats.ErrHeadersNotSupported, transport.ErrUnsupported},

	// A connection that is closed or draining never comes back: its owner
	// closed it, or nats.go has given up reconnecting. Trying again is
	// useless, which is what sets ErrClosed apart from ErrDisconnected. A
	// subscription turns bad when it, or its connection, was closed.
	{nats.ErrConnectionClosed, transport.ErrClosed},
	{nats.ErrConnectionDraining, transport.ErrClosed},
	{nats.ErrBadSubscription, transport.ErrClosed},

	{nats.ErrDisconnected, transport.ErrDisconnected},
	{nats.ErrConnectionReconnecting, transport.ErrDisconnected},
	{nats.ErrStaleConnection, transport.ErrDisconnected},
	{nats.ErrNoServers, transport.ErrDisconnected},

	// nats.go has an error of its own where a timeout was not given by a
	// context.
	{nats.ErrTimeout, context.DeadlineExceeded},
}

// Map returns err wrapped together with the sentinel that names it, so that
// errors.Is finds both: a sentinel of package transport, or
// [context.DeadlineExceeded] for [nats.ErrTimeout]. Errors it does not know,
// those of a context among them, are returned as they are, and nil is nil.
//
// Closed and draining connections are [transport.ErrClosed], since they do not
// come back; a connection that is being restored is
// [transport.ErrDisconnected].
func Map(err error) error {
	if err == nil {
		return nil
	}

	// The caller's own context explains a failure best.
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}

	for _, row := range table {
		if errors.Is(err, row.nats) {
			return transport.Mark(row.sentinel, err)
		}
	}

	return err
}
