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

	const want = `4 requests wait, nobody is there to answer
order-sandwich: 🥪
order-bagel: 🥯
order-flatbread: 🥙
order-drink: 404 we do not serve that (timeout? false)
0 remaining in the stream
submitted twice, one ticket: true
picked up by somebody else: 🥯
unknown ticket
0 remaining in the stream
`
	if got := out.String(); got != want {
		t.Errorf("it printed\n%s\nwant\n%s", got, want)
	}
}
