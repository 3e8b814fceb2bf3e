package jetstream

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// defaultSchedulePrefix is the one of [WithSchedulePrefix].
const defaultSchedulePrefix = "schedule"

// WithSchedulePrefix sets under which subjects messages wait that are to be
// delivered later: a message for "orders.created" waits under
// "PREFIX.orders.created." and a token of its own. The default is "schedule".
//
// The stream has to have these subjects beside its own ones
// ("schedule.orders.>" beside "orders.>"), and AllowMsgSchedules, which needs
// nats-server 2.12. Its consumers must not select them: a message that waits
// would be delivered to them at once. It is removed when its time has come. A
// stream with interest retention cannot be used, since it confirms a message that
// no consumer selects, and drops it. A stream is looked at once a minute: when it
// is given interest retention afterwards, what is scheduled meanwhile is lost.
//
// A prefix that is not a subject is [transport.ErrInvalidOption].
func WithSchedulePrefix(prefix string) TransportOption {
	return transportOptionFunc(func(t *Transport) error {
		if err := transport.ValidateSubject(prefix); err != nil {
			return transport.Mark(transport.ErrInvalidOption, fmt.Errorf("WithSchedulePrefix: %w", err))
		}

		t.schedulable.prefix = prefix

		return nil
	})
}

// schedules knows where messages wait that are to be delivered later.
type schedules struct {
	prefix string // empty means the default

	mu      sync.Mutex
	streams []scheduling
}

// scheduling is a stream that keeps schedules.
type scheduling struct {
	name     string
	subjects []string
	seen     time.Time
}

// scheduleTrust is how long what was seen of a stream is relied upon. No answer
// of the server tells that a stream does not keep what it confirms.
const scheduleTrust = time.Minute

// schedule stores a message that the server delivers later.
func (t *Transport) schedule(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	// The server counts in nanoseconds since 1970, and delivers at once what is
	// beyond (nats-server v2.15.2).
	if last := time.Unix(0, math.MaxInt64-int64(time.Second)); msg.Terms.At.After(last) {
		return transport.Receipt{}, fmt.Errorf("%w: delivery at %v: the server's clock ends at %v",
			transport.ErrInvalidOption, msg.Terms.At.UTC(), last.UTC())
	}

	subject := t.schedulable.subject(msg)

	if err := t.keepsSchedules(ctx, subject, msg.Subject); err != nil {
		return transport.Receipt{}, err
	}

	header, err := publishHeader(msg)
	if err != nil {
		return transport.Receipt{}, err
	}

	if header == nil {
		header = make(map[string][]string, 2)
	}

	// nats.go v1.55.0 would cut the time down to seconds.
	at := msg.Terms.At.UTC().Add(time.Millisecond - 1).Truncate(time.Millisecond)

	header.Set(natsjs.ScheduleHeader, "@at "+at.Format(time.RFC3339Nano))
	header.Set(natsjs.ScheduleTargetHeader, msg.Subject)

	if err := checkHeader(header); err != nil {
		return transport.Receipt{}, err
	}

	return t.confirm(ctx, subject, header, msg.Data, msg.Retry)
}

// subject returns where a message waits. There is one message under a subject:
// one with an id replaces itself.
func (s *schedules) subject(msg transport.Message) string {
	token := rand.Text()

	if msg.ID != "" {
		sum := sha256.Sum256([]byte(msg.ID))
		token = hex.EncodeToString(sum[:16])
	}

	return s.base(msg.Subject) + "." + token
}

// base is what stands before the token.
func (s *schedules) base(target string) string {
	prefix := s.prefix
	if prefix == "" {
		prefix = defaultSchedulePrefix
	}

	return prefix + "." + target
}

// keepsSchedules makes sure, before anything is sent, that the stream of a
// schedule does what is expected of it: a server that knows no schedules stores
// them as if they were messages, and a stream with interest retention confirms
// them and drops them.
func (t *Transport) keepsSchedules(ctx context.Context, subject, target string) error {
	s := &t.schedulable

	s.mu.Lock()
	known := slices.ContainsFunc(s.streams, func(c scheduling) bool {
		return time.Since(c.seen) < scheduleTrust && covers(c.subjects, subject) && covers(c.subjects, target)
	})
	s.mu.Unlock()

	if known {
		return nil
	}

	if err := connected(ctx, t.js.Conn()); err != nil {
		return err
	}

	seen := time.Now()

	name, err := t.js.StreamNameBySubject(ctx, subject)
	if errors.Is(err, natsjs.ErrStreamNotFound) {
		return transport.Mark(transport.ErrStreamNotFound, fmt.Errorf(
			"no stream has %q, where a message for %q is to wait: add %q to the subjects of its stream, or see WithSchedulePrefix",
			subject, target, s.base(target)+".*"))
	}

	if err != nil {
		return lookupError(err)
	}

	stream, err := t.js.Stream(ctx, name)
	if err != nil {
		return lookupError(err)
	}

	switch c := stream.CachedInfo().Config; {
	case !c.AllowMsgSchedules:
		return disabled(fmt.Errorf("stream %q does not take schedules", name), "AllowMsgSchedules", 12)
	case c.Retention == natsjs.InterestPolicy:
		return fmt.Errorf("%w: stream %q has interest retention, and would drop a message that waits: use another retention policy",
			transport.ErrUnsupported, name)
	case !covers(c.Subjects, target):
		return fmt.Errorf("%w: messages for %q would wait in stream %q, which has %q, but not that subject: see WithSchedulePrefix",
			transport.ErrUnsupported, target, name, strings.Join(c.Subjects, ", "))
	default:
		s.mu.Lock()
		defer s.mu.Unlock()

		s.streams = slices.DeleteFunc(s.streams, func(old scheduling) bool { return old.name == c.Name })
		s.streams = append(s.streams, scheduling{c.Name, c.Subjects, seen})

		return nil
	}
}

// lookupError is the error of looking at a stream, before anything was sent.
func lookupError(err error) error {
	if api, some := errors.AsType[*natsjs.APIError](err); some {
		return refusal(api)
	}

	return mapError(err)
}

func covers(filters []string, subject string) bool {
	return slices.ContainsFunc(filters, func(f string) bool { return transport.Covers(f, subject) })
}
