package natstest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/foomo/goflux/transport/embedded"
)

// account is the one that clients without credentials are in.
const account = server.DEFAULT_GLOBAL_ACCOUNT

// Cluster is a JetStream cluster within the process. All methods are safe for
// concurrent use, and may be called from any goroutine until the test ends.
type Cluster struct {
	nodes []*Server
}

// routesPerPeer is how many connections each two nodes have: nats-server's
// default pool, and one more for the system account.
const routesPerPeer = server.DEFAULT_ROUTE_POOL_SIZE + 1

// RunCluster starts n nodes, 3 or 5 as a rule, and returns when they are all
// connected and have elected a leader that sees them all: streams can be
// created. opts apply to every node and have to leave the pool of routes as it
// is. The nodes end with the test; a failure to start ends the test.
func RunCluster(tb testing.TB, n int, opts ...embedded.Option) *Cluster {
	tb.Helper()
	routePorts := make([]int, n)
	for i := range routePorts {
		routePorts[i] = FreePort(tb)
	}
	c := &Cluster{}
	for i := range n {
		c.nodes = append(c.nodes, newServer(tb, FreePort(tb), append([]embedded.Option{
			embedded.WithConfig(func(o *server.Options) {
				o.ServerName = fmt.Sprintf("node-%d", i)
				o.Cluster.Name = "natstest"
				o.Cluster.Host, o.Cluster.Port = "127.0.0.1", routePorts[i]
				for _, p := range routePorts {
					o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: addr(p)})
				}
			}),
		}, opts...)))
	}

	ctx, cancel := context.WithTimeout(tb.Context(), Limit)
	defer cancel()
	// All at once: a node tries again only after a second if its peer was not there.
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i, node := range c.nodes {
		wg.Go(func() { errs[i] = node.Start() })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		tb.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		tb.Fatal(err)
	}
	return c
}

// Node returns node i, counted from 0.
func (c *Cluster) Node(i int) *Server { return c.nodes[i] }

// Len returns the number of nodes, stopped ones included.
func (c *Cluster) Len() int { return len(c.nodes) }

// URLs returns the client URLs of all nodes, stopped ones included.
func (c *Cluster) URLs() []string {
	urls := make([]string, len(c.nodes))
	for i, node := range c.nodes {
		urls[i] = node.URL()
	}
	return urls
}

// StopNode shuts node i down, as a rolling restart would: nats-server hands
// over its leaderships first. Its store stays.
func (c *Cluster) StopNode(i int) { c.nodes[i].Stop() }

// StartNode starts node i again with its store, and returns when the cluster is
// complete as far as the running nodes go. The streams' replicas may still have
// to catch up, see [Cluster.WaitStream].
func (c *Cluster) StartNode(ctx context.Context, i int) error {
	if err := c.nodes[i].Start(); err != nil {
		return err
	}
	return c.WaitReady(ctx)
}

// WaitReady waits until all running nodes are connected with each other, and the
// cluster has a leader which sees them all and with which they are up to date.
func (c *Cluster) WaitReady(ctx context.Context) error {
	return Poll(ctx, func() bool {
		running := c.running()
		current, seen := 0, 0
		for _, ns := range running {
			// Each account uses one connection of the pool. While that is missing,
			// messages and subscriptions of the account don't pass between the nodes,
			// though the leader, by way of the system account, sees them.
			if ns.NumRoutes() >= routesPerPeer*(len(running)-1) && ns.JetStreamIsCurrent() {
				current++
			}
			if ns.JetStreamIsLeader() {
				seen = len(ns.JetStreamClusterPeers())
			}
		}
		return len(running) > 0 && current == len(running) && seen >= len(running)
	}, "a leader that sees all nodes, and routes between them")
}

// WaitStream waits until stream has a leader, and replicas nodes, the leader
// included, hold all of it.
func (c *Cluster) WaitStream(ctx context.Context, stream string, replicas int) error {
	return Poll(ctx, func() bool {
		current := 0
		for _, ns := range c.running() {
			if ns.JetStreamIsStreamCurrent(account, stream) {
				current++
			}
		}
		return current >= replicas && c.StreamLeader(stream) >= 0
	}, "stream %q on %d nodes", stream, replicas)
}

// StreamLeader returns the number of the node that leads stream, -1 if none
// does at the moment.
func (c *Cluster) StreamLeader(stream string) int {
	return c.find(func(ns *server.Server) bool { return ns.JetStreamIsStreamLeader(account, stream) })
}

// ConsumerLeader returns the number of the node that leads consumer, -1 if none
// does at the moment.
func (c *Cluster) ConsumerLeader(stream, consumer string) int {
	return c.find(func(ns *server.Server) bool { return ns.JetStreamIsConsumerLeader(account, stream, consumer) })
}

// StepDownStream makes the leader of stream give up its office and returns when
// there is a leader again, as a rule another one. It waits for a leader first
// if there is none.
func (c *Cluster) StepDownStream(ctx context.Context, stream string) error {
	return c.stepDown(ctx, "stream "+stream,
		func() int { return c.StreamLeader(stream) },
		func(ns *server.Server) error { return ns.JetStreamStepdownStream(account, stream) })
}

// StepDownConsumer is [Cluster.StepDownStream] for a consumer.
func (c *Cluster) StepDownConsumer(ctx context.Context, stream, consumer string) error {
	return c.stepDown(ctx, "consumer "+stream+"/"+consumer,
		func() int { return c.ConsumerLeader(stream, consumer) },
		func(ns *server.Server) error { return ns.JetStreamStepdownConsumer(account, stream, consumer) })
}

// stepDown relies on nats-server's step-down being done when it returns: a
// leader that is seen afterwards has been elected anew.
func (c *Cluster) stepDown(ctx context.Context, what string, leader func() int, down func(*server.Server) error) error {
	err := errors.New("it has none")
	polled := Poll(ctx, func() bool {
		i := leader()
		if i < 0 {
			return false
		}
		ns := c.nodes[i].NATSServer()
		if ns == nil {
			return false // Stopped since; another one will lead.
		}
		err = down(ns)
		return err == nil
	}, "the leader of %s to step down", what)
	if polled != nil {
		return errors.Join(polled, err)
	}
	return Poll(ctx, func() bool { return leader() >= 0 }, "a new leader of %s", what)
}

// running returns the running nodes' servers.
func (c *Cluster) running() map[int]*server.Server {
	m := make(map[int]*server.Server, len(c.nodes))
	for i, node := range c.nodes {
		if ns := node.NATSServer(); ns != nil {
			m[i] = ns
		}
	}
	return m
}

func (c *Cluster) find(match func(*server.Server) bool) int {
	for i, ns := range c.running() {
		if match(ns) {
			return i
		}
	}
	return -1
}

func (c *Cluster) target() string { return strings.Join(c.URLs(), ",") }
