package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Direction says which way bytes go through a [Proxy]. Directions combine.
type Direction uint8

// The directions.
const (
	ToServer Direction = 1 << iota // from the client to the server
	ToClient                       // from the server to the client

	Both = ToServer | ToClient
)

// What a connection holds back at most, each way, is queueLen chunks of
// chunkSize bytes, 512 KiB. Then the sender feels it.
const (
	chunkSize = 32 << 10
	queueLen  = 16
)

// dialTimeout bounds how long a client waits for the proxy to reach the server.
const dialTimeout = 5 * time.Second

// Proxy forwards TCP connections to a server and disturbs them on request. It
// starts with no fault. Faults last until [Proxy.Resume] and meet the
// connections that exist and those that come, except for [Proxy.Cut] and
// [Proxy.HalfClose], which happen once, to those that exist. The end of a
// connection meets the same faults as its bytes: behind a proxy that drops or
// stalls, one side does not learn that the other is gone. All methods are safe
// for concurrent use.
//
// A NATS server tells its clients its real address, with which they would
// reconnect past the proxy: set the server's Cluster.NoAdvertise (as natstest
// does) or the client's nats.IgnoreDiscoveredServers.
type Proxy struct {
	target   string
	seed     uint64
	listener *net.TCPListener
	wg       sync.WaitGroup

	mu      sync.Mutex
	faults  [2]fault // by direction, see index
	refuse  bool     // resets new connections
	closed  bool
	changed chan struct{} // closed and replaced when a fault changes
	links   map[*link]struct{}
	count   uint64 // of links ever made

	stats struct {
		accepted, refused           atomic.Uint64
		forwarded, dropped, stalled [2]atomic.Int64
	}
}

type mode uint8

const (
	pass mode = iota
	drop
	stall
)

type fault struct {
	mode          mode
	delay, jitter time.Duration
}

// NewProxy starts a proxy on a free port of the loopback address. target is
// host:port or a URL such as nats://127.0.0.1:4222; nothing has to listen there
// yet. The same seed gives each connection, in the order in which they come,
// the same series of delays.
func NewProxy(target string, seed uint64) (*Proxy, error) {
	if strings.Contains(target, "://") {
		u, err := url.Parse(target)
		if err != nil {
			return nil, fmt.Errorf("chaos: target: %w", err)
		}
		target = u.Host
	}
	if _, _, err := net.SplitHostPort(target); err != nil {
		return nil, fmt.Errorf("chaos: target %q is not host:port: %w", target, err)
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("chaos: listen: %w", err)
	}
	p := &Proxy{
		target:   target,
		seed:     seed,
		listener: l,
		changed:  make(chan struct{}),
		links:    map[*link]struct{}{},
	}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr returns the host:port for clients to connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL returns the NATS URL for clients to connect to.
func (p *Proxy) URL() string { return "nats://" + p.Addr() }

// Cut resets all connections: both ends get a TCP RST, bytes under way are
// lost. It returns how many there were. New connections are accepted.
func (p *Proxy) Cut() int {
	links := p.current()
	for _, l := range links {
		l.reset()
	}
	return len(links)
}

// HalfClose ends one direction of all connections, or both: the receiver gets
// an orderly end of stream (EOF), the sender notices nothing, and what it still
// sends is thrown away. The other direction goes on. It returns how many
// connections there were.
func (p *Proxy) HalfClose(d Direction) int {
	links := p.current()
	for _, l := range links {
		for _, i := range d.each() {
			l.halfClose(i)
		}
	}
	return len(links)
}

// Drop makes bytes vanish: their sender sees them go, their receiver never gets
// them, and neither learns of it. That is how a path looks whose state was
// lost, for instance in a firewall. A connection that has lost bytes can never
// be whole again, so [Proxy.Resume] resets it.
func (p *Proxy) Drop(d Direction) { p.set(d, func(f *fault) { f.mode = drop }) }

// Stall holds bytes back. That is how a network partition looks which heals
// while TCP still retransmits: after [Proxy.Resume] everything arrives, late.
func (p *Proxy) Stall(d Direction) { p.set(d, func(f *fault) { f.mode = stall }) }

// Delay makes bytes arrive late, by base plus or minus a random part of jitter,
// evenly spread; never out of order, as TCP would not allow it. It adds to Drop
// or Stall. A delay of zero ends it.
func (p *Proxy) Delay(d Direction, base, jitter time.Duration) {
	p.set(d, func(f *fault) { f.delay, f.jitter = base, jitter })
}

// Refuse resets each new connection at once. Those that exist go on.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = true
}

// Resume ends all faults. Connections that lost bytes are reset, all others go
// on. Bytes that are being delayed still arrive at their time.
func (p *Proxy) Resume() {
	p.set(Both, func(f *fault) { *f = fault{} })
	p.mu.Lock()
	p.refuse = false
	p.mu.Unlock()
	for _, l := range p.current() {
		if l.lossy() {
			l.reset()
		}
	}
}

// Close resets all connections, stops listening and waits until every goroutine
// of the proxy is gone. It may be called again.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.listener.Close()
	p.Cut()
	p.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// Stats counts what a [Proxy] has done since it was made. Sizes are in bytes.
type Stats struct {
	Accepted uint64 // connections, refused ones not included
	Refused  uint64 // connections
	Active   int    // connections now

	ToServer, ToClient Flow
}

// Flow counts the bytes of one direction.
type Flow struct {
	Forwarded int64 // given to the receiver
	Dropped   int64 // thrown away
	Stalled   int64 // held back by [Proxy.Stall] now, each connection's oldest chunk only
}

// Stats returns the counts as they are now.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	active := len(p.links)
	p.mu.Unlock()
	flow := func(i int) Flow {
		return Flow{
			Forwarded: p.stats.forwarded[i].Load(),
			Dropped:   p.stats.dropped[i].Load(),
			Stalled:   p.stats.stalled[i].Load(),
		}
	}
	return Stats{
		Accepted: p.stats.accepted.Load(),
		Refused:  p.stats.refused.Load(),
		Active:   active,
		ToServer: flow(0),
		ToClient: flow(1),
	}
}

// each returns the indexes of d's directions into arrays of two.
func (d Direction) each() []int {
	switch d & Both {
	case ToServer:
		return []int{0}
	case ToClient:
		return []int{1}
	case Both:
		return []int{0, 1}
	}
	return nil
}

func (p *Proxy) set(d Direction, change func(*fault)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range d.each() {
		change(&p.faults[i])
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// fault returns what is set for a direction, and what tells that it changed.
func (p *Proxy) fault(i int) (fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults[i], p.changed
}

func (p *Proxy) current() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	return links
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.AcceptTCP()
		if err != nil {
			_ = p.listener.Close() // So that clients are refused, not kept waiting.
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		l := &link{proxy: p, cancel: cancel, done: ctx.Done()}
		if !p.add(l, client) {
			cancel()
			p.stats.refused.Add(1)
			rst(client)
			continue
		}
		p.stats.accepted.Add(1)
		p.wg.Go(func() { l.run(ctx) })
	}
}

// add returns false if no connection is wanted.
func (p *Proxy) add(l *link, client *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse || p.closed {
		return false
	}
	l.number, l.conns[0] = p.count, client
	p.count++
	p.links[l] = struct{}{}
	return true
}

// link is one connection through the proxy. Direction i reads from conns[i] and
// writes to conns[1-i]. The end of a stream, orderly or not, goes the same way
// as its bytes, and meets the same faults: a server behind a dropping proxy
// does not learn that its client is gone.
type link struct {
	proxy  *Proxy
	number uint64
	hole   [2]atomic.Bool     // bytes of this direction, or its end, were dropped
	cancel context.CancelFunc // ends the link's context
	done   <-chan struct{}    // closed when the link is over

	mu    sync.Mutex
	conns [2]*net.TCPConn // client, server; the latter nil until it is reached
	ended [2]bool         // the receiver was told that nothing more comes, or is gone
	over  bool
}

// chunk is what travels: bytes, or the end of the stream.
type chunk struct {
	bytes []byte
	due   time.Time // zero if at once
	end   end
}

type end uint8

const (
	orderly end = iota + 1
	broken
)

// buffers holds *[chunkSize]byte.
var buffers sync.Pool

func (l *link) run(ctx context.Context) {
	defer func() {
		l.proxy.mu.Lock()
		delete(l.proxy.links, l)
		l.proxy.mu.Unlock()
	}()
	if !l.reachServer(ctx) {
		l.reset()
		return
	}
	var wg sync.WaitGroup
	for i := range 2 {
		queue := make(chan chunk, queueLen)
		wg.Go(func() { l.read(i, queue) })
		wg.Go(func() { l.write(i, queue) })
	}
	wg.Wait()
	if l.lossy() {
		<-l.done // One side does not know yet that all is over.
	}
	l.close(false)
}

func (l *link) reachServer(ctx context.Context) bool {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", l.proxy.target)
	if err != nil {
		return false
	}
	server, ok := conn.(*net.TCPConn)
	if !ok {
		return false // "tcp" gives nothing else.
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		rst(server)
		return false
	}
	l.conns[1] = server
	return true
}

// read fills the queue of a direction until its sender stops.
func (l *link) read(i int, queue chan<- chunk) {
	defer close(queue)
	d := newDelays(l.proxy.seed, l.number, i)
	var last time.Time
	for c := (chunk{}); c.end == 0; {
		buf, ok := buffers.Get().(*[chunkSize]byte)
		if !ok {
			buf = new([chunkSize]byte)
		}
		n, err := l.conns[i].Read(buf[:])
		c = chunk{bytes: buf[:n]}
		switch {
		case n > 0 || err == nil: // An error comes again with the next Read.
		case errors.Is(err, io.EOF):
			c.end = orderly
		default:
			c.end = broken
		}
		if f, _ := l.proxy.fault(i); f.delay > 0 || f.jitter > 0 {
			c.due = time.Now().Add(d.next(f.delay, f.jitter))
		}
		if c.due.Before(last) {
			c.due = last // What is late holds up what comes after it.
		}
		last = c.due
		select {
		case queue <- c:
		case <-l.done:
			return
		}
	}
}

// write empties the queue of a direction to its receiver, as faults allow.
func (l *link) write(i int, queue <-chan chunk) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for c := range queue {
		if wait := time.Until(c.due); !c.due.IsZero() && wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-l.done:
				return
			}
		}
		if !l.deliver(i, c) {
			return
		}
		buffers.Put((*[chunkSize]byte)(c.bytes[:chunkSize]))
	}
}

// deliver returns false when the link is over.
func (l *link) deliver(i int, c chunk) bool {
	size := int64(len(c.bytes))
	m := l.gate(i, size)
	switch {
	case m == drop, m == pass && l.hole[i].Load(): // What follows a hole makes no sense.
		l.proxy.stats.dropped[i].Add(size)
		return l.punch(i)
	case m == stall:
		return false
	}
	switch {
	case c.end == orderly:
		l.halfClose(i)
		return true
	case c.end == broken:
		l.reset()
		return false
	case l.hasEnded(i):
		l.proxy.stats.dropped[i].Add(size)
		return true
	}

	n, err := l.conns[1-i].Write(c.bytes)
	l.proxy.stats.forwarded[i].Add(int64(n))
	if err == nil || l.hasEnded(i) {
		return true
	}
	// The receiver is gone. The sender learns that by what comes the other way.
	switch l.gate(1-i, 0) {
	case pass:
		l.reset()
		return false
	case drop:
		l.setEnded(i)
		return l.punch(1 - i)
	default:
		return false
	}
}

// punch marks a direction as having lost something. It returns false if that
// was too late for [Proxy.Resume] to see, so that it resets the link itself.
func (l *link) punch(i int) bool {
	l.hole[i].Store(true)
	if f, _ := l.proxy.fault(i); f.mode == drop {
		return true
	}
	l.reset()
	return false
}

func (l *link) lossy() bool { return l.hole[0].Load() || l.hole[1].Load() }

// gate waits while a direction is stalled, and says whether to pass or to drop
// then; stall means that the link is over.
func (l *link) gate(i int, size int64) mode {
	for {
		f, changed := l.proxy.fault(i)
		if f.mode != stall {
			return f.mode
		}
		l.proxy.stats.stalled[i].Add(size)
		over := false
		select {
		case <-changed:
		case <-l.done:
			over = true
		}
		l.proxy.stats.stalled[i].Add(-size)
		if over {
			return stall
		}
	}
}

func (l *link) hasEnded(i int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended[i]
}

func (l *link) setEnded(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended[i] = true
}

// halfClose tells the receiver of a direction that nothing more comes.
func (l *link) halfClose(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if to := l.conns[1-i]; to != nil && !l.over && !l.ended[i] {
		l.ended[i] = true
		_ = to.CloseWrite()
	}
}

func (l *link) reset() { l.close(true) }

func (l *link) close(hard bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	l.over = true
	l.cancel()
	for _, c := range l.conns {
		switch {
		case c == nil:
		case hard:
			rst(c)
		default:
			_ = c.Close()
		}
	}
}

// rst closes a connection with a TCP RST: with no time to linger, what was not
// sent is thrown away and the peer gets "connection reset".
func rst(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// delays is the series of random delays of one direction of one connection.
type delays struct{ rand *rand.Rand }

func newDelays(seed, connection uint64, direction int) delays {
	return delays{rand.New(rand.NewPCG(seed, connection<<1|uint64(direction)))}
}

// next is evenly spread over base-jitter to base+jitter, and never negative.
func (d delays) next(base, jitter time.Duration) time.Duration {
	if jitter > 0 {
		base += time.Duration(d.rand.Int64N(2*int64(jitter)+1)) - jitter
	}
	return max(base, 0)
}
