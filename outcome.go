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
	return &outcome{kind: outcomeRetry, delay: d, err: err}
}

// Reject returns an error that says that handling the message can never
// succeed: it goes to the dead letters, where these are configured, and is not
// delivered again. err is the reason and may be nil: Reject(nil) is a
// rejection, too.
func Reject(err error) error { return &outcome{kind: outcomeReject, err: err} }

// Drop returns an error that says that the message is of no use: it is neither
// delivered again nor kept as a dead letter. err is the reason and may be nil.
func Drop(err error) error { return &outcome{kind: outcomeDrop, err: err} }

type outcomeKind uint8

const (
	outcomeRetry outcomeKind = iota + 1
	outcomeReject
	outcomeDrop
)

// outcome is an error that carries a verdict. It is found behind wrapping
// errors as well; of several, the outermost counts.
type outcome struct {
	kind  outcomeKind
	delay time.Duration
	err   error
}

func (o *outcome) Error() string {
	var verb string

	switch o.kind {
	case outcomeRetry:
		verb = fmt.Sprintf("retry after %v", o.delay)
	case outcomeReject:
		verb = "rejected"
	case outcomeDrop:
		verb = "dropped"
	}

	if o.err == nil {
		return verb
	}

	return verb + ": " + o.err.Error()
}

func (o *outcome) Unwrap() error { return o.err }

func asOutcome(err error) (*outcome, bool) {
	var o *outcome

	return o, errors.As(err, &o)
}
