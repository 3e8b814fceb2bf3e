package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	json "github.com/foomo/goencode/json/v1"
	"go.uber.org/goleak"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const want = `shipped order-1 to Oslo
drained
dead letter: orders.created order-2: rejected: the order has no address
`

func TestService(t *testing.T) {
	t.Parallel()

	var out bytes.Buffer
	if err := run(t.Context(), &out, "", ""); err != nil {
		t.Fatal(err)
	}

	if got := out.String(); got != want {
		t.Errorf("it printed\n%s\nwant\n%s", got, want)
	}
}

// The service is ready while it subscribes, and alive all the time.
func TestProbes(t *testing.T) {
	t.Parallel()

	tr, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.Close() }()

	ready := make(chan struct{})

	sub, err := goflux.NewSubscriber(tr, json.NewCodec[Order](), goflux.WithReady(func() { close(ready) }))
	if err != nil {
		t.Fatal(err)
	}

	probe := func(when string, want int) {
		t.Helper()

		for path, want := range map[string]int{"/livez": http.StatusOK, "/readyz": want} {
			answer := httptest.NewRecorder()
			health(sub).ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))

			if answer.Code != want {
				t.Errorf("%s, %s: %d %s, want %d", when, path, answer.Code, answer.Body, want)
			}
		}
	}

	probe("before Subscribe", http.StatusServiceUnavailable)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	ended := make(chan error, 1)

	go func() { ended <- sub.Subscribe(ctx, "orders.>", ship(t.Output())) }()

	<-ready
	probe("during Subscribe", http.StatusOK)
	cancel()

	if err := <-ended; err != nil {
		t.Error(err)
	}

	probe("after Subscribe", http.StatusServiceUnavailable)
}
