// Command request-reply asks and answers over core NATS: replicas that share the
// requests, errors that cross the wire, a gathering of replies, and services that
// can be found.
//
//	go run ./examples/request-reply                           on a server of its own
//	go run ./examples/request-reply -url nats://host:4222     on another one
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	json "github.com/foomo/goencode/json/v1"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/nats"
)

type Query struct {
	Article string `json:"article"`
}

type Stock struct {
	Shelf string `json:"shelf"`
	Count int    `json:"count"`
}

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

func run(ctx context.Context, out io.Writer, url string) error {
	if url == "" {
		server, err := embedded.Start(ctx, embedded.WithListen("127.0.0.1", 0))
		if err != nil {
			return err
		}
		defer server.Shutdown()

		url = server.ClientURL()
	}

	nc, err := natsgo.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()

	ready := make(chan struct{}, 4)
	done := errors.New("done")
	client := func(ctx context.Context) error {
		for range 4 {
			<-ready
		}

		if err := ask(ctx, out, nc); err != nil {
			return err
		}

		return done
	}

	err = goflux.Run(ctx,
		stockOf(nc, "A", ready), stockOf(nc, "B", ready), // replicas: one of them answers
		counter(nc, "A", 3, ready), counter(nc, "B", 4, ready), // each answers
		client,
	)
	if !errors.Is(err, done) {
		return err
	}

	return nil
}

// region respond

func stockOf(nc *natsgo.Conn, shelf string, ready chan<- struct{}) goflux.Task {
	responder := nats.NewResponder(nc, json.NewCodec[Query](), json.NewCodec[Stock](),
		goflux.WithService("stock", "1.0.0", "Knows what is there."),
		goflux.WithReady(func() { ready <- struct{}{} }))

	return goflux.ServeTask(responder, "stock.get", func(_ context.Context, q Query) (Stock, error) {
		if q.Article != "apple" {
			return Stock{}, goflux.NewError(http.StatusNotFound, "no such article").WithDetails(q)
		}

		return Stock{Shelf: shelf, Count: 7}, nil
	})
}

// endregion

// counter answers every request, whoever else does.
func counter(nc *natsgo.Conn, shelf string, count int, ready chan<- struct{}) goflux.Task {
	responder := nats.NewResponder(nc, json.NewCodec[Query](), json.NewCodec[Stock](),
		goflux.WithoutQueueGroup(), goflux.WithoutDiscovery(),
		goflux.WithReady(func() { ready <- struct{}{} }))

	return goflux.ServeTask(responder, "stock.count", func(context.Context, Query) (Stock, error) {
		return Stock{Shelf: shelf, Count: count}, nil
	})
}

func ask(ctx context.Context, out io.Writer, nc *natsgo.Conn) error {
	// region request
	requester := nats.NewRequester(nc, json.NewCodec[Query](), json.NewCodec[Stock]())
	defer requester.Close()

	// The deadline travels: nobody starts on a request that is not waited for.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	stock, err := requester.Request(ctx, "stock.get", Query{Article: "apple"})
	if err != nil {
		return err
	}

	fmt.Fprintf(out, "apples: %d\n", stock.Count)

	_, err = requester.Request(ctx, "stock.get", Query{Article: "unicorn"})

	if remote, ok := errors.AsType[*goflux.RemoteError](err); ok {
		fmt.Fprintf(out, "unicorns: %d %s %s\n", remote.Code, remote.Message, remote.Details)
	}

	_, err = requester.Request(ctx, "stock.order", Query{Article: "apple"})
	fmt.Fprintf(out, "nobody takes orders: %v\n", errors.Is(err, goflux.ErrNoResponders))
	// endregion

	// region gather
	var shelves []string

	for stock, err := range requester.RequestMany(ctx, "stock.count", Query{}, goflux.WithMaxReplies(2)) {
		if err != nil {
			return err
		}

		shelves = append(shelves, fmt.Sprintf("%s has %d", stock.Shelf, stock.Count))
	}
	// endregion

	slices.Sort(shelves)
	fmt.Fprintln(out, "shelves:", shelves)

	return discover(ctx, out, nc)
}

// discover asks for services, as nats service ls does.
func discover(ctx context.Context, out io.Writer, nc *natsgo.Conn) error {
	requester := nats.NewRequester(nc, json.NewCodec[any](), json.NewCodec[micro.Info]())
	defer requester.Close()

	for info, err := range requester.RequestMany(ctx, "$SRV.INFO", nil, goflux.WithMaxReplies(2)) {
		if err != nil {
			return err
		}

		fmt.Fprintf(out, "service: %s %s on %s\n", info.Name, info.Version, info.Endpoints[0].Subject)
	}

	return nil
}
