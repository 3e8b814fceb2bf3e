// Package transporttest is the conformance suite of goflux: what every
// transport has to prove, whether it comes with goflux or not.
//
// The author of a transport writes one small test file with a [Harness] and
// calls [Run]. The capabilities of the transport decide what is asserted: where
// one is missing, the suite asserts that it is absent and that whoever asks for
// it is told so. Nothing is left out. [Benchmark] measures a transport with the
// same harness, and [Matrix] prints capabilities side by side.
package transporttest

import (
	"testing"
	"time"

	"github.com/foomo/goflux/transport"
)

// Harness is how the suite gets hold of a transport.
type Harness struct {
	// Start makes a broker ready and registers with tb.Cleanup what ends it.
	// It is called for each item, often several times and concurrently; a
	// failure to start ends tb. What a broker has to be told before it does
	// what the transport claims, such as TTLs, schedules and atomic batches, is
	// told here. It is required.
	Start func(tb testing.TB, cfg Config) Broker

	// MaxPayload is how many bytes of payload a message without headers may
	// have; one more must be transport.ErrTooLarge. Zero means 1 MiB, the
	// default of a NATS server.
	MaxPayload int

	// Patience is how long the suite waits for what must happen without
	// seeing any progress; it matters only when something fails. Zero means
	// 30 s.
	Patience time.Duration
}

// Config is what an item wants of its broker.
type Config struct {
	// Prefix is the first token of every subject the item uses: a broker that
	// is told what to store is told Prefix + ".>". It is different in each
	// call of Start, and fit to name a stream, which is new and empty. Other
	// subjects are used only to see that nobody stores them.
	Prefix string

	// AckWait is the lease that deliveries are to have, where the transport
	// has leases. It is never zero.
	AckWait time.Duration

	// MaxDeliver is how often a message is to be delivered at the most, where
	// the transport has redelivery. Zero means without limit.
	MaxDeliver int
}

// Broker is a broker that was started for an item. All but Open may be nil; the
// functions fail tb when they cannot do what they are asked.
type Broker struct {
	// Open returns a new client of the broker, and registers with tb.Cleanup
	// what is left to do when it was closed: the suite closes the transport,
	// the harness a connection below it. Where the broker lives in the
	// transport, so that there cannot be two clients of it, Open returns the
	// same pointer each time.
	Open func(tb testing.TB) transport.Transport

	// Restart restarts the broker with its store, while clients are at work,
	// and returns when it serves again. Nil means that there is nothing to
	// restart: the broker lives in the transport.
	Restart func(tb testing.TB)

	// DeleteConsumer and DeleteStream delete at the broker what a
	// subscription reports as its Info().Consumer and Info().Stream. Nil
	// means that nobody but the transport could delete them.
	DeleteConsumer func(tb testing.TB, info transport.Info)
	DeleteStream   func(tb testing.TB, info transport.Info)

	// PublishForeign publishes as a client would that knows nothing of
	// goflux. Nil means that there are no such clients: the suite then uses
	// the transport's Publish.
	PublishForeign func(tb testing.TB, subject string, header map[string][]string, data []byte)
}
