package goflux_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	json "github.com/foomo/goencode/json/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

// observed is a telemetry and what it saw.
type observed struct {
	*goflux.Telemetry

	spans  *tracetest.SpanRecorder
	reader *metric.ManualReader
	tracer trace.Tracer
}

func observe(t *testing.T) *observed {
	t.Helper()

	o := &observed{spans: tracetest.NewSpanRecorder(), reader: metric.NewManualReader()}
	tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(o.spans))
	mp := metric.NewMeterProvider(metric.WithReader(o.reader))

	t.Cleanup(func() {
		_ = tp.Shutdown(context.Background())
		_ = mp.Shutdown(context.Background())
	})

	o.tracer = tp.Tracer("test")

	var err error

	o.Telemetry, err = goflux.NewTelemetry(goflux.WithTracerProvider(tp), goflux.WithMeterProvider(mp),
		goflux.WithPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})))
	if err != nil {
		t.Fatal(err)
	}

	return o
}

func (o *observed) span(t *testing.T, name string) sdktrace.ReadOnlySpan {
	t.Helper()

	i := slices.IndexFunc(o.spans.Ended(), func(s sdktrace.ReadOnlySpan) bool { return s.Name() == name })
	if i < 0 {
		t.Fatalf("no span %q among %v", name, o.spans.Ended())
	}

	return o.spans.Ended()[i]
}

func quiet() goflux.CommonOption { return goflux.WithLogger(slog.New(slog.DiscardHandler)) }

// handleOne subscribes to filter, publishes one order on subject under ctx, and
// returns when it was handled with the given outcome.
func handleOne(ctx context.Context, t *testing.T, o *observed, filter, subject string, outcome error) goflux.Message[order] {
	t.Helper()

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()

	pub, err := goflux.NewPublisher(tr, json.NewCodec[order](), goflux.WithTelemetry(o.Telemetry))
	if err != nil {
		t.Fatal(err)
	}

	ready := make(chan struct{})

	sub, err := goflux.NewSubscriber(tr, json.NewCodec[order](), goflux.WithTelemetry(o.Telemetry), quiet(),
		goflux.WithReady(func() { close(ready) }))
	if err != nil {
		t.Fatal(err)
	}

	serving, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	got := make(chan goflux.Message[order], 1)

	go func() {
		ended <- sub.Subscribe(serving, filter, func(hctx context.Context, msg goflux.Message[order]) error {
			_, child := o.tracer.Start(hctx, "work")
			child.SetAttributes(attribute.String("baggage", baggage.FromContext(hctx).Member("tenant").Value()))
			child.End()

			got <- msg

			stop()

			return outcome
		})
	}()

	<-ready

	if err := pub.Publish(ctx, subject, order{ID: "1"}); err != nil {
		t.Fatal(err)
	}

	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	return <-got
}

func TestTraceCrossesTheWireAsALink(t *testing.T) {
	t.Parallel()

	o := observe(t)
	member, err := baggage.NewMember("tenant", "acme")
	if err != nil {
		t.Fatal(err)
	}

	bag, err := baggage.New(member)
	if err != nil {
		t.Fatal(err)
	}

	ctx, caller := o.tracer.Start(baggage.ContextWithBaggage(t.Context(), bag), "caller")
	msg := handleOne(goflux.WithMessageID(ctx, "m-1"), t, o, "orders.*", "orders.created", nil)

	caller.End()

	if _, lowercase := msg.Header["traceparent"]; !lowercase {
		t.Errorf("the headers are %v, want a lowercase traceparent", msg.Header)
	}

	send, process, work := o.span(t, "send orders.created"), o.span(t, "process orders.*"), o.span(t, "work")

	if send.SpanKind() != trace.SpanKindProducer || send.Parent().SpanID() != caller.SpanContext().SpanID() {
		t.Errorf("send is a %v below %v", send.SpanKind(), send.Parent())
	}

	if process.SpanKind() != trace.SpanKindConsumer || process.Parent().IsValid() {
		t.Errorf("process is a %v below %v, want a root", process.SpanKind(), process.Parent())
	}

	if l := process.Links(); len(l) != 1 || l[0].SpanContext.SpanID() != send.SpanContext().SpanID() ||
		l[0].SpanContext.TraceID() != caller.SpanContext().TraceID() {
		t.Errorf("process has the links %v, want one to send", l)
	}

	if work.Parent().SpanID() != process.SpanContext().SpanID() {
		t.Error("the handler's span is not below process")
	}

	if !slices.Contains(work.Attributes(), attribute.String("baggage", "acme")) {
		t.Error("the baggage did not arrive")
	}

	for _, want := range []attribute.KeyValue{
		attribute.String("messaging.operation.name", "process"), attribute.String("messaging.operation.type", "process"),
		attribute.String("messaging.destination.name", "orders.created"),
		attribute.String("messaging.destination.template", "orders.*"), attribute.String("messaging.message.id", "m-1"),
	} {
		if !slices.Contains(process.Attributes(), want) {
			t.Errorf("process lacks %v, has %v", want, process.Attributes())
		}
	}

	if process.Status().Code != codes.Unset {
		t.Errorf("the status of a success is %v", process.Status())
	}
}

func TestFailureShowsInSpanAndMetrics(t *testing.T) {
	t.Parallel()

	o := observe(t)
	handleOne(t.Context(), t, o, "orders.*", "orders.created", goflux.Reject(errors.New("no such customer")))

	process := o.span(t, "process orders.*")
	if process.Status().Code != codes.Error {
		t.Errorf("status %v", process.Status())
	}

	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}

	seen := map[string]bool{}

	for _, m := range data.ScopeMetrics[0].Metrics {
		seen[m.Name] = true

		switch d := m.Data.(type) {
		case metricdata.Sum[int64]:
			if len(d.DataPoints) != 1 || d.DataPoints[0].Value != 1 {
				t.Errorf("%s: %v, want 1", m.Name, d.DataPoints)
			}
		case metricdata.Histogram[float64]:
			p := d.DataPoints[0]
			if p.Count != 1 || p.Bounds[0] != 0.005 || p.Bounds[len(p.Bounds)-1] != 10 {
				t.Errorf("%s: count %d, bounds %v", m.Name, p.Count, p.Bounds)
			}

			_, failed := p.Attributes.Value("error.type")
			if want := m.Name == "messaging.process.duration"; failed != want {
				t.Errorf("%s: has error.type: %v, want %v", m.Name, failed, want)
			}

			if _, some := p.Attributes.Value("messaging.destination.name"); some {
				t.Errorf("%s: has a subject among its attributes: of unbounded cardinality", m.Name)
			}
		}
	}

	for _, name := range []string{
		"messaging.client.sent.messages", "messaging.client.consumed.messages",
		"messaging.client.operation.duration", "messaging.process.duration",
	} {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestFetchShowsInSpanAndMetrics(t *testing.T) {
	t.Parallel()

	o := observe(t)

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()

	consumer, err := goflux.NewConsumer(tr, json.NewCodec[order](), "orders.*", goflux.WithQueueGroup("billing"),
		goflux.WithTelemetry(o.Telemetry))
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()

	pub, err := goflux.NewPublisher(tr, json.NewCodec[order](), goflux.WithTelemetry(o.Telemetry))
	if err != nil {
		t.Fatal(err)
	}

	fetched := make(chan error, 1)

	go func() {
		for n := 0; n < 2; {
			msgs, err := consumer.Fetch(t.Context(), 2)
			if err != nil {
				fetched <- err

				return
			}

			n += len(msgs)
			for _, msg := range msgs {
				_ = msg.Ack()
			}
		}

		close(fetched)
	}()

	// The group begins with the first Fetch; what comes before it is nobody's.
	for done := false; !done; {
		if err := pub.Publish(t.Context(), "orders.created", order{}); err != nil {
			t.Fatal(err)
		}

		select {
		case err := <-fetched:
			if err != nil {
				t.Fatal(err)
			}

			done = true
		default:
		}
	}

	if s := o.span(t, "receive orders.*"); s.SpanKind() != trace.SpanKindClient || len(s.Links()) == 0 {
		t.Errorf("receive is a %v with the links %v", s.SpanKind(), s.Links())
	}

	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}

	if !slices.ContainsFunc(data.ScopeMetrics[0].Metrics, func(m metricdata.Metrics) bool {
		return m.Name == "messaging.client.consumed.messages"
	}) {
		t.Error("nothing was counted")
	}
}

func TestForeignTraceHeaderOfAnyCaseIsRead(t *testing.T) {
	t.Parallel()

	o := observe(t)
	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()

	sub, err := goflux.NewSubscriber(tr, json.NewCodec[order](), goflux.WithTelemetry(o.Telemetry),
		goflux.WithReady(func() {
			_, err := tr.Publish(t.Context(), transport.Message{Subject: "a", Data: []byte("{}"), Header: goflux.Header{
				"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
			}})
			if err != nil {
				t.Error(err)
			}
		}))
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()

	if err := sub.Subscribe(ctx, "a", func(context.Context, goflux.Message[order]) error {
		stop()

		return nil
	}); err != nil {
		t.Fatal(err)
	}

	if l := o.span(t, "process a").Links(); len(l) != 1 || l[0].SpanContext.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("links %v", l)
	}
}

func TestReceivedIDAndHeadersDoNotGoOutAgain(t *testing.T) {
	t.Parallel()

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()

	r := &recorder{}

	forward, err := goflux.NewPublisher(r, json.NewCodec[order]())
	if err != nil {
		t.Fatal(err)
	}

	first, err := goflux.NewPublisher(tr, json.NewCodec[order]())
	if err != nil {
		t.Fatal(err)
	}

	sub, err := goflux.NewSubscriber(tr, json.NewCodec[order](), goflux.WithReady(func() {
		ctx := goflux.WithHeader(goflux.WithMessageID(t.Context(), "m-1"), goflux.Header{"Tenant": {"acme"}})
		if err := first.Publish(ctx, "a", order{}); err != nil {
			t.Error(err)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()

	if err := sub.Subscribe(ctx, "a", func(ctx context.Context, msg goflux.Message[order]) error {
		defer stop()

		if goflux.MessageID(ctx) != "m-1" || msg.ID() != "m-1" {
			t.Errorf("the handler sees the id %q", goflux.MessageID(ctx))
		}

		return forward.Publish(ctx, "b", msg.Payload)
	}); err != nil {
		t.Fatal(err)
	}

	if r.last.ID != "" || r.last.Header != nil {
		t.Errorf("it went on with %q and %v", r.last.ID, r.last.Header)
	}
}
