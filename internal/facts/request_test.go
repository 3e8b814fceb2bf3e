package facts_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
)

func TestRequestOnStreamSubjectReturnsPubAck(t *testing.T) {
	t.Parallel()
	e := setup(t)
	requests := make(chan *nats.Msg, 1)
	sub, err := e.nc.Subscribe("s.request", func(m *nats.Msg) { requests <- m })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
	defer cancel()
	reply, err := e.nc.RequestWithContext(ctx, "s.request", []byte("question"))
	if err != nil {
		t.Fatal(err)
	}
	var ack jetstream.PubAck
	if err := json.Unmarshal(reply.Data, &ack); err != nil || ack.Stream != "S" || ack.Sequence != 1 {
		t.Errorf("reply %q, error %v", reply.Data, err)
	}
	// The responder lives, but whoever asked has gone.
	if err := receive(e, requests, "request").Respond([]byte("answer")); err != nil {
		t.Error(err)
	}
	// Nor does the stored request know where an answer would go.
	m := e.next(e.consumer(jetstream.ConsumerConfig{}))
	if string(m.Data()) != "question" || len(m.Headers()) != 0 {
		t.Errorf("message %q with headers %q", m.Data(), m.Headers())
	}
}

// Sent as a request, a reply tells that nobody waits for it any more.
func TestRequestToDeadInboxIsErrNoResponders(t *testing.T) {
	t.Parallel()
	e := setup(t)
	ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
	defer cancel()
	if m, err := e.nc.RequestWithContext(ctx, e.nc.NewInbox(), nil); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("reply %v, error %v", m, err)
	}
}
