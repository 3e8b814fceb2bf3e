package jetstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/foomo/goflux/transport"
)

// ticket says where a request is stored, and under which id its reply will be.
// Where replies are stored is not in it but a matter of the requester, so that
// no ticket, whoever made it up, leads to anything but a reply.
type ticket struct {
	stream   string
	sequence uint64
	id       string
}

const (
	// ticketVersion begins every ticket of this form.
	ticketVersion = "gt1_"

	// maxTicket bounds what is looked at: a stream's name has 255 bytes at
	// the most (nats-server v2.15.2).
	maxTicket = 512

	maxStreamName = 255

	// sealBytes is how long a seal is.
	sealBytes = 16
)

// seal returns the ticket as users see it: letters, digits, "-" and "_". With a
// key it begins with a hash of the rest.
func (t ticket) seal(key []byte) string {
	data := []byte(t.id + "." + strconv.FormatUint(t.sequence, 36) + "." + t.stream)
	if key != nil {
		data = append(sealOf(key, data), data...)
	}

	return ticketVersion + base64.RawURLEncoding.EncodeToString(data)
}

func sealOf(key, data []byte) []byte { return keyed(key, "ticket", string(data))[:sealBytes] }

// keyed returns the hash under a key, which may be nil, of something of a kind.
// A kind has no NUL.
func keyed(key []byte, kind, data string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(kind + "\x00" + data)) // does not fail

	return h.Sum(nil)
}

// parseTicket is the inverse of seal. Each ticket has one form.
func parseTicket(s string, key []byte) (ticket, error) {
	unknown := func(why string) (ticket, error) {
		return ticket{}, fmt.Errorf("%w: %s", transport.ErrTicketUnknown, why)
	}

	if len(s) > maxTicket || !strings.HasPrefix(s, ticketVersion) {
		return unknown("it was not made by Submit, or by another version")
	}

	data, err := base64.RawURLEncoding.DecodeString(s[len(ticketVersion):])
	if err != nil {
		return unknown("it is damaged")
	}

	if key != nil {
		if len(data) < sealBytes || !hmac.Equal(data[:sealBytes], sealOf(key, data[sealBytes:])) {
			return unknown("it was not made with this key")
		}

		data = data[sealBytes:]
	}

	parts := strings.SplitN(string(data), ".", 3)
	if len(parts) != 3 {
		return unknown("it is damaged, or was made with a key")
	}

	t := ticket{id: parts[0], stream: parts[2]}

	if t.sequence, err = strconv.ParseUint(parts[1], 36, 64); err != nil ||
		t.sequence == 0 || !validCorrelation(t.id) || !validStreamName(t.stream) || t.seal(key) != s {
		return unknown("it is damaged, or was made with a key")
	}

	return t, nil
}

// headerRequest tells in a stored reply where its request was: the stream and
// the sequence, with a space between.
const headerRequest = "Goflux-Request"

// place is the value of headerRequest; empty when nobody knows.
func place(m transport.Metadata) string {
	if m.Stream == "" || m.Sequence == 0 {
		return ""
	}

	return m.Stream + " " + strconv.FormatUint(m.Sequence, 10)
}

// ticketOf returns the ticket of a request that was answered.
func ticketOf(reply transport.Header, id string) (t ticket, ok bool) {
	stream, sequence, _ := strings.Cut(reply.Get(headerRequest), " ")
	n, err := strconv.ParseUint(sequence, 10, 64)

	return ticket{stream: stream, sequence: n, id: id}, err == nil && n > 0 && validStreamName(stream)
}

func validCorrelation(id string) bool {
	return len(id) == 2*correlationBytes && strings.Trim(id, "0123456789abcdef") == ""
}

// validStreamName is as strict as a server is with names.
func validStreamName(name string) bool {
	return name != "" && len(name) <= maxStreamName &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 127 || strings.ContainsRune(`.*>/\`, r) })
}
