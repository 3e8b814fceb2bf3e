package transport

import (
	"iter"
	"math/bits"
	"strings"
)

// Capability is one thing a transport can or cannot do.
type Capability uint32

// Capabilities is a set of capabilities.
type Capabilities uint32

const (
	// Acks: deliveries are settled by their receiver.
	Acks Capability = 1 << iota
	// Redelivery: what was naked, or whose lease ran out, is delivered again.
	Redelivery
	// DelayedNak: a redelivery can be put off.
	DelayedNak
	// Attempts: a delivery tells how often it was tried.
	Attempts
	// Leases: an unsettled delivery comes back after the ack wait, unless its
	// lease is extended.
	Leases
	// Groups: members of a queue group share the messages.
	Groups
	// Durable: a group keeps its place while no member is there, and a
	// message waits for it.
	Durable
	// Replay: a new subscription gets the messages that were stored before it.
	Replay
	// Persistent: what was confirmed survives a restart of the broker.
	Persistent
	// Receipts: a publish is confirmed by the broker, with stream and sequence.
	Receipts
	// Deduplication: the broker stores a message id once.
	Deduplication
	// Fetching: messages can be pulled in batches (the Consumer of goflux).
	Fetching
	// RequestReply: requests are answered while both sides are there.
	RequestReply
	// ExpectedSequence: a publish can depend on what was stored last.
	ExpectedSequence
	// MessageTTL: a message can have a time after which it is removed.
	MessageTTL
	// Scheduling: a message can be stored now and delivered later.
	Scheduling
	// AtomicBatches: several messages are stored together or not at all. A
	// transport with it implements [AtomicPublisher].
	AtomicBatches
)

// table is the one list of capabilities, in the order they are shown.
var table = []struct {
	capability    Capability
	name, meaning string
}{
	{Acks, "acks", "Deliveries are acknowledged, automatically or by hand."},
	{Redelivery, "redelivery", "What failed or was abandoned is delivered again."},
	{DelayedNak, "delayed nak", "A redelivery can be put off."},
	{Attempts, "attempt counter", "A delivery tells how often it was tried."},
	{Leases, "leases", "An unsettled delivery comes back after the ack wait, unless it is extended."},
	{Groups, "queue groups", "Members of a group share the messages."},
	{Durable, "durable groups", "A group keeps its place while nobody is there."},
	{Replay, "replay", "A new subscription gets what was stored before it."},
	{Persistent, "persistent", "What was confirmed survives a restart of the broker."},
	{Receipts, "publish receipts", "A publish is confirmed, with stream and sequence."},
	{Deduplication, "de-duplication", "A message id is stored once."},
	{Fetching, "fetch", "Messages can be pulled in batches."},
	{RequestReply, "request-reply", "A request is answered, or reported to have no responder."},
	{ExpectedSequence, "expected sequence", "A publish can depend on what was stored last (optimistic concurrency)."},
	{MessageTTL, "message TTL", "A message can be removed after a time of its own."},
	{Scheduling, "delayed delivery", "A message can be delivered at a later time."},
	{AtomicBatches, "atomic batches", "Several messages are stored together, or none of them."},
}

// AllCapabilities yields every capability, in the order of documentation.
func AllCapabilities() iter.Seq[Capability] {
	return func(yield func(Capability) bool) {
		for _, row := range table {
			if !yield(row.capability) {
				return
			}
		}
	}
}

// Of returns the set of the given capabilities.
func Of(cs ...Capability) Capabilities {
	var set Capabilities
	for _, c := range cs {
		set |= Capabilities(c)
	}

	return set
}

// Has reports whether all the given capabilities are in the set.
func (s Capabilities) Has(cs ...Capability) bool {
	want := Of(cs...)

	return s&want == want
}

// String lists the names of the set, separated by commas.
func (s Capabilities) String() string {
	names := make([]string, 0, bits.OnesCount32(uint32(s)))

	for c := range AllCapabilities() {
		if s.Has(c) {
			names = append(names, c.String())
		}
	}

	return strings.Join(names, ", ")
}

// String returns the capability's name as documentation shows it.
func (c Capability) String() string {
	for _, row := range table {
		if row.capability == c {
			return row.name
		}
	}

	return "unknown"
}

// Meaning returns a sentence that says what the capability gives.
func (c Capability) Meaning() string {
	for _, row := range table {
		if row.capability == c {
			return row.meaning
		}
	}

	return ""
}
