package goflux

import (
	"errors"
	"time"
)

const (
	// paceLeast is how many messages may be sent to a broker that has no room.
	paceLeast = 16

	// paceStart is how many may be sent to one that is back.
	paceStart = 256

	// paceProbes is how many are sent again to one that is silent.
	paceProbes = 2
)

// pace bounds how many messages wait for their answers at once, and knows which
// of them are lost. It matters with [WithPublishRetry] alone: there whatever is
// sent in vain is sent again, and a broker that has fallen behind must not be
// given more for that.
//
// The bound moves as that of TCP does: to very little when the broker was silent
// or had no room for a message, then one more with each answer, and one more with
// every eighth beyond half of what was too much.
//
// A message is lost, rather than late, when one is answered that was sent an
// attempt's time after it, or after a silence that came between. A stream answers
// in the order of sending, so one that is slow makes no message look lost.
type pace struct {
	width  int  // how many may wait
	calm   int  // above it, the width grows slowly: the broker had no room for twice as much
	grown  int  // answers since it did
	flying int  // messages that wait
	quiet  int  // messages that do, but do not count
	away   bool // no stream has answered to what was sent since the width was reduced
	none   int  // answers that there is no stream, one after the other

	last   time.Time // when something was last heard, or first waited for
	newest time.Time // when the newest of the attempts was sent that are answered
	cut    time.Time // when the width was last reduced
}

func newPace() pace { return pace{width: pipelineWindow, calm: pipelineWindow} }

// open reports whether a message may be sent.
func (c *pace) open() bool { return c.flying < c.width }

// roomy reports whether enough may be sent to be worth a goroutine.
func (c *pace) roomy() bool { return c.flying == 0 || c.width-c.flying >= (c.width+7)/8 }

// count counts messages in a state.
func (c *pace) count(s state, n int) {
	switch s { //nolint:exhaustive // the others do not wait for an answer
	case sent:
		c.flying += n
	case quiet:
		c.quiet += n
	}
}

// handed is called before a message is sent.
func (c *pace) handed(now time.Time) {
	if c.flying+c.quiet == 0 {
		c.last = now // nothing was to be heard before
	}
}

// heard is called with each answer.
func (c *pace) heard(now time.Time) { c.last = now }

// answered is called with the answer to an attempt.
func (c *pace) answered(now, handed time.Time, err error) {
	c.newest = latest(c.newest, handed)
	since := handed.After(c.cut)

	if errors.Is(err, ErrNoStream) {
		c.none++

		return
	}

	c.none = 0

	switch {
	case !errors.Is(err, ErrUnavailable):
		if since && c.away {
			c.away, c.width = false, max(c.width, min(c.calm, paceStart))
		}

		c.grow()
	case since: // what was sent before says nothing new
		c.reduce(now, min(c.flying, c.width)/2)
	}
}

func (c *pace) grow() {
	switch {
	case c.width == pipelineWindow:
	case c.width < c.calm:
		c.width++
	default:
		c.grown++
		c.width += c.grown / 8
		c.grown %= 8
	}
}

// gone reports whether there is no stream for whatever was sent lately, and
// begins to look anew.
func (c *pace) gone(now time.Time) bool {
	if c.none < paceLeast {
		return false
	}

	c.stall(now)
	c.width, c.none = paceLeast, 0

	return true
}

// passed reports whether a message is lost: one that was sent an attempt later
// is answered.
func (c *pace) passed(handed time.Time, attempt time.Duration) bool {
	return c.newest.Sub(handed) >= attempt
}

// back reports whether something is answered that was sent after a silence.
func (c *pace) back() bool { return c.newest.After(c.cut) }

// silent reports whether nothing was heard for an attempt.
func (c *pace) silent(now time.Time, attempt time.Duration) bool {
	return now.Sub(latest(c.last, c.cut)) >= attempt
}

// stall is called when the broker is silent. It is away, rather than busy: what it
// had room for it will have room for again.
func (c *pace) stall(now time.Time) {
	c.reduce(now, max(c.calm, c.width))
	c.width, c.away = paceProbes, true
}

// reduce starts again with very little.
func (c *pace) reduce(now time.Time, calm int) {
	c.width, c.calm, c.grown, c.cut = paceLeast, max(calm, paceLeast), 0, now
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}

	return b
}
