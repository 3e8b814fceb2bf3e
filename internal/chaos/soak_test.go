package chaos_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/crash"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	natsjs "github.com/foomo/goflux/transport/jetstream"
)

func TestMain(m *testing.M) {
	crash.Main(map[string]crash.Role{roleConsumer: consume, roleServer: serve, roleNode: node})
	// Failed handlers and lost connections are what the scenarios are made of.
	slog.SetDefault(slog.New(slog.DiscardHandler))
	sideBySide()
	goleak.VerifyTestMain(m)
}

// sideBySide lets more scenarios run at once than a small machine has cores: they
// wait for the time of an election or a lease more than they compute.
func sideBySide() {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(strconv.Itoa(max(3, runtime.GOMAXPROCS(0)))) // a number is a number
	}
}

// The tests named Soak are scenarios: goflux itself, under faults. They run in a
// short form with all the other tests, and in a long one, one after the other,
// by `make soak`. GOFLUX_SEED repeats a run as far as the faults, and whatever
// else is random here, decide it; the timing of the machine is its own.
var soak = os.Getenv("GOFLUX_SOAK") == "1"

// size is a number that depends on the form.
func size[T any](short, long T) T {
	if soak {
		return long
	}
	return short
}

// scenario is one run of one scenario.
type scenario struct {
	*testing.T
	ctx   context.Context // bounds the whole
	seed  uint64
	start time.Time

	mu   sync.Mutex
	rand *rand.Rand
}

// parallel lets a test run side by side with others, in the short form.
func parallel(t *testing.T) {
	t.Helper()
	if !soak {
		t.Parallel()
	}
}

// begin begins a scenario.
func begin(t *testing.T) *scenario {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("GOFLUX_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("GOFLUX_SEED: %v", err)
		}
	}
	t.Logf("GOFLUX_SEED=%d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), size(2*time.Minute, 10*time.Minute))
	t.Cleanup(cancel)
	return &scenario{T: t, ctx: ctx, seed: seed, start: time.Now(), rand: rand.New(rand.NewPCG(seed, hash(t.Name())))}
}

func hash(parts ...any) uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, parts...)
	return h.Sum64()
}

// intn returns a number from 0 to n-1. It is safe for concurrent use; who wants
// to be told the same in each run has to ask in the same order.
func (s *scenario) intn(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rand.IntN(n)
}

// one returns true once in n times, decided by the seed and what alone.
func (s *scenario) one(n uint64, what ...any) bool {
	// The hash of what differs in its end only does so in its low bits, mostly.
	return rand.New(rand.NewPCG(s.seed, hash(what...))).Uint64N(n) == 0
}

func (s *scenario) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// await waits until cond holds, for which there is no event.
func (s *scenario) await(cond func() bool, what string, args ...any) {
	s.Helper()
	if err := natstest.Poll(s.ctx, cond, what, args...); err != nil {
		s.Fatal(err)
	}
}

// verify closes the books. It prints the table and the notes of the scenario,
// and fails the test if a promise was broken.
func (s *scenario) verify(c *chaos.Checker, notes ...string) *chaos.Report {
	s.Helper()
	r := c.Verify()
	s.Logf("%v, %s\n%v", time.Since(s.start).Round(10*time.Millisecond), strings.Join(notes, ", "), r)
	if err := r.Err(); err != nil {
		s.Error(err)
	}
	return r
}

// counter counts up, and lets others wait for it.
type counter struct{ atomic.Int64 }

func (c *counter) reaches(n int) func() bool { return func() bool { return c.Load() >= int64(n) } }

// longest keeps the longest of durations.
type longest struct{ atomic.Int64 }

func (l *longest) note(d time.Duration) {
	for {
		old := l.Load()
		if int64(d) <= old || l.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

func (l *longest) String() string { return time.Duration(l.Load()).Round(time.Millisecond).String() }

// fault is something bad that happens while a scenario runs. It has happened
// when do returns.
type fault struct {
	name string
	do   func(ctx context.Context) error
}

// storm lets the faults happen in an order of the seed's, one after the other,
// spread over a run that goes from 0 to total, and none before the run has got
// further since the last one. It returns when all have happened.
func (s *scenario) storm(progress *counter, total int, faults []fault) {
	s.Helper()
	s.rand.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	share := total / (len(faults) + 1)
	var log strings.Builder
	defer func() {
		if s.Failed() {
			s.Logf("the faults:\n%s", &log)
		}
	}()
	recovered := 0
	for i, f := range faults {
		at := max(share*i+1+s.intn(share), min(recovered, total))
		if err := natstest.Poll(s.ctx, progress.reaches(at), "message %d of %d", at, total); err != nil {
			s.Errorf("before fault %d (%s): %v", i, f.name, err)
			return
		}
		start := time.Now()
		err := f.do(s.ctx)
		fmt.Fprintf(&log, "%v to %v, message %d: %s\n", start.Sub(s.start).Round(time.Millisecond),
			time.Since(s.start).Round(time.Millisecond), progress.Load(), f.name)
		if err != nil {
			s.Errorf("fault %d (%s): %v", i, f.name, err)
			return
		}
		recovered = int(progress.Load()) + share/4
	}
}

// times returns n times the same fault.
func times(n int, f fault) []fault {
	all := make([]fault, n)
	for i := range all {
		all[i] = f
	}
	return all
}

// cluster is a cluster behind proxies, one in front of each node.
type cluster struct {
	*natstest.Cluster
	s       *scenario
	proxies []*chaos.Proxy
}

func (s *scenario) cluster() *cluster {
	s.Helper()
	c := &cluster{Cluster: natstest.RunCluster(s.T, 3), s: s}
	for i := range c.Len() {
		p, err := chaos.NewProxy(c.Node(i).URL(), s.seed+uint64(i))
		s.must(err)
		s.Cleanup(func() {
			if err := p.Close(); err != nil {
				s.Error(err)
			}
		})
		c.proxies = append(c.proxies, p)
	}
	return c
}

// connect connects to the cluster by its proxies.
func (c *cluster) connect(opts ...nats.Option) *nats.Conn {
	c.s.Helper()
	urls := make([]string, len(c.proxies))
	for i, p := range c.proxies {
		urls[i] = p.URL()
	}
	return natstest.Connect(c.s.T, natstest.URL(strings.Join(urls, ",")), append(opts, nats.Timeout(time.Second))...)
}

// stream makes a replicated stream of all subjects below its name in lower case.
func (c *cluster) stream(js jetstream.JetStream, name string) jetstream.Stream {
	c.s.Helper()
	return natstest.Stream(c.s.T, js, jetstream.StreamConfig{Name: name, Subjects: []string{strings.ToLower(name) + ".>"}, Replicas: 3})
}

func (c *cluster) stepDownStream(stream string) fault {
	return fault{"step-down of the stream's leader", func(ctx context.Context) error { return c.StepDownStream(ctx, stream) }}
}

func (c *cluster) stepDownConsumer(stream, consumer string) fault {
	return fault{"step-down of the consumer's leader", func(ctx context.Context) error { return c.StepDownConsumer(ctx, stream, consumer) }}
}

// restart stops a node, waits until the others have got further by some
// messages, and starts it again.
func (c *cluster) restart(stream string, progress *counter, total, some int) fault {
	return fault{"restart of a node", func(ctx context.Context) error {
		node := c.s.intn(c.Len())
		c.StopNode(node)
		further := min(int(progress.Load())+some, total)
		if err := natstest.Poll(ctx, progress.reaches(further), "message %d without node %d", further, node); err != nil {
			return err
		}
		if err := c.StartNode(ctx, node); err != nil {
			return err
		}
		return c.WaitStream(ctx, stream, c.Len())
	}}
}

// cut cuts all connections of clients to a node, if there are any.
func (c *cluster) cut() fault {
	return fault{"cut of connections", func(context.Context) error {
		c.busiest().Cut()
		return nil
	}}
}

// halfClose ends one direction of the connections of clients to a node, or both.
func (c *cluster) halfClose() fault {
	return fault{"half-close of connections", func(context.Context) error {
		c.busiest().HalfClose([]chaos.Direction{chaos.ToServer, chaos.ToClient, chaos.Both}[c.s.intn(3)])
		return nil
	}}
}

// stall holds back all bytes between a node and its clients for a while.
func (c *cluster) stall(d time.Duration) fault {
	return fault{"stall of connections", func(ctx context.Context) error {
		p := c.busiest()
		p.Stall(chaos.Both)
		return c.resume(ctx, p, d)
	}}
}

// drop loses all bytes between a node and its clients for a while, in one
// direction or both.
func (c *cluster) drop(d time.Duration) fault {
	return fault{"loss of bytes", func(ctx context.Context) error {
		p := c.busiest()
		p.Drop([]chaos.Direction{chaos.ToServer, chaos.ToClient, chaos.Both}[c.s.intn(3)])
		return c.resume(ctx, p, d)
	}}
}

// delay holds up all bytes between a node and its clients a little, each for
// another time, for a while.
func (c *cluster) delay(d time.Duration) fault {
	return fault{"delay of connections", func(ctx context.Context) error {
		p := c.busiest()
		p.Delay(chaos.Both, 5*time.Millisecond, 20*time.Millisecond)
		return c.resume(ctx, p, d)
	}}
}

// resume ends what is wrong with a connection, after a while. How long a fault
// lasts is a matter of time and of nothing else.
func (c *cluster) resume(ctx context.Context, p *chaos.Proxy, d time.Duration) error {
	defer p.Resume()
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// busiest returns the proxy with the most connections.
func (c *cluster) busiest() *chaos.Proxy {
	best := c.proxies[0]
	for _, p := range c.proxies[1:] {
		if p.Stats().Active > best.Stats().Active {
			best = p
		}
	}
	return best
}

// transportOver makes a transport over js.
func (s *scenario) transportOver(js jetstream.JetStream, opts ...natsjs.TransportOption) *natsjs.Transport {
	s.Helper()
	tr, err := natsjs.New(js, opts...)
	s.must(err)
	s.Cleanup(func() {
		if err := tr.Close(); err != nil {
			s.Error(err)
		}
	})
	return tr
}

// resultOf says what the error of a publish means for the ledger.
func resultOf(err error) chaos.Result {
	switch {
	case err == nil:
		return chaos.Accepted
	case errors.Is(err, goflux.ErrPublishUnknown):
		return chaos.Unknown
	default:
		return chaos.Failed
	}
}

// fill publishes n messages in turn under keys keys, each on a subject of its
// key, and enters them in the ledger.
func (s *scenario) fill(t transport.Publisher, c *chaos.Checker, prefix string, n, keys int) {
	s.Helper()
	pub, err := goflux.NewPublisher(t, raw.String(), goflux.WithPublishRetry(0))
	s.must(err)
	for from := 0; from < n; from += 1000 {
		items := make([]goflux.Item[string], min(1000, n-from))
		ids := make([]chaos.ID, len(items))
		for i := range items {
			key := prefix + strconv.Itoa((from+i)%keys)
			ids[i] = c.Send(key)
			items[i] = goflux.Item[string]{Subject: key, Payload: key, ID: ids[i].String()}
		}
		results, err := pub.PublishBatch(s.ctx, items...)
		s.must(err)
		for i, r := range results {
			c.Published(ids[i], resultOf(r.Err), r.Receipt.Sequence)
		}
	}
	s.must(pub.Close())
}

// idOf is the identity of a received message.
func idOf(msg goflux.Message[string]) chaos.ID { return chaos.ParseID(msg.ID()) }

// subscribing is a Subscribe that runs.
type subscribing struct {
	cancel context.CancelFunc
	ended  chan error
}

// subscribe subscribes and returns when the server has the subscription.
func (s *scenario) subscribe(
	t transport.Subscriber, subject string, handler goflux.Handler[string], opts ...goflux.SubscriberOption,
) *subscribing {
	s.Helper()
	ready := make(chan struct{})
	sub, err := goflux.NewSubscriber(t, raw.String(), append(opts, goflux.WithReady(func() { close(ready) }))...)
	s.must(err)
	ctx, cancel := context.WithCancel(s.ctx)
	r := &subscribing{cancel, make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.ended <- sub.Subscribe(ctx, subject, handler)
	}()
	s.Cleanup(func() {
		cancel()
		<-done
	})
	select {
	case <-ready:
	case <-done:
		s.Fatalf("subscribe: %v", <-r.ended)
	case <-s.ctx.Done():
		s.Fatal("the subscription does not get ready")
	}
	return r
}

// stop ends the subscription in order.
func (r *subscribing) stop() error {
	r.cancel()
	return <-r.ended
}

// settled waits until nothing of a consumer is pending, neither undelivered nor
// unacknowledged.
func (s *scenario) settled(consumer jetstream.Consumer) {
	s.Helper()
	var last string
	defer func() {
		if s.Failed() {
			s.Log(last)
		}
	}()
	s.await(func() bool {
		ctx, cancel := context.WithTimeout(s.ctx, time.Second)
		defer cancel()
		info, err := consumer.Info(ctx)
		if err != nil {
			last = err.Error()
			return false
		}
		last = fmt.Sprintf("%d undelivered, %d unacknowledged", info.NumPending, info.NumAckPending)
		return info.NumPending == 0 && info.NumAckPending == 0
	}, "all to be settled")
}
