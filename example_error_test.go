package goflux_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

// Errors tell their kind to errors.Is and their circumstances to errors.As.
func ExampleError() {
	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	pub, err := goflux.NewPublisher(t, raw.String())
	if err != nil {
		fmt.Println(err)

		return
	}

	// region error
	err = pub.Publish(context.Background(), "orders.*", "an order")

	if e, ok := errors.AsType[*goflux.Error](err); ok {
		fmt.Println("failed:", e.Op)
	}

	fmt.Println("a bad subject:", errors.Is(err, goflux.ErrInvalidSubject))
	fmt.Println("for telemetry:", transport.ErrorType(err))
	fmt.Println(err)
	// endregion

	// Output:
	// failed: publish
	// a bad subject: true
	// for telemetry: invalid_subject
	// goflux: publish: invalid subject: "orders.*" has the wildcard "*": messages are published on one subject
}
