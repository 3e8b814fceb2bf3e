package goflux_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
	"github.com/foomo/goflux/transport/memory"
)

// interrupted publishes until its time has come, and then stores the message
// and does not come back: what a crash, or a lost answer, does to the caller.
type interrupted struct {
	transport.Publisher
	after int
}

var errInterrupted = errors.New("interrupted")

func (p *interrupted) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	receipt, err := p.Publisher.Publish(ctx, msg)
	p.after--

	if p.after == 0 {
		return transport.Receipt{}, errors.Join(errInterrupted, err)
	}

	return receipt, err
}

// bury stores n dead letters of orders, every tenth one of another reason.
func bury(t *testing.T, pub transport.Publisher, subject string, n int) {
	t.Helper()

	for i := range n {
		dead := goflux.DeadLetter[[]byte]{
			Subject: "orders.created", Raw: []byte(strconv.Itoa(i)), Reason: goflux.ReasonExhausted, Attempts: 3,
			Header: goflux.Header{"Nats-Msg-Id": {strconv.Itoa(i)}, "Kind": {"a", "b"}, "Nats-Expected-Stream": {"OTHER"}},
			Stream: "ORDERS", Sequence: uint64(i + 1), Consumer: "workers", Stored: time.Now(),
		}
		if i%10 == 0 {
			dead.Reason = goflux.ReasonRejected
		}

		if err := goflux.StoreDeadLetter(t.Context(), pub, subject, dead); err != nil {
			t.Fatal(err)
		}
	}
}

func exhausted(d goflux.DeadLetter[[]byte]) bool { return d.Reason == goflux.ReasonExhausted }

// back collects what comes back to orders.
type back struct {
	mu   sync.Mutex
	got  []string
	last goflux.Message[[]byte]
}

func (b *back) handle(_ context.Context, msg goflux.Message[[]byte]) error {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.got, b.last = append(b.got, string(msg.Payload)), msg

	return nil
}

func (b *back) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()

	return slices.Clone(b.got)
}

// numbers are those from 0 to n that want selects.
func numbers(n int, want func(int) bool) []string {
	var all []string

	for i := range n {
		if want(i) {
			all = append(all, strconv.Itoa(i))
		}
	}

	return all
}

func ones(i int) bool { return i%10 != 0 }
func every(int) bool  { return true }

// Looking at dead letters changes nothing, and sending them back is done once
// each, also when it is interrupted and done again. The others stay.
func TestRedriveInMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 100

		tr := inMemory(t)
		group := goflux.WithQueueGroup("redrive")

		// The group keeps the dead letters from here on.
		if result, err := goflux.Redrive(t.Context(), tr, tr, "dead.*", nil, group, silent()); err != nil || result != (goflux.RedriveResult{}) {
			t.Fatal(result, err)
		}

		bury(t, tr, "dead.orders", n)

		sub, err := goflux.NewSubscriber(tr, raw.Bytes())
		if err != nil {
			t.Fatal(err)
		}

		var b back

		stop := serveDead(t, sub, "orders.*", b.handle)
		synctest.Wait()

		var seen []string

		result, err := goflux.Redrive(t.Context(), tr, tr, "dead.*", func(d goflux.DeadLetter[[]byte]) bool {
			seen = append(seen, string(d.Payload))

			return false
		}, group)
		if err != nil || result != (goflux.RedriveResult{Kept: n}) || !slices.Equal(seen, numbers(n, every)) {
			t.Fatalf("%+v %v, saw %q", result, err, seen)
		}

		result, err = goflux.Redrive(t.Context(), tr, &interrupted{tr, 31}, "dead.*", exhausted, group)
		if !errors.Is(err, errInterrupted) || result.Sent != 30 {
			t.Fatalf("%+v %v", result, err)
		}

		// The end of ctx interrupts between two messages.
		ctx, cancel := context.WithCancel(t.Context())
		seen = nil

		result, err = goflux.Redrive(ctx, tr, tr, "dead.*", func(d goflux.DeadLetter[[]byte]) bool {
			if seen = append(seen, string(d.Raw)); len(seen) == 20 {
				cancel()
			}

			return exhausted(d)
		}, group)
		if !errors.Is(err, context.Canceled) || result.Sent+result.Duplicate+result.Kept != 20 {
			t.Fatalf("%+v %v", result, err)
		}

		// One was sent by the run that did not learn of it.
		sent, duplicate := 30+result.Sent, result.Duplicate

		result, err = goflux.Redrive(t.Context(), tr, tr, "dead.*", exhausted, group)
		if err != nil || sent+result.Sent != n-10-1 || duplicate+result.Duplicate != 1 || result.Kept != 10 {
			t.Fatalf("%+v %v, after %d sent and %d duplicate", result, err, sent, duplicate)
		}

		synctest.Wait()

		got := b.all()
		slices.SortFunc(got, func(a, b string) int { return len(a)*1000 + strings.Compare(a, b) - len(b)*1000 })

		if !slices.Equal(got, numbers(n, ones)) {
			t.Errorf("%d messages came back: %q", len(got), got)
		}

		if h := b.last.Header; b.last.ID() == "" || h.Get("Goflux-Redriven") != "1" || !slices.Equal(h.Values("Kind"), []string{"a", "b"}) {
			t.Errorf("the header of one is %v", h)
		}

		if keys := slices.Sorted(maps.Keys(b.last.Header)); !slices.Equal(keys, []string{"Goflux-Redriven", "Kind", "X-Message-ID"}) {
			t.Errorf("more came back than had been sent: %v", keys)
		}

		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// The same on JetStream, where dead letters are read in place and deleted.
func TestRedriveOnJetStream(t *testing.T) {
	t.Parallel()

	for _, tt := range []struct {
		name   string
		stream natsjs.StreamConfig
	}{
		{"limits", natsjs.StreamConfig{}},
		{"work queue", natsjs.StreamConfig{Retention: natsjs.WorkQueuePolicy}},
		{"direct access", natsjs.StreamConfig{AllowDirect: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			const n = 300

			js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
			orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
			tt.stream.Name, tt.stream.Subjects = "DEAD", []string{"dead.>"}
			dead := natstest.Stream(t, js, tt.stream)

			// The stream that is subscribed to is not where the dead are.
			tr, err := jetstream.New(js, jetstream.WithStream("ORDERS"))
			if err != nil {
				t.Fatal(err)
			}

			bury(t, tr, "dead.orders", n)
			bury(t, &renaming{tr}, "dead.others", 10)

			result, err := goflux.Redrive(t.Context(), tr, tr, "dead.orders", func(goflux.DeadLetter[[]byte]) bool { return false })
			if err != nil || result != (goflux.RedriveResult{Kept: n}) {
				t.Fatalf("%+v %v", result, err)
			}

			result, err = goflux.Redrive(t.Context(), tr, &interrupted{tr, n / 2}, "dead.orders", exhausted)
			if !errors.Is(err, errInterrupted) || result.Sent != n/2-1 {
				t.Fatalf("%+v %v", result, err)
			}

			result, err = goflux.Redrive(t.Context(), tr, tr, "dead.orders", exhausted)
			if want := (goflux.RedriveResult{Sent: n - n/10 - n/2, Duplicate: 1, Kept: n / 10}); err != nil || result != want {
				t.Fatalf("%+v %v, want %+v", result, err, want)
			}

			info, err := orders.Info(t.Context())
			if err != nil || info.State.Msgs != n-n/10 {
				t.Fatalf("%d messages came back: %v", info.State.Msgs, err)
			}

			if info, err = dead.Info(t.Context()); err != nil || info.State.Msgs != n/10+10 {
				t.Fatalf("%d dead letters are left: %v", info.State.Msgs, err)
			}

			// In order, and in one piece.
			var got []string

			for d, err := range tr.Browse(t.Context(), "orders.>") {
				if err != nil {
					t.Fatal(err)
				}

				if got = append(got, string(d.Data)); d.Header.Get("X-Message-ID") != string(d.Data) ||
					d.Header.Get("Goflux-Redriven") != "1" || len(d.Header.Values("Kind")) != 2 || d.Header.Get("Nats-Expected-Stream") != "" {
					t.Errorf("the header of %s is %v", d.Data, d.Header)
				}
			}

			if !slices.Equal(got, numbers(n, ones)) {
				t.Errorf("%d came back: %q", len(got), got)
			}
		})
	}
}

// renaming makes other dead letters of the same.
type renaming struct{ transport.Publisher }

func (r *renaming) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	msg.ID = "other " + msg.ID

	return r.Publisher.Publish(ctx, msg)
}

// A message that dies again after it came back is another dead letter, and it
// knows how often that was.
func TestRedriveAgainAndAgain(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Retention: natsjs.WorkQueuePolicy})
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})
	cons := natstest.Consumer(t, orders, natsjs.ConsumerConfig{Durable: "workers", AckPolicy: natsjs.AckExplicitPolicy})

	tr, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	died := make(chan goflux.Message[string])
	sub := jetstream.NewSubscriber(cons, raw.String(), silent(), goflux.WithDeadLetterPublisher(tr, "dead.orders"))
	stop := serveDead(t, sub, "", func(_ context.Context, msg goflux.Message[string]) error {
		died <- msg

		return goflux.Reject(errCannot)
	})

	pub := jetstream.NewPublisher(js, raw.String())
	if err := pub.Publish(goflux.WithMessageID(t.Context(), "o-1"), "orders.created", "poison"); err != nil {
		t.Fatal(err)
	}

	for i := range 4 {
		if msg := <-died; msg.ID() != "o-1" || msg.Payload != "poison" || (i > 0 && msg.Header.Get("Goflux-Redriven") != strconv.Itoa(i)) {
			t.Fatalf("round %d: %q %v", i, msg.Payload, msg.Header)
		}

		natstest.Eventually(t, func() bool {
			result, err := goflux.Redrive(t.Context(), tr, tr, "dead.orders", func(d goflux.DeadLetter[[]byte]) bool { return d.Redriven < 3 })
			if err != nil {
				t.Fatal(err)
			}

			return result.Sent == 1 || (i == 3 && result.Kept == 1)
		}, "dead letter %d", i)
	}

	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Dead letters that cannot be sent back stay, and hold up no others.
func TestRedriveOfWhatCannotBeSent(t *testing.T) {
	t.Parallel()

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, MaxMsgSize: 1000})
	dead := natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})

	tr, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name, subject string
		size          int
		want          error
	}{
		{"server", "$JS.API.STREAM.DELETE.DEAD", 1, goflux.ErrInvalidSubject},
		{"wildcard", "orders.*", 1, goflux.ErrInvalidSubject},
		{"comes round", "dead.again", 1, goflux.ErrInvalidSubject},
		{"nothing", "", 1, goflux.ErrInvalidSubject},
		{"nowhere", "gone.created", 1, goflux.ErrNoStream},
		{"large", "orders.created", 2000, goflux.ErrTooLarge},
	} {
		if err := goflux.StoreDeadLetter(t.Context(), tr, "dead.orders", goflux.DeadLetter[[]byte]{
			Subject: tt.subject, Raw: make([]byte, tt.size), Time: time.Unix(int64(len(tt.name)), 0),
		}); err != nil {
			t.Fatal(err)
		}

		result, err := goflux.Redrive(t.Context(), tr, tr, "dead.>", func(d goflux.DeadLetter[[]byte]) bool {
			return d.Subject == tt.subject
		})

		_, told := errors.AsType[*goflux.Error](err)
		if !errors.Is(err, tt.want) || !told || result.Failed != 1 || result.Sent != 0 {
			t.Errorf("%s: %+v %v, want %v", tt.name, result, err, tt.want)
		}
	}

	bury(t, tr, "dead.orders", 3)

	result, err := goflux.Redrive(t.Context(), tr, tr, "dead.>", nil)
	if err == nil || result != (goflux.RedriveResult{Sent: 3, Failed: 6}) {
		t.Errorf("%+v %v", result, err)
	}

	if info, err := dead.Info(t.Context()); err != nil || info.State.Msgs != 6 {
		t.Errorf("%d dead letters are left, want the 6 that failed: %v", info.State.Msgs, err)
	}
}

// A group gives out as much as its limit of unsettled messages: Redrive says
// that it did not see all.
func TestRedriveOfAGroup(t *testing.T) {
	t.Parallel()

	const limit = 20

	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	orders := natstest.Stream(t, js, natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})

	tr, err := jetstream.New(js, jetstream.WithConsumerConfig(func(c *natsjs.ConsumerConfig) { c.MaxAckPending = limit }))
	if err != nil {
		t.Fatal(err)
	}

	bury(t, tr, "dead.orders", 2*limit)

	group := goflux.WithQueueGroup("redrive")
	none := func(goflux.DeadLetter[[]byte]) bool { return false }

	result, err := goflux.Redrive(t.Context(), tr, tr, "dead.orders", none, group)
	if !errors.Is(err, goflux.ErrUnsupported) || !strings.Contains(err.Error(), "MaxAckPending") || result.Kept != limit {
		t.Errorf("%+v %v", result, err)
	}

	result, err = goflux.Redrive(t.Context(), tr, tr, "dead.orders", nil, group)
	if err != nil || result != (goflux.RedriveResult{Sent: 2 * limit}) {
		t.Errorf("%+v %v", result, err)
	}

	if info, err := orders.Info(t.Context()); err != nil || info.State.Msgs != 2*limit {
		t.Errorf("%d messages came back: %v", info.State.Msgs, err)
	}
}

// Nothing to do is not the same as nobody to ask.
func TestRedriveWithoutABroker(t *testing.T) {
	t.Parallel()

	server := natstest.Run(t)
	js := natstest.JetStream(t, natstest.Connect(t, server), natsjs.WithDefaultTimeout(200*time.Millisecond))
	natstest.Stream(t, js, natsjs.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})

	tr, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	group := goflux.WithQueueGroup("redrive")

	for name, opts := range map[string][]goflux.ConsumerOption{"in place": nil, "group": {group}} {
		if result, err := goflux.Redrive(t.Context(), tr, tr, "dead.>", nil, opts...); err != nil || result != (goflux.RedriveResult{}) {
			t.Errorf("%s: %+v %v", name, result, err)
		}
	}

	server.Stop()

	for name, opts := range map[string][]goflux.ConsumerOption{"in place": nil, "group": {group}} {
		if _, err := goflux.Redrive(t.Context(), tr, tr, "dead.>", nil, opts...); err == nil {
			t.Errorf("%s: no error though the server is gone", name)
		}
	}
}

func TestRedriveRefuses(t *testing.T) {
	t.Parallel()

	tr, limited := inMemory(t), inMemory(t, memory.WithMaxDeliver(3))
	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	group := goflux.WithQueueGroup("redrive")

	remote, err := jetstream.New(js)
	if err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name    string
		from    transport.Subscriber
		to      transport.Publisher
		subject string
		opts    []goflux.ConsumerOption
		want    error
		says    string
	}{
		{"nothing to read", nil, tr, "dead", nil, goflux.ErrInvalidOption, "nil"},
		{"nowhere to send", tr, nil, "dead", nil, goflux.ErrInvalidOption, "nil"},
		{"no subject", tr, tr, "", nil, goflux.ErrInvalidSubject, "empty"},
		{"no group", tr, tr, "dead", nil, goflux.ErrUnsupported, "WithQueueGroup"},
		{"a limit of deliveries", limited, tr, "dead", []goflux.ConsumerOption{group}, goflux.ErrInvalidOption, "deliveries"},
		{"no stream", remote, remote, "dead", nil, goflux.ErrStreamNotFound, "dead"},
		{"no stream for a group", remote, remote, "dead", []goflux.ConsumerOption{group}, goflux.ErrStreamNotFound, "dead"},
		{"dead letters of dead letters", tr, tr, "dead", []goflux.ConsumerOption{goflux.WithDeadLetter("deader")}, goflux.ErrInvalidOption, "WithDeadLetter"},
		{"a bad group", tr, tr, "dead", []goflux.ConsumerOption{goflux.WithQueueGroup("a b")}, goflux.ErrInvalidOption, "WithQueueGroup"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()

			_, err := goflux.Redrive(context.Background(), tt.from, tt.to, tt.subject, nil, tt.opts...)

			_, told := errors.AsType[*goflux.Error](err)
			if !errors.Is(err, tt.want) || !told || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.says)
			}
		})
	}
}

func ExampleRedrive() {
	ctx := context.Background()

	t, err := memory.New()
	if err != nil {
		fmt.Println(err)

		return
	}
	defer func() { _ = t.Close() }()

	// In memory a queue group keeps the dead letters. On JetStream a stream
	// does, and nothing of this is needed.
	group := goflux.WithQueueGroup("redrive")
	if _, err := goflux.Redrive(ctx, t, t, "dead.orders", nil, group); err != nil {
		fmt.Println(err)
	}

	for i, reason := range []string{goflux.ReasonExhausted, goflux.ReasonRejected} {
		err := goflux.StoreDeadLetter(ctx, t, "dead.orders", goflux.DeadLetter[[]byte]{
			Subject: "orders.created", Raw: []byte("order " + strconv.Itoa(i+1)), Reason: reason, Error: "the warehouse is closed",
		})
		if err != nil {
			fmt.Println(err)
		}
	}

	// What is there?
	_, err = goflux.Redrive(ctx, t, t, "dead.orders", func(d goflux.DeadLetter[[]byte]) bool {
		fmt.Printf("%s on %s: %s: %s\n", d.Raw, d.Subject, d.Reason, d.Error)

		return false
	}, group)
	if err != nil {
		fmt.Println(err)
	}

	// The warehouse is open again.
	result, err := goflux.Redrive(ctx, t, t, "dead.orders", func(d goflux.DeadLetter[[]byte]) bool {
		return d.Reason == goflux.ReasonExhausted
	}, group)
	fmt.Println(result.Sent, "sent,", result.Kept, "kept,", err)

	// Output:
	// order 1 on orders.created: attempts exhausted: the warehouse is closed
	// order 2 on orders.created: rejected: the warehouse is closed
	// 1 sent, 1 kept, <nil>
}
