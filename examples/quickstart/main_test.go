package main

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/natstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const want = `created a stream
published order-1
published order-2
published order-3
shipped order-1, amount 9.50, tenant acme, attempt 1
handling order-2 failed; it will come again
shipped order-3, amount 28.50, tenant acme, attempt 1
shipped order-2, amount 19.00, tenant acme, attempt 2
billed order-1 from a batch
billed order-2 from a batch
billed order-3 from a batch
done: 0 messages wait for billing, 0 for an ack
`

func TestQuickstart(t *testing.T) {
	t.Parallel()

	var out bytes.Buffer
	if err := run(t.Context(), &out, ""); err != nil {
		t.Fatal(err)
	}

	if got := out.String(); sorted(got) != sorted("started a NATS server with JetStream in this process\n"+want) {
		t.Errorf("it printed\n%s", got)
	}
}

func TestQuickstartOnAServer(t *testing.T) {
	t.Parallel()

	server := natstest.RunTCP(t)

	var out bytes.Buffer
	if err := run(t.Context(), &out, server.URL()); err != nil {
		t.Fatal(err)
	}

	if got := out.String(); !strings.Contains(got, "done: 0 messages wait for billing, 0 for an ack") {
		t.Errorf("it printed\n%s", got)
	}
}

func TestInterruptedAnywhere(t *testing.T) {
	t.Parallel()

	for _, at := range []string{"started", "created", "published order-2", "handling", "shipped order-3", "billed order-1"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()

			// Whatever it returns, it returns.
			_ = run(ctx, &interrupter{at: at, interrupt: cancel}, "")
		})
	}
}

// interrupter interrupts when it reads a line that begins as told.
type interrupter struct {
	at        string
	interrupt func()
}

func (i *interrupter) Write(line []byte) (int, error) {
	if strings.HasPrefix(string(line), i.at) {
		i.interrupt()
	}

	return len(line), nil
}

// sorted makes the order of redeliveries and new messages irrelevant.
func sorted(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)

	return strings.Join(lines, "\n")
}
