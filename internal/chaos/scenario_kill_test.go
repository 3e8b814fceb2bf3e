package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/crash"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/middleware"
	"github.com/foomo/goflux/middleware/kvstore"
	natsjs "github.com/foomo/goflux/transport/jetstream"
)

// roleConsumer is a process that handles the messages of the story, and says so
// of each: "handled <attempt> <id>" as its effect, and "recorded <id>".
const roleConsumer = "consumer"

// consumerArg is what it is told.
type consumerArg struct {
	URL    string
	Bucket string // of the ids that were handled; empty for a handler that does not mind
}

const (
	scope = "story"
	lease = time.Second // of an id, less than the ack wait
)

func consume(ctx context.Context, arg string, say func(string)) error {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	var a consumerArg
	if err := json.Unmarshal([]byte(arg), &a); err != nil {
		return err
	}
	nc, err := nats.Connect(a.URL)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	consumer, err := js.Consumer(ctx, story, worker)
	if err != nil {
		return err
	}
	handler := goflux.Handler[string](func(_ context.Context, msg goflux.Message[string]) error {
		say(fmt.Sprintf("handled %d %s", msg.Attempt(), msg.ID()))
		return nil
	})
	if a.Bucket != "" {
		store, err := openStore(ctx, js, a.Bucket)
		if err != nil {
			return err
		}
		handler = middleware.Idempotent[string](telling{store, say}, scope, middleware.WithLease(lease))(handler)
	}
	sub := natsjs.NewSubscriber(consumer, raw.String(), goflux.WithConcurrency(8))
	return sub.Subscribe(ctx, "", handler)
}

func openStore(ctx context.Context, js jetstream.JetStream, bucket string) (middleware.Store, error) {
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, err
	}
	return kvstore.New(ctx, kv)
}

// telling is a store that says what was recorded.
type telling struct {
	middleware.Store
	say func(string)
}

func (t telling) Record(ctx context.Context, key middleware.Key, token uint64) error {
	err := t.Store.Record(ctx, key, token)
	if err == nil {
		t.say("recorded " + key.ID)
	}
	return err
}

// kills is what the processes said before they were killed.
type kills struct {
	*scenario
	ledger  *chaos.Checker
	handled counter // messages, not handlings

	mu       sync.Mutex
	known    map[string]bool // handled at least once
	recorded map[string]bool
	again    []string // handled after they were recorded
}

func (k *kills) heard(line string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch words := strings.SplitN(line, " ", 3); {
	case words[0] == "recorded" && len(words) == 2:
		k.recorded[words[1]] = true
	case words[0] == "handled" && len(words) == 3:
		attempt, id := words[1], words[2]
		n, err := strconv.ParseUint(attempt, 10, 64)
		if err != nil {
			k.Error(err)
		}
		k.ledger.Handled(chaos.ParseID(id), n)
		if k.recorded[id] {
			k.again = append(k.again, id)
		}
		if !k.known[id] {
			k.known[id] = true
			k.handled.Add(1)
		}
	default:
		k.Errorf("the child said %q", line)
	}
}

// unsaid notes what a process had recorded when it was killed and did not get
// to say.
func (k *kills) unsaid(store middleware.Store) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range k.known {
		if k.recorded[id] {
			continue
		}
		key := middleware.Key{Scope: scope, ID: id}
		// A reservation that is over as soon as it is made asks and changes nothing.
		r, err := store.Reserve(k.ctx, key, time.Nanosecond)
		k.must(err)
		if r.Status == middleware.Handled {
			k.recorded[id] = true
		}
	}
}

// A process that handles messages is killed again and again.
func TestSoakKill(t *testing.T) {
	parallel(t)
	for name, bucket := range map[string]string{"plain": "", "idempotent": "handled"} {
		t.Run(name, func(t *testing.T) { kill(t, bucket) })
	}
}

func kill(t *testing.T, bucket string) {
	parallel(t)
	s := begin(t)
	total, times := size(3000, 20_000), size(3, 10)
	server := natstest.RunTCP(t)
	js := natstest.JetStream(t, natstest.Connect(t, server))
	stream := natstest.Stream(t, js, jetstream.StreamConfig{Name: story, Subjects: []string{"story.>"}})
	consumer := natstest.Consumer(t, stream, jetstream.ConsumerConfig{Durable: worker, AckWait: 2 * lease})
	ledger := chaos.NewChecker(chaos.StoredOnce | chaos.HandledAtLeastOnce)
	s.fill(s.transportOver(js), ledger, "story.", total, 100)

	k := &kills{scenario: s, ledger: ledger, known: map[string]bool{}, recorded: map[string]bool{}}
	var store middleware.Store
	if bucket != "" {
		_, err := js.CreateKeyValue(s.ctx, jetstream.KeyValueConfig{Bucket: bucket, TTL: time.Hour})
		s.must(err)
		store, err = openStore(s.ctx, js, bucket)
		s.must(err)
	}
	arg, err := json.Marshal(consumerArg{server.URL(), bucket})
	s.must(err)

	start := func() *crash.Child { return crash.Start(t, roleConsumer, string(arg), k.heard) }
	for i := range times {
		child := start()
		at := total*i/(times+1) + s.intn(total/(times+1)) + 1
		s.await(k.handled.reaches(at), "message %d of %d", at, total)
		child.Kill()
		if store != nil {
			k.unsaid(store)
		}
	}
	child := start()
	s.await(k.handled.reaches(total), "all to be handled")
	s.settled(consumer)
	s.must(child.Stop())

	s.must(ledger.ReadStream(s.ctx, js, story))
	s.verify(ledger, fmt.Sprintf("killed %d times", times), fmt.Sprintf("%d recorded", len(k.recorded)))
	if store != nil && len(k.recorded) != total {
		t.Errorf("%d of %d were recorded", len(k.recorded), total)
	}
	if len(k.again) > 0 {
		t.Errorf("%d were handled again though that they had been was recorded, such as %s", len(k.again), k.again[0])
	}
}
