package jetstream

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// replyAge is how long a reply is kept where nothing else is said.
const replyAge = 24 * time.Hour

// apiTimeout bounds one question to the JetStream API.
const apiTimeout = 2 * time.Second

// replyStream is the stream that keeps the replies of submitted requests, each
// on its own subject: the first one only.
type replyStream struct {
	cfg     natsjs.StreamConfig
	prefix  string // of the subjects
	ensured atomic.Bool
}

// newReplyStream completes and checks the configuration.
func newReplyStream(cfg natsjs.StreamConfig) (*replyStream, error) {
	if !validStreamName(cfg.Name) {
		return nil, invalid("WithReplyStream: %q cannot be the name of a stream", cfg.Name)
	}

	if len(cfg.Subjects) == 0 {
		cfg.Subjects = []string{cfg.Name + ".*"}
	}

	prefix, wild := strings.CutSuffix(cfg.Subjects[0], "*")
	if !wild {
		prefix, wild = strings.CutSuffix(cfg.Subjects[0], ">")
	}

	if err := transport.ValidateSubject(prefix + "id"); err != nil || !wild || !strings.HasSuffix(prefix, ".") {
		return nil, invalid("WithReplyStream: the subject %q: the first one must be like replies.*", cfg.Subjects[0])
	}

	if cfg.MaxAge == 0 {
		cfg.MaxAge = replyAge
	}

	if cfg.MaxMsgsPerSubject == 0 && cfg.Discard == natsjs.DiscardOld {
		cfg.MaxMsgsPerSubject, cfg.Discard, cfg.DiscardNewPerSubject = 1, natsjs.DiscardNew, true
	}

	return &replyStream{cfg: cfg, prefix: prefix}, check(cfg, prefix)
}

// check reports what a stream needs that is to keep replies, and lacks.
func check(cfg natsjs.StreamConfig, prefix string) error {
	covered := false
	for _, s := range cfg.Subjects {
		covered = covered || transport.Covers(s, prefix+"id")
	}

	switch {
	case !covered:
		return invalid("the stream of replies, %q, does not have the subject %q", cfg.Name, prefix+"*")
	case cfg.MaxAge <= 0:
		return invalid("the stream of replies, %q, has no MaxAge: replies would stay for ever", cfg.Name)
	case cfg.MaxMsgsPerSubject != 1 || cfg.Discard != natsjs.DiscardNew || !cfg.DiscardNewPerSubject:
		return invalid("the stream of replies, %q, does not keep the first reply of each request: "+
			"it needs MaxMsgsPerSubject 1, DiscardNew and DiscardNewPerSubject", cfg.Name)
	case cfg.Retention != natsjs.LimitsPolicy:
		return invalid("the stream of replies, %q, has another retention than limits: a reply could be awaited once", cfg.Name)
	default:
		return nil
	}
}

func (s *replyStream) subject(id string) string { return s.prefix + id }

// ensure makes sure that the stream exists and is fit, once.
func (s *replyStream) ensure(ctx context.Context, js natsjs.JetStream) error {
	if s.ensured.Load() {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()

	if err := ensureStream(ctx, js, s.cfg); err != nil {
		return err
	}

	stream, err := js.Stream(ctx, s.cfg.Name)
	if err != nil {
		return err //nolint:wrapcheck // the caller does
	}

	if err := check(stream.CachedInfo().Config, s.prefix); err != nil {
		return err
	}

	s.ensured.Store(true)

	return nil
}

// forget lets ensure look again.
func (s *replyStream) forget() { s.ensured.Store(false) }

// getRequest asks for one message of a stream, by one of its fields.
type getRequest struct {
	Sequence uint64 `json:"seq,omitempty"`
	LastFor  string `json:"last_by_subj,omitempty"` //nolint:tagliatelle // as the API has it
}

// leaderGet reads a message from the leader of a stream. nats.go v1.55.0 reads
// from any replica where the stream allows it, and there what was just stored
// may be missing.
func leaderGet(ctx context.Context, js natsjs.JetStream, stream string, what getRequest) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()

	data, err := json.Marshal(what)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", transport.ErrInvalidOption, err)
	}

	m, err := ask(ctx, js.Conn(), &nats.Msg{Subject: apiPrefix(js) + "STREAM.MSG.GET." + stream, Data: data})
	if err != nil {
		return nil, err
	}

	var answer struct {
		Error   *natsjs.APIError `json:"error"`
		Message *struct {
			Subject string `json:"subject"`
			Header  []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}

	err = json.Unmarshal(m.Data, &answer)

	switch {
	case err != nil:
		return nil, fmt.Errorf("an answer of the JetStream API that is no JSON: %w", err)
	case answer.Error != nil && answer.Error.ErrorCode == natsjs.JSErrCodeMessageNotFound:
		return nil, natsjs.ErrMsgNotFound
	case answer.Error != nil:
		return nil, mapError(answer.Error)
	case answer.Message == nil:
		return nil, natsjs.ErrInvalidJetStreamResponse
	}

	found := &nats.Msg{Subject: answer.Message.Subject, Data: answer.Message.Data}

	if len(answer.Message.Header) > 0 {
		if found.Header, err = nats.DecodeHeadersMsg(answer.Message.Header); err != nil {
			return nil, err //nolint:wrapcheck // the caller does
		}
	}

	return found, nil
}

// ask is a request over core NATS that leaves nothing in the client: nats.go
// v1.55.0 keeps an entry in the connection's map of replies for ever when it
// cannot send one.
func ask(ctx context.Context, nc *nats.Conn, m *nats.Msg) (*nats.Msg, error) {
	if err := writable(nc); err != nil {
		return nil, err
	}

	if err := checkSize(nc, m.Header, m.Data); err != nil {
		return nil, err
	}

	reply, err := request(ctx, nc, m.Subject, m.Header, m.Data)

	return reply, mapError(err)
}

// apiPrefix returns what the subjects of the JetStream API begin with.
func apiPrefix(js natsjs.JetStream) string {
	switch o := js.Options(); {
	case o.APIPrefix != "":
		return strings.TrimSuffix(o.APIPrefix, ".") + "."
	case o.Domain != "":
		return "$JS." + o.Domain + ".API."
	default:
		return natsjs.DefaultAPIPrefix
	}
}
