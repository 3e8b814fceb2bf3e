package facts_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/embedded"
)

// The client checks publish subjects for white space only, so goflux validates
// them itself.
func TestPublishAcceptsWildcardAndEmptyTokens(t *testing.T) {
	t.Parallel()
	e := setup(t)
	for _, subject := range []string{"a.*", "a.>", "a..b", ".a", "a.", "a\x00b", "a*b"} {
		if err := e.nc.Publish(subject, nil); err != nil {
			t.Errorf("%q: error %v", subject, err)
		}
	}
	for _, subject := range []string{"", "a b", "a\tb", "a\r\nb"} {
		if err := e.nc.Publish(subject, nil); !errors.Is(err, nats.ErrBadSubject) {
			t.Errorf("%q: error %v", subject, err)
		}
	}

	// A stream stores a wildcard as if it were a name.
	ack, err := e.js.Publish(t.Context(), "s.*", nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := e.stream.GetMsg(t.Context(), ack.Sequence)
	if err != nil || m.Subject != "s.*" {
		t.Errorf("message %+v, error %v", m, err)
	}
}

func TestErrNoStreamResponseIsNotErrNoResponders(t *testing.T) {
	t.Parallel()
	e := setup(t)
	_, err := e.js.Publish(t.Context(), "no.stream", nil, jetstream.WithRetryWait(time.Millisecond))
	if !errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("error %v", err)
	}
}

// With a subscriber there is no 503, hence no retry and no ErrNoStreamResponse.
func TestCoreSubscriberHidesMissingStream(t *testing.T) {
	t.Parallel()
	e := setup(t)
	sub, err := e.nc.Subscribe("no.stream", func(*nats.Msg) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := e.js.Publish(ctx, "no.stream", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// ADR-22 has -1 for "until the deadline".
func TestLegacyMinusOneRetryIsRefused(t *testing.T) {
	t.Parallel()
	e := setup(t)
	if _, err := e.js.Publish(t.Context(), "s.a", nil, jetstream.WithRetryAttempts(-1)); !errors.Is(err, jetstream.ErrInvalidOption) {
		t.Errorf("error %v", err)
	}
	if n := e.stored(); n != 0 {
		t.Errorf("%d messages stored", n)
	}
}

func TestExpectedLastSequenceMismatchIs10071(t *testing.T) {
	t.Parallel()
	e := setup(t)
	e.publish(1)
	for name, opt := range map[string]jetstream.PublishOpt{
		"stream":  jetstream.WithExpectLastSequence(7),
		"subject": jetstream.WithExpectLastSequencePerSubject(7),
	} {
		_, err := e.js.Publish(t.Context(), "s.a", nil, opt)
		apiErr := (*jetstream.APIError)(nil)
		if !errors.As(err, &apiErr) || apiErr.ErrorCode != 10071 {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestDuplicateTellsTheFirstSequence(t *testing.T) {
	t.Parallel()
	e := setup(t)
	e.publish(1, jetstream.WithMsgID("x"))
	e.publish(1)
	ack, err := e.js.Publish(t.Context(), "s.b", []byte("another body and subject"), jetstream.WithMsgID("x"))
	if err != nil || !ack.Duplicate || ack.Sequence != 1 {
		t.Errorf("ack %+v, error %v", ack, err)
	}
}

func TestMaxPayloadIncludesHeaders(t *testing.T) {
	t.Parallel()
	const limit = 4096
	e := setup(t, embedded.WithConfig(func(o *server.Options) { o.MaxPayload = limit }))
	m := nats.NewMsg("s.a")
	m.Data = make([]byte, limit)
	if err := e.nc.PublishMsg(m); err != nil {
		t.Errorf("a body of the limit: %v", err)
	}
	m.Header.Set("K", "v")
	if err := e.nc.PublishMsg(m); !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("a body of the limit and a header: %v", err)
	}
	m.Data = m.Data[:limit-len("NATS/1.0\r\nK: v\r\n\r\n")]
	if err := e.nc.PublishMsg(m); err != nil {
		t.Errorf("body and header of the limit: %v", err)
	}
	// Had the client let something through, the server would close the connection.
	if err := e.nc.FlushTimeout(natstest.Limit); err != nil {
		t.Error(err)
	}
}

func TestJetStreamCapsHeadersAt64KB(t *testing.T) {
	t.Parallel()
	e := setup(t)
	overhead := len("NATS/1.0\r\nK: \r\n\r\n")
	for size, want := range map[int]jetstream.ErrorCode{1<<16 - 1: 0, 1 << 16: 10097} {
		m := nats.NewMsg("s.a")
		m.Header.Set("K", strings.Repeat("v", size-overhead))
		_, err := e.js.PublishMsg(t.Context(), m)
		apiErr := &jetstream.APIError{}
		if err != nil && !errors.As(err, &apiErr) || apiErr.ErrorCode != want {
			t.Errorf("%d bytes of headers: error %v, want code %d", size, err, want)
		}
	}
}

// The publisher that waits for an ack has Reply for itself.
func TestPublishMsgDropsReply(t *testing.T) {
	t.Parallel()
	e := setup(t)
	replies, err := e.nc.SubscribeSync("reply")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.js.PublishMsg(t.Context(), &nats.Msg{Subject: "s.a", Reply: "reply"}); err != nil {
		t.Error(err)
	}
	if err := e.nc.FlushTimeout(natstest.Limit); err != nil {
		t.Fatal(err)
	}
	if n, _, err := replies.Pending(); n != 0 || err != nil {
		t.Errorf("%d replies, error %v", n, err)
	}
}
