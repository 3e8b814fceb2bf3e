package memory

import (
	"fmt"

	"github.com/foomo/goflux/transport"
)

// FullError is why a message was not published: a queue that wants it holds
// [WithMaxPending] messages. Nothing was stored, for no queue. It matches
// [transport.ErrBufferFull].
type FullError struct {
	// Group is the name of the full group, empty for an ungrouped
	// subscription.
	Group string

	// Filter is the subject that the queue selects by.
	Filter string

	// Limit is how many messages it holds.
	Limit int
}

// Error tells which queue is full, and what to do.
func (e *FullError) Error() string {
	who := "an ungrouped subscription"
	if e.Group != "" {
		who = fmt.Sprintf("the group %q", e.Group)
	}

	return fmt.Sprintf("%s on %q is full, with %d messages waiting or unsettled: settle them, add members, or raise WithMaxPending",
		who, e.Filter, e.Limit)
}

// Is matches [transport.ErrBufferFull].
func (e *FullError) Is(target error) bool { return target == transport.ErrBufferFull }

// ErrorType is the one of [transport.ErrBufferFull], see
// [transport.ErrorType].
func (e *FullError) ErrorType() string { return transport.ErrorType(transport.ErrBufferFull) }
