package chaos

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
)

// ID is the identity of a message: the Seq-th one, from 1, that was sent under
// Key. Order is promised within a key, so a key is what a scenario wants to be
// in order: a publisher, an ordering key, a subject.
type ID struct {
	Key string
	Seq uint64
}

// String returns the form of the id that travels as the message id, such as
// "orders-7#42". [ParseID] reads it.
func (id ID) String() string {
	if id.Seq == 0 {
		return id.Key
	}
	return id.Key + "#" + strconv.FormatUint(id.Seq, 10)
}

// ParseID reads what [ID.String] wrote. Any other text gives an ID that nobody
// sent, its Seq 0, so that a [Checker] reports it as foreign.
func ParseID(s string) ID {
	if i := strings.LastIndexByte(s, '#'); i >= 0 {
		if seq, err := strconv.ParseUint(s[i+1:], 10, 64); err == nil && seq > 0 {
			return ID{s[:i], seq}
		}
	}
	return ID{Key: s}
}

// Result is how a call to publish ended, as far as the publisher can tell.
type Result uint8

// The results. Where calls for one message differ, Accepted wins over Unknown, and
// Unknown over Failed.
const (
	Unknown  Result = iota // stored or not: a timeout, a connection lost while waiting
	Accepted               // stored: the server said so
	Failed                 // not stored, certainly: refused, or never handed to the network
)

// Promises says what a scenario holds a transport to. They combine.
type Promises uint8

// The promises. Without StoredOnce nothing is asked about the stream, and it
// need not be read back; HandledAtLeastOnce then speaks of what was accepted
// rather than of what is stored.
const (
	StoredOnce         Promises = 1 << iota // accepted: exactly once; unknown: at most once; failed: never
	StoredInOrder                           // of what was accepted, the stream's order is, within each key, the order of sending
	HandledAtLeastOnce                      // each stored message was handled
	HandledInOrder                          // within each key, messages were first handled in the order of sending
)

// Checker is the ledger of a scenario: what was sent, how publishing ended, what
// was handled, what is stored. It keeps 24 bytes a message and a little for each
// key: 33 MB for a million messages of a thousand keys, room to grow included.
// All methods are safe for concurrent use.
type Checker struct {
	promises Promises

	mu    sync.RWMutex
	lanes map[string]*lane

	foreign foreign
}

// lane is the ledger of one key. Entry i is of Seq i+1.
type lane struct {
	mu           sync.Mutex
	entries      []entry
	calls        uint64
	attempts     uint64
	stored       uint64
	handlings    uint64
	redeliveries uint64
	maxAttempt   uint64
	lastHandled  uint64 // the highest Seq handled so far
}

// entry is what is known of a message. Its counts stop at their limits.
type entry struct {
	receipt  uint64 // stream sequence the server told, 0 if it did not
	found    uint64 // stream sequence it was first read back from
	calls    uint16
	handled  uint16
	stored   uint8
	result   Result
	late     bool // first handled after a later one of its key
	disputed bool // two receipts name different sequences
}

// foreign are sightings of messages that were never sent.
type foreign struct {
	mu       sync.Mutex
	count    uint64
	examples []Example
}

// NewChecker makes a ledger that [Checker.Verify] holds to promises.
func NewChecker(promises Promises) *Checker {
	return &Checker{promises: promises, lanes: map[string]*lane{}}
}

// Send enters the next message of key and returns its identity. Call it before
// the first attempt to publish: until [Checker.Published] says otherwise, it is
// unknown whether the message was stored.
func (c *Checker) Send(key string) ID {
	c.mu.RLock()
	l := c.lanes[key]
	c.mu.RUnlock()
	if l == nil {
		c.mu.Lock()
		if l = c.lanes[key]; l == nil {
			l = &lane{}
			c.lanes[key] = l
		}
		c.mu.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, entry{})
	return ID{key, uint64(len(l.entries))}
}

// Attempted enters that id was handed to the network, which a publisher that
// repeats does several times within one call.
func (c *Checker) Attempted(id ID) {
	l := c.lane(id)
	if l == nil {
		c.foreign.addf(id, "attempted without Send")
		return
	}
	defer l.mu.Unlock()
	l.attempts++
}

// Published enters how one call to publish id ended. streamSeq is the stream
// sequence that the server told, 0 if it did not.
func (c *Checker) Published(id ID, result Result, streamSeq uint64) {
	l := c.lane(id)
	if l == nil {
		c.foreign.addf(id, "published without Send")
		return
	}
	defer l.mu.Unlock()
	l.calls++
	e := &l.entries[id.Seq-1]
	switch {
	case e.calls == 0, result == Accepted, result == Unknown && e.result == Failed:
		e.result = result
	}
	if e.calls < math.MaxUint16 {
		e.calls++
	}
	if streamSeq != 0 {
		e.disputed = e.disputed || e.receipt != 0 && e.receipt != streamSeq
		e.receipt = streamSeq
	}
}

// Handled enters that id was handled, successfully, on its attempt-th delivery,
// counted from 1. For order to be judged, call it before the next message of the
// same key can be handled.
func (c *Checker) Handled(id ID, attempt uint64) {
	l := c.lane(id)
	if l == nil {
		c.foreign.addf(id, "handled on delivery %d", attempt)
		return
	}
	defer l.mu.Unlock()
	l.handlings++
	l.maxAttempt = max(l.maxAttempt, attempt)
	if attempt > 1 {
		l.redeliveries++
	}
	e := &l.entries[id.Seq-1]
	if e.handled == 0 {
		e.late = id.Seq < l.lastHandled
		l.lastHandled = max(l.lastHandled, id.Seq)
	}
	if e.handled < math.MaxUint16 {
		e.handled++
	}
}

// Stored enters that id was found in the stream at streamSeq. Read the stream in
// its order, each message once; [Checker.ReadStream] does.
func (c *Checker) Stored(id ID, streamSeq uint64) {
	l := c.lane(id)
	if l == nil {
		c.foreign.addf(id, "stored at %d", streamSeq)
		return
	}
	defer l.mu.Unlock()
	l.stored++
	e := &l.entries[id.Seq-1]
	if e.stored == 0 {
		e.found = streamSeq
	}
	if e.stored < math.MaxUint8 {
		e.stored++
	}
}

// lane returns the lane of id, locked, or nil if id was never sent.
func (c *Checker) lane(id ID) *lane {
	c.mu.RLock()
	l := c.lanes[id.Key]
	c.mu.RUnlock()
	if l == nil {
		return nil
	}
	l.mu.Lock()
	if id.Seq == 0 || id.Seq > uint64(len(l.entries)) {
		l.mu.Unlock()
		return nil
	}
	return l
}

func (f *foreign) addf(id ID, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if len(f.examples) < maxExamples {
		f.examples = append(f.examples, Example{Foreign, id, fmt.Sprintf(format, args...)})
	}
}
