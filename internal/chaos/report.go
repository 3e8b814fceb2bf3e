package chaos

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxExamples is how many messages a [Report] names of each violation.
const maxExamples = 5

// Violation is a way in which a promise can be broken.
type Violation uint8

// The violations. Each counts messages, and is looked for only if its promise
// was given, except for Foreign.
const (
	Lost               Violation = iota // StoredOnce: accepted, but not in the stream
	Duplicated                          // StoredOnce: more than once in the stream
	StoredThoughFailed                  // StoredOnce: in the stream though every attempt failed
	HandledNotStored                    // StoredOnce: handled, but not in the stream
	WrongReceipt                        // StoredOnce: not where its receipt says, or two receipts differ
	StoredLate                          // StoredInOrder: in the stream after a later message of its key
	NotHandled                          // HandledAtLeastOnce
	HandledLate                         // HandledInOrder: first handled after a later message of its key
	Foreign                             // published, stored or handled, but never sent
)

const violations = int(Foreign) + 1

var violationNames = [violations]string{
	"lost", "duplicated", "stored though failed", "handled but not stored", "wrong receipt",
	"stored late", "not handled", "handled late", "foreign",
}

// String returns the violation in words.
func (v Violation) String() string {
	if int(v) >= violations {
		return fmt.Sprintf("violation %d", uint8(v))
	}
	return violationNames[v]
}

// Example is one message that breaks a promise.
type Example struct {
	Violation Violation
	ID        ID
	Detail    string
}

// String returns the example as a line of text.
func (e Example) String() string { return fmt.Sprintf("%v: %v (%s)", e.Violation, e.ID, e.Detail) }

// Report is what [Checker.Verify] found. Its counts are of messages unless they
// say otherwise.
type Report struct {
	Keys          uint64
	Sent          uint64 // Accepted + Unknown + Failed
	Calls         uint64 // to publish, all messages together
	Attempts      uint64 // that reached the network, all messages together
	Accepted      uint64
	Unknown       uint64
	UnknownStored uint64 // the Unknown that are in the stream after all
	Failed        uint64
	Stored        uint64 // found in the stream, duplicates counted
	Handlings     uint64 // all messages together
	Handled       uint64 // handled at least once
	Repeated      uint64 // handled more than once, which no promise rules out
	Redeliveries  uint64 // handlings that were not of a first delivery
	MaxAttempt    uint64 // the highest delivery attempt that was handled

	// Violations counts the messages that break a promise, by Violation.
	Violations [violations]uint64
	// Examples names some of them, at most five of each violation.
	Examples []Example

	promises Promises
}

// Verify holds the ledger to its promises. It looks at each message once, and is
// meant to be called when publishers and handlers are done and the stream has
// been read back.
func (c *Checker) Verify() *Report {
	r := &Report{promises: c.promises}

	c.mu.RLock()
	lanes := maps.Clone(c.lanes)
	c.mu.RUnlock()
	for _, key := range slices.Sorted(maps.Keys(lanes)) {
		r.add(key, lanes[key])
	}

	c.foreign.mu.Lock()
	defer c.foreign.mu.Unlock()
	r.Violations[Foreign] = c.foreign.count
	r.Examples = append(r.Examples, c.foreign.examples...)
	return r
}

func (r *Report) add(key string, l *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Keys++
	r.Sent += uint64(len(l.entries))
	r.Calls += l.calls
	r.Attempts += l.attempts
	r.Stored += l.stored
	r.Handlings += l.handlings
	r.Redeliveries += l.redeliveries
	r.MaxAttempt = max(r.MaxAttempt, l.maxAttempt)

	last := uint64(0) // the highest stream sequence of the key so far
	for i := range l.entries {
		e := &l.entries[i]
		id := ID{key, uint64(i) + 1}
		r.count(e)
		if r.promises&StoredOnce != 0 {
			r.storedOnce(id, e)
		}
		if e.stored > 0 && e.result == Accepted { // what is unknown may still be on its way when the next is sent
			if r.promises&StoredInOrder != 0 && e.found < last {
				r.violatef(StoredLate, id, "at %d, one sent before it at %d", e.found, last)
			}
			last = max(last, e.found)
		}
		due := e.stored > 0
		if r.promises&StoredOnce == 0 {
			due = e.result == Accepted
		}
		if r.promises&HandledAtLeastOnce != 0 && due && e.handled == 0 {
			r.violatef(NotHandled, id, "%v, at %d", e.result, e.place())
		}
		if r.promises&HandledInOrder != 0 && e.late {
			r.violatef(HandledLate, id, "a later one was handled before")
		}
	}
}

func (r *Report) count(e *entry) {
	switch e.result {
	case Accepted:
		r.Accepted++
	case Failed:
		r.Failed++
	default:
		r.Unknown++
		if e.stored > 0 {
			r.UnknownStored++
		}
	}
	if e.handled > 0 {
		r.Handled++
	}
	if e.handled > 1 {
		r.Repeated++
	}
}

func (r *Report) storedOnce(id ID, e *entry) {
	switch {
	case e.stored > 1:
		r.violatef(Duplicated, id, "%d times, first at %d, %d calls", e.stored, e.found, e.calls)
	case e.stored == 1 && e.result == Failed:
		r.violatef(StoredThoughFailed, id, "at %d, %d calls", e.found, e.calls)
	case e.stored == 0 && e.result == Accepted:
		r.violatef(Lost, id, "accepted at %d, %d calls", e.receipt, e.calls)
	case e.stored == 0 && e.handled > 0:
		r.violatef(HandledNotStored, id, "%v, %d calls", e.result, e.calls)
	}
	switch {
	case e.disputed:
		r.violatef(WrongReceipt, id, "receipts differ, the last one says %d", e.receipt)
	case e.stored == 1 && e.receipt != 0 && e.receipt != e.found:
		r.violatef(WrongReceipt, id, "the receipt says %d, it is at %d", e.receipt, e.found)
	}
}

// place is the stream sequence as far as it is known.
func (e *entry) place() uint64 {
	if e.found != 0 {
		return e.found
	}
	return e.receipt
}

func (r *Report) violatef(v Violation, id ID, format string, args ...any) {
	r.Violations[v]++
	if r.Violations[v] <= maxExamples {
		r.Examples = append(r.Examples, Example{v, id, fmt.Sprintf(format, args...)})
	}
}

// OK reports whether every promise was kept.
func (r *Report) OK() bool { return r.Violations == [violations]uint64{} }

// Err returns nil if every promise was kept, otherwise an error that counts the
// violations and names examples.
func (r *Report) Err() error {
	if r.OK() {
		return nil
	}
	var b strings.Builder
	b.WriteString("chaos: promises broken")
	sep := ": "
	for v, n := range r.Violations {
		if n > 0 {
			fmt.Fprintf(&b, "%s%d %v", sep, n, Violation(v))
			sep = ", "
		}
	}
	for _, e := range r.Examples {
		fmt.Fprintf(&b, "\n\t%v", e)
	}
	return errors.New(b.String())
}

// String returns the report as a table, followed by the examples.
func (r *Report) String() string {
	var b strings.Builder
	row := func(name string, n uint64) { fmt.Fprintf(&b, "%-22s%10d\n", name, n) }
	row("keys", r.Keys)
	row("sent", r.Sent)
	row("  accepted", r.Accepted)
	row("  unknown", r.Unknown)
	row("  failed", r.Failed)
	row("publish calls", r.Calls)
	if r.Attempts > 0 {
		row("  attempts of theirs", r.Attempts)
	}
	if r.promises&(StoredOnce|StoredInOrder) != 0 {
		row("stored", r.Stored)
		row("  of the unknown", r.UnknownStored)
	}
	row("handled", r.Handled)
	row("  more than once", r.Repeated)
	row("handlings", r.Handlings)
	row("  of redeliveries", r.Redeliveries)
	row("  highest attempt", r.MaxAttempt)
	for v := range Violation(violations) {
		if r.promises&promiseOf[v] == promiseOf[v] {
			row(v.String(), r.Violations[v])
		}
	}
	for _, e := range r.Examples {
		fmt.Fprintf(&b, "%v\n", e)
	}
	return b.String()
}

// promiseOf says which promise a violation breaks; none for Foreign.
var promiseOf = [violations]Promises{
	Lost:               StoredOnce,
	Duplicated:         StoredOnce,
	StoredThoughFailed: StoredOnce,
	HandledNotStored:   StoredOnce,
	WrongReceipt:       StoredOnce,
	StoredLate:         StoredInOrder,
	NotHandled:         HandledAtLeastOnce,
	HandledLate:        HandledInOrder,
}
