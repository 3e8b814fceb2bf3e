package embedded_test

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport/embedded"
)

// A server with JetStream that needs neither a port nor a directory.
func ExampleStart() {
	ctx := context.Background()
	srv, err := embedded.Start(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = srv.Shutdown() }()

	nc, err := srv.Connect()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer nc.Close()

	js, err := jetstream.New(nc)
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}); err != nil {
		fmt.Println(err)
		return
	}
	ack, err := js.Publish(ctx, "orders.created", []byte(`{"id":"1"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(ack.Stream, ack.Sequence)

	// Output:
	// ORDERS 1
}
