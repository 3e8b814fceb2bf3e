package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
)

const all = chaos.StoredOnce | chaos.StoredInOrder | chaos.HandledAtLeastOnce | chaos.HandledInOrder

func TestCheckerFindsEachViolation(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		promises chaos.Promises
		record   func(c *chaos.Checker, send func() chaos.ID)
		want     []chaos.Violation
	}{
		{"nothing sent", all, func(*chaos.Checker, func() chaos.ID) {}, nil},
		{"accepted, stored, handled", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Accepted, 1)
			c.Handled(id, 1)
			c.Stored(id, 1)
		}, nil},
		{"accepted on the second attempt, handled twice", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Unknown, 0)
			c.Published(id, chaos.Accepted, 7)
			c.Handled(id, 1)
			c.Handled(id, 2)
			c.Stored(id, 7)
		}, nil},
		{"unknown, not stored", all, func(c *chaos.Checker, send func() chaos.ID) {
			c.Published(send(), chaos.Unknown, 0)
			send() // Its publisher died, say.
		}, nil},
		{"unknown, stored", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Unknown, 0)
			c.Stored(id, 1)
			c.Handled(id, 1)
		}, nil},
		{"unknown before failed stays unknown", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Unknown, 0)
			c.Published(id, chaos.Failed, 0)
			c.Stored(id, 1)
			c.Handled(id, 1)
		}, nil},
		{"failed before unknown is unknown", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Failed, 0)
			c.Published(id, chaos.Unknown, 0)
			c.Stored(id, 1)
			c.Handled(id, 1)
		}, nil},
		{"failed, not stored", all, func(c *chaos.Checker, send func() chaos.ID) {
			c.Published(send(), chaos.Failed, 0)
		}, nil},
		{"a redelivery after a later one is in order", all, func(c *chaos.Checker, send func() chaos.ID) {
			x, y := send(), send()
			c.Stored(x, 1)
			c.Stored(y, 2)
			c.Handled(x, 1)
			c.Handled(y, 1)
			c.Handled(x, 2)
		}, nil},

		{"lost", all, func(c *chaos.Checker, send func() chaos.ID) {
			c.Published(send(), chaos.Accepted, 1)
		}, []chaos.Violation{chaos.Lost}},
		{"accepted is not taken back", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Accepted, 1)
			c.Published(id, chaos.Failed, 0)
		}, []chaos.Violation{chaos.Lost}},
		{"accepted twice", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Accepted, 1)
			c.Stored(id, 1)
			c.Stored(id, 2)
			c.Handled(id, 1)
		}, []chaos.Violation{chaos.Duplicated}},
		{"unknown twice", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Stored(id, 1)
			c.Stored(id, 2)
			c.Handled(id, 1)
		}, []chaos.Violation{chaos.Duplicated}},
		{"failed, stored", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Failed, 0)
			c.Stored(id, 1)
			c.Handled(id, 1)
		}, []chaos.Violation{chaos.StoredThoughFailed}},
		{"handled, not stored", all, func(c *chaos.Checker, send func() chaos.ID) {
			c.Handled(send(), 1)
		}, []chaos.Violation{chaos.HandledNotStored}},
		{"stored elsewhere", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Accepted, 1)
			c.Stored(id, 2)
			c.Handled(id, 1)
		}, []chaos.Violation{chaos.WrongReceipt}},
		{"two receipts", all, func(c *chaos.Checker, send func() chaos.ID) {
			id := send()
			c.Published(id, chaos.Accepted, 1)
			c.Published(id, chaos.Accepted, 2)
			c.Stored(id, 2)
			c.Handled(id, 1)
		}, []chaos.Violation{chaos.WrongReceipt}},
		{"unknown, stored in another order", all, func(c *chaos.Checker, send func() chaos.ID) {
			x, y, z := send(), send(), send()
			c.Published(y, chaos.Accepted, 1)
			c.Published(z, chaos.Accepted, 3)
			c.Stored(y, 1)
			c.Stored(x, 2)
			c.Stored(z, 3)
			c.Handled(x, 1)
			c.Handled(y, 1)
			c.Handled(z, 1)
		}, nil},
		{"stored in another order", all, func(c *chaos.Checker, send func() chaos.ID) {
			x, y := send(), send()
			c.Published(x, chaos.Accepted, 2)
			c.Published(y, chaos.Accepted, 1)
			c.Stored(y, 1)
			c.Stored(x, 2)
			c.Handled(x, 1)
			c.Handled(y, 1)
		}, []chaos.Violation{chaos.StoredLate}},
		{"not handled", all, func(c *chaos.Checker, send func() chaos.ID) {
			c.Stored(send(), 1)
		}, []chaos.Violation{chaos.NotHandled}},
		{"handled in another order", all, func(c *chaos.Checker, send func() chaos.ID) {
			x, y := send(), send()
			c.Stored(x, 1)
			c.Stored(y, 2)
			c.Handled(y, 1)
			c.Handled(x, 2)
		}, []chaos.Violation{chaos.HandledLate}},
		{"stored, never sent", 0, func(c *chaos.Checker, send func() chaos.ID) {
			c.Stored(chaos.ID{Key: "k", Seq: send().Seq + 1}, 1)
		}, []chaos.Violation{chaos.Foreign}},
		{"handled, never sent", 0, func(c *chaos.Checker, _ func() chaos.ID) {
			c.Handled(chaos.ParseID("who is this"), 1)
		}, []chaos.Violation{chaos.Foreign}},
		{"published, never sent", 0, func(c *chaos.Checker, _ func() chaos.ID) {
			c.Published(chaos.ID{Key: "k", Seq: 1}, chaos.Accepted, 1)
		}, []chaos.Violation{chaos.Foreign}},

		{"attempted, never sent", 0, func(c *chaos.Checker, _ func() chaos.ID) {
			c.Attempted(chaos.ID{Key: "k", Seq: 1})
		}, []chaos.Violation{chaos.Foreign}},

		{"no stream, accepted and not handled", chaos.HandledAtLeastOnce, func(c *chaos.Checker, send func() chaos.ID) {
			c.Published(send(), chaos.Accepted, 0)
			c.Published(send(), chaos.Unknown, 0)
		}, []chaos.Violation{chaos.NotHandled}},
		{"nothing promised", 0, func(c *chaos.Checker, send func() chaos.ID) {
			x, y := send(), send()
			c.Published(x, chaos.Accepted, 9)
			c.Published(y, chaos.Failed, 0)
			c.Handled(y, 1)
			c.Handled(x, 1)
			c.Stored(y, 1)
			c.Stored(x, 2)
			c.Stored(x, 3)
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := chaos.NewChecker(tt.promises)
			tt.record(c, func() chaos.ID { return c.Send("k") })
			r := c.Verify()

			want := chaos.Report{}.Violations
			for _, v := range tt.want {
				want[v]++
			}
			if r.Violations != want || len(r.Examples) != len(tt.want) {
				t.Fatalf("want %v in\n%v", tt.want, r)
			}
			if err := r.Err(); r.OK() != (len(tt.want) == 0) || (err == nil) != r.OK() {
				t.Errorf("OK %v, error %v", r.OK(), err)
			}
			for i, v := range tt.want {
				if e := r.Examples[i]; e.Violation != v || !strings.Contains(r.Err().Error(), e.String()) || !strings.Contains(r.String(), e.String()) {
					t.Errorf("example %v, error %v, report\n%v", e, r.Err(), r)
				}
			}
		})
	}
}

func TestCheckerLimitsExamples(t *testing.T) {
	t.Parallel()
	c := chaos.NewChecker(all)
	for range 1000 {
		c.Published(c.Send("k"), chaos.Accepted, 0)
		c.Handled(chaos.ID{Key: "other", Seq: 1}, 1)
	}
	r := c.Verify()
	if r.Violations[chaos.Lost] != 1000 || r.Violations[chaos.Foreign] != 1000 || len(r.Examples) != 10 {
		t.Errorf("%d examples in\n%v", len(r.Examples), r)
	}
}

func TestIDRoundTrip(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]chaos.ID{
		"k#1":                      {Key: "k", Seq: 1},
		"#7":                       {Seq: 7},
		"a#b#18446744073709551615": {Key: "a#b", Seq: 1<<64 - 1},
		"":                         {},
		"k":                        {Key: "k"},
		"k#":                       {Key: "k#"},
		"k#0":                      {Key: "k#0"},
		"k#-1":                     {Key: "k#-1"},
		"k#1x":                     {Key: "k#1x"},
	} {
		if got := chaos.ParseID(text); got != want || got.String() != text {
			t.Errorf("%q gives %+v, which is %q again", text, got, got.String())
		}
	}
}

// A million messages, entered from several goroutines, take the memory that the
// documentation promises.
func TestCheckerMemoryIsBounded(t *testing.T) {
	const keys, each = 1000, 1000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	c := chaos.NewChecker(all)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for k := w; k < keys; k += 4 {
				key := fmt.Sprint("key-", k)
				for i := range uint64(each) {
					id := c.Send(key)
					at := uint64(k)*each + i + 1
					c.Published(id, chaos.Accepted, at)
					c.Handled(id, 1)
					c.Stored(id, at)
				}
			}
		})
	}
	wg.Wait()
	used := int64(heap()) - int64(before)
	r := c.Verify()
	if err := r.Err(); err != nil || r.Sent != keys*each || r.Stored != keys*each || r.Handled != keys*each {
		t.Errorf("error %v\n%v", err, r)
	}
	if limit := int64(64 << 20); used > limit {
		t.Errorf("%d bytes for %d messages, limit %d", used, r.Sent, limit)
	}
	t.Logf("%.1f bytes a message", float64(used)/float64(r.Sent))
}

func TestReadStream(t *testing.T) {
	t.Parallel()
	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	stream := natstest.Stream(t, js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, AllowDirect: true})
	c := chaos.NewChecker(chaos.StoredOnce | chaos.StoredInOrder)
	if err := c.ReadStream(t.Context(), js, "S"); err != nil {
		t.Errorf("empty stream: %v", err)
	}

	const n = 1000
	for i := range n {
		id := c.Send(fmt.Sprint("k", i%7))
		m := nats.NewMsg("s")
		m.Data = make([]byte, 100)
		header := jetstream.MsgIDHeader
		if i%2 == 0 {
			header = "X-Message-ID"
		}
		m.Header.Set(header, id.String())
		ack, err := js.PublishMsg(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		c.Published(id, chaos.Accepted, ack.Sequence)
	}
	if _, err := js.Publish(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	// The last one is not there any more, so reading must not wait for it.
	last, err := js.Publish(t.Context(), "s", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), last.Sequence); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadStream(t.Context(), js, "S"); err != nil {
		t.Fatal(err)
	}
	r := c.Verify()
	want := chaos.Report{}.Violations
	want[chaos.Foreign] = 1 // the one without an id
	if r.Stored != n || r.Accepted != n || r.Violations != want {
		t.Errorf("%v", r)
	}

	if err := c.ReadStream(t.Context(), js, "none"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("missing stream: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.ReadStream(ctx, js, "S"); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}
