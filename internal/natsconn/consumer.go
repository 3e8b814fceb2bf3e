package natsconn

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

const (
	paramAckWait       = "ackwait"
	paramMaxDeliver    = "maxdeliver"
	paramMaxAckPending = "maxackpending"
)

// ConsumerParams returns the names of the query parameters that
// [ConsumerConfig] reads, for [transport.CheckQuery]:
//
//   - ackwait: how long a delivery may stay unsettled, as in 30s, which is the
//     server's default.
//   - maxdeliver: how often a message is delivered at the most; without limit
//     by default.
//   - maxackpending: how many messages may be unsettled at once; 1000 by
//     default.
func ConsumerParams() []string {
	return []string{paramAckWait, paramMaxDeliver, paramMaxAckPending}
}

// ConsumerConfig returns what the query of a URL says of the consumers that are
// made for subscriptions. It fails with [transport.ErrInvalidOption].
func ConsumerConfig(q url.Values) (func(*jetstream.ConsumerConfig), error) {
	var wait time.Duration

	if v := q.Get(paramAckWait); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("%w: %s is a duration, as in 30s, not %q", transport.ErrInvalidOption, paramAckWait, v)
		}

		wait = d
	}

	deliver, err := number(q, paramMaxDeliver)
	if err != nil {
		return nil, err
	}

	pending, err := number(q, paramMaxAckPending)
	if err != nil {
		return nil, err
	}

	return func(c *jetstream.ConsumerConfig) { c.AckWait, c.MaxDeliver, c.MaxAckPending = wait, deliver, pending }, nil
}

// number returns a parameter that counts something, 0 if it is not there.
func number(q url.Values, param string) (int, error) {
	v := q.Get(param)
	if v == "" {
		return 0, nil
	}

	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%w: %s is a number from 1, not %q", transport.ErrInvalidOption, param, v)
	}

	return n, nil
}
