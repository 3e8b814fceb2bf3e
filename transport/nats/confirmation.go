package nats

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/transport"
)

// confirmation is what a stream answers to everything that is published on its
// subjects, requests included. It has no headers (nats-server v2.15.2).
type confirmation struct {
	Stream    string `json:"stream"`
	Seq       uint64 `json:"seq"`
	Domain    string `json:"domain"`
	Duplicate bool   `json:"duplicate"`
}

// streamAnswered reports a reply that is the confirmation of a stream. It would
// decode into most types, as nothing at all. A responder may well answer with the
// same words, so it is the server that decides. Where that does not answer, the
// reply is kept back: a value that nobody sent would do more harm than an error.
func (t *Transport) streamAnswered(ctx context.Context, subject string, m *natsgo.Msg) error {
	c, like := readConfirmation(m)
	if !like || t.free.has(subject) {
		return nil
	}

	confirms, err := t.confirms(ctx, c, subject)

	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, transport.ErrClosed) || errors.Is(err, transport.ErrDisconnected)):
		return err
	case err != nil:
		return fmt.Errorf("%w: it was answered with what looks like the confirmation of the stream %q, "+
			"and the server does not say whether that stream has the subject: allow publishing on %s (%v)",
			transport.ErrInvalidSubject, c.Stream, c.infoSubject(), err)
	case confirms:
		return fmt.Errorf("%w: the stream %q has it and answers every request: choose a subject that no stream has, "+
			"or make stored requests with jetstream.NewRequester", transport.ErrInvalidSubject, c.Stream)
	default:
		t.free.add(subject)

		return nil
	}
}

func readConfirmation(m *natsgo.Msg) (c confirmation, like bool) {
	if len(m.Header) > 0 || !bytes.HasPrefix(m.Data, []byte(`{"stream":`)) {
		return c, false
	}

	d := json.NewDecoder(bytes.NewReader(m.Data))
	d.DisallowUnknownFields()

	return c, d.Decode(&c) == nil && c.Seq > 0 && transport.ValidateName(c.Stream) == nil &&
		(c.Domain == "" || transport.ValidateName(c.Domain) == nil)
}

// confirmTimeout is how long the server may take to say whose a reply is.
const confirmTimeout = 2 * time.Second

// infoSubject is where the server tells of the stream.
func (c confirmation) infoSubject() string {
	api := "$JS.API"
	if c.Domain != "" {
		api = "$JS." + c.Domain + ".API"
	}

	return api + ".STREAM.INFO." + c.Stream
}

// confirms asks whether the stream of a confirmation has the subject. Its error
// says that this cannot be known.
func (t *Transport) confirms(ctx context.Context, c confirmation, subject string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()

	m, err := t.exchange(ctx, transport.Message{Subject: c.infoSubject()})
	if errors.Is(err, transport.ErrNoResponders) {
		return false, nil // there is no JetStream
	}

	if err != nil {
		return false, err
	}

	// Empty when the server answers that there is no such stream.
	var info struct {
		Config struct {
			Subjects []string `json:"subjects"`
			NoAck    bool     `json:"no_ack"` //nolint:tagliatelle // the name is the server's
		} `json:"config"`
	}

	if err := json.Unmarshal(m.Data, &info); err != nil {
		return false, fmt.Errorf("its answer: %w", err)
	}

	return !info.Config.NoAck &&
		slices.ContainsFunc(info.Config.Subjects, func(filter string) bool { return transport.Covers(filter, subject) }), nil
}

// subjects is a set of bounded size: when it is full it begins anew. A member is
// one for a minute: a stream may get the subject later.
type subjects struct {
	mu  sync.Mutex
	set map[string]time.Time // until when
}

const (
	maxSubjects  = 1024
	freeSubjects = time.Minute
)

func (s *subjects) has(subject string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()

	return time.Now().Before(s.set[subject])
}

func (s *subjects) add(subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.set == nil || len(s.set) >= maxSubjects {
		s.set = map[string]time.Time{}
	}

	s.set[subject] = time.Now().Add(freeSubjects)
}
