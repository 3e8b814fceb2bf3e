package kvstore_test

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/middleware/kvstore"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
)

type Order struct{ ID string }

// Two replicas share a bucket. What one has handled, the other one has too.
func ExampleNew() {
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

	for _, replica := range []string{"first", "second"} {
		store, err := handled(ctx, nc)
		if err != nil {
			fmt.Println(err)
			return
		}

		handler := middleware.Idempotent[Order](store, "billing")(func(_ context.Context, msg goflux.Message[Order]) error {
			fmt.Println("charged", msg.Payload.ID, "by the", replica, "replica")

			return nil
		})

		fmt.Println(handler(ctx, goflux.Message[Order]{
			Subject: "orders.created",
			Header:  goflux.Header{transport.HeaderMessageID: {"A-1"}},
			Payload: Order{"A-1"},
		}))
	}
	// Output:
	// charged A-1 by the first replica
	// <nil>
	// <nil>
}

// handled returns the store over a bucket, which it makes if need be.
func handled(ctx context.Context, nc *nats.Conn) (*kvstore.Store, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}

	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "handled", TTL: 24 * time.Hour})
	if err != nil {
		return nil, err
	}

	return kvstore.New(ctx, kv)
}
