package embedded_test

import (
	"context"
	"errors"
	"testing"

	json "github.com/foomo/goencode/json/v1"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
)

func TestOpenCarriesMessages(t *testing.T) {
	t.Parallel()

	dir := t.TempDir()

	for run := range 2 { // the second run finds what the first one stored
		tr, err := transport.Open(t.Context(), "embedded:?stream=EVENTS&subjects=events.>&dir="+dir)
		if err != nil {
			t.Fatal(err)
		}

		pub, err := goflux.NewPublisher(tr, json.NewCodec[int]())
		if err != nil {
			t.Fatal(err)
		}

		if err := pub.Publish(t.Context(), "events.counted", run); err != nil {
			t.Fatal(err)
		}

		sub, err := goflux.NewSubscriber(tr, json.NewCodec[int]())
		if err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithCancel(t.Context())

		var got []int

		if err := sub.Subscribe(ctx, "events.counted", func(_ context.Context, msg goflux.Message[int]) error {
			if got = append(got, msg.Payload); len(got) == run+1 {
				cancel()
			}

			return nil
		}); err != nil {
			t.Error(err)
		}

		cancel()

		if e, ok := tr.(*embedded.Transport); !ok || e.Server() == nil {
			t.Errorf("opened a %T", tr)
		}

		for range 2 {
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()

	for _, url := range []string{
		"embedded://host", "embedded:EVENTS", "embedded:?stream=A", "embedded:?subjects=a", "embedded:?strem=A",
		"embedded:?listen=nowhere", "embedded:?ackwait=soon", "embedded:?maxdeliver=0", "embedded:?listen=localhost:http",
	} {
		if tr, err := transport.Open(t.Context(), url); !errors.Is(err, transport.ErrInvalidOption) {
			t.Errorf("%s: got %v, %v, want ErrInvalidOption", url, tr, err)
		}
	}

	if tr, err := transport.Open(t.Context(), "embedded:?stream=A&subjects=a..b"); !errors.Is(err, transport.ErrInvalidSubject) {
		t.Errorf("got %v, %v, want ErrInvalidSubject", tr, err)
	}
}
