package nats_test

import (
	"testing"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/transporttest"
)

// harness runs the suite over connections to a server of its own for each item.
func harness() transporttest.Harness {
	return transporttest.Harness{
		Start: func(tb testing.TB, _ transporttest.Config) transporttest.Broker {
			tb.Helper()

			s := natstest.Run(tb)

			return transporttest.Broker{
				Open: func(tb testing.TB) transport.Transport {
					tb.Helper()

					return newTransport(tb, natstest.Connect(tb, s))
				},
				Restart: func(tb testing.TB) {
					tb.Helper()

					if err := s.Restart(); err != nil {
						tb.Fatal(err)
					}
				},
				PublishForeign: func(tb testing.TB, subject string, header map[string][]string, data []byte) {
					tb.Helper()

					nc := natstest.Connect(tb, s)
					if err := nc.PublishMsg(&natsgo.Msg{Subject: subject, Header: header, Data: data}); err != nil {
						tb.Fatal(err)
					}

					if err := nc.Flush(); err != nil {
						tb.Fatal(err)
					}
				},
			}
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	transporttest.Run(t, harness())
}

func BenchmarkTransport(b *testing.B) { transporttest.Benchmark(b, harness()) }
