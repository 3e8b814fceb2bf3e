package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	t.Parallel()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	var out strings.Builder

	if err := run(ctx, &out, ""); err != nil {
		t.Fatal(err)
	}

	const want = `apples: 7
unicorns: 404 no such article {"article":"unicorn"}
nobody takes orders: true
shelves: [A has 3 B has 4]
service: stock 1.0.0 on stock.get
service: stock 1.0.0 on stock.get
`
	if got := out.String(); got != want {
		t.Errorf("it printed\n%s\nwant\n%s", got, want)
	}
}
