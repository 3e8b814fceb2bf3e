package jetstream_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// browse returns what Browse yields, as "subject data", settled by settle.
func browse(t *testing.T, tr *jetstream.Transport, filter string, settle func(transport.Delivery) transport.Action) []string {
	t.Helper()

	var got []string

	for d, err := range tr.Browse(t.Context(), filter) {
		if err != nil {
			t.Fatal(err)
		}

		got = append(got, d.Subject+" "+string(d.Data))

		if err := d.Settler.Settle(t.Context(), d.Token, transport.Verdict{Action: settle(d)}); err != nil {
			t.Fatal(err)
		}
	}

	return got
}

func TestBrowse(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))

	for _, cfg := range []natsjs.StreamConfig{
		{Name: "PLAIN", Subjects: []string{"plain.>"}},
		{Name: "DIRECT", Subjects: []string{"direct.>"}, AllowDirect: true},
	} {
		t.Run(cfg.Name, func(t *testing.T) {
			t.Parallel()

			stream := natstest.Stream(t, js, cfg)
			prefix := cfg.Subjects[0][:len(cfg.Subjects[0])-1]

			tr, err := jetstream.New(js)
			if err != nil {
				t.Fatal(err)
			}

			nak := func(transport.Delivery) transport.Action { return transport.Nak }

			if got := browse(t, tr, prefix+">", nak); len(got) != 0 {
				t.Fatalf("an empty stream has %q", got)
			}

			for _, msg := range []struct{ subject, data string }{
				{"a.x", "1"}, {"b.x", "2"}, {"a.y", "3"}, {"a.x", ""}, {"a.x", "5"},
			} {
				if _, err := js.PublishMsg(t.Context(), &nats.Msg{
					Subject: prefix + msg.subject, Data: []byte(msg.data), Header: nats.Header{"Kind": {"a", "b"}},
				}); err != nil {
					t.Fatal(err)
				}
			}

			if err := stream.DeleteMsg(t.Context(), 3); err != nil {
				t.Fatal(err)
			}

			want := []string{prefix + "a.x 1", prefix + "a.x ", prefix + "a.x 5"}
			if got := browse(t, tr, prefix+"a.*", nak); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}

			// What is published meanwhile is not seen.
			more := func(d transport.Delivery) transport.Action {
				if _, err := js.Publish(t.Context(), prefix+"a.x", []byte("more")); err != nil {
					t.Fatal(err)
				}

				if len(d.Header) != 1 || len(d.Header.Values("Kind")) != 2 {
					t.Errorf("the header is %v", d.Header)
				}

				m := d.Settler.Metadata(d.Token)
				if m.Stream != cfg.Name || m.Sequence == 0 || m.Timestamp.IsZero() {
					t.Errorf("the metadata is %+v", m)
				}

				return transport.AckSync
			}
			if got := browse(t, tr, prefix+"a.x", more); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}

			want = []string{prefix + "b.x 2", prefix + "a.x more", prefix + "a.x more", prefix + "a.x more"}
			if got := browse(t, tr, prefix+">", nak); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}

			// What is gone can be removed again; the loop can be left.
			for d, err := range tr.Browse(t.Context(), prefix+"b.x") {
				for range 2 {
					if err = errors.Join(err, d.Settler.Settle(t.Context(), d.Token, transport.Verdict{Action: transport.Ack})); err != nil {
						t.Error(err)
					}
				}

				if err := d.Settler.Settle(t.Context(), d.Token, transport.Verdict{}); !errors.Is(err, transport.ErrInvalidOption) {
					t.Errorf("no verdict at all: %v", err)
				}

				break
			}
		})
	}
}

func TestBrowseRefuses(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "A", Subjects: []string{"a.>"}})
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "B", Subjects: []string{"b.>"}})

	if _, err := js.Publish(t.Context(), "b.x", nil); err != nil {
		t.Fatal(err)
	}

	cancelled, cancel := context.WithCancel(context.Background())
	cancel()

	for _, tt := range []struct {
		name, filter string
		ctx          context.Context
		closed       bool
		opts         []jetstream.TransportOption
		want         error
	}{
		{"no stream", "c.>", t.Context(), false, nil, transport.ErrStreamNotFound},
		{"no stream, whatever the option", "c.>", t.Context(), false, []jetstream.TransportOption{jetstream.WithStream("B")}, transport.ErrStreamNotFound},
		{"several streams", ">", t.Context(), false, nil, transport.ErrInvalidOption},
		{"one of several", ">", t.Context(), false, []jetstream.TransportOption{jetstream.WithStream("B")}, nil},
		{"another than the option", "b.>", t.Context(), false, []jetstream.TransportOption{jetstream.WithStream("A")}, nil},
		{"no subject", "", t.Context(), false, nil, transport.ErrInvalidSubject},
		{"closed", "b.>", t.Context(), true, nil, transport.ErrClosed},
		{"cancelled", "b.>", cancelled, false, nil, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			tr, err := jetstream.New(js, tt.opts...)
			if err != nil {
				t.Fatal(err)
			}

			if tt.closed {
				if err := tr.Close(); err != nil {
					t.Fatal(err)
				}
			}

			n := 0

			for _, err = range tr.Browse(tt.ctx, tt.filter) {
				n++
			}

			if _, told := errors.AsType[*transport.Error](err); !errors.Is(err, tt.want) || n != 1 || told != (tt.want != nil) {
				t.Errorf("got %v and %d more, want %v", err, n-1, tt.want)
			}
		})
	}
}
