package goflux

import (
	"fmt"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// Error is a failure with its circumstances: what was done, on which subject,
// stream and consumer, and why it failed. errors.As finds it, errors.Is finds
// its causes.
type Error = transport.Error

// DroppedError reports how many messages a client dropped because the handlers
// were too slow for it. It matches [ErrDropped].
type DroppedError = transport.DroppedError

// ConflictError says that a message was not stored because something else was
// stored since, and what; see [ExpectLastSequence]. It matches [ErrConflict].
type ConflictError = transport.ConflictError

// DrainError is within the [*Error] that Subscribe and Serve return when not all
// was finished at the end of the drain timeout. It tells how many messages were
// abandoned.
type DrainError = engine.DrainError

// Errors of bad input. They are returned before anything is sent.
var (
	// ErrInvalidSubject: a subject that NATS does not allow there.
	ErrInvalidSubject = transport.ErrInvalidSubject
	// ErrInvalidHeader: a header or message id that could not be sent
	// unaltered, or whose name is reserved.
	ErrInvalidHeader = transport.ErrInvalidHeader
	// ErrInvalidOption: an option that makes no sense, alone or here.
	ErrInvalidOption = transport.ErrInvalidOption
	// ErrTooLarge: payload or headers exceed what the broker takes.
	ErrTooLarge = transport.ErrTooLarge
	// ErrUnsupported: the transport lacks the capability.
	ErrUnsupported = transport.ErrUnsupported
	// ErrEncode: the codec could not encode the value.
	ErrEncode = transport.NewSentinel("encode", "the value could not be encoded")
)

// Errors of the broker and the way to it.
var (
	// ErrClosed: the publisher, subscriber, transport or connection is closed.
	ErrClosed = transport.ErrClosed
	// ErrDisconnected: there is no connection to the broker at the moment.
	ErrDisconnected = transport.ErrDisconnected
	// ErrBufferFull: the client is reconnecting and buffers no more, or a
	// group of the memory transport is full.
	ErrBufferFull = transport.ErrBufferFull
	// ErrNoResponders: nobody answers requests on the subject.
	ErrNoResponders = transport.ErrNoResponders
	// ErrNoStream: no stream answered for the subject.
	ErrNoStream = transport.ErrNoStream
	// ErrStreamNotFound: the stream does not exist.
	ErrStreamNotFound = transport.ErrStreamNotFound
	// ErrConsumerNotFound: the consumer does not exist, or no longer does.
	ErrConsumerNotFound = transport.ErrConsumerNotFound
	// ErrNotServing: no Subscribe or Serve is running; see Health of
	// [BoundSubscriber] and [BoundResponder].
	ErrNotServing = transport.NewSentinel("not_serving", "nothing is being served")
	// ErrSubjectMismatch: the subject of Subscribe does not cover what the
	// consumer delivers.
	ErrSubjectMismatch = transport.ErrSubjectMismatch
)

// Errors of stored requests, see [DurableRequester].
var (
	// ErrDuplicateRequest: a request with the message id was made before, and
	// its reply goes to whoever made it. Submit and Await share it.
	ErrDuplicateRequest = transport.ErrDuplicateRequest
	// ErrTicketUnknown: the ticket is not one of this kind of requester, is
	// damaged, or nothing was submitted under it.
	ErrTicketUnknown = transport.ErrTicketUnknown
	// ErrTicketExpired: the request of the ticket is done with, and its reply
	// is not kept any more.
	ErrTicketExpired = transport.ErrTicketExpired
)

// Errors of publishing.
var (
	// ErrPublishUnknown: time ran out, the connection broke or the publisher
	// was closed before the broker had confirmed a message that was sent: it
	// may be stored, or not, or yet be stored. Publishing it again under the
	// same id is safe where the broker de-duplicates.
	ErrPublishUnknown = transport.ErrPublishUnknown
	// ErrUnavailable: the broker cannot take the message at the moment;
	// nothing was stored.
	ErrUnavailable = transport.ErrUnavailable
	// ErrConflict: the last sequence was not the expected one, and nothing was
	// stored; see [ConflictError].
	ErrConflict = transport.ErrConflict
	// ErrDuplicate: an atomic batch has a message whose id is stored already,
	// or two with the same id, and nothing was stored.
	ErrDuplicate = transport.ErrDuplicate
)

// Errors that a handler meets, or that say what became of a message.
var (
	// ErrDecode: the payload could not be decoded. The message is rejected.
	ErrDecode = transport.NewSentinel("decode", "the payload could not be decoded")
	// ErrSettled: the message was settled before; nothing was changed.
	ErrSettled = transport.ErrSettled
	// ErrDropped: the client dropped messages; see [DroppedError].
	ErrDropped = transport.ErrDropped
	// ErrPanic: a handler panicked; see [PanicError].
	ErrPanic = transport.NewSentinel("panic", "the handler panicked")
	// ErrLeaseLost: the cause with which a handler's context ends when the
	// lease of its message could not be renewed.
	ErrLeaseLost = engine.ErrLeaseLost
	// ErrMaxHandlingTime: the cause with which a handler's context ends when
	// it exceeded [WithMaxHandlingTime].
	ErrMaxHandlingTime = engine.ErrMaxHandlingTime
	// ErrDraining: the cause with which a handler's context ends when the
	// subscription stops and the drain timeout is over.
	ErrDraining = engine.ErrDraining
)

// PanicError is a panic of a handler, or of a codec, turned into an error, and
// so is a handler that ends its goroutine instead of returning (runtime.Goexit,
// as FailNow of package testing does). It matches [ErrPanic].
type PanicError struct {
	// Value is what was passed to panic.
	Value any
	// Stack is the stack of the goroutine that panicked.
	Stack []byte
}

// Error tells the value, without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Is matches [ErrPanic].
func (e *PanicError) Is(target error) bool { return target == ErrPanic }

// Unwrap returns the value when it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)

	return err
}

// ErrorType is the error's low-cardinality name for telemetry.
func (e *PanicError) ErrorType() string { return "panic" }
