package nats_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/foomo/goencode/json/v1"
	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/nats"
)

// order is a request and a reply of ordinary size.
type order struct {
	ID       string   `json:"id"`
	Customer string   `json:"customer"`
	Items    []string `json:"items"`
	Cents    int      `json:"cents"`
}

var sample = order{ID: "3f1c", Customer: "Ada", Items: []string{"bread", "cheese", "tomato"}, Cents: 1250}

// BenchmarkRequest compares a live round trip with what one writes by hand with
// nats.go: the same codec on both sides, the same deadline, a connection of its
// own for each side, over TCP. The two take short turns, and the fastest eighth
// of the turns counts, so that what the machine does otherwise does not.
// "goflux/raw" is the rate of goflux as a part of the other.
//
// It is to be 0.95 or more at load. With one request at a time, where every
// goroutine sleeps until it is its turn, one hand-over more shows: nats.go calls
// handlers one after the other on the goroutine that receives; here they have
// their own, so that a slow one holds nobody up.
func BenchmarkRequest(b *testing.B) {
	b.Run("64 at a time", func(b *testing.B) { compareRequests(b, 64) })
	b.Run("one at a time", func(b *testing.B) { compareRequests(b, 1) })
}

func compareRequests(b *testing.B, parallel int) {
	b.Helper()

	const turn = 128

	srv := natstest.RunTCP(b)
	raw, ours := rawRequest(b, srv), gofluxRequest(b, srv)

	round := func(request func(context.Context) error) time.Duration {
		left := make(chan struct{}, turn)
		for range turn {
			left <- struct{}{}
		}

		close(left)

		failed := make(chan error, parallel)
		start := time.Now()

		for range parallel {
			go func() {
				for range left {
					ctx, cancel := context.WithTimeout(b.Context(), natstest.Limit)
					err := request(ctx)
					cancel()

					if err != nil {
						failed <- err

						return
					}
				}

				failed <- nil
			}()
		}

		for range parallel {
			if err := <-failed; err != nil {
				b.Error(err)
			}
		}

		return time.Since(start)
	}

	// Connections, maps and pools are warm after that.
	round(raw)
	round(ours)

	var tookRaw, tookOurs []time.Duration

	for b.Loop() {
		// The first of a pair finds what the second one left behind.
		if len(tookRaw)%2 == 0 {
			tookRaw = append(tookRaw, round(raw))
			tookOurs = append(tookOurs, round(ours))
		} else {
			tookOurs = append(tookOurs, round(ours))
			tookRaw = append(tookRaw, round(raw))
		}
	}

	quickest := func(turns []time.Duration) float64 {
		slices.Sort(turns)

		return float64(turns[len(turns)/8].Nanoseconds()) / turn
	}

	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quickest(tookRaw), "raw-ns/request")
	b.ReportMetric(quickest(tookOurs), "goflux-ns/request")
	b.ReportMetric(quickest(tookRaw)/quickest(tookOurs), "goflux/raw")
}

// rawRequest is the round trip by hand.
func rawRequest(b *testing.B, srv *natstest.Server) func(context.Context) error {
	b.Helper()

	codec := json.NewCodec[order]()
	answering, asking := natstest.Connect(b, srv), natstest.Connect(b, srv)

	_, err := answering.QueueSubscribe("raw", "q", func(m *natsgo.Msg) {
		var req order
		if err := codec.Decode(m.Data, &req); err != nil {
			b.Error(err)
		}

		data, err := codec.Encode(req)
		if err == nil {
			err = m.Respond(data)
		}

		if err != nil {
			b.Error(err)
		}
	})
	if err == nil {
		err = answering.Flush()
	}

	if err != nil {
		b.Fatal(err)
	}

	return func(ctx context.Context) error {
		data, err := codec.Encode(sample)
		if err != nil {
			return err
		}

		m, err := asking.RequestWithContext(ctx, "raw", data)
		if err != nil {
			return err
		}

		var reply order

		return codec.Decode(m.Data, &reply)
	}
}

func gofluxRequest(b *testing.B, srv *natstest.Server) func(context.Context) error {
	b.Helper()

	codec := json.NewCodec[order]()
	answering, asking := natstest.Connect(b, srv), natstest.Connect(b, srv)
	ready := make(chan struct{})
	responder := nats.NewResponder(answering, codec, codec, goflux.WithReady(func() { close(ready) }))
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)

	go func() {
		served <- responder.Serve(ctx, "goflux", func(_ context.Context, req order) (order, error) { return req, nil })
	}()

	b.Cleanup(func() {
		stop()

		if err := <-served; err != nil {
			b.Error(err)
		}
	})

	<-ready

	requester := nats.NewRequester(asking, codec, codec)

	return func(ctx context.Context) error {
		_, err := requester.Request(ctx, "goflux", sample)

		return err
	}
}
