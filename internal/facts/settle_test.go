package facts_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The next attempt would be due in an hour if BackOff applied to Nak.
func TestNakIgnoresConsumerBackOff(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{MaxDeliver: 4, BackOff: []time.Duration{time.Hour, time.Hour}})
	e.publish(1)
	for want := uint64(1); want <= 3; want++ {
		m := e.next(cons)
		if got := e.delivery(m); got != want {
			t.Errorf("delivery %d, want %d", got, want)
		}
		if err := m.Nak(); err != nil {
			t.Fatal(err)
		}
	}
}

// The delay of a nak is added to BackOff[n-1] - BackOff[0], n the number of the
// delivery that is refused.
func TestNakWithDelayIsDistortedByBackOff(t *testing.T) {
	t.Parallel()
	e := setup(t)
	const first, second, delay = time.Second, 2500 * time.Millisecond, 50 * time.Millisecond
	cons := e.consumer(jetstream.ConsumerConfig{MaxDeliver: 4, BackOff: []time.Duration{first, second}})
	e.publish(1)
	m := e.next(cons)
	var took [2]time.Duration
	for i := range took {
		began := time.Now()
		if err := m.NakWithDelay(delay); err != nil {
			t.Fatal(err)
		}
		m = e.next(cons)
		took[i] = time.Since(began)
	}
	if took[0] < delay {
		t.Errorf("first redelivery after %v, less than the delay of %v", took[0], delay)
	}
	// A tenth of a second off, as the server's timers are not the client's.
	if want := delay + second - first - 100*time.Millisecond; took[1] < want || took[1] < took[0] {
		t.Errorf("second redelivery after %v, the first after %v; want at least %v", took[1], took[0], want)
	}
}

func TestNakWithDelayZeroIsInstant(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{AckWait: time.Hour})
	e.publish(1)
	for i, delay := range []time.Duration{0, -time.Hour} {
		if err := e.next(cons).NakWithDelay(delay); err != nil {
			t.Fatal(err)
		}
		m := e.next(cons)
		if got := e.delivery(m); got != uint64(2*i+2) {
			t.Errorf("delay %v: delivery %d", delay, got)
		}
		if err := m.Nak(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecondSettleIsErrMsgAlreadyAckd(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{})
	settle := map[string]func(jetstream.Msg) error{
		"Ack":          jetstream.Msg.Ack,
		"DoubleAck":    func(m jetstream.Msg) error { return m.DoubleAck(t.Context()) },
		"Nak":          jetstream.Msg.Nak,
		"NakWithDelay": func(m jetstream.Msg) error { return m.NakWithDelay(time.Hour) },
		"Term":         jetstream.Msg.Term,
		"InProgress":   jetstream.Msg.InProgress,
	}
	for name, again := range settle {
		e.publish(1)
		m := e.next(cons)
		if err := m.Ack(); err != nil {
			t.Fatal(err)
		}
		if err := again(m); !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
			t.Errorf("%s after Ack: error %v", name, err)
		}
	}
}

func TestInProgressMayBeRepeated(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cons := e.consumer(jetstream.ConsumerConfig{})
	e.publish(1)
	m := e.next(cons)
	for range 3 {
		if err := m.InProgress(); err != nil {
			t.Error(err)
		}
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Error(err)
	}
}

// On a work queue a dead letter therefore has to be copied before Term; on any
// other stream the original stays.
func TestTermOnWorkQueueDeletes(t *testing.T) {
	t.Parallel()
	for retention, want := range map[jetstream.RetentionPolicy]error{
		jetstream.WorkQueuePolicy: jetstream.ErrMsgNotFound,
		jetstream.LimitsPolicy:    nil,
	} {
		t.Run(retention.String(), func(t *testing.T) {
			t.Parallel()
			e := setupStream(t, jetstream.StreamConfig{Retention: retention})
			cons := e.consumer(jetstream.ConsumerConfig{})
			e.publish(1)
			m := e.next(cons)
			if err := m.TermWithReason("poison"); err != nil {
				t.Fatal(err)
			}
			e.settled(cons)
			if _, err := e.stream.GetMsg(t.Context(), 1); !errors.Is(err, want) {
				t.Errorf("error %v, want %v", err, want)
			}
		})
	}
}

func TestDedupOutlivesWorkQueueAck(t *testing.T) {
	t.Parallel()
	e := setupStream(t, jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy})
	cons := e.consumer(jetstream.ConsumerConfig{})
	e.publish(1, jetstream.WithMsgID("job"))
	if err := e.next(cons).DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	ack, err := e.js.Publish(t.Context(), "s.a", []byte("another job"), jetstream.WithMsgID("job"))
	if err != nil || !ack.Duplicate {
		t.Errorf("ack %+v, error %v", ack, err)
	}
	if n := e.stored(); n != 0 {
		t.Errorf("%d messages in the stream, want the new job to be dropped", n)
	}
}

// The server's error text asks for more than the length; the same is enough.
func TestBackOffLongerThanMaxDeliverIsRefused(t *testing.T) {
	t.Parallel()
	e := setup(t)
	cfg := jetstream.ConsumerConfig{Durable: "C", MaxDeliver: 1, BackOff: []time.Duration{time.Second, time.Minute}}
	_, err := e.stream.CreateConsumer(t.Context(), cfg)
	if apiErr := (*jetstream.APIError)(nil); !errors.As(err, &apiErr) || apiErr.ErrorCode != 10116 {
		t.Errorf("error %v", err)
	}
	cfg.MaxDeliver = len(cfg.BackOff)
	if _, err := e.stream.CreateConsumer(t.Context(), cfg); err != nil {
		t.Error(err)
	}
}
