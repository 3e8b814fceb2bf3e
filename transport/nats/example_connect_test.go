package nats_test

import (
	"context"
	"errors"
	"fmt"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/nats"
)

// While the connection is lost, messages go to a buffer of the client, until it
// is full.
func ExampleConnect() {
	ctx := context.Background()

	server, err := embedded.Start(ctx, embedded.WithListen("127.0.0.1", 0))
	if err != nil {
		fmt.Println(err)

		return
	}

	// region connect
	nc, err := nats.Connect(ctx, server.ClientURL(), natsgo.ReconnectBufSize(64<<10))
	if err != nil {
		fmt.Println(err)

		return
	}
	defer nc.Close()

	pub := nats.NewPublisher(nc, raw.Bytes())
	// endregion

	lost := nc.StatusChanged(natsgo.RECONNECTING)

	if err := server.Shutdown(); err != nil {
		fmt.Println(err)
	}

	<-lost

	// region full
	buffered := 0

	for {
		err := pub.Publish(ctx, "metrics.cpu", make([]byte, 1000))
		if errors.Is(err, goflux.ErrBufferFull) {
			break // nothing of this one is kept; what was buffered is sent after the reconnect
		}

		if err != nil {
			fmt.Println(err)

			return
		}

		buffered++
	}
	// endregion

	fmt.Println(buffered, "were buffered")
	// Output: 64 were buffered
}
