package transport

import (
	"context"
	"fmt"
	"time"
)

// Terms are what a message asks of the broker beyond being stored. They belong
// to the caller and do not change.
type Terms struct {
	// LastSequence, if not nil, is the sequence that the last message of the
	// stream has to have, 0 for a stream that never had one. Otherwise nothing
	// is stored, and the error is a [*ConflictError]. It needs
	// [ExpectedSequence].
	//
	// A message whose id is stored already is a duplicate, whatever it
	// expects: so a retry does not conflict with the attempt that succeeded.
	LastSequence *uint64

	// LastSubjectSequence is the same for the last message on the subject, 0
	// for a subject without a message.
	LastSubjectSequence *uint64

	// TTL, if positive, is how long the message is kept at the most, counted
	// from its storing. It needs [MessageTTL].
	TTL time.Duration

	// At, if not zero, is when the message is to be delivered, never earlier.
	// The receipt is then that of the schedule, not of the message. It needs
	// [Scheduling], and does not go together with the other terms.
	At time.Time
}

// Needs returns the capabilities that a transport has to have for the terms.
// Nil needs none.
func (t *Terms) Needs() Capabilities {
	var needs Capabilities

	if t == nil {
		return needs
	}

	if t.LastSequence != nil || t.LastSubjectSequence != nil {
		needs |= Of(ExpectedSequence)
	}

	if t.TTL > 0 {
		needs |= Of(MessageTTL)
	}

	if !t.At.IsZero() {
		needs |= Of(Scheduling)
	}

	return needs
}

// AtomicPublisher is a publisher with [AtomicBatches].
type AtomicPublisher interface {
	Publisher

	// PublishAtomic stores all messages, in their order and with nothing
	// between them, or none. They belong to one stream. The receipt is that of
	// the last one.
	//
	// What [Publisher] says of Publish holds here, too. The retries of the
	// first message apply to the batch. An id that is stored already makes
	// the batch fail with [ErrDuplicate], unless all messages have one that is:
	// then the batch is a duplicate, and the receipt says so. Messages without
	// an id are never duplicates. None has Terms.
	PublishAtomic(ctx context.Context, msgs []Message) (Receipt, error)
}

// Errors of publishing on terms.
var (
	// ErrConflict: something else was stored since; see [ConflictError].
	ErrConflict error = &kind{"conflict", "conflict: not the expected last sequence"}

	// ErrDuplicate: a message of an atomic batch has an id that is stored
	// already, and the others do not, or two have the same.
	ErrDuplicate error = &kind{
		"duplicate", "a message id of the batch is taken already (leave that message out, or give it an id of its own)",
	}
)

// ConflictError says that a message was not stored because the stream, or the
// subject, had another last sequence than the message expected. It matches
// [ErrConflict].
type ConflictError struct {
	// Expected is what the message expected.
	Expected uint64

	// Last is the sequence there was instead; it is 0 where Known is false,
	// as it is while another message of the subject is being stored.
	Last  uint64
	Known bool

	// Err is the broker's own error; it may be nil.
	Err error
}

// Error tells what was expected, what there was, and what to do.
func (e *ConflictError) Error() string {
	found := "another message is being stored"
	if e.Known {
		found = fmt.Sprintf("the last sequence is %d", e.Last)
	}

	return fmt.Sprintf("conflict: %s, %d was expected: read again what was stored, and decide anew", found, e.Expected)
}

// Is matches [ErrConflict].
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// Unwrap returns the broker's error.
func (e *ConflictError) Unwrap() error { return e.Err }

// ErrorType is that of [ErrConflict], see [ErrorType].
func (e *ConflictError) ErrorType() string { return ErrorType(ErrConflict) }
