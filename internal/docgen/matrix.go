package main

import (
	"strings"

	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
	"github.com/foomo/goflux/transport/nats"
	"github.com/foomo/goflux/transport/transporttest"
)

// matrix returns the capabilities of the transports. Those over NATS tell theirs
// without a connection.
func matrix() (string, error) {
	plain, err := memory.New()
	if err != nil {
		return "", err
	}

	replaying, err := memory.New(memory.WithHistory(1))
	if err != nil {
		return "", err
	}

	var b strings.Builder

	err = transporttest.MatrixMarkdown(&b,
		transporttest.NamedTransport{Name: "jetstream, embedded", Capable: new(jetstream.Transport)},
		transporttest.NamedTransport{Name: "nats", Capable: new(nats.Transport)},
		transporttest.NamedTransport{Name: "memory", Capable: plain},
		transporttest.NamedTransport{Name: "memory with history", Capable: replaying},
	)

	return b.String(), err
}
