package nats_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
)

func publisher(t *testing.T, nc *natsgo.Conn, opts ...goflux.PublisherOption) *goflux.BoundPublisher[string] {
	t.Helper()

	pub, err := goflux.NewPublisher(newTransport(t, nc), raw.String(), opts...)
	if err != nil {
		t.Fatal(err)
	}

	return pub
}

// Core NATS takes one message at a time, in order, and confirms nothing.
func TestBatch(t *testing.T) {
	t.Parallel()

	const n = 1000

	nc := natstest.Connect(t, natstest.Run(t))
	tr := newTransport(t, nc)
	in := newInbox(t)

	sub, err := tr.Subscribe(limited(t), in.config("a.>", ""))
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = sub.Close(context.Background()) })

	sub.Request(2 * (n + 1))

	for name, opts := range map[string][]goflux.PublisherOption{"plain": nil, "flushed": {goflux.WithFlush()}} {
		pub := publisher(t, nc, opts...)
		items := make([]goflux.Item[string], n, n+1)

		for i := range items {
			items[i] = goflux.Item[string]{Subject: "a.b", Payload: fmt.Sprint(i)}
		}

		results, err := pub.PublishBatch(limited(t), append(items, goflux.Item[string]{Subject: "a.*"})...)

		var failed *goflux.BatchError
		if !errors.As(err, &failed) || failed.Failed != 1 || !errors.Is(results[n].Err, goflux.ErrInvalidSubject) {
			t.Errorf("%s: got %v", name, err)
		}

		for i, r := range results[:n] {
			if r != (goflux.Result{}) {
				t.Fatalf("%s: result %d: %+v", name, i, r)
			}

			if got := string(in.next().Data); got != fmt.Sprint(i) {
				t.Fatalf("%s: message %d is %s", name, i, got)
			}
		}

		p, err := pub.PublishAsync(limited(t), "a.b", "async")
		if err != nil {
			t.Fatal(err)
		}

		select {
		case <-p.Done():
		default:
			t.Errorf("%s: it has not ended", name)
		}

		if r, err := p.Wait(limited(t)); err != nil || r != (goflux.Receipt{}) {
			t.Errorf("%s: receipt %+v, error %v", name, r, err)
		}

		if err := pub.Flush(limited(t)); err != nil {
			t.Error(err)
		}

		if got := string(in.next().Data); got != "async" {
			t.Errorf("%s: got %s", name, got)
		}
	}
}

func TestWithFlush(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	nc := natstest.Connect(t, s, quiet)
	pub := publisher(t, nc, goflux.WithFlush())
	plain := publisher(t, nc)

	if err := pub.Publish(limited(t), "a", ""); err != nil {
		t.Fatal(err)
	}

	s.Stop()
	natstest.Eventually(t, func() bool { return !nc.IsConnected() }, "the connection to break")

	// The client buffers it, and nobody knows more than that.
	if err := plain.Publish(limited(t), "a", ""); err != nil {
		t.Error(err)
	}

	for name, call := range map[string]func(ctx context.Context) error{
		"publish": func(ctx context.Context) error { return pub.Publish(ctx, "a", "") },
		"flush":   plain.Flush,
		"batch": func(ctx context.Context) error {
			return errorOf(pub.PublishBatch(ctx, goflux.Item[string]{Subject: "a"}))
		},
		"async": func(ctx context.Context) error {
			pending, err := pub.PublishAsync(ctx, "a", "")
			if err != nil {
				return err
			}

			return errorOf(pending.Wait(ctx))
		},
	} {
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()

		err := call(short)

		// What was published is in the buffer of the client, and arrives later.
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, goflux.ErrPublishUnknown) != (name != "flush") {
			t.Errorf("%s: got %v", name, err)
		}
	}

	if err := s.Start(); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, nc.IsConnected, "a connection")

	if err := pub.Publish(limited(t), "a", ""); err != nil {
		t.Error(err)
	}
}

// What a stream can do is refused, before anything is sent.
func TestTermsAreRefused(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))
	pub := publisher(t, nc)
	ctx := limited(t)

	for name, err := range map[string]error{
		"sequence":         errorOf(pub.Send(ctx, "a", "", goflux.ExpectLastSequence(1))),
		"subject sequence": errorOf(pub.Send(ctx, "a", "", goflux.ExpectLastSubjectSequence(1))),
		"ttl":              errorOf(pub.Send(ctx, "a", "", goflux.TTL(time.Second))),
		"later":            pub.PublishAfter(ctx, "a", "", time.Second),
		"atomic":           errorOf(pub.PublishAtomic(ctx, goflux.Item[string]{Subject: "a"})),
		"safe retries":     errorOf(goflux.NewPublisher(newTransport(t, nc), raw.String(), goflux.WithPublishRetry(0))),
		"retries":          errorOf(goflux.NewPublisher(newTransport(t, nc), raw.String(), goflux.WithRetryAttempts(1))),
	} {
		var told *goflux.Error
		if !errors.Is(err, goflux.ErrUnsupported) || !errors.As(err, &told) {
			t.Errorf("%s: got %v", name, err)
		}
	}

	if n := nc.Stats().OutMsgs; n != 0 {
		t.Errorf("%d messages were sent", n)
	}
}

func errorOf[A any](_ A, err error) error { return err }
