package jetstream_test

import (
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/jetstream"
)

// A batch that can be seen to fail does not begin: the server takes 50 of a
// stream at once, and keeps one that is not committed for 10 s (nats-server
// v2.15.2).
func TestAtomicBatchesThatFailDoNotBegin(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "A", Subjects: []string{"a"}, AllowAtomicPublish: true})

	pub := publisher(t, e.transport(t))
	ctx := within(t)
	large := goflux.Item[string]{Subject: "a", Payload: strings.Repeat("x", 2<<20)}

	for range 60 {
		_, err := pub.PublishAtomic(ctx, goflux.Item[string]{Subject: "a"}, large, goflux.Item[string]{Subject: "a"})
		_ = details(t, err, goflux.ErrTooLarge)
	}

	r, err := pub.PublishAtomic(ctx, goflux.Item[string]{Subject: "a"}, goflux.Item[string]{Subject: "a"})
	must(t, err)

	if r.Sequence != 2 {
		t.Errorf("the receipt %+v, want that of the second message", r)
	}
}

// A batch whose answer is lost is found to be stored, however far the server is:
// its ids are asked for at once.
func TestAtomicBatchLearnsThatItIsStored(t *testing.T) {
	t.Parallel()

	const n = 1000

	s := natstest.RunTCP(t)
	stream := natstest.Stream(t, natstest.JetStream(t, natstest.Connect(t, s)),
		natsjs.StreamConfig{Name: "A", Subjects: []string{"a"}, AllowAtomicPublish: true})

	far, err := chaos.NewProxy(s.URL(), 1)
	must(t, err)
	t.Cleanup(func() { must(t, far.Close()) })

	tr, err := jetstream.New(natstest.JetStream(t, natstest.Connect(t, natstest.URL(far.URL()))))
	must(t, err)
	t.Cleanup(func() { must(t, tr.Close()) })

	far.Delay(chaos.Both, 5*time.Millisecond, 0)

	// One by one, the ids would take ten seconds, and an attempt ends after two.
	pub := publisher(t, &forgetful{Transport: tr, loses: 1}, goflux.WithPublishRetry(0))

	r, err := pub.PublishAtomic(within(t), batchOf("a", n)...)
	must(t, err)

	info, err := stream.Info(t.Context())
	must(t, err)

	if want := (goflux.Receipt{Stream: "A", Sequence: n, Duplicate: true}); r != want || info.State.Msgs != n {
		t.Errorf("the receipt %+v, want %+v; %d are stored", r, want, info.State.Msgs)
	}
}

func TestAtomicBatchWithOneIDTwice(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "A", Subjects: []string{"a"}, AllowAtomicPublish: true})

	_, err := publisher(t, e.transport(t)).PublishAtomic(within(t),
		goflux.Item[string]{Subject: "a", ID: "m-1"}, goflux.Item[string]{Subject: "a", ID: "m-2"}, goflux.Item[string]{Subject: "a", ID: "m-1"})

	if _ = details(t, err, goflux.ErrDuplicate); !strings.Contains(err.Error(), `two messages of the batch have the id "m-1"`) {
		t.Errorf("got %v", err)
	}
}
