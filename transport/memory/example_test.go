package memory_test

import (
	"context"
	"fmt"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

// A handler that fails once, seen from the transport: the message comes again,
// with a higher attempt.
func ExampleNew() {
	ctx := context.Background()

	t, err := memory.New(memory.WithMaxDeliver(5))
	if err != nil {
		fmt.Println(err)

		return
	}
	defer t.Close()

	sub, err := t.Subscribe(ctx, transport.SubscribeConfig{
		Subject: "orders.*",
		Group:   "billing",
		Sink: func(d transport.Delivery) {
			attempt := d.Settler.Metadata(d.Token).Attempt
			fmt.Printf("%s: %s, attempt %d\n", d.Subject, d.Data, attempt)

			verdict := transport.Verdict{Action: transport.Ack}
			if attempt == 1 {
				verdict.Action = transport.Nak
			}

			if err := d.Settler.Settle(ctx, d.Token, verdict); err != nil {
				fmt.Println(err)
			}
		},
	})
	if err != nil {
		fmt.Println(err)

		return
	}

	sub.Request(10)

	receipt, err := t.Publish(ctx, transport.Message{Subject: "orders.created", Data: []byte("42")})
	fmt.Println(receipt.Stream, receipt.Sequence, err)

	// Output:
	// orders.created: 42, attempt 1
	// orders.created: 42, attempt 2
	// memory 1 <nil>
}
