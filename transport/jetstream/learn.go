package jetstream

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// known is what is known of the consumer of a subscription. It does not change;
// another one takes its place.
type known struct {
	info transport.Info

	acks    bool          // false: the consumer expects no settlements
	ackWait time.Duration // as the consumer has it; the first of info.BackOff if there is one

	// match, if not empty, must cover the subject of each message: the
	// consumer has no filter that would guarantee it.
	match string

	maxBatch int
	opts     []natsjs.PullConsumeOpt
}

// unfit reports what speaks against a consumer.
func unfit(c natsjs.ConsumerConfig) error {
	switch {
	case c.AckPolicy == natsjs.AckAllPolicy:
		return fmt.Errorf("%w: the consumer has ack policy all, where an ack also settles what other handlers still work on: "+
			"create it with explicit acks", transport.ErrUnsupported)
	case len(c.PriorityGroups) > 0:
		return fmt.Errorf("%w: the consumer has priority groups", transport.ErrUnsupported)
	case c.MaxRequestExpires > 0 && c.MaxRequestExpires < time.Second:
		return invalid("the consumer's MaxRequestExpires is %v: clients ask for a second at least", c.MaxRequestExpires)
	default:
		return nil
	}
}

// describe returns what a subscription to subject has to know of a consumer.
// subjects are those of the stream, if they are known.
func describe(info *natsjs.ConsumerInfo, subject string, subjects []string) (*known, error) {
	c := info.Config

	if err := unfit(c); err != nil {
		return nil, err
	}

	unproven, err := cover(subject, info, subjects)
	if err != nil {
		return nil, err
	}

	k := &known{
		info:     transport.Info{Stream: info.Stream, Consumer: info.Name, Filter: strings.Join(filters(c), ",")},
		acks:     c.AckPolicy != natsjs.AckNonePolicy,
		ackWait:  c.AckWait,
		maxBatch: maxBatch,
	}

	if unproven {
		k.match = subject
	}

	if k.info.Filter == "" {
		k.info.Filter = subject
	}

	if k.info.Filter == "" {
		k.info.Filter = ">"
	}

	if k.acks {
		k.info.AckWait = c.AckWait
		for _, wait := range c.BackOff {
			k.info.AckWait = min(k.info.AckWait, wait)
		}

		k.info.MaxDeliver = max(c.MaxDeliver, 0) // -1 is without limit
		k.info.BackOff = c.BackOff
	} else {
		k.info.MaxDeliver = 1
	}

	if c.MaxRequestBatch > 0 {
		k.maxBatch = min(k.maxBatch, c.MaxRequestBatch)
	}

	expiry := pullExpiry
	if c.MaxRequestExpires > 0 {
		expiry = min(expiry, c.MaxRequestExpires)
	}

	k.opts = []natsjs.PullConsumeOpt{
		natsjs.PullExpiry(expiry),
		natsjs.PullHeartbeat(min(pullHeartbeat, expiry/2)),
	}

	return k, nil
}

// learn takes over what the server says of the consumer: it may be changed under
// the subscription, and even be made anew. One that does not fit any more ends
// the subscription.
func (s *subscription) learn(info *natsjs.ConsumerInfo) {
	s.asked.Store(time.Now().UnixNano())

	was := s.known.Load()
	is, err := describe(info, s.cfg.Subject, s.subjects)

	if err == nil && was.acks != is.acks {
		err = fmt.Errorf("%w: the consumer was made anew with another ack policy: subscribe again", transport.ErrUnsupported)
	}

	if err != nil {
		s.end(err)

		return
	}

	if !reflect.DeepEqual(was, is) && s.known.CompareAndSwap(was, is) {
		s.notify(fmt.Errorf("the consumer's configuration has changed, and holds from now on: filter %q, ack wait %v, "+
			"%d deliveries at most (0: no limit)", is.info.Filter, is.info.AckWait, is.info.MaxDeliver))
	}
}

// askEvery is how often the server is asked for the consumer at the most because
// of what it delivers.
const askEvery = time.Second

// suspect has the consumer asked for when a message was delivered that is not
// its first time: its ack wait may have become shorter, or it was made anew.
func (s *subscription) suspect(msg natsjs.Msg) {
	if !redelivered(msg.Reply()) {
		return
	}

	now, asked := time.Now().UnixNano(), s.asked.Load()
	if now-asked < int64(askEvery) || !s.asked.CompareAndSwap(asked, now) {
		return
	}

	go func() {
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		defer cancel()

		// Should it fail: the deliveries go on, and so does this.
		if info, err := s.consumer.Info(ctx); err == nil && s.ctx.Err() == nil {
			s.learn(info)
		}
	}()
}

// redelivered reports whether a message was delivered before, by its reply
// subject: $JS.ACK.<stream>.<consumer>.<deliveries>, five tokens in all after
// these, or with domain and account before the stream (ADR-15). It is called for
// each message, and cheaper than the parsing of nats.go.
func redelivered(reply string) bool {
	before := 4
	if strings.Count(reply, ".") > 8 {
		before = 6
	}

	for range before {
		_, reply, _ = strings.Cut(reply, ".")
	}

	deliveries, _, _ := strings.Cut(reply, ".")

	return deliveries != "1"
}
