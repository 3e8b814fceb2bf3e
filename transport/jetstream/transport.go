package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// inactiveThreshold is how long a consumer of a subscription without a group
// survives its subscriber. It is long enough for a server's restart and for
// settlements that come late.
const inactiveThreshold = 5 * time.Minute

// releaseTimeout bounds what Close does for consumers that are to be deleted.
const releaseTimeout = 2 * time.Second

// consumes is what a subscription over a consumer with explicit acks can do.
var consumes = transport.Of(
	transport.Acks, transport.Redelivery, transport.DelayedNak, transport.Attempts, transport.Leases,
	transport.Groups, transport.Durable, transport.Replay, transport.Persistent, transport.Fetching,
)

// Transport publishes to the streams behind a JetStream handle and subscribes
// to them.
//
// A subscription with a group uses the durable consumer of that name. A missing
// one is created, with explicit acks, all messages of the subject from the
// first, and the server's defaults (ack wait 30 s, no limit of deliveries,
// 1000 unsettled at most); see [WithConsumerConfig]. One that exists is left as
// it is. A subscription without a group gets a consumer of its own, which is
// deleted on Close, or five minutes after its subscriber was lost.
//
// Publish returns when the stream has stored the message. It sends the
// message's id as Nats-Msg-Id, by which the stream stores it once (within its
// de-duplication window, 2 minutes by default). Where ctx has no deadline, the
// handle's default timeout is one (5 s).
//
// It is safe for concurrent use.
type Transport struct {
	js        natsjs.JetStream
	stream    string
	configure []func(*natsjs.ConsumerConfig)

	// disconnect closes what [transport.Open] made; nil on a caller's handle.
	disconnect func() error

	published   receipts
	schedulable schedules

	closed    atomic.Bool
	mu        sync.Mutex
	subs      map[*subscription]struct{}
	pipelines map[*pipeline]struct{}
}

var _ transport.Transport = (*Transport)(nil)

// TransportOption configures [New].
type TransportOption interface{ applyTransport(t *Transport) error }

type transportOptionFunc func(*Transport) error

func (f transportOptionFunc) applyTransport(t *Transport) error { return f(t) }

// WithStream names the stream that is subscribed to. By default it is the one
// that has the subject of the subscription, which fails where several have; a
// subject with wildcards may touch more than one. It has no effect on
// publishing, where the subject alone decides. An empty name is
// [transport.ErrInvalidOption].
func WithStream(name string) TransportOption {
	return transportOptionFunc(func(t *Transport) error {
		if name == "" || strings.ContainsAny(name, " \t\r\n.*>/\\") {
			return invalid("WithStream: %q cannot be the name of a stream", name)
		}

		t.stream = name

		return nil
	})
}

// WithConsumerConfig lets configure change the configuration of each consumer
// that a subscription creates: its ack wait, limits, BackOff, start. It has no
// effect on consumers that exist. The name, the subject and the explicit acks
// belong to the subscription: changing them makes Subscribe fail with
// [transport.ErrInvalidOption]. Several options apply in their order; a nil
// function is [transport.ErrInvalidOption].
func WithConsumerConfig(configure func(*natsjs.ConsumerConfig)) TransportOption {
	return transportOptionFunc(func(t *Transport) error {
		if configure == nil {
			return invalid("WithConsumerConfig: the function is nil")
		}

		t.configure = append(t.configure, configure)

		return nil
	})
}

// New returns a transport over js. The handle and its connection stay the
// caller's: Close leaves them open. It fails with [transport.ErrInvalidOption]
// for a nil handle or a bad option.
func New(js natsjs.JetStream, opts ...TransportOption) (*Transport, error) {
	if js == nil {
		return nil, &transport.Error{Op: opOpen, Err: invalid("the JetStream handle is nil")}
	}

	t := &Transport{js: js, subs: make(map[*subscription]struct{}), pipelines: make(map[*pipeline]struct{})}

	for _, opt := range opts {
		if opt == nil {
			continue
		}

		if err := opt.applyTransport(t); err != nil {
			return nil, &transport.Error{Op: opOpen, Err: err}
		}
	}

	return t, nil
}

// Capabilities implements [transport.Capable]. Message TTLs, delayed delivery
// and atomic batches have to be allowed by the stream that is published to;
// where they are not, the error says what to set.
func (t *Transport) Capabilities() transport.Capabilities {
	return consumes | publishes
}

// Subscribe implements [transport.Subscriber]. Every error is a
// [*transport.Error] around a sentinel of package transport, an error of ctx,
// or what the server refuses as [*natsjs.APIError].
//
// The subject must cover the filter of a group's consumer that exists already;
// where it covers more than that consumer selects, Notify is told.
func (t *Transport) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	s, err := t.subscribe(ctx, cfg)
	if err != nil {
		return nil, attachError(cfg, t.stream, cfg.Group, err)
	}

	return s, nil
}

func (t *Transport) subscribe(ctx context.Context, cfg transport.SubscribeConfig) (*subscription, error) {
	if t.closed.Load() {
		return nil, transport.ErrClosed
	}

	if err := transport.ValidateFilter(cfg.Subject); err != nil {
		return nil, err
	}

	stream := t.stream
	if stream == "" {
		var err error
		if stream, err = t.find(ctx, cfg.Subject); err != nil {
			return nil, err
		}
	}

	s, err := t.attach(ctx, stream, cfg)
	if err != nil {
		return nil, attachError(cfg, stream, cfg.Group, err)
	}

	s.forget = t.forget

	// Close goes through the subscriptions after it has set closed, so that it
	// sees this one, or this one sees closed.
	t.mu.Lock()
	t.subs[s] = struct{}{}
	t.mu.Unlock()

	go s.run()

	if t.closed.Load() {
		return nil, errors.Join(transport.ErrClosed, s.Close(ctx))
	}

	return s, nil
}

// attach makes a subscription on stream, with the consumer it needs.
func (t *Transport) attach(ctx context.Context, stream string, cfg transport.SubscribeConfig) (*subscription, error) {
	if cfg.Group != "" {
		return t.join(ctx, stream, cfg)
	}

	consumer, err := t.create(ctx, stream, natsjs.ConsumerConfig{
		FilterSubject:     cfg.Subject,
		InactiveThreshold: inactiveThreshold,
	})
	if err != nil {
		return nil, err
	}

	info := consumer.CachedInfo()
	release := func(ctx context.Context) error { return t.js.DeleteConsumer(ctx, stream, info.Name) }

	s, err := newSubscription(consumer, info, cfg, nil)
	if err != nil {
		return nil, errors.Join(err, release(ctx))
	}

	s.release, s.settler.unsettled = release, new(atomic.Int64)

	return s, nil
}

// join makes a subscription on the durable consumer of a group.
func (t *Transport) join(ctx context.Context, stream string, cfg transport.SubscribeConfig) (*subscription, error) {
	consumer, err := t.group(ctx, stream, cfg)
	if err != nil {
		return nil, err
	}

	info := consumer.CachedInfo()

	subjects, err := t.subjects(ctx, stream, cfg, info)
	if err != nil {
		return nil, err
	}

	s, err := newSubscription(consumer, info, cfg, subjects)
	if err != nil {
		return nil, err
	}

	selected := filters(info.Config)
	if len(selected) > 0 && !slices.ContainsFunc(selected, func(f string) bool { return transport.Covers(f, cfg.Subject) }) {
		s.notify(fmt.Errorf("%w: the group's consumer exists and selects only %q, less than %q",
			transport.ErrSubjectMismatch, strings.Join(selected, ", "), cfg.Subject))
	}

	return s, nil
}

// find returns the one stream that has subject.
func (t *Transport) find(ctx context.Context, subject string) (string, error) {
	lister := t.js.StreamNames(ctx, natsjs.WithStreamListSubject(subject))

	var names []string
	for name := range lister.Name() {
		names = append(names, name)
	}

	switch err := lister.Err(); {
	case err != nil:
		return "", mapError(err)
	case len(names) == 0:
		return "", fmt.Errorf("%w: no stream has this subject: create one, or name it with WithStream", transport.ErrStreamNotFound)
	case len(names) > 1:
		return "", invalid("the streams %s have this subject: choose one with WithStream", strings.Join(names, ", "))
	default:
		return names[0], nil
	}
}

// group returns the durable consumer of the group.
func (t *Transport) group(ctx context.Context, stream string, cfg transport.SubscribeConfig) (natsjs.Consumer, error) {
	if err := transport.ValidateName(cfg.Group); err != nil {
		return nil, err
	}

	consumer, err := t.js.Consumer(ctx, stream, cfg.Group)
	if !errors.Is(err, natsjs.ErrConsumerNotFound) {
		return consumer, mapError(err)
	}

	consumer, err = t.create(ctx, stream, natsjs.ConsumerConfig{Durable: cfg.Group, FilterSubject: cfg.Subject})
	if errors.Is(err, natsjs.ErrConsumerExists) {
		// Another member came first, with another configuration.
		consumer, err = t.js.Consumer(ctx, stream, cfg.Group)
	}

	return consumer, mapError(err)
}

func (t *Transport) create(ctx context.Context, stream string, cfg natsjs.ConsumerConfig) (natsjs.Consumer, error) {
	name, subject := cfg.Durable, cfg.FilterSubject

	for _, configure := range t.configure {
		configure(&cfg)
	}

	if cfg.Durable != name || (cfg.Name != "" && cfg.Name != name) || cfg.FilterSubject != subject || len(cfg.FilterSubjects) > 0 {
		return nil, invalid("WithConsumerConfig changed the name or the subject, which come from the subscription")
	}

	if cfg.AckPolicy != natsjs.AckExplicitPolicy {
		return nil, invalid("WithConsumerConfig set the ack policy %q: it must stay explicit", cfg.AckPolicy)
	}

	consumer, err := t.js.CreateConsumer(ctx, stream, cfg)

	return consumer, mapError(err)
}

// subjects returns what the messages of stream are stored under, where that
// matters and can be known.
func (t *Transport) subjects(
	ctx context.Context, stream string, cfg transport.SubscribeConfig, info *natsjs.ConsumerInfo,
) ([]string, error) {
	if len(filters(info.Config)) > 0 || cfg.Subject == ">" {
		return nil, nil
	}

	s, err := t.js.Stream(ctx, stream)
	if err != nil {
		return nil, mapError(err)
	}

	c := s.CachedInfo().Config
	if c.SubjectTransform != nil || c.Mirror != nil || len(c.Sources) > 0 {
		return nil, nil
	}

	return c.Subjects, nil
}

func (t *Transport) forget(s *subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()

	delete(t.subs, s)
}

// Close implements [transport.Transport]. It deletes the consumers of
// subscriptions without a group, waits up to two seconds for that, and returns
// what went wrong. What is being published asynchronously is not confirmed any
// more: close the publishers before.
func (t *Transport) Close() error {
	if t.closed.Swap(true) {
		return nil
	}

	t.mu.Lock()
	subs := make([]*subscription, 0, len(t.subs))

	for s := range t.subs {
		subs = append(subs, s)
	}

	var pipelines sync.WaitGroup

	for p := range t.pipelines {
		pipelines.Go(func() {
			p.end(transport.ErrClosed)

			_ = p.Close()
		})
	}
	t.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()

	var errs []error

	for _, s := range subs {
		s.end(transport.ErrClosed)
		<-s.stopped

		if err := s.dispose(ctx); err != nil {
			errs = append(errs, err)
		}
	}

	pipelines.Wait()

	if t.disconnect != nil {
		errs = append(errs, t.disconnect())
	}

	return errors.Join(errs...)
}

// attachError gives err its circumstances, unless it has them.
func attachError(cfg transport.SubscribeConfig, stream, consumer string, err error) error {
	if _, ok := errors.AsType[*transport.Error](err); ok {
		return err
	}

	return &transport.Error{Op: opSubscribe, Subject: cfg.Subject, Stream: stream, Consumer: consumer, Err: mapError(err)}
}
