package jetstream

import (
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
)

// String returns the ticket as users see it: letters, digits, "-" and "_".
func (t ticket) String() string {
	return ticketVersion + base64.RawURLEncoding.EncodeToString(
		[]byte(t.id+"."+strconv.FormatUint(t.sequence, 36)+"."+t.stream))
}

// parseTicket is the inverse of String. Each ticket has one form.
func parseTicket(s string) (ticket, error) {
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

	parts := strings.SplitN(string(data), ".", 3)
	if len(parts) != 3 {
		return unknown("it is damaged")
	}

	t := ticket{id: parts[0], stream: parts[2]}

	if t.sequence, err = strconv.ParseUint(parts[1], 36, 64); err != nil ||
		t.sequence == 0 || !validCorrelation(t.id) || !validStreamName(t.stream) || t.String() != s {
		return unknown("it is damaged")
	}

	return t, nil
}

func validCorrelation(id string) bool {
	return len(id) == 2*correlationBytes && strings.Trim(id, "0123456789abcdef") == ""
}

// validStreamName is as strict as a server is with names.
func validStreamName(name string) bool {
	return name != "" && len(name) <= maxStreamName &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 127 || strings.ContainsRune(`.*>/\`, r) })
}
