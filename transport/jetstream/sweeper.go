package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// Sweeper stores as dead letters what a consumer gave up without its
// subscribers: messages whose handler's process died on the last attempt, so
// that nobody was left to do it (see goflux.WithDeadLetter). A message whose
// dead letter was stored, and only not terminated, is not stored twice: both
// are stored under the same id, within the de-duplication window of the stream.
//
// When the server gives a message up, it says so in an advisory, which holds no
// more than the message's sequence. A stream, GOFLUX_SWEEPER_ and the name of
// the consumer's stream, keeps the advisories until a sweeper has dealt with
// them. From [NewSweeper] on nothing is missed while no sweeper runs, and
// several share the work; what was given up before is not found, since the
// server has no list of it. Advisories are sent once and not confirmed: one that
// is under way while a server crashes is lost, and its message stays in the
// stream as it would without a sweeper.
//
// A request whose responder died (see [NewResponder]) is answered as well: its
// requester gets a goflux.RemoteError with the code 500 that tells how many
// attempts there were, unless its deadline has passed, or an answer is stored
// already.
//
// A message that is swept is terminated in the name of the consumer: a stream
// with work-queue or interest retention lets go of it. A message that was
// deleted from its stream before, or reached a limit of it, cannot be stored.
//
// A handler that lost its lease on the last attempt and succeeded after all may
// find its message among the dead letters, too.
type Sweeper struct {
	js        natsjs.JetStream
	stream    natsjs.Stream
	consumer  natsjs.Consumer
	publisher *Transport
	subject   string
	sub       *Subscriber[advisory]
}

// advisory is what the server sends when a message has been delivered as often
// as its consumer allows: schema io.nats.jetstream.advisory.v1.max_deliver.
type advisory struct {
	Time       time.Time `json:"timestamp"`
	Stream     string    `json:"stream"`
	Consumer   string    `json:"consumer"`
	Sequence   uint64    `json:"stream_seq"` //nolint:tagliatelle // the server's name
	Deliveries int       `json:"deliveries"`
}

const (
	advisoryPrefix = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES."
	sweeperPrefix  = "GOFLUX_SWEEPER_"
)

// NewSweeper returns a sweeper for a durable consumer, whose dead letters go to
// subject. It makes sure that there is a stream for the advisories, with the
// storage and the replicas of the consumer's stream, and on it a durable
// consumer for the sweepers of this one; both stay when the sweeper ends. Where
// another stream has the advisories already, it takes that.
//
// ctx bounds the construction, which takes ten seconds at most. It fails with an
// [*transport.Error] around [transport.ErrInvalidOption] (something is nil; the
// consumer is not durable, has no MaxDeliver, or would receive its own dead
// letters), [transport.ErrInvalidSubject], [transport.ErrConsumerNotFound],
// [transport.ErrStreamNotFound], or what the server refuses as
// [*natsjs.APIError]. The handle and the consumer stay the caller's.
func NewSweeper(
	ctx context.Context, js natsjs.JetStream, consumer natsjs.Consumer, subject string, opts ...goflux.CommonOption,
) (*Sweeper, error) {
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()

	s, err := newSweeper(ctx, js, consumer, subject, opts)
	if err != nil {
		return nil, &transport.Error{Op: "new sweeper", Subject: subject, Err: mapError(err)}
	}

	return s, nil
}

func newSweeper(
	ctx context.Context, js natsjs.JetStream, consumer natsjs.Consumer, subject string, opts []goflux.CommonOption,
) (*Sweeper, error) {
	if js == nil || consumer == nil {
		return nil, invalid("the JetStream handle or the consumer is nil")
	}

	if err := transport.ValidateSubject(subject); err != nil {
		return nil, err
	}

	info, err := consumer.Info(ctx)
	if err != nil {
		return nil, mapError(err)
	}

	switch selected := filters(info.Config); {
	case info.Config.Durable == "":
		return nil, invalid("the consumer %q is not durable", info.Name)
	case info.Config.MaxDeliver < 1:
		return nil, invalid("the consumer %q has no MaxDeliver, so it never gives up", info.Name)
	case slices.ContainsFunc(selected, func(f string) bool { return transport.Covers(f, subject) }):
		return nil, invalid("the consumer %q would receive its own dead letters, an endless loop", info.Name)
	}

	s := &Sweeper{js: js, consumer: consumer, subject: subject}

	if s.publisher, err = New(js); err != nil {
		return nil, err
	}

	if s.stream, err = js.Stream(ctx, info.Stream); err != nil {
		return nil, mapError(err)
	}

	advisories, err := s.advisories(ctx)
	if err != nil {
		return nil, err
	}

	options := make([]Option, 0, len(opts))
	for _, opt := range opts {
		options = append(options, opt)
	}

	s.sub = NewSubscriber(advisories, goflux.Codec[advisory]{
		Encode: func(a advisory) ([]byte, error) { return json.Marshal(a) },
		Decode: func(data []byte, a *advisory) error { return json.Unmarshal(data, a) },
	}, options...)

	return s, nil
}

// advisories returns a consumer of the advisories.
func (s *Sweeper) advisories(ctx context.Context) (natsjs.Consumer, error) {
	source, durable := s.stream.CachedInfo().Config, s.consumer.CachedInfo().Name
	filter := advisoryPrefix + source.Name + "." + durable

	name, err := s.js.StreamNameBySubject(ctx, filter)
	if errors.Is(err, natsjs.ErrStreamNotFound) {
		name = sweeperPrefix + source.Name
		err = ensureStream(ctx, s.js, natsjs.StreamConfig{
			Name:        name,
			Description: "What consumers of " + source.Name + " gave up, for goflux sweepers.",
			Subjects:    []string{advisoryPrefix + source.Name + ".*"},
			Retention:   natsjs.InterestPolicy, // only what a sweeper waits for
			Storage:     source.Storage,
			Replicas:    source.Replicas,
		})
	}

	if err != nil {
		return nil, mapError(err)
	}

	consumer, err := s.js.CreateOrUpdateConsumer(ctx, name, natsjs.ConsumerConfig{
		Durable:       sweeperPrefix + durable,
		FilterSubject: filter,
		AckPolicy:     natsjs.AckExplicitPolicy,
	})

	return consumer, mapError(err)
}

// Run sweeps until ctx ends, and returns when what was begun is done. What fails
// is tried again, after a delay that grows to 30 s, and logged. The error is
// that of a subscription to the advisories, see goflux.Subscriber.
func (s *Sweeper) Run(ctx context.Context) error {
	return s.sub.Subscribe(ctx, "", s.sweep)
}

// missingTries is how often a message is looked for: a replica of the stream
// that answers may be behind.
const missingTries = 3

func (s *Sweeper) sweep(ctx context.Context, msg goflux.Message[advisory]) error {
	a := msg.Payload

	if info := s.consumer.CachedInfo(); a.Stream != info.Stream || a.Consumer != info.Name {
		return goflux.Drop(fmt.Errorf("an advisory about the consumer %q of %q", a.Consumer, a.Stream))
	}

	raw, err := s.stream.GetMsg(ctx, a.Sequence)

	switch {
	case errors.Is(err, natsjs.ErrMsgNotFound) && msg.Attempt() < missingTries:
		return goflux.RetryAfter(time.Second, err)
	case errors.Is(err, natsjs.ErrMsgNotFound):
		return goflux.Drop(fmt.Errorf("sequence %d was settled after all, or deleted: %w", a.Sequence, err))
	case gone(mapError(err)):
		return goflux.Drop(mapError(err))
	case err != nil:
		return mapError(err)
	case raw.Time.After(a.Time):
		// The stream was created anew, and has another message there.
		return goflux.Drop(fmt.Errorf("sequence %d is younger than the advisory of %v", a.Sequence, a.Time))
	}

	header := storedHeader(s.stream, raw)

	err = goflux.StoreDeadLetter(ctx, s.publisher, s.subject, goflux.DeadLetter[[]byte]{
		Subject:  raw.Subject,
		Header:   header,
		Raw:      raw.Data,
		Reason:   goflux.ReasonExhausted,
		Error:    "the last attempt was not settled: its process died, or its lease was lost",
		Attempts: a.Deliveries,
		Stream:   a.Stream,
		Sequence: a.Sequence,
		Consumer: a.Consumer,
		Stored:   raw.Time,
		Time:     a.Time,
	})
	if err != nil {
		return err
	}

	if err := s.answer(ctx, a, header, raw, msg.Attempt()); err != nil {
		return err
	}

	return s.terminate(ctx, a, raw.Time)
}

// answerTries is how often a requester is looked for that waits no more, or is
// about to reconnect.
const answerTries = 3

// answer tells a requester that its request was given up. Nothing happens for
// what is no request.
func (s *Sweeper) answer(ctx context.Context, a advisory, header transport.Header, raw *natsjs.RawStreamMsg, tries int) error {
	if due, bounded := transport.ReadDeadline(header, raw.Time); bounded && !time.Now().Before(due) {
		return nil
	}

	request := transport.Delivery{Subject: raw.Subject, Header: header, Settler: unsettled{transport.Metadata{
		Stream: a.Stream, Consumer: a.Consumer, Sequence: a.Sequence, Attempt: a.Deliveries, Timestamp: raw.Time,
	}}}

	err := goflux.ReplyWithError(ctx, answers{bound{s.consumer}, s.publisher}, request,
		goflux.NewError(http.StatusInternalServerError, fmt.Sprintf("the request was given up; attempts: %d", a.Deliveries)))

	switch {
	case errors.Is(err, transport.ErrInvalidSubject), err != nil && tries >= answerTries && !errors.Is(err, transport.ErrUnavailable):
		return nil // nobody is there
	default:
		return err
	}
}

// terminate settles a message as its handler would have done. The server takes
// the settlement of a message that it gave up, and has the stream let go of it
// where that waits for acks (nats-server v2.15.2). The consumer's sequence in
// the subject is of no account for explicit acks.
func (s *Sweeper) terminate(ctx context.Context, a advisory, stored time.Time) error {
	subject := fmt.Sprintf("$JS.ACK.%s.%s.%d.%d.%d.%d.0", a.Stream, a.Consumer, a.Deliveries, a.Sequence, a.Sequence, stored.UnixNano())

	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()

	_, err := s.js.Conn().RequestWithContext(ctx, subject, []byte("+TERM "+goflux.ReasonExhausted))
	if err == nil {
		return nil
	}

	if _, ierr := s.consumer.Info(ctx); gone(mapError(ierr)) {
		return nil // nobody to settle for
	}

	return fmt.Errorf("terminate sequence %d: %w", a.Sequence, mapError(err))
}
