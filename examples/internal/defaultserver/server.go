// Package defaultserver gives examples that connect to nats.DefaultURL a server
// to talk to. Imported for its side effect, it starts one there with JetStream,
// on a temporary store, unless the port is taken: then the examples use what
// runs there.
package defaultserver

import (
	"context"
	"log"
	"net/url"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux/transport/embedded"
)

func init() { //nolint:gochecknoinits // the point of the package: examples keep to what they show
	u, err := url.Parse(nats.DefaultURL)
	if err != nil {
		log.Fatal(err)
	}

	port, err := strconv.Atoi(u.Port())
	if err != nil {
		log.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	if _, err := embedded.Start(ctx, embedded.WithListen(u.Hostname(), port)); err != nil {
		log.Printf("no server was started, trying the one at %s: %v", nats.DefaultURL, err)
	}
}
