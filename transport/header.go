package transport

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// HeaderMessageID is the header that carries a message's id.
const HeaderMessageID = "X-Message-ID"

// Header holds the headers of a message: a key with one or more values. Keys
// are case-sensitive, as they are in NATS. A nil Header is empty and may be
// read; Set and Add need one that was made.
//
// A Header is not safe for concurrent use while it is written to.
type Header map[string][]string

// Get returns the first value of key, or "" when there is none.
func (h Header) Get(key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}

	return ""
}

// Values returns all values of key, in the order they were added. The slice is
// the header's own.
func (h Header) Values(key string) []string { return h[key] }

// Set makes value the only value of key.
func (h Header) Set(key, value string) { h[key] = []string{value} }

// Add appends value to the values of key.
func (h Header) Add(key, value string) { h[key] = append(h[key], value) }

// Del removes key with all its values.
func (h Header) Del(key string) { delete(h, key) }

// Clone returns a copy that shares nothing with h. The clone of nil is nil.
func (h Header) Clone() Header {
	if h == nil {
		return nil
	}

	c := maps.Clone(h)
	for k, v := range c {
		c[k] = slices.Clone(v)
	}

	return c
}

// Validate reports with [ErrInvalidHeader] what could not be sent, or would
// arrive altered. NATS clients write CR and LF as spaces, trim values and lose
// a key without values; goflux refuses what they would alter.
//
// Keys are one or more of the ASCII characters 33 to 126 without the colon and
// the other separators of RFC 9110. Values hold no CR or LF and neither start
// nor end with a space or a tab; they may be empty.
func (h Header) Validate() error {
	for k, vs := range h {
		if !validHeaderKey(k) {
			return fmt.Errorf("%w: key %q: use ASCII letters, digits and any of !#$%%&'*+-.^_`|~", ErrInvalidHeader, k)
		}

		if len(vs) == 0 {
			return fmt.Errorf("%w: key %q has no value and would vanish: use an empty string or delete it", ErrInvalidHeader, k)
		}

		for _, v := range vs {
			if err := ValidateValue(k, v); err != nil {
				return err
			}
		}
	}

	return nil
}

// ValidateValue is the part of [Header.Validate] that concerns one value.
func ValidateValue(key, value string) error {
	if strings.ContainsAny(value, "\r\n") {
		return fmt.Errorf("%w: a value of %q holds a line break: encode it, for instance with base64", ErrInvalidHeader, key)
	}

	if value != "" && (isBlank(value[0]) || isBlank(value[len(value)-1])) {
		return fmt.Errorf("%w: a value of %q starts or ends with white space, which would be trimmed", ErrInvalidHeader, key)
	}

	return nil
}

// ValidateUser is [Header.Validate] for headers that a user sets: it also
// refuses reserved names, see [Reserved].
func (h Header) ValidateUser() error {
	for k := range h {
		if remedy, reserved := Reserved(k); reserved {
			return fmt.Errorf("%w: %q is reserved: %s", ErrInvalidHeader, k, remedy)
		}
	}

	return h.Validate()
}

// Reserved reports whether a user may not set the header key, and what to do
// instead. The comparison ignores case, since other clients fold it.
//
//   - "Nats-..." instructs the server.
//   - "Goflux-..." is for goflux itself.
//   - "X-Message-ID" is set with the message's id.
//   - "traceparent" and "tracestate" are set by the propagator.
//   - "Status" makes clients take a message with an empty body for a status
//     of the server and drop it (nats.go v1.55.0).
func Reserved(key string) (remedy string, reserved bool) {
	switch {
	case hasPrefixFold(key, "nats-"):
		return "headers that start with Nats- instruct the server", true
	case hasPrefixFold(key, "goflux-"):
		return "headers that start with Goflux- are goflux's own", true
	case strings.EqualFold(key, HeaderMessageID):
		return "use WithMessageID", true
	case strings.EqualFold(key, "traceparent"), strings.EqualFold(key, "tracestate"):
		return "the trace context comes from ctx", true
	case strings.EqualFold(key, "status"):
		return "clients read it as a status of the server; choose another name", true
	default:
		return "", false
	}
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

func isBlank(b byte) bool { return b == ' ' || b == '\t' }

// validHeaderKey follows the token of RFC 9110, which nats.go v1.55.0 checks
// too (ErrBadHeaderMsg).
func validHeaderKey(k string) bool {
	if k == "" {
		return false
	}

	for i := range len(k) {
		c := k[i]
		if c <= ' ' || c >= 127 || strings.IndexByte("()<>@,;:\\\"/[]?={}", c) >= 0 {
			return false
		}
	}

	return true
}
