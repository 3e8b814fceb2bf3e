package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	json "github.com/foomo/goencode/json/v1"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
)

// region shared

// In a package of both sides.
var errNoOrder = goflux.NewError(http.StatusNotFound, "no such order")

// endregion

// A responder answers, and its errors that are meant for the caller arrive as
// they are.
func ExampleNewRequester() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	type (
		Order struct{ ID string }
		Price struct{ Cents int }
	)

	ask := func() {
		// region request
		req, err := goflux.NewRequester(t, json.NewCodec[Order](), json.NewCodec[Price]())
		if err != nil {
			fmt.Println(err)

			return
		}
		defer req.Close()

		price, err := req.Request(ctx, "prices.get", Order{ID: "7"})
		fmt.Println(price.Cents, err)

		_, err = req.Request(ctx, "prices.get", Order{ID: "8"})
		fmt.Println("no such order:", errors.Is(err, errNoOrder))

		if remote, ok := errors.AsType[*goflux.RemoteError](err); ok {
			fmt.Println(remote.Code, remote.Message)
		}

		_, err = req.Request(ctx, "prices.put", Order{ID: "7"})
		fmt.Println("nobody there:", errors.Is(err, goflux.ErrNoResponders))
		// endregion
	}

	// region respond
	resp, err := goflux.NewResponder(t, json.NewCodec[Order](), json.NewCodec[Price](),
		goflux.WithReady(func() {
			go func() {
				defer cancel() // a service would serve on

				ask()
			}()
		}))
	if err != nil {
		fmt.Println(err)

		return
	}

	err = resp.Serve(ctx, "prices.get", func(_ context.Context, order Order) (Price, error) {
		if order.ID != "7" {
			return Price{}, errNoOrder
		}

		return Price{Cents: 995}, nil
	})
	// endregion
	if err != nil {
		fmt.Println(err)
	}

	// Output:
	// 995 <nil>
	// no such order: true
	// 404 no such order
	// nobody there: true
}

// Everybody answers who does not share a queue group.
func ExampleBoundRequester_RequestMany() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	const stores = 3

	ready := make(chan struct{}, stores)
	tasks := make([]goflux.Task, 0, stores+1)

	for i := range stores {
		resp, err := goflux.NewResponder(t, raw.String(), json.NewCodec[int](),
			goflux.WithoutQueueGroup(), goflux.WithReady(func() { ready <- struct{}{} }))
		if err != nil {
			fmt.Println(err)

			return
		}

		tasks = append(tasks, goflux.ServeTask(resp, "stock.count",
			func(context.Context, string) (int, error) { return 10 * (i + 1), nil }))
	}

	tasks = append(tasks, func(ctx context.Context) error {
		defer cancel()

		for range stores {
			<-ready
		}

		req, err := goflux.NewRequester(t, raw.String(), json.NewCodec[int]())
		if err != nil {
			return err
		}
		defer req.Close()

		// region many
		total := 0

		for count, err := range req.RequestMany(ctx, "stock.count", "apples", goflux.WithMaxReplies(stores)) {
			if err != nil {
				return err
			}

			total += count
		}
		// endregion

		fmt.Println("apples:", total)

		return nil
	})

	if err := goflux.Run(ctx, tasks...); err != nil {
		fmt.Println(err)
	}

	// Output:
	// apples: 60
}

// The request waits in its stream, and the reply in another one, until somebody
// comes with the ticket.
func ExampleDurableRequester_Submit() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	js, closeAll, err := onJetStream(ctx, natsjs.StreamConfig{
		Name: "PRINTS", Subjects: []string{"prints.>"}, Retention: natsjs.WorkQueuePolicy,
	})
	if err != nil {
		fmt.Println(err)

		return
	}
	defer closeAll()

	// region submit
	replies := jetstream.WithReplyStream(natsjs.StreamConfig{Name: "REPLIES"}) // kept for a day

	req := jetstream.NewRequester(js, raw.String(), raw.String(), replies)
	defer req.Close()

	ticket, err := req.Submit(goflux.WithMessageID(ctx, "invoice-7"), "prints.invoice", "invoice 7")
	if err != nil {
		fmt.Println(err)

		return
	}
	// endregion

	// The requester may go away, and the responder come later.
	// region durable
	consumer, err := js.CreateConsumer(ctx, "PRINTS", natsjs.ConsumerConfig{
		Durable: "printers", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 5,
	})
	if err != nil {
		fmt.Println(err)

		return
	}

	serving, stop := context.WithCancel(ctx)
	done := make(chan error, 1)

	go func() {
		resp := jetstream.NewResponder(js, consumer, raw.String(), raw.String())

		done <- resp.Serve(serving, "", func(_ context.Context, what string) (string, error) {
			return "printed " + what, nil
		})
	}()
	// endregion

	// region await
	// Another requester, in another process perhaps.
	other := jetstream.NewRequester(js, raw.String(), raw.String(), replies)
	defer other.Close()

	reply, err := other.Await(ctx, ticket)
	fmt.Println(reply, err)
	// endregion

	stop()
	fmt.Println(<-done)

	// Output:
	// printed invoice 7 <nil>
	// <nil>
}
