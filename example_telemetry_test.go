package goflux_test

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// The span of a handling is a root of its own, linked to the span under which its
// message was sent.
func ExampleNewTelemetry() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	recorder := tracetest.NewSpanRecorder()
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(recorder))

	// region telemetry
	telemetry, err := goflux.NewTelemetry(
		goflux.WithTracerProvider(provider),
		goflux.WithPropagator(propagation.TraceContext{}),
	)
	if err != nil {
		fmt.Println(err)

		return
	}
	// endregion

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	publish := func() {
		pub, err := goflux.NewPublisher(t, raw.String(), goflux.WithTelemetry(telemetry))
		if err == nil {
			err = pub.Publish(ctx, "orders.created", "an order")
		}

		if err != nil {
			fmt.Println(err)
		}
	}

	published := make(chan struct{})

	sub, err := goflux.NewSubscriber(t, raw.String(), goflux.WithTelemetry(telemetry),
		goflux.WithReady(func() {
			go func() {
				defer close(published)

				publish()
			}()
		}))
	if err != nil {
		fmt.Println(err)

		return
	}

	err = sub.Subscribe(ctx, "orders.*", func(context.Context, goflux.Message[string]) error {
		<-published
		cancel()

		return nil
	})
	if err != nil {
		fmt.Println(err)
	}

	for _, span := range recorder.Ended() {
		fmt.Println(span.SpanKind(), span.Name())

		for _, link := range span.Links() {
			fmt.Println("  linked to the sender:", link.SpanContext.SpanID() == recorder.Ended()[0].SpanContext().SpanID())
		}
	}

	// Output:
	// producer send orders.created
	// consumer process orders.*
	//   linked to the sender: true
}
