// Command service is a service as one would deploy it: orders from JetStream,
// shipped by sixteen handlers at once, with duplicates recognised, retries, dead
// letters, probes and an orderly end. When an order is shipped twice all the same
// is in docs/idempotency.md.
//
//	go run ./examples/service                           on a server of its own, with some orders, until they are done
//	go run ./examples/service -url nats://host:4222     until it gets Ctrl-C or SIGTERM
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	json "github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/middleware/kvstore"
	"github.com/foomo/goflux/transport/embedded"
	gofluxjs "github.com/foomo/goflux/transport/jetstream"
	gofluxnats "github.com/foomo/goflux/transport/nats"
)

type Order struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

func main() {
	url := flag.String("url", "", "the NATS server to use; empty runs one in this process, and a demonstration")
	probes := flag.String("probes", ":8081", "where /livez and /readyz are served")
	flag.Parse()

	if err := run(context.Background(), os.Stdout, *url, *probes); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, url, probes string) error {
	if url != "" {
		return serve(ctx, out, url, probes, func(context.Context) error { return nil })
	}

	server, err := embedded.Start(ctx, embedded.WithListen("127.0.0.1", 0))
	if err != nil {
		return err
	}
	defer server.Shutdown()

	// Failing on purpose is no news.
	slog.SetDefault(slog.New(slog.DiscardHandler))

	return demonstrate(ctx, out, server.ClientURL())
}

// region connect

func connect(ctx context.Context, url string) (*nats.Conn, error) {
	return gofluxnats.Connect(ctx, url,
		nats.Name("shipping"),           // how operators find it
		nats.RetryOnFailedConnect(true), // no error yet where no server is there: setup waits 10 s for one
	)
}

// endregion

// things are what the service works with, on the server.
type things struct {
	orders  jetstream.Consumer
	letters *gofluxjs.Transport
	handled *kvstore.Store
	sweeper *gofluxjs.Sweeper
}

// region setup

func setup(ctx context.Context, nc *nats.Conn) (*things, error) {
	js, err := gofluxjs.NewStream(ctx, nc, jetstream.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: jetstream.WorkQueuePolicy,
	})
	if err != nil {
		return nil, err
	}

	if _, err := gofluxjs.NewStream(ctx, nc, jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}}); err != nil {
		return nil, err
	}

	orders, err := js.CreateOrUpdateConsumer(ctx, "ORDERS", jetstream.ConsumerConfig{
		Durable:       "shipping",
		FilterSubject: "orders.>",
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       30 * time.Second, // how long after a crash another replica has its messages
		MaxDeliver:    12,               // then a message is a dead letter: with the retries below, after 13 minutes
		MaxAckPending: 5000,             // unsettled, for 3 replicas x (16 + 512) and those that wait for a retry
	})
	if err != nil {
		return nil, err
	}

	bucket, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "handled", TTL: 24 * time.Hour})
	if err != nil {
		return nil, err
	}

	handled, err := kvstore.New(ctx, bucket)
	if err != nil {
		return nil, err
	}

	letters, err := gofluxjs.New(js) // publishes the dead letters
	if err != nil {
		return nil, err
	}

	// region sweeper
	sweeper, err := gofluxjs.NewSweeper(ctx, js, orders, "dead.orders") // for those whose process died
	if err != nil {
		return nil, err
	}
	// endregion

	return &things{orders: orders, letters: letters, handled: handled, sweeper: sweeper}, nil
}

// endregion

// serve runs the service until a signal, or until task ends it.
func serve(ctx context.Context, out io.Writer, url, probes string, task goflux.Task) error {
	nc, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer nc.Close()

	with, err := setup(ctx, nc)
	if err != nil {
		return err
	}

	// region serve
	sub := gofluxjs.NewSubscriber(with.orders, json.NewCodec[Order](),
		goflux.WithConcurrency(16),
		goflux.WithRetryPolicy(goflux.ExponentialRetry(time.Second, 5*time.Minute)),
		goflux.WithDeadLetterPublisher(with.letters, "dead.orders"),
		goflux.WithMaxHandlingTime(time.Minute),
		goflux.WithDrainTimeout(20*time.Second), // less than what the platform waits before it kills
	)
	if err := sub.Err(); err != nil {
		return err // an option that does not fit
	}

	handler := goflux.Chain(
		middleware.Log[Order](slog.Default()),
		middleware.Idempotent[Order](with.handled, "shipping"),
		middleware.Timeout[Order](10*time.Second),
	)(ship(out))

	return goflux.RunUntilSignal(ctx,
		serveProbes(probes, health(sub)),
		with.sweeper.Run,
		goflux.SubscribeTask(sub, "orders.>", handler),
		task,
	)
	// endregion
}

// region probes

// health answers the platform: is the process there, and do messages arrive?
func health(sub *goflux.BoundSubscriber[Order]) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := sub.Health(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})

	return mux
}

// endregion

func serveProbes(addr string, handler http.Handler) goflux.Task {
	return func(ctx context.Context) error {
		server := &http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: time.Second}
		stop := context.AfterFunc(ctx, func() { _ = server.Close() })

		defer stop()

		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}

		return nil
	}
}

var errNoAddress = errors.New("the order has no address")

func ship(out io.Writer) goflux.Handler[Order] {
	return func(_ context.Context, msg goflux.Message[Order]) error {
		if msg.Payload.Address == "" {
			return goflux.Reject(errNoAddress) // trying again would not help
		}

		fmt.Fprintln(out, "shipped", msg.Payload.ID, "to", msg.Payload.Address)

		return nil
	}
}

// demonstrate runs the service until it has handled a few orders.
func demonstrate(ctx context.Context, out io.Writer, url string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	nc, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer nc.Close()

	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}

	if err := serve(ctx, out, url, "127.0.0.1:0", func(ctx context.Context) error {
		defer cancel()

		pub := gofluxjs.NewPublisher(js, json.NewCodec[Order](), goflux.WithPublishRetry(0))
		defer pub.Close()

		for _, order := range []Order{{"order-1", "Oslo"}, {"order-1", "Oslo"}, {"order-2", ""}} {
			if err := pub.Publish(goflux.WithMessageID(ctx, order.ID), "orders.created", order); err != nil {
				return err
			}
		}

		return untilEmpty(ctx, js)
	}); err != nil {
		return err
	}

	fmt.Fprintln(out, "drained")

	letters, err := gofluxjs.New(js)
	if err != nil {
		return err
	}

	// region look
	_, err = goflux.Redrive(context.WithoutCancel(ctx), letters, letters, "dead.>", func(d goflux.DeadLetter[[]byte]) bool {
		fmt.Fprintf(out, "dead letter: %s %s: %s\n", d.Subject, d.ID(), d.Error)

		return false // look only
	})
	// endregion

	return err
}

// untilEmpty returns when all orders are settled.
func untilEmpty(ctx context.Context, js jetstream.JetStream) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()

	for range tick.C {
		stream, err := js.Stream(ctx, "ORDERS")
		if err != nil || stream.CachedInfo().State.Msgs == 0 {
			return err
		}
	}

	return nil
}
