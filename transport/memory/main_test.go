package memory_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open makes a transport that is closed with the test.
func open(tb testing.TB, opts ...memory.Option) *memory.Transport {
	tb.Helper()

	tr, err := memory.New(opts...)
	if err != nil {
		tb.Fatal(err)
	}

	tb.Cleanup(func() {
		if err := tr.Close(); err != nil {
			tb.Error(err)
		}
	})

	return tr
}

func subscribe(tb testing.TB, tr transport.Transport, cfg transport.SubscribeConfig) transport.Subscription {
	tb.Helper()

	sub, err := tr.Subscribe(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}

	return sub
}

func publish(tb testing.TB, tr transport.Transport, subject string, data ...string) {
	tb.Helper()

	for _, d := range data {
		if _, err := tr.Publish(tb.Context(), transport.Message{Subject: subject, Data: []byte(d)}); err != nil {
			tb.Error(err)
		}
	}
}

// inbox is a sink that keeps what it gets.
type inbox struct {
	mu  sync.Mutex
	got []transport.Delivery
}

func (i *inbox) sink(d transport.Delivery) {
	i.mu.Lock()
	defer i.mu.Unlock()

	i.got = append(i.got, d)
}

// take returns what came since the last call.
func (i *inbox) take() []transport.Delivery {
	i.mu.Lock()
	defer i.mu.Unlock()

	got := i.got
	i.got = nil

	return got
}

// want takes what came, and fails unless it is data.
func (i *inbox) want(tb testing.TB, data ...string) []transport.Delivery {
	tb.Helper()

	got := i.take()
	if texts := texts(got); !slices.Equal(texts, data) {
		tb.Fatalf("got %q, want %q", texts, data)
	}

	return got
}

func texts(ds []transport.Delivery) []string {
	s := make([]string, 0, len(ds))
	for _, d := range ds {
		s = append(s, string(d.Data))
	}

	return s
}

func settle(d transport.Delivery, a transport.Action) error {
	return d.Settler.Settle(context.Background(), d.Token, transport.Verdict{Action: a})
}

// settled settles and expects success.
func settled(tb testing.TB, d transport.Delivery, v transport.Verdict) {
	tb.Helper()

	if err := d.Settler.Settle(tb.Context(), d.Token, v); err != nil {
		tb.Errorf("%s: %v", v.Action, err)
	}
}

func ack(tb testing.TB, ds ...transport.Delivery) {
	tb.Helper()

	for _, d := range ds {
		settled(tb, d, transport.Verdict{Action: transport.Ack})
	}
}

func nak(tb testing.TB, ds ...transport.Delivery) {
	tb.Helper()

	for _, d := range ds {
		settled(tb, d, transport.Verdict{Action: transport.Nak})
	}
}
