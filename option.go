package goflux

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/foomo/goflux/transport"
)

// Option is any option of this package. Constructors take the options of their
// role ([PublisherOption], [SubscriberOption], ...), so that most mistakes do
// not compile; where a transport's own constructor takes any Option, one that
// does not fit is reported with [ErrInvalidOption].
//
// Options are applied in order; the last one of a kind wins.
type Option interface {
	fmt.Stringer

	sealed()
}

// PublisherOption configures a publisher.
type PublisherOption interface {
	Option

	applyPublisher(c *publisherConfig) error
}

// SubscriberOption configures a subscriber.
type SubscriberOption interface {
	Option

	applySubscriber(c *subscriberConfig) error
}

// ConsumerOption configures a consumer.
type ConsumerOption interface {
	Option

	applyConsumer(c *consumerConfig) error
}

// RequesterOption configures a requester.
type RequesterOption interface {
	Option

	applyRequester(c *requesterConfig) error
}

// ResponderOption configures a responder.
type ResponderOption interface {
	Option

	applyResponder(c *responderConfig) error
}

// CommonOption fits every role.
type CommonOption interface {
	PublisherOption
	SubscriberOption
	ConsumerOption
	RequesterOption
	ResponderOption
}

// ReceiverOption fits whatever receives: subscribers, consumers and responders.
type ReceiverOption interface {
	SubscriberOption
	ConsumerOption
	ResponderOption
}

// ServingOption fits what serves until its context ends: subscribers and
// responders.
type ServingOption interface {
	SubscriberOption
	ResponderOption
}

// WithTelemetry sets where spans and metrics go, and how trace context crosses
// the wire. By default the global providers and propagator of OpenTelemetry
// are used, whenever they are set. Nil restores the default.
func WithTelemetry(t *Telemetry) CommonOption {
	return commonOption{"WithTelemetry", func(c *commonConfig) error {
		c.telemetry = t

		return nil
	}}
}

// WithLogger sets the logger for what no caller gets to see: failed handlers,
// payloads that do not decode, dropped messages. Payloads are never logged. By
// default it is slog.Default at the time of logging. Nil restores the default.
// What a logger does that panics is not logged, and has no other effect.
func WithLogger(l *slog.Logger) CommonOption {
	return commonOption{"WithLogger", func(c *commonConfig) error {
		c.logger = l

		return nil
	}}
}

// WithQueueGroup makes the subscription a member of the named group: each
// message goes to one member of it. On transports with durable groups
// (JetStream: a durable consumer of that name) the group keeps its place while
// no member is there. The name is checked with [transport.ValidateName].
//
// Without it, every subscription gets every message; a [Consumer] needs one, and
// a [Responder] has one, see [WithoutQueueGroup].
func WithQueueGroup(name string) ReceiverOption {
	return receiverOption{"WithQueueGroup", func(c *receiverConfig) error {
		c.group = name

		return transport.ValidateName(name)
	}}
}

// WithManualAck leaves settling to the handler: it must call Ack, Nak,
// NakWithDelay or Term on every message, or have it called later; what is
// not settled within the ack wait is delivered again. The error it returns is
// logged and does not settle. A payload that does not decode, and a panic before
// a verb, are settled as with automatic acks, since no handler can.
//
// Transports without acks refuse it with [ErrUnsupported]. With
// [WithStrictOrder] it is refused with [ErrInvalidOption]: there is no holding a
// key for a message that its handler settles, whenever that may be.
func WithManualAck() SubscriberOption {
	return subscriberOption{"WithManualAck", func(c *subscriberConfig) error {
		c.manual = true

		return nil
	}}
}

// WithAckSync makes automatic acks wait for the broker's confirmation, so that
// a message whose handler's success was recorded does not come again because
// an ack was lost. It costs a round trip per message. Transports without acks
// refuse it with [ErrUnsupported].
func WithAckSync() ServingOption {
	return servingOption{"WithAckSync", func(c *subscriberConfig) error {
		c.ackSync = true

		return nil
	}}
}

// WithReady sets a function that is called once per Subscribe or Serve, when the
// broker has the subscription: what is sent from then on is not missed. It is
// called from the goroutine of Subscribe or Serve and must not block.
func WithReady(ready func()) ServingOption {
	return servingOption{"WithReady", func(c *subscriberConfig) error {
		c.ready = ready

		return nil
	}}
}

// WithConcurrency sets how many handlers run at once, 1 to 65,536. The default is
// 1 for subscribers, which keeps the order of the subject, and 64 for responders,
// whose requests have no order. What is fetched ahead follows from n and the
// pace of the handlers. See [WithOrderingKey] for order with concurrency.
func WithConcurrency(n int) ServingOption {
	return servingOption{"WithConcurrency", func(c *subscriberConfig) error {
		c.concurrency = n

		if n < 1 || n > maxConcurrency {
			return fmt.Errorf("%w: a concurrency of %d: use 1 to %d", ErrInvalidOption, n, maxConcurrency)
		}

		return nil
	}}
}

// WithRetryPolicy sets how long a failed message waits for its redelivery; the
// default is [DefaultRetryPolicy]. A BackOff list in the configuration of a
// JetStream consumer wins over it. Where it panics, the default is used and the
// panic is logged. Transports without redelivery refuse it with
// [ErrUnsupported].
func WithRetryPolicy(p RetryPolicy) ServingOption {
	return servingOption{"WithRetryPolicy", func(c *subscriberConfig) error {
		c.retry, c.retrySet = p, true

		if p == nil {
			return fmt.Errorf("%w: the retry policy is nil", ErrInvalidOption)
		}

		return nil
	}}
}

// WithDrainTimeout sets how long running handlers may go on after the end of
// Subscribe's ctx, with a live context and their leases kept; the default is
// 30 s. Zero cancels them at once. Afterwards they have one more second to return,
// and no other one is started.
func WithDrainTimeout(d time.Duration) ServingOption {
	return servingOption{"WithDrainTimeout", func(c *subscriberConfig) error {
		c.drainTimeout = d

		if d < 0 {
			return fmt.Errorf("%w: a drain timeout of %v", ErrInvalidOption, d)
		}

		return nil
	}}
}

// WithMaxHandlingTime bounds one run of a handler: when it is over, the lease
// is no longer renewed and the handler's context ends with the cause
// [ErrMaxHandlingTime]. A handler that goes on all the same keeps the message
// until its lease has run out, which is an ack wait later at the most; the broker
// then delivers it again. By default there is no bound; zero means that.
func WithMaxHandlingTime(d time.Duration) ServingOption {
	return servingOption{"WithMaxHandlingTime", func(c *subscriberConfig) error {
		c.maxHandling = d

		if d < 0 {
			return fmt.Errorf("%w: a maximum handling time of %v", ErrInvalidOption, d)
		}

		return nil
	}}
}

const (
	maxConcurrency      = 1 << 16
	defaultDrainTimeout = 30 * time.Second
)

type commonConfig struct {
	telemetry *Telemetry
	logger    *slog.Logger
}

type publisherConfig struct {
	commonConfig

	adr22   *transport.Retry // nil: the transport's own
	ackWait time.Duration    // zero: the default
	safe    bool             // repeat under a stable id
	attempt time.Duration
	flush   bool
}

// receiverConfig is what subscribers and consumers share.
type receiverConfig struct {
	commonConfig

	group      string
	deadLetter *deadLetterConfig
}

type subscriberConfig struct {
	receiverConfig

	manual       bool
	ackSync      bool
	ready        func()
	concurrency  int
	retry        RetryPolicy
	retrySet     bool
	drainTimeout time.Duration
	maxHandling  time.Duration
	key          any // func(Message[T]) string
	strict       bool
}

type consumerConfig struct {
	receiverConfig
}

// named gives every kind of option its name, for error messages.
type named string

func (n named) String() string { return string(n) }
func (named) sealed()          {}

type commonOption struct {
	named

	apply func(*commonConfig) error
}

func (o commonOption) applyPublisher(c *publisherConfig) error   { return o.apply(&c.commonConfig) }
func (o commonOption) applySubscriber(c *subscriberConfig) error { return o.apply(&c.commonConfig) }
func (o commonOption) applyConsumer(c *consumerConfig) error     { return o.apply(&c.commonConfig) }
func (o commonOption) applyRequester(c *requesterConfig) error   { return o.apply(&c.commonConfig) }
func (o commonOption) applyResponder(c *responderConfig) error   { return o.apply(&c.commonConfig) }

type receiverOption struct {
	named

	apply func(*receiverConfig) error
}

func (o receiverOption) applySubscriber(c *subscriberConfig) error { return o.apply(&c.receiverConfig) }
func (o receiverOption) applyConsumer(c *consumerConfig) error     { return o.apply(&c.receiverConfig) }
func (o receiverOption) applyResponder(c *responderConfig) error   { return o.apply(&c.receiverConfig) }

type servingOption struct {
	named

	apply func(*subscriberConfig) error
}

func (o servingOption) applySubscriber(c *subscriberConfig) error { return o.apply(c) }
func (o servingOption) applyResponder(c *responderConfig) error   { return o.apply(&c.subscriberConfig) }

type publisherOption struct {
	named

	apply func(*publisherConfig) error
}

func (o publisherOption) applyPublisher(c *publisherConfig) error { return o.apply(c) }

type subscriberOption struct {
	named

	apply func(*subscriberConfig) error
}

func (o subscriberOption) applySubscriber(c *subscriberConfig) error { return o.apply(c) }

// optionsOf narrows options of any role to those of one, for the constructors
// of transports, which take any. It reports the first that does not fit.
func optionsOf[O Option](role string, opts []Option) ([]O, error) {
	fitting := make([]O, 0, len(opts))

	for _, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("%w: a nil option", ErrInvalidOption)
		}

		o, ok := opt.(O)
		if !ok {
			return nil, fmt.Errorf("%w: %s does not apply to a %s", ErrInvalidOption, opt, role)
		}

		fitting = append(fitting, o)
	}

	return fitting, nil
}

// applyOptions applies options with the given method, and names the one that
// fails.
func applyOptions[O Option, C any](opts []O, apply func(O, *C) error, c *C) error {
	for _, opt := range opts {
		if any(opt) == nil {
			return fmt.Errorf("%w: a nil option", ErrInvalidOption)
		}

		if err := apply(opt, c); err != nil {
			return fmt.Errorf("%s: %w", opt, err)
		}
	}

	return nil
}

// require reports with ErrUnsupported when the transport lacks what an option
// needs.
func require(t transport.Capable, used bool, option string, needs ...transport.Capability) error {
	if err := lacking(t, transport.Of(needs...)); used && err != nil {
		return fmt.Errorf("%s: %w", option, err)
	}

	return nil
}

// lacking reports with ErrUnsupported what a transport does not have.
func lacking(t transport.Capable, needs transport.Capabilities) error {
	has := t.Capabilities()
	if has&needs == needs {
		return nil
	}

	return fmt.Errorf("%w: it needs %s, this one has: %s", ErrUnsupported, needs, has)
}
