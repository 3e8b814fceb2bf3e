package jetstream

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// maxReason bounds the reason of a Term, in bytes. It ends up in advisories.
const maxReason = 256

// settler settles the deliveries of one subscription. A delivery's token is its
// [natsjs.Msg].
type settler struct {
	stream, consumer string

	known *atomic.Pointer[known]

	// unsettled counts deliveries, for who wants to know; it may be nil.
	unsettled *atomic.Int64

	// nats.go checks whether a message was settled before it sends, and notes
	// it afterwards; mu makes that one step, so that of two verdicts at the
	// same time one wins. An AckSync waits for the server outside of mu and
	// leaves its message here for the while.
	mu      sync.Mutex
	syncing map[natsjs.Msg]struct{}
}

var _ transport.Settler = (*settler)(nil)

// Settle implements [transport.Settler].
func (s *settler) Settle(ctx context.Context, token any, v transport.Verdict) error {
	err := s.settle(ctx, token, v)
	if err != nil {
		return &transport.Error{Op: opSettle, Stream: s.stream, Consumer: s.consumer, Err: err}
	}

	if s.unsettled != nil && v.Action != transport.Extend {
		s.unsettled.Add(-1)
	}

	return nil
}

func (s *settler) settle(ctx context.Context, token any, v transport.Verdict) error {
	msg, ok := token.(natsjs.Msg)
	if !ok {
		return invalid("the token is a %T, not a delivery of this transport", token)
	}

	if !s.known.Load().acks {
		return fmt.Errorf("%w: the consumer has ack policy none: create it with explicit acks", transport.ErrUnsupported)
	}

	if v.Action == transport.AckSync {
		return s.ackSync(ctx, msg)
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	if _, ok := s.syncing[msg]; ok {
		return transport.ErrSettled
	}

	switch v.Action {
	case transport.Ack:
		return mapError(msg.Ack())
	case transport.Nak:
		if v.Delay <= 0 {
			return mapError(msg.Nak())
		}

		return mapError(msg.NakWithDelay(s.delay(msg, v.Delay)))
	case transport.Term:
		return mapError(msg.TermWithReason(cleanReason(v.Reason)))
	case transport.Extend:
		return mapError(msg.InProgress())
	default:
		return invalid("a verdict with the action %d", v.Action)
	}
}

// ackSync waits for the server's answer. When that fails, the message can be
// settled again.
func (s *settler) ackSync(ctx context.Context, msg natsjs.Msg) error {
	s.mu.Lock()

	if _, ok := s.syncing[msg]; ok {
		s.mu.Unlock()

		return transport.ErrSettled
	}

	if s.syncing == nil {
		s.syncing = make(map[natsjs.Msg]struct{})
	}

	s.syncing[msg] = struct{}{}
	s.mu.Unlock()

	err := msg.DoubleAck(ctx)

	s.mu.Lock()
	delete(s.syncing, msg)
	s.mu.Unlock()

	return mapError(err)
}

// delay returns what to send so that the server delivers msg again after want.
//
// A server (v2.15.2, processNak and checkPending) makes the n-th delivery look
// as old as the ack wait less the delay, and delivers it again when it is as
// old as BackOff[n-1]. Where the consumer has a BackOff the real wait is
// therefore delay + BackOff[n-1] - BackOff[0], of which we take back the
// distortion. A negative delay cannot be sent: a wait shorter than
// BackOff[n-1] - BackOff[0] becomes that long.
func (s *settler) delay(msg natsjs.Msg, want time.Duration) time.Duration {
	k := s.known.Load()

	backOff := k.info.BackOff
	if len(backOff) == 0 {
		return want
	}

	m, err := msg.Metadata()
	if err != nil || m.NumDelivered == 0 {
		return want
	}

	n := min(m.NumDelivered, uint64(len(backOff))) - 1

	return max(want-(backOff[n]-k.ackWait), 1)
}

// cleanReason makes one line of bounded length of reason.
func cleanReason(reason string) string {
	reason = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}

		return r
	}, strings.ToValidUTF8(reason, "?"))

	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}

	return strings.TrimSpace(reason)
}

// Metadata implements [transport.Settler]. It parses the reply subject.
func (s *settler) Metadata(token any) transport.Metadata {
	msg, ok := token.(natsjs.Msg)
	if !ok {
		return transport.Metadata{}
	}

	m, err := msg.Metadata()
	if err != nil {
		return transport.Metadata{}
	}

	return transport.Metadata{
		Stream:    m.Stream,
		Consumer:  m.Consumer,
		Sequence:  m.Sequence.Stream,
		Attempt:   int(min(m.NumDelivered, math.MaxInt32)),
		Pending:   m.NumPending,
		Timestamp: m.Timestamp,
	}
}
