// Command deadletters shows what is among the dead letters of a JetStream server
// and sends it back to where it came from.
//
//	go run ./examples/deadletters                                                 a demonstration, on a server of its own
//	go run ./examples/deadletters -url nats://host:4222                           shows them, and changes nothing
//	go run ./examples/deadletters -url nats://host:4222 -reason "attempts exhausted" -redrive
//
// It can be interrupted and run again: each message is sent back once.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport/embedded"
	gofluxjs "github.com/foomo/goflux/transport/jetstream"
)

// wish is what the command was asked for.
type wish struct {
	subject string // where the dead letters are
	reason  string // only these; empty means all
	redrive bool
}

func main() {
	var w wish

	url := flag.String("url", "", "the NATS server to use; empty runs one in this process, and a demonstration")
	flag.StringVar(&w.subject, "subject", "dead.>", "the subject of the dead letters, which may have wildcards")
	flag.StringVar(&w.reason, "reason", "", `only those that died for this reason, as in "rejected"`)
	flag.BoolVar(&w.redrive, "redrive", false, "send them back instead of showing them")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	run := func() error { return connected(ctx, os.Stdout, *url, w) }
	if *url == "" {
		run = func() error { return demonstrate(ctx, os.Stdout) }
	}

	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func connected(ctx context.Context, out io.Writer, url string, w wish) error {
	nc, err := nats.Connect(url, nats.Name("goflux deadletters"))
	if err != nil {
		return err
	}
	defer nc.Close()

	return visit(ctx, out, nc, w)
}

func visit(ctx context.Context, out io.Writer, nc *nats.Conn, w wish) error {
	// region visit
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}

	t, err := gofluxjs.New(js)
	if err != nil {
		return err
	}

	result, err := goflux.Redrive(ctx, t, t, w.subject, func(d goflux.DeadLetter[[]byte]) bool {
		if w.reason != "" && d.Reason != w.reason {
			return false
		}

		fmt.Fprintf(out, "%s number %d, id %q, %d bytes, attempt %d of %s, redriven %d times: %s: %s\n",
			d.Subject, d.Sequence, d.ID(), len(d.Raw), d.Attempts, d.Consumer, d.Redriven, d.Reason, d.Error)

		return w.redrive
	})
	// endregion

	fmt.Fprintf(out, "%d sent back, %d of an earlier run, %d kept, %d failed\n", result.Sent, result.Duplicate, result.Kept, result.Failed)

	return err
}

// demonstrate makes two dead letters and sends one of them back.
func demonstrate(ctx context.Context, out io.Writer) error {
	server, err := embedded.Start(ctx)
	if err != nil {
		return err
	}
	defer server.Shutdown()

	nc, err := server.Connect()
	if err != nil {
		return err
	}
	defer nc.Close()

	var js jetstream.JetStream

	for name, subject := range map[string]string{"ORDERS": "orders.>", "DEAD": "dead.>"} {
		if js, err = gofluxjs.NewStream(ctx, nc, jetstream.StreamConfig{Name: name, Subjects: []string{subject}}); err != nil {
			return err
		}
	}

	t, err := gofluxjs.New(js)
	if err != nil {
		return err
	}

	for i, d := range []goflux.DeadLetter[[]byte]{
		{Reason: goflux.ReasonRejected, Error: "no such customer"},
		{Reason: goflux.ReasonExhausted, Error: "the carrier does not answer"},
	} {
		d.Subject, d.Raw = "orders.created", []byte("an order")
		d.Header = goflux.Header{"X-Message-ID": {fmt.Sprintf("order-%d", i+1)}}
		d.Stream, d.Sequence, d.Consumer, d.Attempts = "ORDERS", uint64(i+1), "shipping", 1+4*i

		if err := goflux.StoreDeadLetter(ctx, t, "dead.orders", d); err != nil {
			return err
		}
	}

	for _, w := range []wish{
		{subject: "dead.>"},
		{subject: "dead.>", reason: goflux.ReasonExhausted, redrive: true},
	} {
		if err := visit(ctx, out, nc, w); err != nil {
			return err
		}
	}

	return nil
}
