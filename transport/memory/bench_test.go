package memory_test

import (
	"strconv"
	"testing"

	"github.com/foomo/goflux/transport"
)

// One message from Publish to its ack, through one subscription.
func BenchmarkPublishDeliverAck(b *testing.B) {
	for _, size := range []int{16, 1024} {
		b.Run(strconv.Itoa(size)+"B", func(b *testing.B) {
			tr := open(b)

			var sub transport.Subscription

			sub = subscribe(b, tr, transport.SubscribeConfig{Subject: "bench.a", Group: "g", Sink: func(d transport.Delivery) {
				if err := d.Settler.Settle(b.Context(), d.Token, transport.Verdict{Action: transport.Ack}); err != nil {
					b.Error(err)
				}

				sub.Request(1)
			}})
			sub.Request(1)

			msg := transport.Message{Subject: "bench.a", Data: make([]byte, size)}

			b.ReportAllocs()

			for b.Loop() {
				if _, err := tr.Publish(b.Context(), msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The same from all processors at once, into one group of eight.
func BenchmarkParallel(b *testing.B) {
	tr := open(b)

	for range 8 {
		var sub transport.Subscription

		sub = subscribe(b, tr, transport.SubscribeConfig{Subject: "bench.a", Group: "g", Sink: func(d transport.Delivery) {
			if err := d.Settler.Settle(b.Context(), d.Token, transport.Verdict{Action: transport.Ack}); err != nil {
				b.Error(err)
			}

			sub.Request(1)
		}})
		sub.Request(64)
	}

	msg := transport.Message{Subject: "bench.a", Data: make([]byte, 128)}

	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := tr.Publish(b.Context(), msg); err != nil {
				b.Error(err)

				return
			}
		}
	})
}

// A publish that nobody subscribes to, with an id that is new each time.
func BenchmarkPublishID(b *testing.B) {
	tr := open(b)
	i := 0

	b.ReportAllocs()

	for b.Loop() {
		i++

		if _, err := tr.Publish(b.Context(), transport.Message{Subject: "bench.a", ID: strconv.Itoa(i)}); err != nil {
			b.Fatal(err)
		}
	}
}
