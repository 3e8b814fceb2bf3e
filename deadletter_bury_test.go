package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
)

// hanging is a storage of dead letters that does not answer, until it fails.
type hanging struct {
	takes time.Duration
	asked atomic.Int32
}

func (*hanging) Capabilities() transport.Capabilities { return transport.Of(transport.Receipts) }

func (h *hanging) Publish(ctx context.Context, _ transport.Message) (transport.Receipt, error) {
	h.asked.Add(1)

	select {
	case <-time.After(h.takes):
	case <-ctx.Done():
	}

	return transport.Receipt{}, transport.ErrNoStream
}

// Poison whose dead letters cannot be stored holds nobody back, with one handler:
// neither while storing is tried nor by its number.
func TestPoisonHoldsNobodyBackWhileTheStorageIsDown(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		poison int
		takes  time.Duration
	}{{1, time.Hour}, {8, time.Hour}, {100, 500 * time.Millisecond}, {2000, 0}} {
		t.Run(fmt.Sprint(c.poison), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr, store := inMemory(t), &hanging{takes: c.takes}

				sub, err := goflux.NewSubscriber(tr, raw.String(),
					goflux.WithQueueGroup("workers"), goflux.WithDeadLetterPublisher(store, "dead.orders"), silent())
				if err != nil {
					t.Fatal(err)
				}

				var worst time.Duration

				good := 0
				stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
					if msg.Payload == "poison" {
						return goflux.Reject(errCannot)
					}

					sent, err := time.Parse(time.RFC3339Nano, msg.Payload)
					worst = max(worst, time.Since(sent))
					good++

					return err
				})

				synctest.Wait()

				send := func(payload string) {
					if _, err := tr.Publish(t.Context(), transport.Message{Subject: "orders", Data: []byte(payload)}); err != nil {
						t.Fatal(err)
					}
				}

				for range c.poison {
					send("poison")
				}

				for range 600 {
					send(time.Now().Format(time.RFC3339Nano))
					time.Sleep(time.Second)
				}

				synctest.Wait()

				if good != 600 || worst > 0 {
					t.Errorf("%d of 600 good ones were handled, the last one after %v", good, worst)
				}

				// After about a minute it is once in 30 s, for all of them.
				if n := store.asked.Load(); n < 15 || n > 40 {
					t.Errorf("the storage was asked %d times in 10 minutes", n)
				}

				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Where nobody keeps the messages, poison is lost when the storage has been asked
// in vain for a while: it does not pile up, and does not hold back others.
func TestPoisonIsLostWhereNobodyKeepsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, store := inMemory(t, memory.WithAckWait(24*time.Hour)), &hanging{takes: time.Hour}

		var log lockedBuffer

		sub, err := goflux.NewSubscriber(fleeting{tr}, raw.String(),
			goflux.WithDeadLetterPublisher(store, "dead.orders"), goflux.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		if err != nil {
			t.Fatal(err)
		}

		good := 0
		stop := serveDead(t, sub, "orders", func(_ context.Context, msg goflux.Message[string]) error {
			if msg.Payload == "poison" {
				return goflux.Reject(errCannot)
			}

			good++

			return nil
		})

		synctest.Wait()

		const poison = 200

		for range poison {
			for _, payload := range []string{"poison", "good"} {
				if _, err := tr.Publish(t.Context(), transport.Message{Subject: "orders", Data: []byte(payload)}); err != nil {
					t.Fatal(err)
				}
			}
		}

		synctest.Wait()

		if good != poison {
			t.Errorf("%d of %d good ones were handled at once", good, poison)
		}

		time.Sleep(time.Minute)
		synctest.Wait()

		if n := strings.Count(log.String(), "a message was lost"); n != poison {
			t.Errorf("%d of %d were lost, and logged", n, poison)
		}

		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// fleeting is a transport that does not redeliver.
type fleeting struct{ *memory.Transport }

func (f fleeting) Capabilities() transport.Capabilities {
	return f.Transport.Capabilities() &^ transport.Of(transport.Redelivery, transport.DelayedNak)
}

// Of a MaxDeliver that was lowered, the message that fails then learns: it becomes
// a dead letter on what is its last attempt now.
func TestDeadLettersFollowMaxDeliver(t *testing.T) {
	t.Parallel()

	for _, limit := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()

			js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
			stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}, Storage: natsjs.MemoryStorage})
			letters := natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead"}, Storage: natsjs.MemoryStorage})
			cfg := natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy}
			consumer := natstest.Consumer(t, stream, cfg)

			tr, err := jetstream.New(js)
			if err != nil {
				t.Fatal(err)
			}

			var attempts atomic.Int32

			sub, err := goflux.NewSubscriber(jetstream.Bind(consumer), raw.String(), silent(), goflux.WithDeadLetterPublisher(tr, "dead"))
			if err != nil {
				t.Fatal(err)
			}

			stop := serveDead(t, sub, "orders", func(context.Context, goflux.Message[string]) error {
				attempts.Add(1)

				return errCannot
			})

			natstest.Eventually(t, func() bool { return sub.Health(t.Context()) == nil }, "the subscription")

			cfg.MaxDeliver = limit
			if _, err := stream.UpdateConsumer(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}

			if _, err := js.Publish(t.Context(), "orders", []byte("poison")); err != nil {
				t.Fatal(err)
			}

			natstest.Eventually(t, func() bool {
				info, err := letters.Info(t.Context())

				return err == nil && info.State.Msgs == 1
			}, "the dead letter")

			if n := attempts.Load(); n != int32(limit) {
				t.Errorf("%d attempts, want %d", n, limit)
			}

			if err := errors.Join(stop(), tr.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// An ack wait that was shortened is noticed when the message comes again: the
// handler that has lost it is told, and the second one keeps it.
func TestLeaseFollowsTheAckWait(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	stream := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}, Storage: natsjs.MemoryStorage})
	cfg := natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: time.Minute}
	consumer := natstest.Consumer(t, stream, cfg)

	sub, err := goflux.NewSubscriber(jetstream.Bind(consumer), raw.String(), silent(), goflux.WithConcurrency(4))
	if err != nil {
		t.Fatal(err)
	}

	began, causes := make(chan int, 10), make(chan error, 10)
	stop := serveDead(t, sub, "orders", func(ctx context.Context, msg goflux.Message[string]) error {
		began <- msg.Attempt()

		select {
		case <-time.After(8 * time.Second):
		case <-ctx.Done():
		}

		causes <- context.Cause(ctx)

		return context.Cause(ctx)
	})

	if _, err := js.Publish(t.Context(), "orders", []byte("long")); err != nil {
		t.Fatal(err)
	}

	<-began

	cfg.AckWait = 2 * time.Second
	if _, err := stream.UpdateConsumer(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}

	if err := <-causes; !errors.Is(err, goflux.ErrLeaseLost) {
		t.Errorf("the first handler ended with %v, want ErrLeaseLost", err)
	}

	if err := <-causes; err != nil {
		t.Errorf("the second handler ended with %v", err)
	}

	if err := stop(); err != nil {
		t.Error(err)
	}

	if n := len(began) + 1; n != 2 {
		t.Errorf("%d handlings, want 2", n)
	}
}
