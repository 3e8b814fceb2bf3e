package goflux_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/micro"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/nats"
)

// A reply that is too large is an error, also in the statistics.
func TestLargeReplyIsCountedAsAnError(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))
	ready, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())

	go func() {
		ended <- nats.NewResponder(nc, words, words, goflux.WithLogger(slog.New(slog.DiscardHandler)),
			goflux.WithReady(func() { close(ready) })).Serve(ctx, "x", func(_ context.Context, s string) (string, error) {
			if s == "large" {
				s = strings.Repeat("x", 2<<20)
			}

			return s, nil
		})
	}()

	<-ready

	asking := nats.NewRequester(nc, words, words)
	defer asking.Close()

	if _, err := asking.Request(waiting(t), "x", "small"); err != nil {
		t.Fatal(err)
	}

	_, err := asking.Request(waiting(t), "x", "large")
	if !errors.Is(err, goflux.NewError(http.StatusInternalServerError, "the reply is too large")) {
		t.Errorf("error %v", err)
	}

	m, err := nc.Request(micro.APIPrefix+".STATS", nil, natstest.Limit)
	if err != nil {
		t.Fatal(err)
	}

	var stats micro.Stats
	if err := json.Unmarshal(m.Data, &stats); err != nil {
		t.Fatal(err)
	}

	if e := stats.Endpoints[0]; e.NumRequests != 2 || e.NumErrors != 1 || !strings.Contains(e.LastError, "too large") {
		t.Errorf("the statistics are %+v", e)
	}

	cancel()

	if err := <-ended; err != nil {
		t.Error(err)
	}
}
