package transport

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// kind is a sentinel error with a type of low cardinality for telemetry.
type kind struct{ typ, text string }

func (k *kind) Error() string     { return k.text }
func (k *kind) ErrorType() string { return k.typ }

// The sentinels below are what every transport reports its failures with.
// They are re-exported, under the same names, by github.com/foomo/goflux.
var (
	// ErrInvalidSubject: a subject or filter that NATS does not allow.
	ErrInvalidSubject error = &kind{"invalid_subject", "invalid subject"}

	// ErrInvalidHeader: a header that could not be sent unaltered.
	ErrInvalidHeader error = &kind{"invalid_header", "invalid header"}

	// ErrInvalidOption: an option, a URL or a configuration that makes no
	// sense, alone or in this place.
	ErrInvalidOption error = &kind{"invalid_option", "invalid option"}

	// ErrTooLarge: payload or headers exceed what the broker takes.
	ErrTooLarge error = &kind{"too_large", "message too large (send less, or raise the limit of the server or the stream)"}

	// ErrUnsupported: the transport, or the stream, lacks the capability that
	// was asked for.
	ErrUnsupported error = &kind{"unsupported", "not supported"}

	// ErrClosed: the thing was closed by its owner.
	ErrClosed error = &kind{"closed", "closed"}

	// ErrDisconnected: there is no connection to the broker.
	ErrDisconnected error = &kind{"disconnected", "not connected to the broker"}

	// ErrBufferFull: the client is reconnecting and buffers no more messages,
	// or a group of the memory transport has kept as many as it may.
	ErrBufferFull error = &kind{"buffer_full", "the buffer is full"}

	// ErrNoResponders: nobody listens on the subject of a request.
	ErrNoResponders error = &kind{"no_responders", "no responders (is one running, and does its subject match?)"}

	// ErrNoStream: no stream stores the subject that was published on, or
	// the stream has no leader at the moment.
	ErrNoStream error = &kind{"no_stream", "no response from a stream: is there one for this subject?"}

	// ErrUnavailable: the broker cannot take the message at the moment, for
	// want of a resource; nothing was stored. Trying again may help.
	ErrUnavailable error = &kind{"unavailable", "the broker cannot take it at the moment (publish it again later, or use WithPublishRetry)"}

	// ErrPublishUnknown: the broker did not confirm a message that was sent.
	// It may be stored, or not, or yet be stored.
	ErrPublishUnknown error = &kind{
		"publish_unknown",
		"the outcome is unknown: the broker may have the message (publish it again under the same id, where ids de-duplicate)",
	}

	// ErrStreamNotFound: the stream that was named does not exist.
	ErrStreamNotFound error = &kind{"stream_not_found", "stream not found"}

	// ErrConsumerNotFound: the consumer does not exist, or no longer does.
	ErrConsumerNotFound error = &kind{"consumer_not_found", "consumer not found"}

	// ErrSubjectMismatch: the subject of a subscription does not cover what
	// its consumer delivers.
	ErrSubjectMismatch error = &kind{"subject_mismatch", "the subject does not cover the consumer's filter"}

	// ErrSettled: the delivery was settled before; nothing was changed.
	ErrSettled error = &kind{"settled", "already settled"}

	// ErrDropped: the client dropped messages it received; see [DroppedError].
	ErrDropped error = &kind{"dropped", "messages dropped by the client"}
)

// Error is a failure with its circumstances. It wraps its cause: errors.Is
// finds the sentinels of this package and the broker's own error behind them.
type Error struct {
	// Op is what failed, for people: "publish", "subscribe", "request",
	// "open", "ack" and so on.
	Op string

	// Subject is the subject or filter concerned; it may be empty.
	Subject string

	// Stream and Consumer name what was concerned, where that is known.
	Stream   string
	Consumer string

	// Err is the cause. It is never nil.
	Err error
}

// Error tells what failed, on what, and why.
func (e *Error) Error() string {
	var b strings.Builder

	b.WriteString("goflux: ")
	b.WriteString(e.Op)

	if e.Subject != "" {
		fmt.Fprintf(&b, " %q", e.Subject)
	}

	switch {
	case e.Consumer != "" && e.Stream != "":
		fmt.Fprintf(&b, " (consumer %q of stream %q)", e.Consumer, e.Stream)
	case e.Consumer != "":
		fmt.Fprintf(&b, " (consumer %q)", e.Consumer)
	case e.Stream != "":
		fmt.Fprintf(&b, " (stream %q)", e.Stream)
	}

	b.WriteString(": ")
	// One that is wrapped in another is not introduced again.
	b.WriteString(strings.TrimPrefix(e.Err.Error(), "goflux: "))

	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// DroppedError reports messages that the client received and dropped because
// the handlers were too slow. They are lost where the broker does not keep
// them. It matches [ErrDropped].
type DroppedError struct {
	// Subject is the filter of the subscription.
	Subject string

	// Count is how many were dropped since the last report.
	Count uint64
}

// Error tells how many were dropped, and what to do.
func (e *DroppedError) Error() string {
	return fmt.Sprintf("goflux: %d messages on %q were dropped because the handlers are slower than the stream of messages: "+
		"raise the concurrency or the pending limits, or use a durable transport", e.Count, e.Subject)
}

// ErrorType is the error's low-cardinality name for telemetry.
func (e *DroppedError) ErrorType() string { return "dropped" }

// Is matches [ErrDropped].
func (e *DroppedError) Is(target error) bool { return target == ErrDropped }

// Mark wraps err so that errors.Is finds both the sentinel and err. Transports
// use it to map their broker's errors.
func Mark(sentinel, err error) error { return &marked{sentinel, err} }

type marked struct{ sentinel, cause error }

func (m *marked) Error() string   { return m.sentinel.Error() + ": " + m.cause.Error() }
func (m *marked) Unwrap() []error { return []error{m.sentinel, m.cause} }

// ErrorType returns a short, stable name of low cardinality for err, as the
// error.type attribute of OpenTelemetry wants it: the name of the sentinel it
// wraps, "canceled", "timeout", or "_OTHER". It is "" for nil.
func ErrorType(err error) string {
	if err == nil {
		return ""
	}

	var typed interface{ ErrorType() string }

	switch {
	case errors.As(err, &typed):
		return typed.ErrorType()
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	default:
		return "_OTHER"
	}
}

// Final marks the error of a publish that is not to be repeated: what it tells
// is there to stay, although it matches [ErrPublishUnknown] or [ErrNoStream].
func Final(err error) error { return &final{err} }

// IsFinal reports whether err is marked by [Final].
func IsFinal(err error) bool {
	_, is := errors.AsType[*final](err)

	return is
}

type final struct{ error }

func (f *final) Unwrap() error { return f.error }

// NewSentinel returns a sentinel error whose [ErrorType] is typ. It lets the
// layers above and below define theirs in the same form.
func NewSentinel(typ, text string) error { return &kind{typ, text} }
