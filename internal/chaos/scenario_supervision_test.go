package chaos_test

import (
	"context"
	"errors"
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

// supervised is a subscription and what can be done to it.
type supervised struct {
	*scenario
	server  *natstest.Server // behind the proxy
	proxy   *chaos.Proxy
	nc      *nats.Conn          // the subscription's
	js      jetstream.JetStream // on a connection of the test's, past the proxy
	storage jetstream.StorageType

	sub     *subscribing
	handled chan string   // ids, from the handler
	holding chan struct{} // gets a token when the handler has the message "held"
	release chan struct{} // closed when it may be done with it
	lost    chan error    // why the context of a handler ended
}

const supervisedAckWait = time.Second

// create makes the stream and the consumer.
func (s *supervised) create() {
	s.Helper()
	stream := natstest.Stream(s.T, s.js, jetstream.StreamConfig{Name: story, Subjects: []string{"story.>"}, Storage: s.storage})
	natstest.Consumer(s.T, stream, jetstream.ConsumerConfig{Durable: worker, AckWait: supervisedAckWait})
}

func (s *supervised) handle(ctx context.Context, msg goflux.Message[string]) error {
	if msg.ID() == "held" {
		s.holding <- struct{}{}
		select {
		case <-s.release:
		case <-ctx.Done():
			s.lost <- context.Cause(ctx)
			return context.Cause(ctx)
		}
	}
	s.handled <- msg.ID()
	return nil
}

// publish publishes a message, past the proxy, as soon as that is possible.
func (s *supervised) publish(id string) {
	s.Helper()
	pub := natsjs.NewPublisher(s.js, raw.String(), goflux.WithPublishRetry(0))
	ctx, cancel := context.WithTimeout(goflux.WithMessageID(s.ctx, id), natstest.Limit)
	defer cancel()
	s.must(pub.Publish(ctx, "story.told", id))
}

// arrives waits for a message that the subscription goes on with.
func (s *supervised) arrives(id string) {
	s.Helper()
	for {
		select {
		case got := <-s.handled:
			if got == id {
				return
			}
		case err := <-s.sub.ended:
			s.Fatalf("the subscription has ended: %v", err)
		case <-s.ctx.Done():
			s.Fatalf("%q does not arrive", id)
		}
	}
}

// goesOn says that the subscription works, and ends in order.
func (s *supervised) goesOn() {
	s.Helper()
	s.publish("after")
	s.arrives("after")
	s.must(s.sub.stop())
}

// ends says that the subscription ends by itself, with one of the errors.
func (s *supervised) ends(want ...error) {
	s.Helper()
	select {
	case err := <-s.sub.ended:
		s.is(err, want)
	case id := <-s.handled:
		s.Fatalf("%q has arrived", id)
	case <-s.ctx.Done():
		s.Fatal("the subscription does not end")
	}
}

func (s *supervised) is(err error, want []error) {
	s.Helper()
	for _, w := range want {
		if errors.Is(err, w) {
			s.Logf("%v: %v", time.Since(s.start).Round(time.Millisecond), err)
			return
		}
	}
	s.Errorf("the subscription has ended with %v, want one of %v", err, want)
}

// goesOnOrEnds says that it does one of both, and is not deaf.
func (s *supervised) goesOnOrEnds(want ...error) {
	s.Helper()
	s.publish("after")
	select {
	case err := <-s.sub.ended:
		s.is(err, want)
	case <-s.handled:
		s.Logf("%v: it goes on", time.Since(s.start).Round(time.Millisecond))
		s.must(s.sub.stop())
	case <-s.ctx.Done():
		s.Fatal("the subscription is deaf")
	}
}

// offline cuts the connection, and keeps it from coming back.
func (s *supervised) offline() {
	s.proxy.Refuse()
	s.proxy.Cut()
}

// lasts lets time pass, which is all that a fault takes.
func (s *supervised) lasts(d time.Duration) {
	s.Helper()
	select {
	case <-time.After(d):
	case err := <-s.sub.ended:
		s.Fatalf("the subscription has ended: %v", err)
	case <-s.ctx.Done():
		s.Fatal(s.ctx.Err())
	}
}

var supervisions = []struct {
	name    string
	storage jetstream.StorageType
	holds   bool
	run     func(s *supervised)
}{
	{name: "the consumer is deleted", run: func(s *supervised) {
		s.must(s.js.DeleteConsumer(s.ctx, story, worker))
		s.ends(goflux.ErrConsumerNotFound)
	}},
	{name: "the consumer is deleted while there is no connection", run: func(s *supervised) {
		s.offline()
		s.must(s.js.DeleteConsumer(s.ctx, story, worker))
		s.proxy.Resume()
		s.ends(goflux.ErrConsumerNotFound)
	}},
	{name: "the consumer is made anew", run: func(s *supervised) {
		s.must(s.js.DeleteConsumer(s.ctx, story, worker))
		stream, err := s.js.Stream(s.ctx, story)
		s.must(err)
		natstest.Consumer(s.T, stream, jetstream.ConsumerConfig{Durable: worker, AckWait: supervisedAckWait})
		s.goesOnOrEnds(goflux.ErrConsumerNotFound)
	}},
	{name: "the consumer is made anew while there is no connection", run: func(s *supervised) {
		s.offline()
		s.must(s.js.DeleteConsumer(s.ctx, story, worker))
		stream, err := s.js.Stream(s.ctx, story)
		s.must(err)
		natstest.Consumer(s.T, stream, jetstream.ConsumerConfig{Durable: worker, AckWait: supervisedAckWait})
		s.proxy.Resume()
		s.goesOnOrEnds(goflux.ErrConsumerNotFound)
	}},
	{name: "the stream is deleted", run: func(s *supervised) {
		s.must(s.js.DeleteStream(s.ctx, story))
		s.ends(goflux.ErrStreamNotFound, goflux.ErrConsumerNotFound)
	}},
	{name: "the stream is deleted while there is no connection", run: func(s *supervised) {
		s.offline()
		s.must(s.js.DeleteStream(s.ctx, story))
		s.proxy.Resume()
		s.ends(goflux.ErrStreamNotFound, goflux.ErrConsumerNotFound)
	}},
	{name: "the stream is made anew", run: func(s *supervised) {
		s.must(s.js.DeleteStream(s.ctx, story))
		s.create()
		s.goesOnOrEnds(goflux.ErrStreamNotFound, goflux.ErrConsumerNotFound)
	}},
	{name: "the server is restarted", run: func(s *supervised) {
		s.must(s.server.Restart())
		s.goesOn()
	}},
	{name: "the server is restarted and the stream was in memory", storage: jetstream.MemoryStorage, run: func(s *supervised) {
		s.must(s.server.Restart())
		s.ends(goflux.ErrStreamNotFound, goflux.ErrConsumerNotFound)
	}},
	{name: "the connection is lost for longer than the ack wait", holds: true, run: func(s *supervised) {
		s.offline()
		s.loses()
		s.proxy.Resume()
		close(s.release)
		s.arrives("held")
		s.goesOn()
	}},
	{name: "the connection stalls for hardly longer than the ack wait", holds: true, run: func(s *supervised) {
		s.proxy.Stall(chaos.Both)
		s.lasts(supervisedAckWait + supervisedAckWait/5)
		s.proxy.Resume()
		s.loses()
		close(s.release)
		s.arrives("held")
		s.goesOn()
	}},
	{name: "the connection is lost for a minute", run: func(s *supervised) {
		s.offline()
		s.publish("meanwhile")
		s.lasts(size(3*supervisedAckWait, time.Minute))
		s.proxy.Resume()
		s.arrives("meanwhile")
		s.goesOn()
	}},
	{name: "the connection is lost for a minute, with a message in hand", holds: true, run: func(s *supervised) {
		s.offline()
		s.loses()
		s.lasts(size(3*supervisedAckWait, time.Minute))
		s.proxy.Resume()
		close(s.release)
		s.arrives("held")
		s.goesOn()
	}},
	{name: "the server is away for a minute", holds: true, run: func(s *supervised) {
		s.server.Stop()
		s.loses()
		s.lasts(size(3*supervisedAckWait, time.Minute))
		s.must(s.server.Start())
		close(s.release)
		s.arrives("held")
		s.goesOn()
	}},
	{name: "the connection stalls for longer than the ack wait", holds: true, run: func(s *supervised) {
		s.proxy.Stall(chaos.Both)
		s.loses()
		s.proxy.Resume()
		close(s.release)
		s.arrives("held")
		s.goesOn()
	}},
	{name: "the connection loses what it is given", holds: true, run: func(s *supervised) {
		s.proxy.Drop(chaos.Both)
		s.loses()
		s.proxy.Resume()
		close(s.release)
		s.arrives("held")
		s.goesOn()
	}},
	{name: "the connection is closed", run: func(s *supervised) {
		s.nc.Close()
		s.ends(goflux.ErrClosed)
	}},
}

// loses waits until the handler is told that it has lost its lease.
func (s *supervised) loses() {
	s.Helper()
	select {
	case cause := <-s.lost:
		if !errors.Is(cause, goflux.ErrLeaseLost) {
			s.Errorf("the handler's context has ended because of %v", cause)
		}
	case err := <-s.sub.ended:
		s.Fatalf("the subscription has ended: %v", err)
	case <-s.ctx.Done():
		s.Fatal("the handler is not told that it has lost its lease")
	}
}

// Whatever happens to its consumer, stream, server or connection, a subscription
// comes back by itself or ends with an error that tells why.
func TestSoakSupervision(t *testing.T) {
	parallel(t)
	for _, c := range supervisions {
		for name, open := range map[string]func(s *supervised) transport.Subscriber{
			"group": func(s *supervised) transport.Subscriber {
				return s.transportOver(natstest.JetStream(s.T, s.nc), natsjs.WithStream(story))
			},
			"bound": func(s *supervised) transport.Subscriber {
				consumer, err := natstest.JetStream(s.T, s.nc).Consumer(s.ctx, story, worker)
				s.must(err)
				return natsjs.Bind(consumer)
			},
		} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				parallel(t)
				s := &supervised{
					scenario: begin(t), storage: c.storage, server: natstest.RunTCP(t),
					handled: make(chan string, 10), holding: make(chan struct{}, 10), release: make(chan struct{}), lost: make(chan error, 10),
				}
				var err error
				s.proxy, err = chaos.NewProxy(s.server.URL(), s.seed)
				s.must(err)
				s.Cleanup(func() { s.must(s.proxy.Close()) })
				s.js = natstest.JetStream(t, natstest.Connect(t, s.server))
				s.nc = natstest.Connect(t, natstest.URL(s.proxy.URL()), nats.Timeout(time.Second))
				s.create()

				s.sub = s.subscribe(open(s), "story.>", s.handle, goflux.WithQueueGroup(worker))
				s.publish("before")
				s.arrives("before")
				if c.holds {
					s.publish("held")
					select {
					case <-s.holding:
					case <-s.ctx.Done():
						t.Fatal("the handler does not get the message")
					}
				}
				c.run(s)
			})
		}
	}
}
