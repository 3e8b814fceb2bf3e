package goflux

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/foomo/goflux/transport"
)

// RemoteError is an error that crossed the wire: what the handler of a request
// has to tell its caller. errors.As finds it in the error of Request.
//
// On the wire it is what NATS services of any language send and understand
// (ADR-32): the headers Nats-Service-Error and Nats-Service-Error-Code, and the
// details as the payload.
type RemoteError struct {
	// Code is the kind of the error, by the meaning of HTTP status codes, and
	// has three digits when it was received, 100 to 999. 500 stands for a
	// failure that the responder keeps to itself, and for what a foreign
	// responder sent that is no such number; 400 for a request that the
	// responder could not decode; 503 for one that it had taken and could not
	// start before it stopped.
	Code int

	// Message is one line for humans, of 1024 bytes at the most when it was
	// received.
	Message string

	// Details is what else the responder told, as JSON. Nil when there is
	// nothing. A foreign responder's details that are not JSON become a JSON
	// string.
	Details json.RawMessage

	received bool // it came from elsewhere and is not told on
}

// NewError returns an error for a [RequestHandler] to return that is meant for
// the caller: it crosses the wire with code and message, also when it is
// wrapped, where the outer text stays behind. All other errors cross as code
// 500 without their text, also a RemoteError that the handler itself received
// from somebody else.
//
// Over JetStream it is the answer to the request, which is not tried again.
// Within [RetryAfter] it is tried again, and crosses when no attempts are left;
// within [Reject] the request also goes to the dead letters.
//
// Codes are best taken from HTTP (404, 409, 503 ...); one that is not within 100
// to 999 crosses as 500. Line breaks in the message become spaces, and what is
// beyond 1024 bytes is cut off.
func NewError(code int, message string) *RemoteError {
	return &RemoteError{Code: code, Message: message}
}

// WithDetails returns a copy of e with details, which are encoded as JSON now. A
// value that JSON cannot hold leaves a JSON string in its place that says so.
func (e *RemoteError) WithDetails(details any) *RemoteError {
	c := *e

	data, err := json.Marshal(details)
	if err != nil {
		data = []byte(`"the details could not be encoded as JSON"`)
	}

	c.Details = data

	return &c
}

// Error tells code and message, without the details.
func (e *RemoteError) Error() string {
	if e == nil {
		return "a nil *RemoteError that became an error"
	}

	return fmt.Sprintf("remote error %d: %s", e.Code, e.Message)
}

// ErrorType is the error's low-cardinality name for telemetry.
func (e *RemoteError) ErrorType() string { return "remote_error" }

// Is matches a RemoteError with the same code and message, whatever the details,
// so that both sides can share a variable made with [NewError].
func (e *RemoteError) Is(target error) bool {
	t, ok := target.(*RemoteError)

	return ok && e != nil && t != nil && t.Code == e.Code && t.Message == e.Message
}

// The headers of ADR-32.
const (
	headerServiceError     = "Nats-Service-Error"
	headerServiceErrorCode = "Nats-Service-Error-Code"
)

// The errors that a responder answers with by itself.
var (
	errInternal    = NewError(http.StatusInternalServerError, "internal error")
	errUndecodable = NewError(http.StatusBadRequest, "the request could not be decoded")
	errReplyTooBig = NewError(http.StatusInternalServerError, "the reply is too large")
	errStopping    = NewError(http.StatusServiceUnavailable, "the responder is stopping")
)

// toldError returns what of a handler's error is meant for its caller, and
// whether the handler chose that.
func toldError(err error) (told *RemoteError, chosen bool) {
	// A panic is no answer, whatever it was raised with, and neither is a nil
	// pointer.
	if errors.As(err, &told) && told != nil && !told.received && !errors.Is(err, ErrPanic) {
		return told, true
	}

	// The handler may have met an ErrDecode elsewhere.
	if o, asked := asOutcome(err); asked && o.undecodable {
		return errUndecodable, false
	}

	return errInternal, false
}

// write puts the error into the headers of a reply, which it returns.
func (e *RemoteError) write(h Header) Header {
	if h == nil {
		h = make(Header, 2)
	}

	h.Set(headerServiceError, e.text())
	h.Set(headerServiceErrorCode, strconv.Itoa(e.code()))

	return h
}

// code is the code as it stands in a header.
func (e *RemoteError) code() int {
	if e.Code < 100 || e.Code > 999 {
		return http.StatusInternalServerError
	}

	return e.Code
}

// text is the message as it stands in a header: one line of at most 1 KiB that
// is not empty.
func (e *RemoteError) text() string {
	if text := headerText(e.Message); text != "" {
		return text
	}

	if text := http.StatusText(e.code()); text != "" {
		return strings.ToLower(text)
	}

	return "error"
}

// readRemoteError returns the error that a reply carries, or nil.
func readRemoteError(d transport.Delivery) *RemoteError {
	if len(d.Header) == 0 {
		return nil
	}

	text, said := d.Header[headerServiceError]
	code, coded := d.Header[headerServiceErrorCode]

	if !said && !coded {
		return nil
	}

	e := &RemoteError{received: true}

	if len(text) > 0 {
		e.Message = headerText(text[0])
	}

	if len(code) > 0 {
		e.Code, _ = strconv.Atoi(code[0])
	}

	e.Code = e.code()

	switch {
	case len(d.Data) == 0:
	case json.Valid(d.Data):
		e.Details = d.Data
	default:
		e.Details, _ = json.Marshal(string(d.Data)) //nolint:errchkjson // a string can always be encoded
	}

	return e
}
