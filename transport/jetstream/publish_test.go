package jetstream_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

func TestPublish(t *testing.T) {
	t.Parallel()

	e := setup(t)
	tr := e.transport(t)

	header := transport.Header{"traceparent": {"00-1"}, "Many": {"a", "b"}, "Empty": {""}}

	for i, msg := range []transport.Message{
		{Subject: "events.created"},
		{Subject: "events.created", Data: []byte("bare")},
		{Subject: "events.created", Data: []byte{0, 255, 254}, Header: header},
		{Subject: "events.created", Data: []byte("id"), ID: "m1"},
		{Subject: "events.created", Data: []byte("both"), ID: "m2", Header: maps.Clone(header)},
	} {
		r, err := tr.Publish(t.Context(), msg)
		must(t, err)

		if want := (transport.Receipt{Stream: "EVENTS", Sequence: uint64(i + 1)}); r != want {
			t.Errorf("receipt %+v, want %+v", r, want)
		}

		stored, err := e.stream.GetMsg(t.Context(), r.Sequence)
		must(t, err)

		if !bytes.Equal(stored.Data, msg.Data) || stored.Subject != msg.Subject {
			t.Errorf("stored %q on %q", stored.Data, stored.Subject)
		}

		for key, values := range msg.Header {
			if got := stored.Header[key]; strings.Join(got, "|") != strings.Join(values, "|") {
				t.Errorf("header %s: %q, want %q", key, got, values)
			}
		}

		if got := stored.Header.Get("Nats-Msg-Id"); got != msg.ID {
			t.Errorf("Nats-Msg-Id %q, want %q", got, msg.ID)
		}
	}

	r, err := tr.Publish(t.Context(), transport.Message{Subject: "events.created", ID: "m1"})
	must(t, err)

	if !r.Duplicate || r.Sequence != 4 {
		t.Errorf("receipt of a duplicate: %+v", r)
	}
}

func TestPublishErrors(t *testing.T) {
	t.Parallel()

	e := setup(t)
	tr := e.transport(t)

	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "SMALL", Subjects: []string{"small"}, MaxMsgSize: 100})

	canceled, cancel := context.WithCancel(t.Context())
	cancel()

	expired, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()

	for name, tc := range map[string]struct {
		ctx  context.Context
		msg  transport.Message
		want error
	}{
		"no stream":              {t.Context(), transport.Message{Subject: "nowhere"}, transport.ErrNoStream},
		"payload":                {t.Context(), transport.Message{Subject: "events.a", Data: make([]byte, 1<<20+1)}, transport.ErrTooLarge},
		"payload for the stream": {t.Context(), transport.Message{Subject: "small", Data: make([]byte, 101)}, transport.ErrTooLarge},
		"headers": {
			t.Context(), transport.Message{Subject: "events.a", Header: transport.Header{"K": {strings.Repeat("v", 1<<16)}}},
			transport.ErrTooLarge,
		},
		"reply":    {t.Context(), transport.Message{Subject: "events.a", Reply: "inbox"}, transport.ErrUnsupported},
		"canceled": {canceled, transport.Message{Subject: "events.a"}, context.Canceled},
		"expired":  {expired, transport.Message{Subject: "events.a"}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			r, err := tr.Publish(tc.ctx, tc.msg)
			if e := details(t, err, tc.want); e.Op != "publish" || e.Subject != tc.msg.Subject {
				t.Errorf("circumstances: %+v", e)
			}

			if r != (transport.Receipt{}) {
				t.Errorf("receipt %+v with an error", r)
			}
		})
	}
}

// A stream takes headers up to 65535 bytes as they are on the wire. The client
// draws the line where the server does.
func TestPublishHeaderLimit(t *testing.T) {
	t.Parallel()

	e := setup(t)
	tr := e.transport(t)

	const frame = len("NATS/1.0\r\nK: \r\n\r\n")

	fits := transport.Header{"K": {strings.Repeat("v", 65535-frame)}}
	if _, err := tr.Publish(t.Context(), transport.Message{Subject: "events.a", Header: fits}); err != nil {
		t.Errorf("headers of 65535 bytes: %v", err)
	}

	over := transport.Header{"K": {strings.Repeat("v", 65535-frame+1)}}
	if _, err := tr.Publish(t.Context(), transport.Message{Subject: "events.a", Header: over}); !errors.Is(err, transport.ErrTooLarge) {
		t.Errorf("headers of 65536 bytes: %v", err)
	}
}

func TestPublishAfterClose(t *testing.T) {
	t.Parallel()

	e := setup(t)

	tr, err := jetstream.New(e.js)
	must(t, err)
	must(t, tr.Close())
	must(t, tr.Close())

	_, err = tr.Publish(t.Context(), transport.Message{Subject: "events.a"})
	mustBe(t, err, transport.ErrClosed)

	_, err = tr.Subscribe(t.Context(), newInbox().config("events.>"))
	mustBe(t, err, transport.ErrClosed)

	if e.nc.IsClosed() {
		t.Error("Close closed the caller's connection")
	}

	tr, err = jetstream.New(e.js)
	must(t, err)
	e.nc.Close()

	_, err = tr.Publish(t.Context(), transport.Message{Subject: "events.a"})
	mustBe(t, err, transport.ErrClosed)
	must(t, tr.Close())
}

func TestNew(t *testing.T) {
	t.Parallel()

	e := setup(t)

	_, err := jetstream.New(nil)
	mustBe(t, err, transport.ErrInvalidOption)

	for name, opt := range map[string]jetstream.TransportOption{
		"no stream":  jetstream.WithStream(""),
		"bad stream": jetstream.WithStream("a.b"),
		"no func":    jetstream.WithConsumerConfig(nil),
	} {
		if _, err := jetstream.New(e.js, opt); !errors.Is(err, transport.ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}

	tr, err := jetstream.New(e.js, nil, jetstream.WithStream("EVENTS"))
	must(t, err)

	has := transport.Of(transport.Acks, transport.Redelivery, transport.DelayedNak, transport.Attempts, transport.Leases,
		transport.Groups, transport.Durable, transport.Replay, transport.Persistent, transport.Receipts, transport.Deduplication,
		transport.Fetching)

	if got := tr.Capabilities(); got&has != has || got.Has(transport.RequestReply) {
		t.Errorf("capabilities %v, want %v and not request-reply", got, has)
	}
}

// Publishing allocates no more than nats.go does. The counts include the server,
// which is in this process and varies by one; hence the rounds.
func TestPublishAllocs(t *testing.T) { //nolint:paralleltest // it counts what the whole process allocates
	e := setup(t)
	tr := e.transport(t)
	data := make([]byte, 64)

	ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
	defer cancel()

	direct, seam := math.Inf(1), math.Inf(1)

	for range 5 {
		direct = min(direct, testing.AllocsPerRun(200, func() {
			if _, err := e.js.Publish(ctx, "events.a", data); err != nil {
				t.Fatal(err)
			}
		}))
		seam = min(seam, testing.AllocsPerRun(200, func() {
			if _, err := tr.Publish(ctx, transport.Message{Subject: "events.a", Data: data}); err != nil {
				t.Fatal(err)
			}
		}))
	}

	if seam > direct+1 {
		t.Errorf("%v allocations a publish, nats.go alone has %v", seam, direct)
	}
}
