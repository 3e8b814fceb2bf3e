package jetstream_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/transporttest"
)

// harness runs the suite over connections to a server of its own for each item,
// with one stream.
func harness() transporttest.Harness {
	return transporttest.Harness{
		Patience: 2 * natstest.Limit, // a server under the race detector, on two cores, may take its time
		Start: func(tb testing.TB, cfg transporttest.Config) transporttest.Broker {
			tb.Helper()

			s := natstest.Run(tb)
			nc := natstest.Connect(tb, s)
			js := natstest.JetStream(tb, nc)
			natstest.Stream(tb, js, natsjs.StreamConfig{
				Name: cfg.Prefix, Subjects: []string{cfg.Prefix + ".>", "schedule." + cfg.Prefix + ".>"},
				AllowMsgTTL: true, AllowMsgSchedules: true, AllowAtomicPublish: true,
			})

			return transporttest.Broker{
				Open: func(tb testing.TB) transport.Transport {
					tb.Helper()

					t, err := jetstream.New(natstest.JetStream(tb, natstest.Connect(tb, s)),
						jetstream.WithStream(cfg.Prefix),
						jetstream.WithConsumerConfig(func(c *natsjs.ConsumerConfig) {
							c.AckWait, c.MaxDeliver = cfg.AckWait, cfg.MaxDeliver
						}))
					if err != nil {
						tb.Fatal(err)
					}

					return t
				},
				Restart: func(tb testing.TB) {
					tb.Helper()

					if err := s.Restart(); err != nil {
						tb.Fatal(err)
					}
				},
				DeleteConsumer: func(tb testing.TB, info transport.Info) {
					tb.Helper()

					if err := js.DeleteConsumer(tb.Context(), info.Stream, info.Consumer); err != nil {
						tb.Fatal(err)
					}
				},
				DeleteStream: func(tb testing.TB, info transport.Info) {
					tb.Helper()

					if err := js.DeleteStream(tb.Context(), info.Stream); err != nil {
						tb.Fatal(err)
					}
				},
				PublishForeign: func(tb testing.TB, subject string, header map[string][]string, data []byte) {
					tb.Helper()

					if _, err := js.PublishMsg(tb.Context(), &nats.Msg{Subject: subject, Header: header, Data: data}); err != nil {
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
