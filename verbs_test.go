package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

// A message tells whether it is to be settled by hand.
func TestManualAckOfMessages(t *testing.T) {
	t.Parallel()

	if (goflux.Message[string]{Subject: "orders"}).ManualAck() {
		t.Error("a message that was composed says that it is to be settled")
	}

	for name, c := range map[string]struct {
		opts []goflux.SubscriberOption
		want bool
	}{
		"automatic": {[]goflux.SubscriberOption{silent()}, false},
		"keyed":     {[]goflux.SubscriberOption{goflux.WithOrderingKey(func(goflux.Message[string]) string { return "" })}, false},
		"manual":    {[]goflux.SubscriberOption{goflux.WithManualAck()}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr := inMemory(t)

				sub, err := goflux.NewSubscriber(tr, raw.String(), c.opts...)
				if err != nil {
					t.Fatal(err)
				}

				handled := false
				stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
					if handled = true; msg.ManualAck() != c.want {
						t.Errorf("ManualAck is %v", msg.ManualAck())
					}

					return msg.Ack()
				})
				synctest.Wait()
				send(t, tr, "orders", "one")
				synctest.Wait()

				if err := stop(); err != nil || !handled {
					t.Errorf("handled: %v, %v", handled, err)
				}
			})
		})
	}
}

// BeforeSettle tells of each verb before it is carried out, of the message that it
// returned and its copies.
func TestBeforeSettle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := inMemory(t)
		w := &witness{Subscriber: tr}

		sub, err := goflux.NewSubscriber(w, raw.String(), silent())
		if err != nil {
			t.Fatal(err)
		}

		var (
			told   []transport.Action
			before []int // verdicts that were carried out when it was told
		)

		stop := serveDead(t, sub, "orders", func(ctx context.Context, msg goflux.Message[string]) error {
			hooked := msg.BeforeSettle(func(action transport.Action) {
				told = append(told, action)
				before = append(before, len(w.seen()))
			})
			clone := hooked

			if err := errors.Join(clone.InProgress(), hooked.AckSync(ctx)); err != nil {
				t.Error(err)
			}

			for _, verb := range []func() error{clone.Ack, clone.Nak, clone.Term, msg.Nak} {
				if err := verb(); !errors.Is(err, goflux.ErrSettled) {
					t.Errorf("a second verb returned %v", err)
				}
			}

			if m := hooked.Metadata(); m.Sequence != 1 || hooked.Payload != "one" || hooked.ManualAck() {
				t.Errorf("the message has changed: %+v", hooked)
			}

			return nil
		})
		synctest.Wait()
		send(t, tr, "orders", "one")
		synctest.Wait()

		if err := stop(); err != nil {
			t.Error(err)
		}

		want := []transport.Action{transport.Extend, transport.AckSync, transport.Ack, transport.Nak, transport.Term}
		if !slices.Equal(told, want) || !slices.Equal(before, []int{0, 0, 1, 1, 1}) {
			t.Errorf("told %v with %v verdicts before, want %v", told, before, want)
		}
	})

	// Without a transport behind it there is nothing to be told.
	msg := goflux.Message[string]{}.BeforeSettle(func(transport.Action) { t.Error("told of a verb that is none") })
	if err := msg.Ack(); !errors.Is(err, goflux.ErrUnsupported) {
		t.Errorf("Ack returned %v", err)
	}
}

// A middleware that wants to know what its handler makes of a message.
func ExampleMessage_BeforeSettle() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	told := func(next goflux.Handler[string]) goflux.Handler[string] {
		return func(ctx context.Context, msg goflux.Message[string]) error {
			return next(ctx, msg.BeforeSettle(func(action transport.Action) {
				fmt.Println(msg.Payload, "is settled with", action)
			}))
		}
	}

	handle := func(_ context.Context, msg goflux.Message[string]) error {
		defer cancel()

		return msg.Term()
	}

	publish := func() {
		if _, err := t.Publish(ctx, transport.Message{Subject: "orders", Data: []byte("the order")}); err != nil {
			fmt.Println(err)
		}
	}

	sub, err := goflux.NewSubscriber(t, raw.String(), goflux.WithReady(func() { go publish() }))
	if err != nil {
		fmt.Println(err)

		return
	}

	if err := sub.Subscribe(ctx, "orders", told(handle)); err != nil {
		fmt.Println(err)
	}

	// Output:
	// the order is settled with term
}
