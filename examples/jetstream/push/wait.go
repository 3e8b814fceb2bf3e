package main

import (
	"context"
	"log"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	_ "github.com/foomo/goflux/examples/internal/defaultserver"
)

// untilAcked returns when the consumer has nothing left to deliver, and nothing
// that is not acked.
func untilAcked(ctx context.Context, cons jetstream.Consumer) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()

	for range tick.C {
		info, err := cons.Info(ctx)
		if err != nil {
			log.Fatal(err)
		}

		if info.NumPending == 0 && info.NumAckPending == 0 {
			return
		}
	}
}
