package goflux

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// The messaging conventions (semconv 1.43.0) do not know requests. A request is
// a send that lasts until the reply, and its name says so; the responder's side
// is a process like any other.
const operationRequest = "request"

// startRequest starts the span of a request. The span is nil when there is none.
func (t *Telemetry) startRequest(ctx context.Context, subject, id string) (context.Context, trace.Span) {
	tracer := t.tracing()
	if tracer == nil {
		return ctx, nil
	}

	attrs := []attribute.KeyValue{
		semconv.MessagingSystemKey.String("nats"),
		semconv.MessagingOperationName(operationRequest),
		semconv.MessagingOperationTypeSend,
		semconv.MessagingDestinationName(subject),
	}
	if id != "" {
		attrs = append(attrs, semconv.MessagingMessageID(id))
	}

	//nolint:spancheck // ended by its counterpart
	return tracer.Start(ctx, operationRequest+" "+subject, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attrs...))
}

// endRequest ends what startRequest began, with a link to the span under which
// the reply was sent, and counts.
func (t *Telemetry) endRequest(ctx context.Context, span trace.Span, start time.Time, reply Header, err error) {
	if span != nil {
		if responder := trace.SpanContextFromContext(t.extract(context.Background(), reply)); responder.IsValid() {
			span.AddLink(trace.Link{SpanContext: responder})
		}
	}

	endSpan(span, err)

	if start.IsZero() {
		return
	}

	set := outcomeSet(operationRequest, "", err)
	t.sent.Add(ctx, 1, metric.WithAttributeSet(set))
	t.duration.Record(ctx, time.Since(start).Seconds(), metric.WithAttributeSet(set))
}
