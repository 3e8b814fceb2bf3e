package goflux

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/foomo/goflux/transport"
)

const scope = "github.com/foomo/goflux"

// Telemetry is where spans and metrics go, and how trace context crosses the
// wire. It follows the messaging conventions of OpenTelemetry (semconv 1.43.0):
// a span "send {subject}" for each publish, "process {filter}" for each
// handling, linked to the span of the publisher rather than its child, since
// the two are apart in time.
//
// Nothing is allocated for it while no SDK is installed. A Telemetry may be
// shared by any number of publishers and subscribers, concurrently.
type Telemetry struct {
	tracerProvider trace.TracerProvider          // nil: the global one
	meterProvider  metric.MeterProvider          // nil: the global one
	propagator     propagation.TextMapPropagator // nil: the global one

	tracer atomic.Pointer[providedTracer]

	sent, consumed      metric.Int64Counter
	duration, processed metric.Float64Histogram
}

// TelemetryOption configures a [Telemetry].
type TelemetryOption interface{ applyTelemetry(t *Telemetry) }

type telemetryOption func(*Telemetry)

func (o telemetryOption) applyTelemetry(t *Telemetry) { o(t) }

// WithTracerProvider sets the provider of tracers. Nil means the global one, as
// it is when a span is started.
func WithTracerProvider(tp trace.TracerProvider) TelemetryOption {
	return telemetryOption(func(t *Telemetry) { t.tracerProvider = tp })
}

// WithMeterProvider sets the provider of meters. Nil means the global one.
func WithMeterProvider(mp metric.MeterProvider) TelemetryOption {
	return telemetryOption(func(t *Telemetry) { t.meterProvider = mp })
}

// WithPropagator sets what writes the trace context into headers and reads it
// from them. Nil means the global one, as it is when a message passes; that one
// propagates nothing until a program sets it.
func WithPropagator(p propagation.TextMapPropagator) TelemetryOption {
	return telemetryOption(func(t *Telemetry) { t.propagator = p })
}

// NewTelemetry returns a Telemetry. What no option sets comes from the globals
// of OpenTelemetry. It fails when the meter provider refuses an instrument.
func NewTelemetry(opts ...TelemetryOption) (*Telemetry, error) {
	t := &Telemetry{}

	for _, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("%w: a nil telemetry option", ErrInvalidOption)
		}

		opt.applyTelemetry(t)
	}

	mp := t.meterProvider
	if mp == nil {
		mp = otel.GetMeterProvider() // hands on to the SDK once that is installed
	}

	meter := mp.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))

	var errs [4]error

	t.sent, errs[0] = meter.Int64Counter("messaging.client.sent.messages",
		metric.WithUnit("{message}"), metric.WithDescription("Messages that were published, or whose publishing failed."))
	t.consumed, errs[1] = meter.Int64Counter("messaging.client.consumed.messages",
		metric.WithUnit("{message}"), metric.WithDescription("Messages that were delivered to the application."))
	t.duration, errs[2] = meter.Float64Histogram("messaging.client.operation.duration",
		metric.WithUnit("s"), metric.WithDescription("Duration of publishing."), metric.WithExplicitBucketBoundaries(buckets...))
	t.processed, errs[3] = meter.Float64Histogram("messaging.process.duration",
		metric.WithUnit("s"), metric.WithDescription("Duration of handling."), metric.WithExplicitBucketBoundaries(buckets...))

	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("goflux: telemetry: %w", err)
	}

	return t, nil
}

// buckets are those that the conventions recommend for durations; the generated
// instruments of semconv do not set them.
var buckets = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}

// defaultTelemetry serves all who configure none.
var defaultTelemetry = sync.OnceValue(func() *Telemetry {
	t, err := NewTelemetry()
	if err != nil {
		otel.Handle(err)

		return &Telemetry{}
	}

	return t
})

func (c *commonConfig) tel() *Telemetry {
	if c.telemetry != nil {
		return c.telemetry
	}

	return defaultTelemetry()
}

// placeholder is the global tracer provider before an SDK is installed: its
// spans record nothing, yet cost up to 700 bytes each. It is nil when an SDK
// was there before this package was initialised.
var placeholder = func() trace.TracerProvider {
	if tp := otel.GetTracerProvider(); reflect.TypeOf(tp).String() == "*global.tracerProvider" {
		return tp
	}

	return nil
}()

type providedTracer struct {
	provider trace.TracerProvider
	tracer   trace.Tracer
}

// tracing returns the tracer, or nil when nobody would see its spans.
func (t *Telemetry) tracing() trace.Tracer {
	tp := t.tracerProvider
	if tp == nil {
		// Asked each time: the global provider is replaced, not changed,
		// when an SDK is installed.
		if tp = otel.GetTracerProvider(); tp == placeholder {
			return nil
		}
	}

	if _, none := tp.(noop.TracerProvider); none {
		return nil
	}

	if reflect.TypeOf(tp).Kind() != reflect.Pointer {
		// What is no pointer may not be comparable, so it is not cached.
		return tp.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL))
	}

	if c := t.tracer.Load(); c != nil && c.provider == tp {
		return c.tracer
	}

	c := &providedTracer{tp, tp.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL))}
	t.tracer.Store(c)

	return c.tracer
}

// noPropagator is the global propagator before a program sets one: it does
// nothing.
var noPropagator = func() propagation.TextMapPropagator {
	if p := otel.GetTextMapPropagator(); reflect.TypeOf(p).String() == "*global.textMapPropagator" {
		return p
	}

	return nil
}()

// propagation returns the propagator, or nil when it would do nothing.
func (t *Telemetry) propagation() propagation.TextMapPropagator {
	if t.propagator != nil {
		return t.propagator
	}

	p := otel.GetTextMapPropagator()
	if reflect.TypeOf(p).Kind() == reflect.Pointer && p == noPropagator {
		return nil
	}

	return p
}

// inject writes the trace context of ctx into the header, which it makes when
// there is something to write and h is nil.
func (t *Telemetry) inject(ctx context.Context, h Header) Header {
	p := t.propagation()
	if p == nil {
		return h
	}

	c, _ := carriers.Get().(*carrier)
	c.header = h

	p.Inject(ctx, c)

	h, c.header = c.header, nil
	carriers.Put(c)

	return h
}

// extract returns ctx with the trace context that the header holds.
func (t *Telemetry) extract(ctx context.Context, h Header) context.Context {
	p := t.propagation()
	if len(h) == 0 || p == nil {
		return ctx
	}

	c, _ := carriers.Get().(*carrier)
	c.header = h

	ctx = p.Extract(ctx, c)

	c.header = nil
	carriers.Put(c)

	return ctx
}

var carriers = sync.Pool{New: func() any { return new(carrier) }}

// carrier lets a propagator read and write headers. It writes lowercase keys,
// as W3C Trace Context has them, and reads keys of any case, since Go's
// HeaderCarrier writes "Traceparent".
type carrier struct{ header Header }

func (c *carrier) Get(key string) string {
	if vs, ok := c.header[key]; ok && len(vs) > 0 {
		return vs[0]
	}

	for k, vs := range c.header {
		if len(vs) > 0 && strings.EqualFold(k, key) {
			return vs[0]
		}
	}

	return ""
}

func (c *carrier) Set(key, value string) {
	if c.header == nil {
		c.header = Header{}
	}

	c.header.Set(strings.ToLower(key), value)
}

func (c *carrier) Keys() []string {
	keys := make([]string, 0, len(c.header))
	for k := range c.header {
		keys = append(keys, k)
	}

	return keys
}

// clock returns the time at which an operation begins, or zero when nobody
// measures it: reading the clock costs more than the rest of a publish.
func (t *Telemetry) clock(ctx context.Context, counter metric.Int64Counter, duration metric.Float64Histogram) time.Time {
	if !enabled(ctx, counter) && !enabled(ctx, duration) {
		return time.Time{}
	}

	return time.Now()
}

// startSend starts the span of a publish. The span is nil when there is none.
func (t *Telemetry) startSend(ctx context.Context, subject, id string) (context.Context, trace.Span) {
	tracer := t.tracing()
	if tracer == nil {
		return ctx, nil
	}

	attrs := []attribute.KeyValue{
		semconv.MessagingSystemKey.String("nats"),
		semconv.MessagingOperationName("send"),
		semconv.MessagingOperationTypeSend,
		semconv.MessagingDestinationName(subject),
	}
	if id != "" {
		attrs = append(attrs, semconv.MessagingMessageID(id))
	}

	//nolint:spancheck // ended by its counterpart
	return tracer.Start(ctx, "send "+subject, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attrs...))
}

// endSend ends what startSend began, and counts.
func (t *Telemetry) endSend(ctx context.Context, span trace.Span, start time.Time, err error) {
	endSpan(span, err)

	if start.IsZero() {
		return
	}

	set := outcomeSet("send", "", err)
	t.sent.Add(ctx, 1, metric.WithAttributeSet(set))
	t.duration.Record(ctx, time.Since(start).Seconds(), metric.WithAttributeSet(set))
}

// startProcess starts the span of a handling: a root of its own, linked to the
// span the message was sent under. The baggage of the sender stays in ctx.
func (t *Telemetry) startProcess(ctx context.Context, d *transport.Delivery, filter string) (context.Context, trace.Span) {
	ctx = t.extract(ctx, d.Header)

	tracer := t.tracing()
	if tracer == nil {
		return ctx, nil
	}

	attrs := []attribute.KeyValue{
		semconv.MessagingSystemKey.String("nats"),
		semconv.MessagingOperationName("process"),
		semconv.MessagingOperationTypeProcess,
		semconv.MessagingDestinationName(d.Subject),
	}

	name := filter
	if name == "" {
		name = d.Subject
	} else if filter != d.Subject {
		attrs = append(attrs, semconv.MessagingDestinationTemplate(filter))
	}

	if id := headerID(d.Header); id != "" {
		attrs = append(attrs, semconv.MessagingMessageID(id))
	}

	opts := []trace.SpanStartOption{
		trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(attrs...),
	}
	if sender := trace.SpanContextFromContext(ctx); sender.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: sender}))
	}

	//nolint:spancheck // ended by its counterpart
	return tracer.Start(ctx, "process "+name, opts...)
}

// endProcess ends what startProcess began, and counts.
func (t *Telemetry) endProcess(ctx context.Context, span trace.Span, filter string, start time.Time, err error) {
	endSpan(span, err)

	if start.IsZero() {
		return
	}

	t.consumed.Add(ctx, 1, metric.WithAttributeSet(outcomeSet("process", filter, nil)))
	t.processed.Record(ctx, time.Since(start).Seconds(), metric.WithAttributeSet(outcomeSet("process", filter, err)))
}

// receive records that an application has fetched messages: a span that links to
// the senders', and a count.
func (t *Telemetry) receive(ctx context.Context, filter string, deliveries []transport.Delivery) {
	if enabled(ctx, t.consumed) {
		t.consumed.Add(ctx, int64(len(deliveries)), metric.WithAttributeSet(outcomeSet("receive", filter, nil)))
	}

	tracer := t.tracing()
	if tracer == nil {
		return
	}

	links := make([]trace.Link, 0, len(deliveries))

	for _, d := range deliveries {
		if sender := trace.SpanContextFromContext(t.extract(context.Background(), d.Header)); sender.IsValid() {
			links = append(links, trace.Link{SpanContext: sender})
		}
	}

	_, span := tracer.Start(ctx, "receive "+filter, trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(links...),
		trace.WithAttributes(
			semconv.MessagingSystemKey.String("nats"),
			semconv.MessagingOperationName("receive"),
			semconv.MessagingOperationTypeReceive,
			semconv.MessagingDestinationTemplate(filter),
			semconv.MessagingBatchMessageCount(len(deliveries)),
		))
	span.End()
}

func enabled(ctx context.Context, instrument interface {
	Enabled(ctx context.Context) bool
}) bool {
	return instrument != nil && instrument.Enabled(ctx)
}

func endSpan(span trace.Span, err error) {
	if span == nil {
		return
	}

	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		span.SetAttributes(semconv.ErrorTypeKey.String(transport.ErrorType(err)))
	}

	span.End()
}

// outcomeSet is the attributes of a measurement. Subjects are of unbounded
// cardinality, so only the filter of a subscription is among them.
func outcomeSet(operation, filter string, err error) attribute.Set {
	attrs := make([]attribute.KeyValue, 0, 5)
	attrs = append(attrs, semconv.MessagingSystemKey.String("nats"), semconv.MessagingOperationName(operation))

	if filter != "" {
		attrs = append(attrs, semconv.MessagingDestinationTemplate(filter))
	}

	if err != nil {
		attrs = append(attrs, semconv.ErrorTypeKey.String(transport.ErrorType(err)))
	}

	return attribute.NewSet(attrs...)
}
