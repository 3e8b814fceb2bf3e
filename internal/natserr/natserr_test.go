package natserr_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natserr"
	"github.com/foomo/goflux/transport"
)

func TestMap(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct{ err, want error }{
		{nats.ErrMaxPayload, transport.ErrTooLarge},
		{nats.ErrReconnectBufExceeded, transport.ErrBufferFull},
		{nats.ErrNoResponders, transport.ErrNoResponders},
		{nats.ErrBadSubject, transport.ErrInvalidSubject},
		{nats.ErrBadQueueName, transport.ErrInvalidOption},
		{nats.ErrBadHeaderMsg, transport.ErrInvalidHeader},
		{nats.ErrHeadersNotSupported, transport.ErrUnsupported},
		{nats.ErrConnectionClosed, transport.ErrClosed},
		{nats.ErrConnectionDraining, transport.ErrClosed},
		{nats.ErrBadSubscription, transport.ErrClosed},
		{nats.ErrDisconnected, transport.ErrDisconnected},
		{nats.ErrConnectionReconnecting, transport.ErrDisconnected},
		{nats.ErrStaleConnection, transport.ErrDisconnected},
		{nats.ErrNoServers, transport.ErrDisconnected},
		{nats.ErrTimeout, context.DeadlineExceeded},
	} {
		wrapped := fmt.Errorf("circumstances: %w", tc.err)

		for _, err := range []error{tc.err, wrapped} {
			got := natserr.Map(err)
			if !errors.Is(got, tc.want) || !errors.Is(got, err) {
				t.Errorf("Map(%v) = %v, want it to match %v and its cause", err, got, tc.want)
			}
		}
	}
}

func TestMapKeeps(t *testing.T) {
	t.Parallel()

	other := errors.New("other")
	canceled := fmt.Errorf("waiting: %w", context.Canceled)

	for _, err := range []error{nil, other, canceled, context.DeadlineExceeded, nats.ErrAuthorization} {
		if got := natserr.Map(err); got != err { //nolint:errorlint // identity is the point
			t.Errorf("Map(%v) = %v, want the same error", err, got)
		}
	}
}
