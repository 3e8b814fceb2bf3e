package nats

import (
	"fmt"

	"github.com/foomo/goflux/transport"
)

// TransportOption configures [New].
type TransportOption interface{ applyTransport(t *Transport) error }

type transportOptionFunc func(*Transport) error

func (f transportOptionFunc) applyTransport(t *Transport) error { return f(t) }

// WithPendingLimits bounds what each subscription holds for handlers that are
// busy: that many messages, and that many bytes of payload, headers and
// subjects. What arrives beyond is dropped, as core NATS does, and reported as
// a [*transport.DroppedError]. A negative value means no limit, zero is
// [transport.ErrInvalidOption]. The default is that of nats.go, 500,000
// messages and 64 MB.
//
// In front of it stands the list of nats.go, which fills only when the process
// is too busy to take over what arrives. Its limits are never lower than their
// default, and what it drops is counted along.
func WithPendingLimits(messages, bytes int) TransportOption {
	return transportOptionFunc(func(t *Transport) error {
		if messages == 0 || bytes == 0 {
			return fmt.Errorf("%w: WithPendingLimits(%d, %d): a limit of zero would drop everything; a negative one means none",
				transport.ErrInvalidOption, messages, bytes)
		}

		t.limits = limits{messages, bytes}

		return nil
	})
}
