package goflux

import (
	"errors"
	"fmt"
	"time"
)

// RetryAfter returns an error that asks for the message to be delivered again
// after d, whatever the retry policy says. Zero and less mean at once. err is
// the reason and may be nil. On the last attempt it counts as any error.
func RetryAfter(d time.Duration, err error) error {
	return &outcome{kind: OutcomeDelayed, delay: d, err: err}
}

// Reject returns an error that says that handling the message can never
// succeed: it goes to the dead letters, where these are configured, and is not
// delivered again. err is the reason and may be nil: Reject(nil) is a
// rejection, too.
func Reject(err error) error { return &outcome{kind: OutcomeRejected, err: err} }

// Drop returns an error that says that the message is of no use: it is neither
// delivered again nor kept as a dead letter. err is the reason and may be nil.
func Drop(err error) error { return &outcome{kind: OutcomeDropped, err: err} }

// Outcome is what a handler's error asks for. Its values are names of low
// cardinality, for logs and metrics.
type Outcome string

const (
	// OutcomeOK is no error: the message was handled.
	OutcomeOK Outcome = "ok"
	// OutcomeFailed is an error that names no outcome: the retry policy decides.
	OutcomeFailed Outcome = "failed"
	// OutcomePanicked is a failure that is a panic.
	OutcomePanicked Outcome = "panicked"
	// OutcomeDelayed is [RetryAfter].
	OutcomeDelayed Outcome = "delayed"
	// OutcomeRejected is [Reject], or a payload that did not decode.
	OutcomeRejected Outcome = "rejected"
	// OutcomeDropped is [Drop].
	OutcomeDropped Outcome = "dropped"
)

// OutcomeOf returns what err asks for. An outcome counts behind wrapping errors
// too; of several, the outermost one does.
func OutcomeOf(err error) Outcome {
	if err == nil {
		return OutcomeOK
	}

	if o, chosen := asOutcome(err); chosen {
		return o.kind
	}

	if errors.Is(err, ErrPanic) {
		return OutcomePanicked
	}

	return OutcomeFailed
}

// Chosen reports whether the handler named the outcome itself, with
// [RetryAfter], [Reject] or [Drop].
func (o Outcome) Chosen() bool {
	return o == OutcomeDelayed || o == OutcomeRejected || o == OutcomeDropped
}

// outcome is an error that carries a verdict. It is found behind wrapping
// errors as well; of several, the outermost counts.
type outcome struct {
	kind  Outcome
	delay time.Duration
	err   error

	// undecodable: the payload did not decode, so no handler was called.
	undecodable bool
}

func (o *outcome) Error() string {
	var verb string

	switch o.kind { //nolint:exhaustive // the others are not made
	case OutcomeDelayed:
		verb = fmt.Sprintf("retry after %v", o.delay)
	case OutcomeRejected:
		verb = "rejected"
	case OutcomeDropped:
		verb = "dropped"
	}

	if o.err == nil {
		return verb
	}

	return verb + ": " + o.err.Error()
}

func (o *outcome) Unwrap() error { return o.err }

func asOutcome(err error) (*outcome, bool) {
	return errors.AsType[*outcome](err)
}
