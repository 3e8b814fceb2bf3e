package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

func TestSubscribeWithoutGroup(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.publish(t, 0, 3)

	tr := e.transport(t)
	in, other := newInbox(), newInbox()

	sub, err := tr.Subscribe(t.Context(), in.config("events.*"))
	must(t, err)
	subscribe(t, tr, other.config("events.created")).Request(10)

	info := sub.Info()
	if info.Stream != "EVENTS" || info.Consumer == "" || info.Filter != "events.*" || info.AckWait != 30*time.Second || info.MaxDeliver != 0 {
		t.Errorf("info %+v", info)
	}

	sub.Request(10)

	got := in.wait(t, 3)
	other.wait(t, 3)

	for i, d := range got {
		if string(d.Data) != fmt.Sprint(i) || d.Subject != "events.created" || d.Reply != "" {
			t.Errorf("delivery %d: %q on %q, reply %q", i, d.Data, d.Subject, d.Reply)
		}
	}

	// While something is to be settled the consumer stays.
	ack(t, got[:2]...)
	must(t, sub.Close(t.Context()))
	ack(t, got[2])
	must(t, sub.Flush(t.Context()))

	if _, err := e.stream.Consumer(t.Context(), info.Consumer); !errors.Is(err, natsjs.ErrConsumerNotFound) {
		t.Errorf("the consumer is still there: %v", err)
	}

	must(t, sub.Close(t.Context()))
	mustBe(t, sub.Flush(t.Context()), transport.ErrConsumerNotFound)

	if sub.Err() != nil {
		t.Errorf("Err after Close: %v", sub.Err())
	}
}

func TestCloseDeletesConsumer(t *testing.T) {
	t.Parallel()

	e := setup(t)

	tr, err := jetstream.New(e.js)
	must(t, err)

	sub, err := tr.Subscribe(t.Context(), newInbox().config("events.>"))
	must(t, err)
	must(t, sub.Close(t.Context()))

	if _, err := e.stream.Consumer(t.Context(), sub.Info().Consumer); !errors.Is(err, natsjs.ErrConsumerNotFound) {
		t.Errorf("after closing the subscription: %v", err)
	}

	sub, err = tr.Subscribe(t.Context(), newInbox().config("events.>"))
	must(t, err)
	sub.Request(1)
	must(t, tr.Close())
	mustBe(t, ended(t, sub), transport.ErrClosed)

	if _, err := e.stream.Consumer(t.Context(), sub.Info().Consumer); !errors.Is(err, natsjs.ErrConsumerNotFound) {
		t.Errorf("after closing the transport: %v", err)
	}
}

func TestSubscribeGroup(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.publish(t, 0, 4)

	tr := e.transport(t, jetstream.WithConsumerConfig(func(c *natsjs.ConsumerConfig) { c.AckWait, c.MaxDeliver = time.Minute, 7 }))
	one, two := newInbox(), newInbox()

	cfg := one.config("events.created")
	cfg.Group = "workers"
	first := subscribe(t, tr, cfg)
	first.Request(1)
	ack(t, one.wait(t, 1)...)

	if info := first.Info(); info.Consumer != "workers" || info.AckWait != time.Minute || info.MaxDeliver != 7 {
		t.Errorf("info %+v", info)
	}

	// Another member, which does not care how the group was set up.
	cfg = two.config("events.created")
	cfg.Group = "workers"
	second := subscribe(t, e.transport(t), cfg)

	second.Request(2)
	two.wait(t, 2)
	first.Request(1)

	var bodies strings.Builder
	for _, d := range append(one.wait(t, 2), two.wait(t, 2)...) {
		bodies.Write(d.Data)
	}

	if bodies.String() != "0312" {
		t.Errorf("one got and the other got %s, want 03 and 12", bodies.String())
	}

	consumer, err := e.stream.Consumer(t.Context(), "workers")
	must(t, err)

	if c := consumer.CachedInfo().Config; c.AckWait != time.Minute || c.AckPolicy != natsjs.AckExplicitPolicy {
		t.Errorf("the consumer was changed: %+v", c)
	}
}

func TestSubscribeExistingGroup(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.consumer(t, natsjs.ConsumerConfig{Durable: "one"})
	e.consumer(t, natsjs.ConsumerConfig{Durable: "two", FilterSubjects: []string{"events.a", "events.b.*"}})
	natstest.Consumer(t, e.stream, natsjs.ConsumerConfig{Durable: "all"})

	tr := e.transport(t)

	for _, tc := range []struct {
		group, subject string
		ok, notice     bool
	}{
		{"one", "events.created", true, false},
		{"one", "events.*", true, true},
		{"one", ">", true, true},
		{"one", "events.deleted", false, false},
		{"two", "events.>", true, true},
		{"two", "events.a", false, false},
		{"all", "events.>", true, false},
		{"all", ">", true, false},
		{"all", "events.a", false, false},
	} {
		in := newInbox()
		cfg := in.config(tc.subject)
		cfg.Group = tc.group

		sub, err := tr.Subscribe(t.Context(), cfg)
		if !tc.ok {
			if e := details(t, err, transport.ErrSubjectMismatch); e.Stream != "EVENTS" || e.Consumer != tc.group || e.Subject != tc.subject {
				t.Errorf("circumstances %+v", e)
			}

			continue
		}

		must(t, err)
		must(t, sub.Close(t.Context()))

		if in.noticed(transport.ErrSubjectMismatch) != tc.notice {
			t.Errorf("%s on %s: notices %v, want one: %v", tc.group, tc.subject, in.notices, tc.notice)
		}
	}
}

func TestSubscribeErrors(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "AUDIT", Subjects: []string{"audit.>"}})
	_, err := e.js.CreatePushConsumer(t.Context(), "EVENTS", natsjs.ConsumerConfig{Durable: "push", DeliverSubject: "deliver"})
	must(t, err)

	canceled, cancel := context.WithCancel(t.Context())
	cancel()

	sink := func(transport.Delivery) {}
	change := func(f func(*natsjs.ConsumerConfig)) []jetstream.TransportOption {
		return []jetstream.TransportOption{jetstream.WithConsumerConfig(f)}
	}

	for name, tc := range map[string]struct {
		ctx  context.Context
		opts []jetstream.TransportOption
		cfg  transport.SubscribeConfig
		want error
	}{
		"no subject":    {cfg: transport.SubscribeConfig{Sink: sink}, want: transport.ErrInvalidSubject},
		"bad subject":   {cfg: transport.SubscribeConfig{Sink: sink, Subject: "events..a"}, want: transport.ErrInvalidSubject},
		"bad group":     {cfg: transport.SubscribeConfig{Sink: sink, Subject: "events.a", Group: "a.b"}, want: transport.ErrInvalidOption},
		"no sink":       {cfg: transport.SubscribeConfig{Subject: "events.a"}, want: transport.ErrInvalidOption},
		"no stream":     {cfg: transport.SubscribeConfig{Sink: sink, Subject: "nowhere"}, want: transport.ErrStreamNotFound},
		"two streams":   {cfg: transport.SubscribeConfig{Sink: sink, Subject: ">"}, want: transport.ErrInvalidOption},
		"push consumer": {cfg: transport.SubscribeConfig{Sink: sink, Subject: "events.>", Group: "push"}, want: transport.ErrInvalidOption},
		"canceled":      {ctx: canceled, cfg: transport.SubscribeConfig{Sink: sink, Subject: "events.a"}, want: context.Canceled},
		"missing stream": {
			opts: []jetstream.TransportOption{jetstream.WithStream("GONE")},
			cfg:  transport.SubscribeConfig{Sink: sink, Subject: "events.a", Group: "g"}, want: transport.ErrStreamNotFound,
		},
		"other acks": {
			opts: change(func(c *natsjs.ConsumerConfig) { c.AckPolicy = natsjs.AckNonePolicy }),
			cfg:  transport.SubscribeConfig{Sink: sink, Subject: "events.a"}, want: transport.ErrInvalidOption,
		},
		"other subject": {
			opts: change(func(c *natsjs.ConsumerConfig) { c.FilterSubject = "events.b" }),
			cfg:  transport.SubscribeConfig{Sink: sink, Subject: "events.a"}, want: transport.ErrInvalidOption,
		},
		"other name": {
			opts: change(func(c *natsjs.ConsumerConfig) { c.Durable = "mine" }),
			cfg:  transport.SubscribeConfig{Sink: sink, Subject: "events.a", Group: "g"}, want: transport.ErrInvalidOption,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			tr := e.transport(t, tc.opts...)

			ctx := tc.ctx
			if ctx == nil {
				ctx = t.Context()
			}

			_, err := tr.Subscribe(ctx, tc.cfg)
			if e := details(t, err, tc.want); e.Op != "subscribe" || e.Subject != tc.cfg.Subject {
				t.Errorf("circumstances %+v", e)
			}
		})
	}

	t.Cleanup(func() {
		info, err := e.stream.Info(context.Background())
		must(t, err)

		if info.State.Consumers != 1 {
			t.Errorf("%d consumers, want only the one that was there", info.State.Consumers)
		}
	})
}

func TestBindCoverage(t *testing.T) {
	t.Parallel()

	e := setup(t)
	filters := map[string][]string{"one": {"events.created"}, "two": {"events.a", "events.b.*"}, "all": nil}

	for name, f := range filters {
		natstest.Consumer(t, e.stream, natsjs.ConsumerConfig{Durable: name, FilterSubjects: f})
	}

	for _, tc := range []struct {
		consumer, subject, group string
		want                     error
		filter                   string
	}{
		{"one", "", "", nil, "events.created"},
		{"one", "events.created", "", nil, "events.created"},
		{"one", "events.created", "one", nil, "events.created"},
		{"one", "events.created", "other", transport.ErrInvalidOption, ""},
		{"one", "events.*", "", nil, "events.created"},
		{"one", "events.>", "", nil, "events.created"},
		{"one", "*.created", "", nil, "events.created"},
		{"one", "events.deleted", "", transport.ErrSubjectMismatch, ""},
		{"one", "events.*.x", "", transport.ErrSubjectMismatch, ""},
		{"one", "events..x", "", transport.ErrInvalidSubject, ""},
		{"two", "", "", nil, "events.a,events.b.*"},
		{"two", "events.>", "", nil, "events.a,events.b.*"},
		{"two", "events.*", "", transport.ErrSubjectMismatch, ""},
		{"two", "events.b.c", "", transport.ErrSubjectMismatch, ""},
		{"all", "", "", nil, ">"},
		{"all", ">", "", nil, ">"},
		{"all", "events.>", "", nil, "events.>"},
	} {
		consumer, err := e.stream.Consumer(t.Context(), tc.consumer)
		must(t, err)

		cfg := newInbox().config(tc.subject)
		cfg.Group = tc.group

		sub, err := jetstream.Bind(consumer).Subscribe(t.Context(), cfg)
		if tc.want != nil {
			if e := details(t, err, tc.want); e.Stream != "EVENTS" || e.Consumer != tc.consumer || e.Subject != tc.subject {
				t.Errorf("circumstances %+v", e)
			}

			if tc.want == transport.ErrSubjectMismatch && //nolint:errorlint // the table's own value
				(!strings.Contains(err.Error(), `"`+tc.subject+`"`) || !strings.Contains(err.Error(), `"events.`)) {
				t.Errorf("the error does not name both subjects: %v", err)
			}

			continue
		}

		must(t, err)

		if sub.Info().Filter != tc.filter || sub.Info().Stream != "EVENTS" || sub.Info().Consumer != tc.consumer {
			t.Errorf("%+v: info %+v", tc, sub.Info())
		}

		must(t, sub.Close(t.Context()))
	}
}

// A consumer without a filter can be subscribed to with the subjects of its
// stream, as long as they are what it delivers.
func TestBindWithoutFilter(t *testing.T) {
	t.Parallel()

	e := setup(t)
	consumer := natstest.Consumer(t, e.stream, natsjs.ConsumerConfig{Durable: "all"})
	in := newInbox()
	sub := subscribe(t, jetstream.Bind(consumer), in.config("events.*"))
	sub.Request(10)

	e.publish(t, 0, 2)
	ack(t, in.wait(t, 2)...)

	_, err := e.js.Publish(t.Context(), "events.too.deep", nil)
	must(t, err)

	err = ended(t, sub)
	mustBe(t, err, transport.ErrSubjectMismatch)

	if !strings.Contains(err.Error(), `"events.too.deep"`) || !strings.Contains(err.Error(), `"events.*"`) {
		t.Errorf("the error does not name both subjects: %v", err)
	}

	// The message is there for others, at once.
	msgs, err := consumer.Fetch(1, natsjs.FetchMaxWait(5*time.Second))
	must(t, err)

	if msg := <-msgs.Messages(); msg == nil || msg.Subject() != "events.too.deep" {
		t.Errorf("the message was not given back: %v", msg)
	}

	if in.len() != 2 {
		t.Errorf("%d messages were delivered", in.len())
	}
}

func TestBindUnsupported(t *testing.T) {
	t.Parallel()

	e := setup(t)
	ordered, err := e.stream.OrderedConsumer(t.Context(), natsjs.OrderedConsumerConfig{})
	must(t, err)

	for name, tc := range map[string]struct {
		consumer natsjs.Consumer
		want     error
	}{
		"nil":     {nil, transport.ErrInvalidOption},
		"ordered": {ordered, transport.ErrUnsupported},
		"ack all": {e.consumer(t, natsjs.ConsumerConfig{Durable: "a", AckPolicy: natsjs.AckAllPolicy}), transport.ErrUnsupported},
		"priority": {e.consumer(t, natsjs.ConsumerConfig{
			Durable: "p", PriorityPolicy: natsjs.PriorityPolicyOverflow, PriorityGroups: []string{"g"},
		}), transport.ErrUnsupported},
		"expires": {e.consumer(t, natsjs.ConsumerConfig{Durable: "e", MaxRequestExpires: time.Millisecond}), transport.ErrInvalidOption},
	} {
		_, err := jetstream.Bind(tc.consumer).Subscribe(t.Context(), newInbox().config("events.>"))
		if e := details(t, err, tc.want); e.Op != "subscribe" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestBindAckNone(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.publish(t, 0, 3)

	b := jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{AckPolicy: natsjs.AckNonePolicy}))

	for _, c := range []transport.Capability{transport.Acks, transport.Redelivery, transport.DelayedNak, transport.Leases, transport.Attempts} {
		if b.Capabilities().Has(c) {
			t.Errorf("it claims the capability %v", c)
		}
	}

	in := newInbox()
	sub := subscribe(t, b, in.config("events.created"))

	if info := sub.Info(); info.MaxDeliver != 1 || info.AckWait != 0 {
		t.Errorf("info %+v", info)
	}

	sub.Request(2)
	d := in.wait(t, 2)[1]

	mustBe(t, d.Settler.Settle(t.Context(), d.Token, transport.Verdict{Action: transport.Ack}), transport.ErrUnsupported)

	if m := d.Settler.Metadata(d.Token); m.Sequence != 2 || m.Stream != "EVENTS" {
		t.Errorf("metadata %+v", m)
	}

	sub.Request(1)
	in.wait(t, 3)
}

// What vanished before Subscribe is noticed there.
func TestBindMissing(t *testing.T) {
	t.Parallel()

	e := setup(t)
	consumer := e.consumer(t, natsjs.ConsumerConfig{})
	must(t, e.stream.DeleteConsumer(t.Context(), "worker"))

	_, err := jetstream.Bind(consumer).Subscribe(t.Context(), newInbox().config("events.created"))
	if e := details(t, err, transport.ErrConsumerNotFound); e.Stream != "EVENTS" || e.Consumer != "worker" {
		t.Errorf("circumstances %+v", e)
	}

	must(t, e.js.DeleteStream(t.Context(), "EVENTS"))

	_, err = jetstream.Bind(consumer).Subscribe(t.Context(), newInbox().config("events.created"))
	mustBe(t, err, transport.ErrStreamNotFound)
}
