package memory

import (
	"fmt"
	"time"

	"github.com/foomo/goflux/transport"
)

// Option configures [New].
type Option interface{ apply(c *config) error }

type optionFunc func(*config) error

func (f optionFunc) apply(c *config) error { return f(c) }

type config struct {
	ackWait         time.Duration
	duplicateWindow time.Duration
	maxDeliver      int
	maxPayload      int
	maxPending      int
	history         int
}

// configure applies opts to the defaults.
func configure(opts []Option) (config, error) {
	c := config{
		ackWait:         30 * time.Second,
		duplicateWindow: 2 * time.Minute,
		maxPayload:      1 << 20,
		maxPending:      1 << 16,
	}

	for i, o := range opts {
		if o == nil {
			return config{}, fmt.Errorf("%w: memory: option %d is nil", transport.ErrInvalidOption, i)
		}

		if err := o.apply(&c); err != nil {
			return config{}, err
		}
	}

	// A new queue holds the history, which would otherwise not fit.
	if c.history > c.maxPending {
		return config{}, fmt.Errorf("%w: memory: WithHistory(%d) exceeds WithMaxPending(%d): a new subscription could not hold the history",
			transport.ErrInvalidOption, c.history, c.maxPending)
	}

	return c, nil
}

// WithAckWait sets how long a delivery may stay unsettled before the message is
// delivered again: its lease. The default is 30 s, as on JetStream. Zero and
// less are [transport.ErrInvalidOption].
func WithAckWait(d time.Duration) Option {
	return optionFunc(func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("%w: memory: WithAckWait(%s): use a positive duration", transport.ErrInvalidOption, d)
		}

		c.ackWait = d

		return nil
	})
}

// WithMaxDeliver sets how often a message is delivered to a queue at the most.
// Then it is given up, see [Transport.GivenUp]. Zero, the default, means
// without limit, one that there is no redelivery. Less than zero is
// [transport.ErrInvalidOption].
func WithMaxDeliver(n int) Option {
	return optionFunc(func(c *config) error {
		if n < 0 {
			return fmt.Errorf("%w: memory: WithMaxDeliver(%d): use a positive number, or zero for no limit", transport.ErrInvalidOption, n)
		}

		c.maxDeliver = n

		return nil
	})
}

// WithHistory retains the last n messages, whether they were handled or not:
// a new group and a new ungrouped subscription begin with those that their
// filter selects. It gives the transport the capability [transport.Replay].
// Zero, the default, retains none. Less than zero, and more than
// [WithMaxPending], are [transport.ErrInvalidOption].
func WithHistory(n int) Option {
	return optionFunc(func(c *config) error {
		if n < 0 {
			return fmt.Errorf("%w: memory: WithHistory(%d): use a positive number, or zero for none", transport.ErrInvalidOption, n)
		}

		c.history = n

		return nil
	})
}

// WithMaxPayload sets how many bytes payload and headers of a message may have
// together, measured as NATS sends them. More is [transport.ErrTooLarge]. The
// default is 1 MiB, as on a NATS server. Zero and less are
// [transport.ErrInvalidOption].
//
// Headers are limited to 65,535 bytes in addition, as they are by JetStream.
func WithMaxPayload(bytes int) Option {
	return optionFunc(func(c *config) error {
		if bytes < 1 {
			return fmt.Errorf("%w: memory: WithMaxPayload(%d): use a positive number of bytes", transport.ErrInvalidOption, bytes)
		}

		c.maxPayload = bytes

		return nil
	})
}

// WithDuplicateWindow sets for how long a message with an id that was published
// before is taken for a duplicate: it is not stored, and its receipt says so.
// A duplicate does not prolong the window. The default is 2 min, as on
// JetStream. Zero and less are [transport.ErrInvalidOption].
//
// Memory is bounded: the window also ends for an id when 65,536 newer ones have
// been stored.
func WithDuplicateWindow(d time.Duration) Option {
	return optionFunc(func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("%w: memory: WithDuplicateWindow(%s): use a positive duration", transport.ErrInvalidOption, d)
		}

		c.duplicateWindow = d

		return nil
	})
}

// WithMaxPending sets how many messages a group, or an ungrouped subscription,
// holds at the most: those that wait and those that are delivered and not yet
// settled. Beyond it publishing fails with [*FullError]. The default is 65,536.
// Zero and less are [transport.ErrInvalidOption].
func WithMaxPending(n int) Option {
	return optionFunc(func(c *config) error {
		if n < 1 {
			return fmt.Errorf("%w: memory: WithMaxPending(%d): use a positive number", transport.ErrInvalidOption, n)
		}

		c.maxPending = n

		return nil
	})
}
