package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	natsjs "github.com/foomo/goflux/transport/jetstream"
)

// patience is the deadline of callers that must not see an error; the last one of
// a full window waits for all the others, too.
const (
	patience       = 10 * time.Second
	windowPatience = 3 * patience
)

// publishing is a cluster with publishers, and what comes over them.
type publishing struct {
	*scenario
	*cluster
	checker    *chaos.Checker
	conns      []*nats.Conn
	stored     counter // messages that were accepted, and in the end all
	stuck      counter // ids
	duplicates counter // receipts of attempts whose own were lost
	total      int
	slowest    longest
	faults     []fault

	patience time.Duration       // the deadline of callers that must not see an error
	settle   func()              // waits until all is quiet
	read     jetstream.JetStream // to read the stream in the end
}

const story = "STORY"

// A node is given up when it has been silent for two or three pings, which takes
// less time than the longest silence.
var (
	pings   = size(200*time.Millisecond, 500*time.Millisecond)
	silence = size(time.Second, 4*time.Second)
)

func (s *scenario) publishing(promises chaos.Promises, total int) *publishing {
	p := &publishing{scenario: s, cluster: s.cluster(), checker: chaos.NewChecker(promises), total: total, patience: patience}
	p.read = natstest.JetStream(s.T, natstest.Connect(s.T, p.Cluster))
	p.settle = func() {
		ctx, cancel := context.WithTimeout(p.ctx, natstest.Limit)
		defer cancel()
		p.must(p.WaitStream(ctx, story, p.Len()))
	}
	for range size(4, 8) {
		p.conns = append(p.conns, p.connect(nats.PingInterval(pings)))
	}
	p.stream(natstest.JetStream(s.T, p.conns[0]), story)
	stepDowns, restarts, troubles := size(4, 40), size(1, 6), size(1, 4)
	p.faults = append(p.faults, times(stepDowns, p.stepDownStream(story))...)
	p.faults = append(p.faults, times(restarts, p.restart(story, &p.stored, total, total/50))...)
	for _, trouble := range []fault{p.cut(), p.halfClose(), p.stall(time.Second), p.drop(time.Second), p.delay(time.Second)} {
		p.faults = append(p.faults, times(troubles, trouble)...)
	}
	p.faults = append(p.faults, times(size(1, 2), p.stall(silence))...)
	return p
}

// publisher makes a publisher over a connection, which repeats what is not
// confirmed, and whose attempts are counted.
func (p *publishing) publisher(nc *nats.Conn) *goflux.BoundPublisher[string] {
	p.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		p.Error(err)
		return nil
	}
	pub, err := goflux.NewPublisher(counted{p.transportOver(js), p.checker}, raw.String(), goflux.WithPublishRetry(0))
	if err != nil {
		p.Error(err)
		return nil
	}
	return pub
}

// counted is a transport that tells the ledger of what it hands to the network.
type counted struct {
	*natsjs.Transport
	checker *chaos.Checker
}

func (c counted) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	r, err := c.Transport.Publish(ctx, msg)
	if resultOf(err) != chaos.Failed {
		c.checker.Attempted(chaos.ParseID(msg.ID))
	}
	return r, err
}

func (c counted) OpenPipeline(
	ctx context.Context, done func(uint64, transport.Receipt, error), ended func(error),
) (transport.Pipeline, error) {
	p, err := c.Transport.OpenPipeline(ctx, done, ended)
	return countedPipeline{p, c.checker}, err
}

type countedPipeline struct {
	transport.Pipeline
	checker *chaos.Checker
}

func (c countedPipeline) Send(token uint64, msg transport.Message) error {
	err := c.Pipeline.Send(token, msg)
	if err == nil {
		c.checker.Attempted(chaos.ParseID(msg.ID))
	}
	return err
}

// run lets the publishers work under the faults, and closes the books.
func (p *publishing) run(publishers int, publish func(n int)) {
	p.Helper()
	var wg sync.WaitGroup
	for n := range publishers {
		wg.Go(func() { publish(n) })
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		wg.Wait()
		p.stored.Store(int64(p.total)) // nobody waits for those that failed
	}()
	p.storm(&p.stored, p.total, p.faults)
	<-ended

	p.settle()
	p.must(p.checker.ReadStream(p.ctx, p.read, story))
	r := p.verify(p.checker, fmt.Sprintf("%d publishers, %d faults", publishers, len(p.faults)), "slowest publish "+p.slowest.String(),
		fmt.Sprintf("%d ids stuck", p.stuck.Load()), fmt.Sprintf("%d duplicates recognised", p.duplicates.Load()))
	if r.Sent != uint64(p.total) {
		p.Errorf("%d sent, want %d", r.Sent, p.total)
	}
	if soak && (r.Attempts <= r.Sent || p.duplicates.Load() == 0) {
		p.Error("nothing was repeated, or no receipt was lost: nothing shows that what is repeated is stored once")
	}
	if most := 1 + p.total/10_000; p.stuck.Load() > int64(most) {
		p.Errorf("%d ids are stuck, want %d at the most", p.stuck.Load(), most)
	}
}

// Publishers that repeat what is not confirmed, while leaders step down, nodes
// restart and connections are cut. Most have patience and must not see an
// error; a tenth has very little, to make the outcome of some unknown.
func TestSoakPublish(t *testing.T) {
	parallel(t)
	s := begin(t)
	publishers := size(16, 64)
	each := size(320, 3125)
	p := s.publishing(chaos.StoredOnce|chaos.StoredInOrder, publishers*each)

	p.run(publishers, func(n int) {
		pub := p.publisher(p.conns[n%len(p.conns)])
		if pub == nil {
			return
		}
		p.publishEach(pub, fmt.Sprint("publisher-", n), each)
	})
}

// publishEach publishes one message after the other. One in ten has hardly any
// time.
func (p *publishing) publishEach(pub *goflux.BoundPublisher[string], key string, each int) {
	for range each {
		id := p.checker.Send(key)
		patient := !p.one(10, id)
		limit := p.patience
		if !patient {
			limit = time.Millisecond << (hash(p.seed, id) % 8)
		}
		p.publish(pub, id, limit, patient)
	}
}

func (p *publishing) publish(pub *goflux.BoundPublisher[string], id chaos.ID, limit time.Duration, patient bool) {
	ctx, cancel := context.WithTimeout(goflux.WithMessageID(p.ctx, id.String()), limit)
	defer cancel()
	start := time.Now()
	receipt, err := pub.Send(ctx, "story."+id.Key, id.String())
	p.ended(id, start, patient, receipt, err)
}

// ended enters the end of a message.
func (p *publishing) ended(id chaos.ID, start time.Time, patient bool, receipt goflux.Receipt, err error) {
	p.slowest.note(time.Since(start))
	p.checker.Published(id, resultOf(err), receipt.Sequence)
	if receipt.Duplicate {
		p.duplicates.Add(1)
	}
	switch {
	case err == nil:
		p.stored.Add(1)
	case patient:
		p.broken(id, start, err)
	case !errors.Is(err, context.DeadlineExceeded):
		p.Errorf("%v, impatient: %v, want the end of its deadline", id, err)
	}
}

// The same in batches. What is repeated comes later than what followed it, so
// order is not promised.
func TestSoakPublishBatch(t *testing.T) {
	parallel(t)
	s := begin(t)
	publishers := size(8, 16)
	batches, batch := size(10, 310), size(64, 200)
	p := s.publishing(chaos.StoredOnce, publishers*batches*batch)

	p.run(publishers, func(n int) {
		pub := p.publisher(p.conns[n%len(p.conns)])
		if pub == nil {
			return
		}
		key := fmt.Sprint("publisher-", n)
		for range batches {
			items := make([]goflux.Item[string], batch)
			ids := make([]chaos.ID, batch)
			for i := range items {
				ids[i] = p.checker.Send(key)
				items[i] = goflux.Item[string]{Subject: "story." + key, Payload: key, ID: ids[i].String()}
			}
			p.publishBatch(pub, ids, items)
		}
		if err := pub.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (p *publishing) publishBatch(pub *goflux.BoundPublisher[string], ids []chaos.ID, items []goflux.Item[string]) {
	patient := !p.one(10, ids[0])
	limit := patience
	if !patient {
		limit = time.Millisecond << (hash(p.seed, ids[0]) % 8)
	}
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	start := time.Now()
	results, err := pub.PublishBatch(ctx, items...)
	if len(results) != len(items) {
		p.Errorf("%v: %d results of %d: %v", ids[0], len(results), len(items), err)
		return
	}
	for i, r := range results {
		p.ended(ids[i], start, patient, r.Receipt, r.Err)
	}
}

// The same with full windows: a leader that goes takes thousands of messages with
// it, and what follows is sent under the load of all that has to be sent again.
func TestSoakPublishWindows(t *testing.T) {
	parallel(t)
	s := begin(t)
	publishers, each := size(4, 8), size(6_000, 80_000)
	p := s.publishing(chaos.StoredOnce, publishers*each)

	p.run(publishers, func(n int) {
		pub := p.publisher(p.conns[n%len(p.conns)])
		if pub == nil {
			return
		}
		p.publishWindows(pub, fmt.Sprint("publisher-", n), each)
		if err := pub.Close(); err != nil {
			t.Error(err)
		}
	})
}

// window is how many messages of a publisher are under way at once.
const window = 4096

func (p *publishing) publishWindows(pub *goflux.BoundPublisher[string], key string, each int) {
	type taken struct {
		id      chaos.ID
		start   time.Time
		patient bool
		pending *goflux.Pending
	}
	all := make(chan taken, each)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for m := range all {
			receipt, err := m.pending.Wait(p.ctx)
			p.ended(m.id, m.start, m.patient, receipt, err)
		}
	}()
	fullest := 0
	for range each {
		id := p.checker.Send(key)
		patient := !p.one(10, id)
		limit := windowPatience
		if !patient {
			limit = time.Millisecond << (hash(p.seed, id) % 8)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(goflux.WithMessageID(p.ctx, id.String()), limit)
		pending, err := pub.PublishAsync(ctx, "story."+key, id.String())
		cancel()
		if err != nil {
			p.ended(id, start, patient, goflux.Receipt{}, err)
			continue
		}
		all <- taken{id, start, patient, pending}
		fullest = max(fullest, len(all))
	}
	close(all)
	<-ended
	if fullest < window/2 {
		p.Errorf("%s had %d messages under way, which is no full window", key, fullest)
	}
}

// errCodeInProcess is the server's answer to a message whose id it is just
// storing.
const errCodeInProcess = 10158

// broken is called with the error of a publish that had patience. One of them is
// nobody's fault here: when a leader loses its office, it can keep ids of
// messages that were never committed, and when it leads again it refuses these
// for as long as the de-duplication window (nats-server v2.15.2,
// processStreamLeaderChange forgets only what no commit has followed).
//
// goflux cannot help that, not even where it has made the id up itself and could
// take another one. The answer says that the id is known, not that its message
// is lost: it may stand in the log of the next leader, and be committed. Another
// id is safe only when the first one can never be stored, and no client gets to
// know that: neither this answer nor a receipt tells the term of the leader, so
// that a receipt for something later does not prove that one leader gave both,
// and an earlier attempt may still be on its way. Hence it is unknown. When the
// window is over the server forgets the id; to repeat it then would be to give up
// that it is stored once.
func (p *publishing) broken(id chaos.ID, start time.Time, err error) {
	var api *jetstream.APIError
	if errors.Is(err, goflux.ErrPublishUnknown) && errors.As(err, &api) && api.ErrorCode == errCodeInProcess {
		p.stuck.Add(1)
		return
	}
	p.Errorf("%v, after %v: %v", id, time.Since(start), err)
}
