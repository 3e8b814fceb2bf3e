package goflux_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/jetstream"
)

// Where there is no room for all headers, the largest ones are left out, no more
// than it takes, and the dead letter tells which.
func TestDeadLetterOmitsTheLargestHeaders(t *testing.T) {
	t.Parallel()

	const limit = 10_000 // of the headers, for messages and their dead letters

	text := func(n int) []string { return []string{strings.Repeat("x", n)} }
	many := goflux.Header{}

	for i := range 400 {
		many[fmt.Sprintf("Header-%03d", i)] = text(11)
	}

	for name, tt := range map[string]struct {
		header  goflux.Header
		omitted []string
		kept    []string
	}{
		"enough room":     {goflux.Header{"A": text(5000), "B": text(10)}, nil, []string{"A", "B"}},
		"one large one":   {goflux.Header{"A": text(9900), "B": text(10)}, []string{"A"}, []string{"B"}},
		"the largest one": {goflux.Header{"A": text(3000), "B": text(5000), "C": text(1900)}, []string{"B"}, []string{"A", "C"}},
		"several values":  {goflux.Header{"A": text(4000), "B": append(text(3000), text(2900)...)}, []string{"B"}, []string{"A"}},
		"no client could send it": {
			goflux.Header{"A": {strings.Repeat("\r\n", 4500)}, "B": text(900)}, []string{"A"}, []string{"B"}, // grows in base64
		},
		"a name of anything": {goflux.Header{"a b\r\n\xff": text(9900)}, []string{"a_b__\ufffd"}, nil},
		"many small ones":    {many, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			store := newMorgue()
			store.limit = limit

			dead := goflux.DeadLetter[[]byte]{
				Subject: "orders", Header: maps.Clone(tt.header), Raw: []byte("bytes"), Reason: goflux.ReasonRejected, Error: strings.Repeat("x", 1000),
				Attempts: 1, Stream: "ORDERS", Sequence: 7, Consumer: "workers", Time: time.Now(), Stored: time.Now(),
			}

			if err := goflux.StoreDeadLetter(t.Context(), store, "dead.orders", dead); err != nil {
				t.Fatal(err)
			}

			if !maps.EqualFunc(dead.Header, tt.header, slices.Equal) {
				t.Error("the headers of the caller were changed")
			}

			got := store.dead()[0]
			if string(got.Raw) != "bytes" || got.Sequence != 7 || got.Reason != goflux.ReasonRejected || got.Subject != "orders" {
				t.Errorf("got %+v", got)
			}

			if name == "many small ones" {
				if n := len(got.Header); n < 300 || n == 400 || got.Omitted[len(got.Omitted)-1] != "..." {
					t.Errorf("%d of 400 headers were kept, and omitted %v", n, got.Omitted)
				}

				return
			}

			if kept := slices.Sorted(maps.Keys(got.Header)); !slices.Equal(kept, tt.kept) || !slices.Equal(got.Omitted, tt.omitted) {
				t.Errorf("kept %v and omitted %v, want %v and %v", kept, got.Omitted, tt.kept, tt.omitted)
			}
		})
	}
}

// Where even that is too much, as with a payload that takes all the room, all
// headers are left out, and never the payload.
func TestDeadLetterWithoutHeaders(t *testing.T) {
	t.Parallel()

	store := newMorgue()
	store.limit = 400

	dead := goflux.DeadLetter[[]byte]{
		Subject: "orders", Header: goflux.Header{"A": {strings.Repeat("x", 500)}, "B": {strings.Repeat("x", 300)}, "C": {"x"}},
		Raw: []byte("bytes"), Reason: goflux.ReasonRejected, Sequence: 7,
	}

	if err := goflux.StoreDeadLetter(t.Context(), store, "dead.orders", dead); err != nil {
		t.Fatal(err)
	}

	if got := store.dead()[0]; string(got.Raw) != "bytes" || len(got.Header) > 0 || !slices.Equal(got.Omitted, []string{"A", "B", "C"}) {
		t.Errorf("got %+v", got)
	}

	store.limit = 50
	dead.Sequence = 8

	if err := goflux.StoreDeadLetter(t.Context(), store, "dead.orders", dead); !errors.Is(err, goflux.ErrTooLarge) || len(store.dead()) != 1 {
		t.Errorf("got %v and %d dead letters", err, len(store.dead()))
	}
}

// Who sends messages with as many bytes of headers as the broker takes does not
// block a consumer: all of them reach the dead letters, with their payload, and
// what comes behind is handled.
func TestDeadLettersOfMessagesWithLargeHeaders(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}})
	dead := natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead"}})
	consumer := natstest.Consumer(t, orders, natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, MaxAckPending: 4})

	tr, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	payload := bytes.Repeat([]byte("p"), 1000)
	sizes := []int{60_000, 64_000, 65_000, 65_300, 65_400, 65_480}

	for i, size := range sizes {
		msg := &nats.Msg{Subject: "orders", Data: payload, Header: nats.Header{"Large": {strings.Repeat("x", size)}, "Small": {fmt.Sprint(i)}}}
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(size, err)
		}
	}

	sub, err := goflux.NewSubscriber(jetstream.Bind(consumer), raw.Bytes(), goflux.WithDeadLetterPublisher(tr, "dead"), silent())
	if err != nil {
		t.Fatal(err)
	}

	handled := make(chan struct{})
	stop := serveDead(t, sub, "", func(_ context.Context, msg goflux.Message[[]byte]) error {
		if len(msg.Payload) > 0 {
			return goflux.Reject(errors.New(strings.Repeat("e", 1000)))
		}

		close(handled)

		return nil
	})

	if _, err := js.Publish(t.Context(), "orders", nil); err != nil {
		t.Fatal(err)
	}

	receive(t, handled)
	natstest.Eventually(t, func() bool {
		info, err := dead.Info(t.Context())

		return err == nil && info.State.Msgs == uint64(len(sizes))
	}, "the dead letters")

	if err := stop(); err != nil {
		t.Error(err)
	}

	for d, err := range tr.Browse(t.Context(), "dead") {
		if err != nil {
			t.Fatal(err)
		}

		letter := goflux.ParseDeadLetter(goflux.Message[[]byte]{Header: d.Header, Payload: d.Data}, raw.Bytes())
		whole := letter.Header.Get("Large") != ""

		if !bytes.Equal(letter.Raw, payload) || letter.Header.Get("Small") == "" || whole == slices.Contains(letter.Omitted, "Large") {
			t.Errorf("the message %d has the headers %v and has lost %v", letter.Sequence, slices.Collect(maps.Keys(letter.Header)), letter.Omitted)
		}
	}
}
