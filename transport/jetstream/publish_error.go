package jetstream

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// What a stream answers to a message that it does not store, after errors.json
// of nats-server v2.15.2. nats.go v1.55.0 has names for few of them.
const (
	codeNoLeader          natsjs.ErrorCode = 10008 // of the cluster, at the moment
	codeNoResources       natsjs.ErrorCode = 10023 // the server's store is full; it gives up to lead
	codeSequenceMismatch  natsjs.ErrorCode = 10063 // within the cluster, not the message's
	codeWrongLastSequence natsjs.ErrorCode = 10071 // the text tells which one it is
	codeStoreFailed       natsjs.ErrorCode = 10077
	codeRollup            natsjs.ErrorCode = 10111
	codeInProcess         natsjs.ErrorCode = 10158 // a message with this id is being stored
	codeConflict          natsjs.ErrorCode = 10164 // another message of the subject is being stored
	codeTTLInvalid        natsjs.ErrorCode = 10165
	codeTTLDisabled       natsjs.ErrorCode = 10166
	codeTooManyRequests   natsjs.ErrorCode = 10167 // more wait for the stream than it lets
	codeAtomicDisabled    natsjs.ErrorCode = 10174
	codeAtomicIncomplete  natsjs.ErrorCode = 10176
	codeScheduleDisabled  natsjs.ErrorCode = 10188
	codeScheduleTarget    natsjs.ErrorCode = 10190
	codeAtomicTooLarge    natsjs.ErrorCode = 10199
	codeAtomicDuplicate   natsjs.ErrorCode = 10201
	codeAtomicInflight    natsjs.ErrorCode = 10210
)

// storeClosed is the text of codeStoreFailed when the server is shutting down.
// Other servers of its cluster may have stored the message.
const storeClosed = "store is closed"

// refusal translates what a stream answered.
func refusal(api *natsjs.APIError) error {
	switch api.ErrorCode {
	case codeInProcess, codeSequenceMismatch:
		return transport.Mark(transport.ErrPublishUnknown, api)
	case codeStoreFailed:
		if strings.Contains(api.Description, storeClosed) {
			return transport.Mark(transport.ErrPublishUnknown, api)
		}

		return api
	case codeWrongLastSequence, codeConflict:
		e := &transport.ConflictError{Err: api}

		if _, last, told := strings.Cut(api.Description, "wrong last sequence: "); told {
			n, err := strconv.ParseUint(last, 10, 64)
			e.Last, e.Known = n, err == nil
		}

		return e
	case codeTTLDisabled:
		return disabled(api, "AllowMsgTTL", 11)
	case codeTTLInvalid:
		return transport.Mark(transport.ErrInvalidOption, api)
	case codeScheduleDisabled:
		return disabled(api, "AllowMsgSchedules", 12)
	case codeScheduleTarget:
		return transport.Mark(transport.ErrUnsupported,
			fmt.Errorf("the schedule is not in the stream of the subject, see WithSchedulePrefix: %w", api))
	case codeAtomicDisabled:
		return disabled(api, "AllowAtomicPublish", 12)
	case codeAtomicIncomplete, codeAtomicInflight, codeTooManyRequests, codeNoResources, codeNoLeader:
		return transport.Mark(transport.ErrUnavailable, api)
	case codeAtomicTooLarge:
		return transport.Mark(transport.ErrTooLarge, api)
	case codeAtomicDuplicate:
		return transport.Mark(transport.ErrDuplicate, api)
	default:
		return mapError(api)
	}
}

// disabled is the error of what a stream does not allow.
func disabled(cause error, flag string, minor int) error {
	return transport.Mark(transport.ErrUnsupported,
		fmt.Errorf("set %s in the configuration of the stream (nats-server 2.%d): %w", flag, minor, cause))
}

// requires reports with [transport.ErrUnsupported] a server that would ignore
// what it does not know: older than 2.minor. Without a connection it reports
// nothing.
func requires(nc *nats.Conn, minor int, what string) error {
	version := nc.ConnectedServerVersion()

	major, rest, _ := strings.Cut(version, ".")
	m, err := strconv.Atoi(major)
	second, _, _ := strings.Cut(rest, ".")
	n, nerr := strconv.Atoi(second)

	if version == "" || errors.Join(err, nerr) != nil || m > 2 || (m == 2 && n >= minor) {
		return nil //nolint:nilerr // what cannot be read is not refused
	}

	return fmt.Errorf("%w: %s need nats-server 2.%d, this one is %s", transport.ErrUnsupported, what, minor, version)
}
