package main

import (
	"fmt"
	"strings"

	"github.com/foomo/goflux/transport"
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

	if err != nil {
		return "", err
	}

	return footnote(b.String(), transport.RequestReply, "live "+transport.RequestReply.String(),
		"JetStream has stored requests instead, of `jetstream.NewRequester` and `jetstream.NewResponder`.")
}

// footnote gives the row of a capability another label, and a note below the
// table.
func footnote(table string, c transport.Capability, label, note string) (string, error) {
	row := "| " + c.String() + " |"
	if strings.Count(table, row) != 1 {
		return "", fmt.Errorf("the matrix has not one row %q", row)
	}

	return strings.Replace(table, row, "| "+label+" ¹ |", 1) + "\n¹ " + note + "\n", nil
}
