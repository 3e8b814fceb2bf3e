package jetstream

import (
	"slices"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// run is the life of the subscription.
func (s *subscription) run() {
	defer close(s.stopped)
	defer s.cancel()
	defer s.mute()

	if s.forget != nil {
		defer s.forget(s)
	}

	p := pump{subscription: s}

	for !p.over() {
		select {
		case <-s.wake:
		case <-p.active.closed():
			p.active.ended = true
		case <-p.lull:
			p.lull = nil
		case err := <-p.probed:
			if p.found(err) {
				return
			}
		}
	}
}

// pump is the state of run.
type pump struct {
	*subscription

	active  *batch       // nil while nothing is asked for
	pauses  []pause      // wait for active to end
	probed  <-chan error // not nil while the consumer is looked for
	probe   probe
	suspect *batch // to be replaced when the consumer is found

	lull  <-chan time.Time // not nil while Close waits for one
	lulls int              // how many it has waited for
	seen  int64            // what had been delivered when the last one began
}

// While a server is sending to a request, Close waits until nothing has come for
// quietPeriod, quietPeriods times at the most. What a server still sends to a
// request whose subscription is gone is not lost, but its attempt is counted;
// and where it came through another node of a cluster, it stays unsettled until
// its ack wait is over (nats-server v2.15.2).
const (
	quietPeriod  = 5 * time.Millisecond
	quietPeriods = 20
)

// over does what has become necessary, and reports whether the subscription is
// over.
func (p *pump) over() bool {
	w := p.listen()
	p.pauses = append(p.pauses, w.pauses...)

	if trouble := p.active.trouble(); trouble != nil {
		p.doubt(trouble)
	}

	if p.active.over() {
		p.active = nil
	}

	switch {
	case w.ending != nil:
		p.mute()
		p.active.drainWithin(releaseTimeout)
		p.finish(w.ending)

		return true
	case p.active != nil:
		if len(p.pauses) > 0 || (w.closing && p.quiet()) {
			p.active.drain()
		}

		return false
	}

	p.revoke()

	if !w.closing && p.probed == nil {
		p.ask()
	}

	return w.closing
}

// quiet reports whether nothing has come for a while. Until then it has run look
// again.
func (p *pump) quiet() bool {
	if p.lull != nil {
		return false
	}

	delivered := p.delivered.Load()
	if p.lulls == quietPeriods || (p.lulls > 0 && delivered == p.seen) {
		return true
	}

	p.lulls++
	p.seen, p.lull = delivered, time.After(quietPeriod)

	return false
}

// listen takes what was left for run.
func (p *pump) listen() word {
	p.state.Lock()
	defer p.state.Unlock()

	w := p.word
	p.word.pauses = nil

	return w
}

// doubt deals with the active batch, with which something is wrong.
func (p *pump) doubt(trouble error) {
	if silent(trouble) {
		// Draining would wait for a connection, and would have the
		// subscription of the batch made anew by it.
		p.active.stop()

		p.active = nil
	} else {
		// Messages may follow what the server has said. One that shuts down
		// forgets what it could not deliver, so that this is not the time to
		// unsubscribe.
		p.suspect = p.active
	}

	if p.probed == nil {
		p.probed = p.probe.begin(p.subscription, trouble)
	}
}

// found takes the result of looking for the consumer, and reports whether the
// subscription is over.
func (p *pump) found(err error) bool {
	if err != nil {
		p.active.stop()
		p.finish(err)

		return true
	}

	if p.active == p.suspect {
		p.active.drain()
	}

	p.probed, p.suspect = nil, nil

	return false
}

// finish ends the subscription with err.
func (p *pump) finish(err error) {
	p.mute()
	p.err = p.failure(opSubscribe, err)
	close(p.done)
}

// revoke takes back the credit that was granted before the pauses and is left.
func (p *pump) revoke() {
	for _, pause := range p.pauses {
		p.revoked.Add(max(p.creditOf(pause.granted), 0))
		close(pause.done)
	}

	p.pauses = nil
}

// ask requests from the server what there is credit for.
func (p *pump) ask() {
	p.idle.Store(true)

	k := p.known.Load()

	n := int(min(p.credit(), int64(k.maxBatch)))
	if n < 1 {
		return
	}

	p.idle.Store(false)

	b := &batch{sub: p.subscription, left: n}
	opts := slices.Concat(k.opts, []natsjs.PullConsumeOpt{
		natsjs.PullMaxMessages(n), natsjs.StopAfter(n), natsjs.ConsumeErrHandler(b.fail),
	})

	var err error
	if b.context, err = p.consumer.Consume(b.handle, opts...); err != nil {
		p.notify(err)

		p.probed = p.probe.begin(p.subscription, err)

		return
	}

	b.end = b.context.Closed()
	p.active = b
}
