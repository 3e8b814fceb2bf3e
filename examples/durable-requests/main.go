// Command durable-requests is a kitchen that opens late: orders wait in a stream
// until somebody takes them, three of them are served, and the one that nobody
// serves gets an answer at once, too. Then somebody orders, goes away, and sends
// another one to pick it up.
//
//	go run ./examples/durable-requests                           on a server of its own
//	go run ./examples/durable-requests -url nats://host:4222     on another one, with streams in memory
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/jetstream"
)

func main() {
	url := flag.String("url", "", "the NATS server to use; empty runs one in this process")
	flag.Parse()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	if err := run(ctx, os.Stdout, *url); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// What is asked for is told by the subject.
const orders = "requests."

// replies keeps what nobody has picked up yet.
var replies = jetstream.WithReplyStream(natsjs.StreamConfig{
	Name: "REPLIES", Subjects: []string{"replies.*"}, MaxAge: time.Hour, Storage: natsjs.MemoryStorage,
})

func run(ctx context.Context, out io.Writer, url string) error {
	if url == "" {
		server, err := embedded.Start(ctx, embedded.WithListen("127.0.0.1", 0))
		if err != nil {
			return err
		}
		defer server.Shutdown()

		url = server.ClientURL()
	}

	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()

	// A buffer for requests: what was answered is gone from it.
	js, err := jetstream.NewStream(ctx, nc, natsjs.StreamConfig{
		Name: "REQUESTS", Subjects: []string{orders + "*"}, Retention: natsjs.WorkQueuePolicy, Storage: natsjs.MemoryStorage,
	})
	if err != nil {
		return err
	}

	if err := atTheCounter(ctx, out, js); err != nil {
		return err
	}

	return toTakeAway(ctx, out, js)
}

// atTheCounter sends requests before there is anybody to answer them, and waits.
func atTheCounter(ctx context.Context, out io.Writer, js natsjs.JetStream) error {
	// region request
	requester := jetstream.NewRequester(js, raw.Bytes(), raw.String())
	defer requester.Close()

	type outcome struct {
		reply string
		err   error
	}

	dishes := []string{"order-sandwich", "order-bagel", "order-flatbread", "order-drink"}
	outcomes := make([]chan outcome, len(dishes))

	for i, dish := range dishes {
		outcomes[i] = make(chan outcome, 1)

		go func() {
			reply, err := requester.Request(ctx, orders+dish, nil)
			outcomes[i] <- outcome{reply, err}
		}()
	}
	// endregion

	if err := untilThereAre(ctx, js, len(dishes)); err != nil {
		return err
	}

	fmt.Fprintf(out, "%d requests wait, nobody is there to answer\n", len(dishes))

	closeKitchen, err := openKitchen(ctx, js)
	if err != nil {
		return err
	}

	for i, dish := range dishes {
		o := <-outcomes[i]

		var remote *goflux.RemoteError

		switch {
		case o.err == nil:
			fmt.Fprintf(out, "%s: %s\n", dish, o.reply)
		case errors.As(o.err, &remote):
			fmt.Fprintf(out, "%s: %d %s (timeout? %v)\n", dish, remote.Code, remote.Message, errors.Is(o.err, context.DeadlineExceeded))
		default:
			return o.err
		}
	}

	if err := closeKitchen(); err != nil {
		return err
	}

	return remaining(ctx, out, js)
}

// toTakeAway submits a request and leaves. Somebody else gets the reply.
func toTakeAway(ctx context.Context, out io.Writer, js natsjs.JetStream) error {
	// region submit
	requester := jetstream.NewRequester(js, raw.Bytes(), raw.String(), replies)

	// The id makes it safe to submit twice: it is one request, and one ticket.
	ticket, err := requester.Submit(goflux.WithMessageID(ctx, "lunch for Ada"), orders+"order-bagel", nil)
	if err != nil {
		return err
	}

	again, err := requester.Submit(goflux.WithMessageID(ctx, "lunch for Ada"), orders+"order-bagel", nil)
	if err != nil {
		return err
	}

	requester.Close()
	// endregion

	fmt.Fprintf(out, "submitted twice, one ticket: %v\n", ticket == again)

	closeKitchen, err := openKitchen(ctx, js)
	if err != nil {
		return err
	}

	// region await
	// In another process, hours later.
	other := jetstream.NewRequester(js, raw.Bytes(), raw.String(), replies)
	defer other.Close()

	lunch, err := other.Await(ctx, ticket)
	if err != nil {
		return err
	}
	// endregion

	fmt.Fprintf(out, "picked up by somebody else: %s\n", lunch)

	if _, err := other.Await(ctx, "a ticket that I found"); errors.Is(err, goflux.ErrTicketUnknown) {
		fmt.Fprintln(out, "unknown ticket")
	}

	if err := closeKitchen(); err != nil {
		return err
	}

	return remaining(ctx, out, js)
}

// openKitchen starts to answer, and returns a function that stops and says how
// that went.
func openKitchen(ctx context.Context, js natsjs.JetStream) (closeKitchen func() error, err error) {
	// region respond
	consumer, err := js.CreateOrUpdateConsumer(ctx, "REQUESTS", natsjs.ConsumerConfig{
		Durable: "kitchen", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 5,
	})
	if err != nil {
		return nil, err
	}

	responder := jetstream.NewResponder(js, consumer, raw.Bytes(), raw.String())
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)

	go func() { done <- responder.Serve(ctx, orders+"*", prepare) }()
	// endregion

	return func() error {
		cancel()

		return <-done
	}, nil
}

// region handler

func prepare(ctx context.Context, _ []byte) (string, error) {
	switch dish := strings.TrimPrefix(goflux.CallFromContext(ctx).Subject, orders); dish {
	case "order-sandwich":
		return "🥪", nil
	case "order-bagel":
		return "🥯", nil
	case "order-flatbread":
		return "🥙", nil
	default:
		// The request is terminated, and the requester told why.
		return "", goflux.NewError(http.StatusNotFound, "we do not serve that")
	}
}

// endregion

// untilThereAre waits until the stream holds n requests.
func untilThereAre(ctx context.Context, js natsjs.JetStream, n int) error {
	for {
		left, err := count(ctx, js)
		if err != nil || left >= n {
			return err
		}

		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func remaining(ctx context.Context, out io.Writer, js natsjs.JetStream) error {
	left, err := count(ctx, js)
	if err != nil {
		return err
	}

	fmt.Fprintf(out, "%d remaining in the stream\n", left)

	return nil
}

func count(ctx context.Context, js natsjs.JetStream) (int, error) {
	stream, err := js.Stream(ctx, "REQUESTS")
	if err != nil {
		return 0, err
	}

	return int(stream.CachedInfo().State.Msgs), nil
}
