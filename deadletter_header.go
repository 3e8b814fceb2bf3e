package goflux

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The headers of a dead letter. Those of the message stand beside them.
const (
	deadPrefix   = "Goflux-Dead-"
	deadReason   = deadPrefix + "Reason"
	deadError    = deadPrefix + "Error"
	deadAttempts = deadPrefix + "Attempts"
	deadSubject  = deadPrefix + "Subject"
	deadStream   = deadPrefix + "Stream"
	deadSequence = deadPrefix + "Sequence"
	deadConsumer = deadPrefix + "Consumer"
	deadStored   = deadPrefix + "Stored"
	deadTime     = deadPrefix + "Time"

	// deadOmitted holds the names of the headers that were left out.
	deadOmitted = deadPrefix + "Omitted"

	// deadEncoded holds headers that were received, but that clients refuse
	// to send or send altered: key and value in base64, with a colon between.
	deadEncoded = deadPrefix + "Encoded"

	// originalPrefix stands before the names of headers that must not act
	// again, or would be taken for something else.
	originalPrefix = "Goflux-Original-"

	// headerRedriven counts on a message how often it was sent back.
	headerRedriven = "Goflux-Redriven"
)

// maxDeadError bounds the error text of a dead letter, in bytes.
const maxDeadError = 1 << 10

// displaced reports whether a header of the message travels under another
// name in its dead letter: instructions to the server, a status, and the
// headers of a dead letter that became one again.
func displaced(key string) bool {
	return hasPrefixFold(key, "Nats-") || strings.EqualFold(key, "Status") ||
		hasPrefixFold(key, deadPrefix) || hasPrefixFold(key, originalPrefix)
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// deadHeader returns the headers of a dead letter.
func deadHeader(dead DeadLetter[[]byte]) Header {
	h := make(Header, len(dead.Header)+10)

	for key, values := range dead.Header {
		if (Header{key: values}).Validate() != nil {
			for _, value := range values {
				h.Add(deadEncoded, encodeHeader(key, value))
			}

			continue
		}

		if displaced(key) {
			key = originalPrefix + key
		}

		h[key] = values
	}

	set := func(key, value string) {
		if value != "" {
			h.Set(key, value)
		}
	}

	set(deadReason, dead.Reason)
	set(deadError, dead.Error)
	set(deadSubject, dead.Subject)
	set(deadStream, dead.Stream)
	set(deadConsumer, dead.Consumer)
	set(deadTime, dead.Time.UTC().Format(time.RFC3339Nano))
	set(deadOmitted, headerNames(dead.Omitted))

	if dead.Attempts > 0 {
		h.Set(deadAttempts, strconv.Itoa(dead.Attempts))
	}

	if dead.Sequence > 0 {
		h.Set(deadSequence, strconv.FormatUint(dead.Sequence, 10))
	}

	if !dead.Stored.IsZero() {
		h.Set(deadStored, dead.Stored.UTC().Format(time.RFC3339Nano))
	}

	return h
}

// parseDeadLetter is the inverse of deadHeader. It takes whatever it is given.
func parseDeadLetter(h Header, data []byte) DeadLetter[[]byte] {
	if h.Get(deadSubject) == "" {
		return DeadLetter[[]byte]{Raw: data, Payload: data, Header: h}
	}

	original := originalHeader(h)

	return DeadLetter[[]byte]{
		Subject:  h.Get(deadSubject),
		Header:   original,
		Raw:      data,
		Payload:  data,
		Reason:   h.Get(deadReason),
		Error:    h.Get(deadError),
		Attempts: int(headerCount(h, deadAttempts)), //nolint:gosec // bounded by headerCount
		Stream:   h.Get(deadStream),
		Sequence: headerCount(h, deadSequence),
		Consumer: h.Get(deadConsumer),
		Stored:   headerTime(h, deadStored),
		Time:     headerTime(h, deadTime),
		Redriven: int(headerCount(original, headerRedriven)), //nolint:gosec // bounded by headerCount
		Omitted:  strings.Fields(h.Get(deadOmitted)),
	}
}

// originalHeader returns what the message had as headers.
func originalHeader(h Header) Header {
	var original Header

	add := func(key string, values ...string) {
		if original == nil {
			original = make(Header, len(h))
		}

		original[key] = append(original[key], values...)
	}

	for key, values := range h {
		switch {
		case strings.HasPrefix(key, originalPrefix) && displaced(key[len(originalPrefix):]):
			add(key[len(originalPrefix):], values...)
		case key == deadEncoded:
			for _, value := range values {
				if k, v, ok := decodeHeader(value); ok {
					add(k, v)
				}
			}
		case displaced(key):
			// About the dead letter, not about the message.
		default:
			add(key, values...)
		}
	}

	return original
}

func encodeHeader(key, value string) string {
	return base64.StdEncoding.EncodeToString([]byte(key)) + ":" + base64.StdEncoding.EncodeToString([]byte(value))
}

func decodeHeader(s string) (key, value string, ok bool) {
	k, v, ok := strings.Cut(s, ":")
	if !ok {
		return "", "", false
	}

	kb, kerr := base64.StdEncoding.DecodeString(k)
	vb, verr := base64.StdEncoding.DecodeString(v)

	return string(kb), string(vb), kerr == nil && verr == nil && len(kb) > 0
}

// headerCount returns 0 for what is not a number, or too large to be one that
// was counted.
func headerCount(h Header, key string) uint64 {
	n, err := strconv.ParseUint(h.Get(key), 10, 63)
	if err != nil {
		return 0
	}

	return n
}

func headerTime(h Header, key string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, h.Get(key))
	if err != nil {
		return time.Time{}
	}

	return t
}

// headerText makes one line of valid text, of bounded length, that may stand in
// a header.
func headerText(s string) string {
	if len(s) > 4*maxDeadError {
		s = s[:4*maxDeadError] // so that the work is bounded as well
	}

	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}

		return r // invalid bytes become U+FFFD
	}, s))

	if len(s) > maxDeadError {
		end := maxDeadError
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}

		s = strings.TrimSpace(s[:end])
	}

	return s
}

// maxOmitted bounds the names of headers that were left out, in bytes.
const maxOmitted = 256

// headerNames makes a list of bounded length of names, which may hold anything.
func headerNames(names []string) string {
	var list strings.Builder

	for _, name := range names {
		name = strings.ReplaceAll(headerText(name), " ", "_")

		if list.Len()+len(name)+len(" ...") > maxOmitted {
			name = "..."
		}

		if list.Len() > 0 {
			list.WriteByte(' ')
		}

		list.WriteString(name)

		if name == "..." {
			break
		}
	}

	return list.String()
}

// deadLetterID names the death of a message: the same for each try to store it,
// whoever tries, and for no other message. The time of storing tells apart what
// has one sequence in a stream that was deleted and created again.
func deadLetterID(dead DeadLetter[[]byte]) string {
	if dead.Sequence > 0 {
		return hashID("dead", dead.Stream, dead.Consumer, dead.Sequence, stamp(dead.Stored))
	}

	return hashID("dead", dead.Subject, dead.Consumer, dead.ID(), stamp(dead.Time), string(dead.Raw))
}

// redriveID names the way back of a message. It does not depend on the
// consumer: a message that died for two of them goes back to both at once.
func redriveID(dead DeadLetter[[]byte]) string {
	if dead.Sequence > 0 {
		return hashID("redrive", dead.Stream, dead.Sequence, stamp(dead.Stored))
	}

	return hashID("redrive", dead.Subject, dead.ID(), stamp(dead.Time), string(dead.Raw))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// hashID makes an id of bounded length. Strings are quoted, so that no two
// lists of parts read the same.
func hashID(kind string, parts ...any) string {
	h := sha256.New()

	for _, part := range parts {
		if s, ok := part.(string); ok {
			part = strconv.Quote(s)
		}

		_, _ = fmt.Fprintln(h, part) // hashing does not fail
	}

	return kind + "." + hex.EncodeToString(h.Sum(nil)[:16])
}
