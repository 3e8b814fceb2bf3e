package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport/memory"
)

// What others rely on is named first, and stops last.
func ExampleRun() {
	// region run
	task := func(name string) goflux.Task {
		return func(ctx context.Context) error {
			<-ctx.Done()
			fmt.Println("stopped:", name)

			return nil
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()

	err := goflux.Run(ctx, task("the database"), task("orders"), task("invoices"))
	fmt.Println(err)
	// endregion

	// Output:
	// stopped: invoices
	// stopped: orders
	// stopped: the database
	// <nil>
}

// The first task that fails stops the others, and Run returns its error.
func ExampleRun_failing() {
	err := goflux.Run(context.Background(),
		func(ctx context.Context) error {
			<-ctx.Done()

			return nil
		},
		func(context.Context) error { return errors.New("the consumer was deleted") },
	)
	fmt.Println(err)

	// Output:
	// the consumer was deleted
}

// region http

// serveHTTP serves until its context ends. Then it takes no more requests, and
// gives those that run ten seconds.
func serveHTTP(server *http.Server, listener net.Listener) goflux.Task {
	return func(ctx context.Context) error {
		finished := make(chan error, 1)
		stop := context.AfterFunc(ctx, func() {
			// This context has ended: a deadline needs one that has not.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()

			finished <- server.Shutdown(ctx)
		})
		defer stop()

		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}

		return <-finished // Serve returns at once, Shutdown when the requests are done
	}
}

// endregion

// An HTTP server that publishes is named last, so that it stops first: while its
// requests finish, everything that they rely on is still there.
func ExampleRun_http() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

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

	ready, handled := make(chan struct{}), make(chan struct{})

	sub, err := goflux.NewSubscriber(t, raw.String(), goflux.WithReady(func() { close(ready) }))
	if err != nil {
		fmt.Println(err)

		return
	}

	handle := func(_ context.Context, msg goflux.Message[string]) error {
		fmt.Println("handled:", msg.Payload)
		close(handled)

		return nil
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)

		return
	}

	api := &http.Server{
		ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := pub.Publish(r.Context(), "orders.created", "order "+r.FormValue("id")); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)

				return
			}

			w.WriteHeader(http.StatusAccepted)
		}),
	}

	go func() {
		defer cancel() // as a signal would

		<-ready

		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

		answer, err := client.Post("http://"+listener.Addr().String(), "application/x-www-form-urlencoded", strings.NewReader("id=7"))
		if err != nil {
			fmt.Println(err)

			return
		}
		defer func() { _ = answer.Body.Close() }()

		<-handled
		fmt.Println("answered:", answer.Status)
	}()

	// region order
	err = goflux.Run(ctx,
		goflux.SubscribeTask(sub, "orders.*", handle),
		serveHTTP(api, listener),
	)
	// endregion
	fmt.Println("stopped:", err)

	// Output:
	// handled: order 7
	// answered: 202 Accepted
	// stopped: <nil>
}

// When Subscribe's context ends, the handler that runs goes on with a context that
// lives, and its outcome counts. What was not started goes to other replicas.
func ExampleWithDrainTimeout() {
	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	publish := func() {
		pub, err := goflux.NewPublisher(t, raw.String())
		if err != nil {
			fmt.Println(err)

			return
		}

		for _, text := range []string{"first", "second"} {
			if err := pub.Publish(context.Background(), "orders.created", text); err != nil {
				fmt.Println(err)
			}
		}
	}

	// region subscribe
	sub, err := goflux.NewSubscriber(t, raw.String(),
		goflux.WithQueueGroup("shipping"),
		goflux.WithDrainTimeout(10*time.Second),
		goflux.WithReady(sync.OnceFunc(func() { go publish() })),
	)
	// endregion
	if err != nil {
		fmt.Println(err)

		return
	}

	replica := func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()

		err := sub.Subscribe(ctx, "orders.*", func(_ context.Context, msg goflux.Message[string]) error {
			fmt.Println("another replica has", msg.Payload)
			cancel()

			return nil
		})
		if err != nil {
			fmt.Println(err)
		}
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	err = sub.Subscribe(ctx, "orders.*", func(handling context.Context, msg goflux.Message[string]) error {
		cancel() // as a signal would

		replica()
		fmt.Println("finished", msg.Payload, "with a context that lives:", handling.Err() == nil)

		return nil
	})
	fmt.Println("drained:", err)

	// Output:
	// another replica has second
	// finished first with a context that lives: true
	// drained: <nil>
}
