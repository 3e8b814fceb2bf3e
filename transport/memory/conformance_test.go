package memory_test

import (
	"testing"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
	"github.com/foomo/goflux/transport/transporttest"
)

// harness runs the suite over transports in memory: each is a broker of its own.
func harness(opts ...memory.Option) transporttest.Harness {
	return transporttest.Harness{
		Start: func(tb testing.TB, cfg transporttest.Config) transporttest.Broker {
			tb.Helper()

			t := open(tb, append(opts, memory.WithAckWait(cfg.AckWait), memory.WithMaxDeliver(cfg.MaxDeliver))...)

			return transporttest.Broker{Open: func(testing.TB) transport.Transport { return t }}
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	transporttest.Run(t, harness())
}

// With a history the transport can also replay.
func TestConformanceWithHistory(t *testing.T) {
	t.Parallel()
	transporttest.Run(t, harness(memory.WithHistory(1000)))
}

func BenchmarkTransport(b *testing.B) { transporttest.Benchmark(b, harness()) }
