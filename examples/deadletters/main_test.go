package main

import (
	"bytes"
	"testing"

	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/natstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const want = `orders.created number 1, id "order-1", 8 bytes, attempt 1 of shipping, redriven 0 times: rejected: no such customer
orders.created number 2, id "order-2", 8 bytes, attempt 5 of shipping, redriven 0 times: attempts exhausted: the carrier does not answer
0 sent back, 0 of an earlier run, 2 kept, 0 failed
orders.created number 2, id "order-2", 8 bytes, attempt 5 of shipping, redriven 0 times: attempts exhausted: the carrier does not answer
1 sent back, 0 of an earlier run, 1 kept, 0 failed
`

func TestDemonstration(t *testing.T) {
	t.Parallel()

	var out bytes.Buffer
	if err := demonstrate(t.Context(), &out); err != nil {
		t.Fatal(err)
	}

	if got := out.String(); got != want {
		t.Errorf("it printed\n%s\nwant\n%s", got, want)
	}
}

func TestServerWithoutDeadLetters(t *testing.T) {
	t.Parallel()

	var out bytes.Buffer
	if err := connected(t.Context(), &out, natstest.RunTCP(t).URL(), wish{subject: "dead.>"}); err == nil {
		t.Errorf("no error though no stream has them; it printed\n%s", out.String())
	}
}
