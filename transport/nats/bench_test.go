package nats_test

import (
	"sync/atomic"
	"testing"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/nats"
)

const benchSize = 128

func BenchmarkPublish(b *testing.B) {
	data := make([]byte, benchSize)
	header := map[string][]string{"A": {"b"}}

	b.Run("nats.go", func(b *testing.B) {
		nc := natstest.Connect(b, natstest.RunTCP(b))

		b.ReportAllocs()

		for b.Loop() {
			_ = nc.Publish("s", data)
		}
	})

	b.Run("goflux", func(b *testing.B) {
		tr := newTransport(b, natstest.Connect(b, natstest.RunTCP(b)))

		b.ReportAllocs()

		for b.Loop() {
			_, _ = tr.Publish(b.Context(), transport.Message{Subject: "s", Data: data})
		}
	})

	b.Run("nats.go with header", func(b *testing.B) {
		nc := natstest.Connect(b, natstest.RunTCP(b))

		b.ReportAllocs()

		for b.Loop() {
			_ = nc.PublishMsg(&natsgo.Msg{Subject: "s", Header: header, Data: data})
		}
	})

	b.Run("goflux with header", func(b *testing.B) {
		tr := newTransport(b, natstest.Connect(b, natstest.RunTCP(b)))

		b.ReportAllocs()

		for b.Loop() {
			_, _ = tr.Publish(b.Context(), transport.Message{Subject: "s", Header: header, Data: data})
		}
	})
}

// BenchmarkReceive measures the way from a publisher over a server to a
// subscriber; the allocations are those of both clients and the server.
func BenchmarkReceive(b *testing.B) {
	// receive publishes b.N messages in batches that no limit stands in the
	// way of, and waits for them.
	receive := func(b *testing.B, nc *natsgo.Conn, arrived <-chan struct{}) {
		b.Helper()
		b.ReportAllocs()

		data := make([]byte, benchSize)

		b.ResetTimer()

		for sent := 0; sent < b.N; {
			for range min(10_000, b.N-sent) {
				_ = nc.Publish("s", data)
				sent++
			}

			if sent%10_000 == 0 || sent == b.N {
				<-arrived
			}
		}

		b.StopTimer()
	}

	count := func(b *testing.B) (one func(), arrived <-chan struct{}) {
		b.Helper()

		var n atomic.Int64

		ch := make(chan struct{}, 1)

		return func() {
			if got := n.Add(1); got%10_000 == 0 || got == int64(b.N) {
				ch <- struct{}{}
			}
		}, ch
	}

	b.Run("nats.go", func(b *testing.B) {
		srv := natstest.RunTCP(b)
		one, arrived := count(b)
		nc := natstest.Connect(b, srv)

		if _, err := nc.Subscribe("s", func(*natsgo.Msg) { one() }); err != nil {
			b.Fatal(err)
		}

		if err := nc.Flush(); err != nil {
			b.Fatal(err)
		}

		receive(b, natstest.Connect(b, srv), arrived)
	})

	goflux := func(credit int, more func(transport.Subscription)) func(b *testing.B) {
		return func(b *testing.B) {
			b.Helper()

			srv := natstest.RunTCP(b)
			one, arrived := count(b)

			var sub transport.Subscription

			tr := newTransport(b, natstest.Connect(b, srv), nats.WithPendingLimits(-1, -1))
			sub = subscribe(b, tr, transport.SubscribeConfig{Subject: "s", Sink: func(transport.Delivery) {
				one()
				more(sub)
			}})
			sub.Request(credit)
			receive(b, natstest.Connect(b, srv), arrived)
		}
	}

	b.Run("goflux", goflux(1<<62, func(transport.Subscription) {}))
	b.Run("goflux, credit within the sink", goflux(1, func(s transport.Subscription) { s.Request(1) }))
	b.Run("goflux, credit from outside", goflux(1, func(s transport.Subscription) { go s.Request(1) }))
}
