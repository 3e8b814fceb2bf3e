package jetstream_test

import (
	"strings"
	"testing"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
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
