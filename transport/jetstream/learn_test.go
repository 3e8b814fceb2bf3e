package jetstream_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// What a subscription knows of its consumer is what the server said last: it may
// be changed at any time.
func TestInfoFollowsTheConsumer(t *testing.T) {
	t.Parallel()

	e := setup(t)
	cfg := natsjs.ConsumerConfig{Durable: "worker", FilterSubject: "events.created", AckWait: 30 * time.Second}
	in := newInbox()
	sub := subscribe(t, jetstream.Bind(e.consumer(t, cfg)), in.config(""))

	if info := sub.Info(); info.AckWait != cfg.AckWait || info.MaxDeliver != 0 || info.Filter != cfg.FilterSubject {
		t.Errorf("in the beginning: %+v", info)
	}

	cfg.AckPolicy = natsjs.AckExplicitPolicy
	cfg.MaxDeliver, cfg.FilterSubject = 5, "events.*"
	cfg.BackOff = []time.Duration{2 * time.Second, 4 * time.Second}

	_, err := e.stream.UpdateConsumer(t.Context(), cfg)
	must(t, err)

	for range 2 {
		must(t, sub.Flush(t.Context()))
	}

	info := sub.Info()
	if info.AckWait != 2*time.Second || info.MaxDeliver != 5 || info.Filter != "events.*" || !slices.Equal(info.BackOff, cfg.BackOff) {
		t.Errorf("in the end: %+v", info)
	}

	in.mu.Lock()
	defer in.mu.Unlock()

	if len(in.notices) != 1 || !strings.Contains(in.notices[0].Error(), "ack wait 2s") {
		t.Errorf("notices %v, want one that tells of it", in.notices)
	}
}

// An ack wait that has become shorter shows in messages that come again: nobody
// has to ask.
func TestRedeliveryTellsOfAnotherAckWait(t *testing.T) {
	t.Parallel()

	e := setup(t)
	cfg := natsjs.ConsumerConfig{
		Durable: "worker", FilterSubject: "events.created", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 30 * time.Second,
	}
	in := newInbox()
	sub := subscribe(t, jetstream.Bind(e.consumer(t, cfg)), in.config(""))

	sub.Request(10)
	e.publish(t, 0, 1)
	in.wait(t, 1)

	cfg.AckWait = time.Second

	_, err := e.stream.UpdateConsumer(t.Context(), cfg)
	must(t, err)
	natstest.Eventually(t, func() bool { return sub.Info().AckWait == cfg.AckWait }, "the new ack wait to be known")

	if in.len() < 2 {
		t.Error("it was known before a message came again")
	}
}

// A consumer that was made anew may take smaller requests, and may be one that
// does not fit any more.
func TestConsumerMadeAnew(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		anew natsjs.ConsumerConfig
		want error
	}{
		"smaller requests": {anew: natsjs.ConsumerConfig{AckPolicy: natsjs.AckExplicitPolicy, MaxRequestBatch: 3}},
		"no acks":          {anew: natsjs.ConsumerConfig{AckPolicy: natsjs.AckNonePolicy}, want: transport.ErrUnsupported},
		"acks of all":      {anew: natsjs.ConsumerConfig{AckPolicy: natsjs.AckAllPolicy}, want: transport.ErrUnsupported},
		"another filter": {
			anew: natsjs.ConsumerConfig{AckPolicy: natsjs.AckExplicitPolicy, FilterSubject: "events.deleted"}, want: transport.ErrSubjectMismatch,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			in := newInbox()
			sub := subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{})), in.config("events.created"))

			// While nothing is asked for nobody notices.
			must(t, e.stream.DeleteConsumer(t.Context(), "worker"))

			if c.anew.FilterSubject == "" {
				c.anew.FilterSubject = "events.created"
			}

			c.anew.Durable = "worker"
			_, err := e.stream.CreateConsumer(t.Context(), c.anew)
			must(t, err)
			must(t, sub.Flush(t.Context()))

			if c.want != nil {
				mustBe(t, ended(t, sub), c.want)

				return
			}

			e.publish(t, 0, 20)
			sub.Request(20)
			in.wait(t, 20)
		})
	}
}
