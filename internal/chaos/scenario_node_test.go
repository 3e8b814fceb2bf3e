package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/chaos"
	"github.com/foomo/goflux/internal/crash"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/embedded"
)

// roleNode is a node of a cluster in a process of its own, so that it can be
// killed. It says "ready" when it takes connections.
const roleNode = "node"

// nodeArg is what it is told.
type nodeArg struct {
	Name   string
	Dir    string // of its store
	Port   int    // for clients
	Route  int    // for the other nodes
	Routes []int  // of all nodes
}

func node(ctx context.Context, arg string, say func(string)) error {
	var a nodeArg
	if err := json.Unmarshal([]byte(arg), &a); err != nil {
		return err
	}
	s, err := embedded.Start(ctx, embedded.WithStoreDir(a.Dir), embedded.WithListen("127.0.0.1", a.Port),
		embedded.WithConfig(func(o *server.Options) {
			o.ServerName = a.Name
			o.Cluster.Name, o.Cluster.Host, o.Cluster.Port = "killed", "127.0.0.1", a.Route
			for _, port := range a.Routes {
				o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))})
			}
		}))
	if err != nil {
		return err
	}
	say("ready")
	<-ctx.Done()
	return s.Shutdown()
}

// processes is a cluster of three nodes, each a process.
type processes struct {
	*scenario
	args  [3]nodeArg
	nodes [3]*crash.Child
}

func (s *scenario) processes() *processes {
	s.Helper()
	c := &processes{scenario: s}
	var routes []int
	for range c.args {
		routes = append(routes, natstest.FreePort(s.T))
	}
	for i := range c.args {
		c.args[i] = nodeArg{nodeName(i), s.TempDir(), natstest.FreePort(s.T), routes[i], routes}
		c.start(i)
	}
	return c
}

func nodeName(i int) string { return "node-" + strconv.Itoa(i) }

func (c *processes) start(i int) {
	c.Helper()
	arg, err := json.Marshal(c.args[i])
	c.must(err)
	ready := make(chan struct{})
	c.nodes[i] = crash.Start(c.T, roleNode, string(arg), func(string) { close(ready) })
	select {
	case <-ready:
	case <-c.nodes[i].Ended():
		c.Errorf("node %d did not start", i)
	case <-c.ctx.Done():
	}
}

func (c *processes) connect() *nats.Conn {
	c.Helper()
	var urls []string
	for _, a := range c.args {
		urls = append(urls, "nats://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(a.Port)))
	}
	return natstest.Connect(c.T, natstest.URL(strings.Join(urls, ",")), nats.Timeout(time.Second))
}

// leader waits until the stream has a leader, and all its replicas are there and
// up to date. It returns the leader.
func (c *processes) leader(js jetstream.JetStream) (leader int) {
	c.Helper()
	c.await(func() bool {
		ctx, cancel := context.WithTimeout(c.ctx, time.Second)
		defer cancel()
		stream, err := js.Stream(ctx, story)
		if err != nil {
			return false
		}
		cluster := stream.CachedInfo().Cluster
		current := 0
		for _, r := range cluster.Replicas {
			if r.Current && !r.Offline {
				current++
			}
		}
		for i := range c.args {
			if nodeName(i) == cluster.Leader {
				leader = i
				return current == len(c.args)-1
			}
		}
		return false
	}, "the stream on all nodes")
	return leader
}

// killPatience is the deadline of publishers whose stream's leader is killed: a
// node that is gone without a word is missed after 4 to 9 seconds, at random, and
// then another one is elected (nats-server v2.15.2).
const killPatience = 30 * time.Second

// Nodes that lead the stream are killed, without a chance to hand anything over,
// and come back with what is in their stores.
func TestSoakNodeKill(t *testing.T) {
	parallel(t)
	s := begin(t)
	publishers, each, kills := size(8, 64), size(100, 1500), size(1, 6)
	c := s.processes()
	nc := c.connect()
	js := natstest.JetStream(t, nc)
	s.await(func() bool {
		ctx, cancel := context.WithTimeout(s.ctx, time.Second)
		defer cancel()
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: story, Subjects: []string{"story.>"}, Replicas: 3})
		return err == nil
	}, "the cluster to take a stream")
	c.leader(js)

	p := &publishing{
		scenario: s, checker: chaos.NewChecker(chaos.StoredOnce | chaos.StoredInOrder), total: publishers * each, patience: killPatience,
	}
	for range size(2, 8) {
		p.conns = append(p.conns, c.connect())
	}
	p.faults = times(kills, fault{"kill of the leader", func(context.Context) error {
		leader := c.leader(js)
		c.nodes[leader].Kill()
		// It goes on without it.
		s.await(p.stored.reaches(min(int(p.stored.Load())+p.total/50, p.total)), "messages without node %d", leader)
		c.start(leader)
		c.leader(js)
		return nil
	}})
	p.settle = func() { c.leader(js) }
	p.read = js
	p.run(publishers, func(n int) {
		if pub := p.publisher(p.conns[n%len(p.conns)]); pub != nil {
			p.publishEach(pub, fmt.Sprint("publisher-", n), each)
		}
	})
	for i := range c.nodes {
		s.must(c.nodes[i].Stop())
	}
}
