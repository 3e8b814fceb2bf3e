package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	json "github.com/foomo/goencode/json/v1"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
)

// onJetStream returns a stream on a server in this process.
func onJetStream(ctx context.Context, cfg natsjs.StreamConfig) (js natsjs.JetStream, closeAll func(), err error) {
	server, err := embedded.Start(ctx)
	if err != nil {
		return nil, nil, err
	}

	nc, err := server.Connect()
	if err != nil {
		return nil, nil, errors.Join(err, server.Shutdown())
	}

	closeAll = func() {
		nc.Close()

		_ = server.Shutdown()
	}

	if js, err = jetstream.NewStream(ctx, nc, cfg); err != nil {
		closeAll()
	}

	return js, closeAll, err
}

// A batch has a result for each of its items. One that cannot be sent does not
// keep the others from being sent.
func ExampleBoundPublisher_PublishBatch() {
	ctx := context.Background()

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	type Order struct{ ID string }

	pub, err := goflux.NewPublisher(t, json.NewCodec[Order]())
	if err != nil {
		fmt.Println(err)

		return
	}

	// region batch
	results, err := pub.PublishBatch(ctx,
		goflux.Item[Order]{Subject: "orders.created", Payload: Order{ID: "1"}, ID: "order-1"},
		goflux.Item[Order]{Subject: "orders.*", Payload: Order{ID: "2"}, ID: "order-2"},
		goflux.Item[Order]{Subject: "orders.created", Payload: Order{ID: "3"}, ID: "order-3"},
	)

	if failed, ok := errors.AsType[*goflux.BatchError](err); ok {
		fmt.Println(failed.Failed, "of", failed.Total, "failed")
	}

	for i, result := range results {
		fmt.Println(i, result.Receipt.Sequence, errors.Is(result.Err, goflux.ErrInvalidSubject))
	}
	// endregion

	// Output:
	// 1 of 3 failed
	// 0 1 false
	// 1 0 true
	// 2 2 false
}

// Many messages under way at once, and a receipt for each.
func ExampleBoundPublisher_PublishAsync() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	js, closeAll, err := onJetStream(ctx, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		fmt.Println(err)

		return
	}
	defer closeAll()

	pub := jetstream.NewPublisher(js, raw.String())

	// region async
	var pending []*goflux.Pending

	for range 3 {
		p, err := pub.PublishAsync(ctx, "orders.created", "an order")
		if err != nil {
			fmt.Println(err) // nothing was sent

			continue
		}

		pending = append(pending, p)
	}

	if err := pub.Flush(ctx); err != nil {
		fmt.Println(err)
	}

	for _, p := range pending {
		receipt, err := p.Wait(ctx)
		fmt.Println(receipt.Stream, receipt.Sequence, err)
	}

	if err := pub.Close(); err != nil {
		fmt.Println(err)
	}
	// endregion

	// Output:
	// ORDERS 1 <nil>
	// ORDERS 2 <nil>
	// ORDERS 3 <nil>
}

// Attempts that are not confirmed are repeated under one id, until the deadline.
func ExampleWithPublishRetry() {
	ctx := context.Background()

	js, closeAll, err := onJetStream(ctx, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		fmt.Println(err)

		return
	}
	defer closeAll()

	// region retry
	pub := jetstream.NewPublisher(js, raw.String(), goflux.WithPublishRetry(0))

	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	receipt, err := pub.Send(goflux.WithMessageID(ctx, "order-7"), "orders.created", "an order")

	switch {
	case err == nil:
		fmt.Println("stored once, at", receipt.Sequence)
	case errors.Is(err, goflux.ErrPublishUnknown):
		fmt.Println("it may be stored: publish it again under its id, within the de-duplication window")
	default:
		fmt.Println("it is not stored:", err)
	}
	// endregion

	// Output:
	// stored once, at 1
}

// A write that depends on what was read: of two who read the same, one is told.
func ExampleBoundPublisher_Send() {
	ctx := context.Background()

	js, closeAll, err := onJetStream(ctx, natsjs.StreamConfig{Name: "STOCK", Subjects: []string{"stock.>"}})
	if err != nil {
		fmt.Println(err)

		return
	}
	defer closeAll()

	pub := jetstream.NewPublisher(js, json.NewCodec[int]())

	// region expect
	receipt, err := pub.Send(ctx, "stock.apples", 10, goflux.ExpectLastSubjectSequence(0)) // there is none yet
	fmt.Println(receipt.Sequence, err)

	_, err = pub.Send(ctx, "stock.apples", 12, goflux.ExpectLastSubjectSequence(0))

	conflict, ok := errors.AsType[*goflux.ConflictError](err)
	if !ok {
		fmt.Println(err)

		return
	}

	fmt.Println("expected", conflict.Expected, "and the last one is", conflict.Last)

	receipt, err = pub.Send(ctx, "stock.apples", 12, goflux.ExpectLastSubjectSequence(conflict.Last))
	fmt.Println(receipt.Sequence, err)
	// endregion

	// Output:
	// 1 <nil>
	// expected 0 and the last one is 1
	// 2 <nil>
}

// A message that waits in the broker until its time has come.
func ExampleBoundPublisher_PublishAfter() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	// region stream
	stream := natsjs.StreamConfig{
		Name:              "ORDERS",
		Subjects:          []string{"orders.>", "schedule.orders.>"}, // where messages wait
		AllowMsgSchedules: true,
	}
	// endregion

	js, closeAll, err := onJetStream(ctx, stream)
	if err != nil {
		fmt.Println(err)

		return
	}
	defer closeAll()

	pub := jetstream.NewPublisher(js, raw.String())

	// region later
	if err := pub.PublishAfter(ctx, "orders.remind", "the reminder", 200*time.Millisecond); err != nil {
		fmt.Println(err)
	}
	// endregion

	if err := pub.Publish(ctx, "orders.created", "the order"); err != nil {
		fmt.Println(err)
	}

	// region consumer
	consumer, err := js.CreateConsumer(ctx, "ORDERS", natsjs.ConsumerConfig{
		Durable: "mail", FilterSubject: "orders.>", AckPolicy: natsjs.AckExplicitPolicy,
	})
	// endregion
	if err != nil {
		fmt.Println(err)

		return
	}

	err = jetstream.NewSubscriber(consumer, raw.String()).Subscribe(ctx, "orders.>",
		func(_ context.Context, msg goflux.Message[string]) error {
			fmt.Println(msg.Subject, msg.Payload)

			if msg.Subject == "orders.remind" {
				cancel()
			}

			return nil
		})
	if err != nil {
		fmt.Println(err)
	}

	// Output:
	// orders.created the order
	// orders.remind the reminder
}

// All of a batch, or nothing.
func ExampleBoundPublisher_PublishAtomic() {
	ctx := context.Background()

	js, closeAll, err := onJetStream(ctx, natsjs.StreamConfig{
		Name: "LEDGER", Subjects: []string{"ledger.>"}, AllowAtomicPublish: true,
	})
	if err != nil {
		fmt.Println(err)

		return
	}
	defer closeAll()

	pub := jetstream.NewPublisher(js, raw.String())

	// region atomic
	receipt, err := pub.PublishAtomic(ctx,
		goflux.Item[string]{Subject: "ledger.debit", Payload: "ann 10", ID: "transfer-1-debit"},
		goflux.Item[string]{Subject: "ledger.credit", Payload: "bob 10", ID: "transfer-1-credit"},
	)
	fmt.Println("the last of them is number", receipt.Sequence, err)

	_, err = pub.PublishAtomic(ctx,
		goflux.Item[string]{Subject: "ledger.debit", Payload: "ann 20", ID: "transfer-2-debit"},
		goflux.Item[string]{Subject: "ledger.credit", Payload: "bob 10", ID: "transfer-1-credit"},
	)
	fmt.Println("nothing was stored:", errors.Is(err, goflux.ErrDuplicate))
	// endregion

	// Output:
	// the last of them is number 2 <nil>
	// nothing was stored: true
}
