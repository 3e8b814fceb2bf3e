package memory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
)

const (
	testAckWait    = 500 * time.Millisecond
	testMaxDeliver = 3
)

var (
	ackIt    = transport.Verdict{Action: transport.Ack}
	nakIt    = transport.Verdict{Action: transport.Nak}
	termIt   = transport.Verdict{Action: transport.Term}
	extendIt = transport.Verdict{Action: transport.Extend}
)

// side is one of the two that are compared, as a durable group with one member
// that pulls.
type side struct {
	t       *testing.T
	publish func(id, data string) (sequence uint64, duplicate bool)
	next    func() attempt // waits for it
}

type attempt struct {
	data   string
	number int

	// settle returns nil, or transport.ErrSettled.
	settle func(v transport.Verdict) error
}

func (s *side) expect(data string, number int) attempt {
	s.t.Helper()

	a := s.next()
	if a.data != data || a.number != number {
		s.t.Fatalf("got attempt %d of %q, want %d of %q", a.number, a.data, number, data)
	}

	return a
}

func (s *side) must(a attempt, v transport.Verdict) {
	s.t.Helper()

	if err := a.settle(v); err != nil {
		s.t.Fatalf("%s: %v", v.Action, err)
	}
}

// marker shows that nothing waits to be redelivered, for it would come first.
func (s *side) marker() {
	s.t.Helper()
	s.publish("", "marker")
	s.must(s.expect("marker", 1), ackIt)
}

// What this package says of JetStream, done to both: each script must see the
// same from a nats-server as from the transport.
func TestSameAsJetStream(t *testing.T) {
	t.Parallel()

	js := newServer(t)

	for name, script := range map[string]func(*side){
		"a second verdict is refused": func(s *side) {
			s.publish("", "1")

			for _, v := range []transport.Verdict{ackIt, nakIt, termIt} {
				if v != ackIt {
					s.publish("", "1")
				}

				d := s.next()
				s.must(d, v)

				for _, second := range []transport.Verdict{ackIt, nakIt, termIt, extendIt} {
					if err := d.settle(second); !errors.Is(err, transport.ErrSettled) {
						s.t.Errorf("%s after %s: %v", second.Action, v.Action, err)
					}
				}

				if v == nakIt {
					s.must(s.expect("1", 2), ackIt)
				}
			}

			s.marker()
		},
		"redelivered comes before new, in the order of the naks": func(s *side) {
			for _, data := range []string{"1", "2", "3"} {
				s.publish("", data)
			}

			one, two := s.expect("1", 1), s.expect("2", 1)
			s.must(two, nakIt)
			s.must(one, nakIt)
			s.must(s.expect("2", 2), ackIt)
			s.must(s.expect("1", 2), ackIt)
			s.must(s.expect("3", 1), ackIt)
			s.marker()
		},
		"a late ack is an ack": func(s *side) {
			s.publish("", "1")

			late := s.expect("1", 1)
			again := s.expect("1", 2)
			s.must(late, ackIt)
			s.must(again, nakIt) // too late, and no error
			s.marker()
		},
		"a late nak redelivers": func(s *side) {
			s.publish("", "1")

			late := s.expect("1", 1)
			again := s.expect("1", 2)
			s.must(late, nakIt)
			s.must(s.expect("1", 3), ackIt)
			s.must(again, ackIt)
			s.marker()
		},
		"an extension keeps the lease": func(s *side) {
			s.publish("", "1")

			d := s.expect("1", 1)

			for range 4 {
				time.Sleep(testAckWait / 2)
				s.must(d, extendIt)
			}

			s.marker()
			s.must(d, ackIt)
		},
		"a nak on the last attempt gives up": func(s *side) {
			s.publish("", "1")

			for i := range testMaxDeliver {
				s.must(s.expect("1", i+1), nakIt)
			}

			s.marker()
		},
		"a lease that ends on the last attempt gives up": func(s *side) {
			s.publish("", "1")

			var last attempt
			for i := range testMaxDeliver {
				last = s.expect("1", i+1)
			}

			time.Sleep(2 * testAckWait)
			s.must(last, nakIt) // too late, and no error
			s.marker()
		},
		"a term is final": func(s *side) {
			s.publish("", "1")
			s.must(s.expect("1", 1), termIt)
			s.marker()
		},
		"a message id is stored once": func(s *side) {
			first, duplicate := s.publish("id", "1")
			if duplicate {
				s.t.Error("the first is a duplicate")
			}

			s.must(s.expect("1", 1), ackIt)

			if again, duplicate := s.publish("id", "other"); !duplicate || again != first {
				s.t.Errorf("the second has sequence %d, duplicate %v", again, duplicate)
			}

			s.marker()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			t.Run("jetstream", func(t *testing.T) {
				t.Parallel()
				script(jetStreamSide(t, js))
			})
			t.Run("memory", func(t *testing.T) {
				t.Parallel()
				script(memorySide(t))
			})
		})
	}
}

func memorySide(t *testing.T) *side {
	t.Helper()

	tr, got := open(t, memory.WithAckWait(testAckWait), memory.WithMaxDeliver(testMaxDeliver)), make(chan transport.Delivery, 1)
	sub := subscribe(t, tr, transport.SubscribeConfig{Subject: "s", Group: "g", Sink: func(d transport.Delivery) { got <- d }})

	return &side{
		t: t,
		publish: func(id, data string) (uint64, bool) {
			r, err := tr.Publish(t.Context(), transport.Message{Subject: "s", ID: id, Data: []byte(data)})
			if err != nil {
				t.Fatal(err)
			}

			return r.Sequence, r.Duplicate
		},
		next: func() attempt {
			sub.Request(1)

			select {
			case d := <-got:
				return attempt{
					data:   string(d.Data),
					number: d.Settler.Metadata(d.Token).Attempt,
					settle: func(v transport.Verdict) error { return d.Settler.Settle(context.Background(), d.Token, v) },
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no delivery in 10 s")

				return attempt{}
			}
		},
	}
}

func jetStreamSide(t *testing.T, js jetstream.JetStream) *side {
	t.Helper()

	// Streams of one server: one for each script.
	name := fmt.Sprintf("S%x", t.Name())
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: name, Subjects: []string{name}, Storage: jetstream.MemoryStorage,
	}); err != nil {
		t.Fatal(err)
	}

	consumer, err := js.CreateConsumer(t.Context(), name, jetstream.ConsumerConfig{
		Durable: "g", AckPolicy: jetstream.AckExplicitPolicy, AckWait: testAckWait, MaxDeliver: testMaxDeliver,
	})
	if err != nil {
		t.Fatal(err)
	}

	return &side{
		t: t,
		publish: func(id, data string) (uint64, bool) {
			var opts []jetstream.PublishOpt
			if id != "" {
				opts = append(opts, jetstream.WithMsgID(id))
			}

			a, err := js.Publish(t.Context(), name, []byte(data), opts...)
			if err != nil {
				t.Fatal(err)
			}

			return a.Sequence, a.Duplicate
		},
		next: func() attempt {
			m, err := consumer.Next(jetstream.FetchMaxWait(10 * time.Second))
			if err != nil {
				t.Fatal(err)
			}

			meta, err := m.Metadata()
			if err != nil {
				t.Fatal(err)
			}

			return attempt{
				data:   string(m.Data()),
				number: int(meta.NumDelivered),
				settle: func(v transport.Verdict) error { return settleJetStream(m, v) },
			}
		},
	}
}

func settleJetStream(m jetstream.Msg, v transport.Verdict) error {
	var err error

	switch v.Action {
	case transport.Ack:
		err = m.Ack()
	case transport.Nak:
		err = m.Nak()
	case transport.Term:
		err = m.Term()
	default:
		err = m.InProgress()
	}

	if errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return transport.ErrSettled
	}

	return err
}

func newServer(t *testing.T) jetstream.JetStream {
	t.Helper()

	s, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
	})
	if err != nil {
		t.Fatal(err)
	}

	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})

	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server is not ready")
	}

	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(nc.Close)

	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}

	return js
}
