package goflux_test

import (
	"errors"
	"testing"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
	"github.com/foomo/goflux/transport/nats"
)

// What is wrong with the arguments of a constructor that returns no error is
// told before the first call.
func TestErrOfConstruction(t *testing.T) {
	t.Parallel()

	for name, built := range map[string]interface{ Err() error }{
		"a publisher without a connection":       nats.NewPublisher(nil, raw.String()),
		"a publisher without a handle":           jetstream.NewPublisher(nil, raw.String()),
		"a subscriber without a consumer":        jetstream.NewSubscriber(nil, raw.String()),
		"a consumer without a consumer":          jetstream.NewConsumer(nil, raw.String()),
		"a requester without a connection":       nats.NewRequester(nil, raw.String(), raw.String()),
		"a responder without a connection":       nats.NewResponder(nil, raw.String(), raw.String()),
		"a durable requester without a handle":   jetstream.NewRequester(nil, raw.String(), raw.String()),
		"a durable responder without a consumer": jetstream.NewResponder(nil, nil, raw.String(), raw.String()),
	} {
		if err := built.Err(); !errors.Is(err, goflux.ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()

	if err := goflux.BindPublisher(tr, nil, raw.String()).Err(); err != nil {
		t.Error(err)
	}
}
