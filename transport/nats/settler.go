package nats

import (
	"context"
	"errors"

	"github.com/foomo/goflux/transport"
)

var errNoAcks = &transport.Error{Op: "settle", Err: transport.Mark(transport.ErrUnsupported,
	errors.New("core NATS delivers a message at most once, so there is nothing to settle: "+
		"use transport/jetstream for ack, nak, term and in progress"))}

// settler belongs to a transport on which there is nothing to settle and where
// the broker knows nothing of a delivery.
type settler struct{}

func (settler) Settle(context.Context, any, transport.Verdict) error { return errNoAcks }

func (settler) Metadata(any) transport.Metadata { return transport.Metadata{} }
