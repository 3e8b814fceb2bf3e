package jetstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

func TestSettle(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.publish(t, 0, 6)

	terms, err := e.nc.SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>")
	must(t, err)

	c := e.consumer(t, natsjs.ConsumerConfig{})
	in := newInbox()
	sub := subscribe(t, jetstream.Bind(c), in.config("events.created"))
	sub.Request(6)
	got := in.wait(t, 6)

	m := got[2].Settler.Metadata(got[2].Token)
	if m.Stream != "EVENTS" || m.Consumer != "worker" || m.Sequence != 3 || m.Attempt != 1 || m.Pending != 3 ||
		time.Since(m.Timestamp) > time.Minute {
		t.Errorf("metadata %+v", m)
	}

	settle(t, got[0], transport.Verdict{Action: transport.Extend})
	settle(t, got[0], transport.Verdict{Action: transport.Extend})
	settle(t, got[0], transport.Verdict{Action: transport.Ack})
	settle(t, got[1], transport.Verdict{Action: transport.AckSync})
	settle(t, got[2], transport.Verdict{Action: transport.Term, Reason: "bad\r\nworse\x00 \xff" + strings.Repeat("ü", 500)})
	settle(t, got[3], transport.Verdict{Action: transport.Term})
	settle(t, got[4], transport.Verdict{Action: transport.Nak})
	settle(t, got[5], transport.Verdict{Action: transport.Nak, Delay: time.Hour})

	// A settled delivery stays as it is.
	for i, d := range got {
		for action := transport.Ack; action <= transport.Extend; action++ {
			if e := details(t, d.Settler.Settle(t.Context(), d.Token, transport.Verdict{Action: action}), transport.ErrSettled); e.Op != "settle" {
				t.Errorf("delivery %d, %v: %+v", i, action, e)
			}
		}
	}

	sub.Request(2)
	again := in.wait(t, 7)[6]

	if m := again.Settler.Metadata(again.Token); m.Sequence != 5 || m.Attempt != 2 {
		t.Errorf("redelivered: %+v", m)
	}

	// The one that was naked and the one with the delay.
	unsettled(t, c, 2)

	msg, err := terms.NextMsg(natstest.Limit)
	must(t, err)

	var advisory struct {
		Reason string `json:"reason"`
	}
	must(t, json.Unmarshal(msg.Data, &advisory))

	if r := advisory.Reason; !strings.HasPrefix(r, "bad  worse  ?üü") || len(r) > 256 || !utf8.ValidString(r) {
		t.Errorf("reason %q (%d bytes)", r, len(r))
	}
}

func TestSettleNonsense(t *testing.T) {
	t.Parallel()

	e := setup(t)
	e.publish(t, 0, 1)

	in := newInbox()
	subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{})), in.config("")).Request(1)
	d := in.wait(t, 1)[0]

	for _, token := range []any{nil, 1, "token", &nats.Msg{}} {
		mustBe(t, d.Settler.Settle(t.Context(), token, transport.Verdict{Action: transport.Ack}), transport.ErrInvalidOption)

		if m := d.Settler.Metadata(token); m != (transport.Metadata{}) {
			t.Errorf("metadata of %v: %+v", token, m)
		}
	}

	for _, action := range []transport.Action{0, 99} {
		mustBe(t, d.Settler.Settle(t.Context(), d.Token, transport.Verdict{Action: action}), transport.ErrInvalidOption)
	}

	canceled, cancel := context.WithCancel(t.Context())
	cancel()

	// A failed AckSync leaves the delivery to be settled.
	mustBe(t, d.Settler.Settle(canceled, d.Token, transport.Verdict{Action: transport.AckSync}), context.Canceled)
	settle(t, d, transport.Verdict{Action: transport.AckSync})
}

// Of many verdicts at once one wins.
func TestSettleConcurrently(t *testing.T) {
	t.Parallel()

	e := setup(t)

	const stored = 50

	e.publish(t, 0, stored)

	in := newInbox()
	sub := subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{})), in.config(""))
	sub.Request(stored)

	var wg sync.WaitGroup

	for _, d := range in.wait(t, stored) {
		var won atomic.Int32

		for _, v := range []transport.Verdict{
			{Action: transport.Ack}, {Action: transport.AckSync}, {Action: transport.AckSync},
			{Action: transport.Nak, Delay: time.Hour}, {Action: transport.Term},
		} {
			wg.Go(func() {
				switch err := d.Settler.Settle(t.Context(), d.Token, v); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, transport.ErrSettled):
					t.Error(err)
				}
			})
		}

		wg.Wait()

		if won.Load() != 1 {
			t.Fatalf("%d verdicts were carried out", won.Load())
		}
	}
}

// A message is redelivered after the delay of its nak, whatever the consumer's
// BackOff; where that cannot be, later rather than sooner.
func TestNakWithDelay(t *testing.T) {
	t.Parallel()

	const ms = time.Millisecond

	for name, tc := range map[string]struct {
		backOff []time.Duration
		delays  []time.Duration // of the first, second... nak
		want    []time.Duration // between the deliveries
	}{
		"no BackOff": {nil, []time.Duration{0, 300 * ms, 100 * ms}, []time.Duration{0, 300 * ms, 100 * ms}},
		"rising BackOff": {
			[]time.Duration{time.Second, 2 * time.Second, 3 * time.Second},
			[]time.Duration{300 * ms, 1300 * ms, 300 * ms},
			[]time.Duration{300 * ms, 1300 * ms, 2000 * ms}, // the last cannot be less than 3 s - 1 s
		},
		"falling BackOff": {
			[]time.Duration{2 * time.Second, 1 * time.Second},
			[]time.Duration{300 * ms, 300 * ms, 300 * ms},
			[]time.Duration{300 * ms, 300 * ms, 300 * ms},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			e.publish(t, 0, 1)

			in := newInbox()
			sub := subscribe(t, jetstream.Bind(e.consumer(t, natsjs.ConsumerConfig{BackOff: tc.backOff, MaxDeliver: 10})), in.config(""))

			if info := sub.Info(); tc.backOff != nil && (info.AckWait != time.Second || len(info.BackOff) != len(tc.backOff) || info.MaxDeliver != 10) {
				t.Errorf("info %+v", info)
			}

			sub.Request(1 + len(tc.delays))

			for i, delay := range tc.delays {
				settle(t, in.wait(t, i+1)[i], transport.Verdict{Action: transport.Nak, Delay: delay})

				naked := time.Now()

				in.wait(t, i+2)

				// The server works with timers of its own; the distortion
				// would be a second.
				if got := time.Since(naked); got < tc.want[i]-50*ms || got > tc.want[i]+700*ms {
					t.Errorf("nak %d with %v came back after %v, want %v", i+1, delay, got, tc.want[i])
				}
			}
		})
	}
}
