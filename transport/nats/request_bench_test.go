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
// own for each side, over TCP. They take short turns, one after the other, and
// of each round of turns the quotient of the times is one sample, so that what
// the machine does otherwise does not count. Reported are the medians:
// "goflux/raw" is the rate of goflux as a part of that of a program which
// handles each request on a goroutine of its own, as goflux does, so that a slow
// one holds nobody up. "goflux/serial" compares with one that answers within the
// callback of nats.go, where requests wait for each other. With one request at a
// time, where every goroutine sleeps until it is its turn, that saves one
// hand-over of the four.
//
// The first is to be 0.95 or more.
func BenchmarkRequest(b *testing.B) {
	b.Run("64 at a time", func(b *testing.B) { compareRequests(b, 64, 128) })
	b.Run("one at a time", func(b *testing.B) { compareRequests(b, 1, 16) })
}

func compareRequests(b *testing.B, parallel, turn int) {
	b.Helper()

	srv := natstest.RunTCP(b)
	ways := []func(context.Context) error{
		gofluxRequest(b, srv),
		rawRequest(b, srv, "raw", func(handle func()) { go handle() }),
		rawRequest(b, srv, "serial", func(handle func()) { handle() }),
	}
	took := make([][]time.Duration, len(ways))

	// Connections, maps and pools are warm after that.
	for _, way := range ways {
		takeTurn(b, way, parallel, turn)
	}

	for round := 0; b.Loop(); round++ {
		// Each finds what another one left behind.
		for i := range ways {
			way := (round + i) % len(ways)
			took[way] = append(took[way], takeTurn(b, ways[way], parallel, turn))
		}
	}

	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(took[0], func(i int) float64 { return float64(took[0][i].Nanoseconds()) / float64(turn) }), "ns/request")

	for way, name := range []string{1: "goflux/raw", 2: "goflux/serial"} {
		if way > 0 {
			b.ReportMetric(median(took[0], func(i int) float64 { return float64(took[way][i]) / float64(took[0][i]) }), name)
		}
	}
}

func median(of []time.Duration, sample func(i int) float64) float64 {
	samples := make([]float64, len(of))
	for i := range of {
		samples[i] = sample(i)
	}

	slices.Sort(samples)

	return samples[len(samples)/2]
}

// takeTurn makes some requests, several at a time.
func takeTurn(b *testing.B, request func(context.Context) error, parallel, turn int) time.Duration {
	b.Helper()

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

// rawRequest is the round trip by hand. run runs the handler of a request.
func rawRequest(b *testing.B, srv *natstest.Server, subject string, run func(handle func())) func(context.Context) error {
	b.Helper()

	codec := json.NewCodec[order]()
	answering, asking := natstest.Connect(b, srv), natstest.Connect(b, srv)

	_, err := answering.QueueSubscribe(subject, "q", func(m *natsgo.Msg) {
		run(func() {
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

		m, err := asking.RequestWithContext(ctx, subject, data)
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
