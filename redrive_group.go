package goflux

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/foomo/goflux/transport"
)

const (
	// redriveBatch is how many dead letters are fetched at once: few, so that
	// the lease of the last one does not run out.
	redriveBatch = 16

	// redriveIdle is how long nothing comes of a queue group that is empty.
	redriveIdle = time.Second
)

// passThrough leaves bytes as they are.
var passThrough = Codec[[]byte]{
	Encode: func(v []byte) ([]byte, error) { return v, nil },
	Decode: func(data []byte, v *[]byte) error {
		*v = data

		return nil
	},
}

// lettersOfGroup yields what a consumer's group has, and does not wait for more.
func lettersOfGroup(ctx context.Context, c *BoundConsumer[[]byte]) iter.Seq2[transport.Delivery, error] {
	return func(yield func(transport.Delivery, error) bool) {
		defer c.Close()

		p := pile{letters: map[uint64]transport.Delivery{}}
		defer p.handBack()

		if err := p.fetch(ctx, c, yield); err != nil {
			yield(transport.Delivery{}, err)
		}
	}
}

// attachUnlimited attaches to the group, unless that gives messages up.
func (c *BoundConsumer[T]) attachUnlimited(ctx context.Context) error {
	if err := c.attach(ctx); err != nil {
		return err
	}

	if n := c.sub.Info().MaxDeliver; n > 0 {
		return fmt.Errorf("%w: the group gives a message up after %d deliveries, so that looking at dead letters would lose them: "+
			"keep them where there is no such limit", ErrInvalidOption, n)
	}

	return nil
}

// collectWithin returns what arrives within d: nothing, if the broker can be
// reached and has nothing.
func (c *BoundConsumer[T]) collectWithin(ctx context.Context, d time.Duration) ([]transport.Delivery, error) {
	waiting, cancel := context.WithTimeout(ctx, d)
	defer cancel()

	fetched, err := c.collect(waiting, redriveBatch)
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil || c.sub == nil {
		return fetched, err
	}

	flushing, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()

	return nil, c.sub.Flush(flushing)
}

// pile holds the dead letters that were delivered and not removed. They are
// handed back at the end and not before, since the group would deliver them
// again. It is the settler of what it holds.
type pile struct {
	letters map[uint64]transport.Delivery // without their contents
	unnamed uint64                        // letters without a sequence
	waiting uint64                        // how many more the broker had, when it last told
}

// fetch yields what there is, until there is no more or the loop is left.
func (p *pile) fetch(ctx context.Context, c *BoundConsumer[[]byte], yield func(transport.Delivery, error) bool) error {
	if err := c.attachUnlimited(ctx); err != nil {
		return err
	}

	for {
		fetched, err := c.collectWithin(ctx, redriveIdle)
		if err != nil {
			return err
		}

		if len(fetched) == 0 {
			return p.stuck()
		}

		for _, d := range p.add(fetched) {
			if !yield(d, nil) {
				return nil
			}
		}
	}
}

// add puts deliveries on the pile and returns those that were not on it.
func (p *pile) add(fetched []transport.Delivery) []transport.Delivery {
	fresh := fetched[:0:0]

	for _, d := range fetched {
		m := d.Settler.Metadata(d.Token)
		p.waiting = m.Pending

		key := m.Sequence
		if key == 0 {
			p.unnamed++
			key = math.MaxUint64 - p.unnamed
		}

		_, held := p.letters[key]
		p.letters[key] = transport.Delivery{Token: d.Token, Settler: d.Settler} // the later lease

		if !held {
			d.Token, d.Settler = key, p
			fresh = append(fresh, d)
		}
	}

	return fresh
}

// Settle implements [transport.Settler].
func (p *pile) Settle(ctx context.Context, token any, v transport.Verdict) error {
	key, _ := token.(uint64)

	d, held := p.letters[key]
	if !held {
		return ErrSettled
	}

	if v.Action == transport.Nak {
		return nil
	}

	if err := d.Settler.Settle(ctx, d.Token, v); err != nil {
		return err
	}

	delete(p.letters, key)

	return nil
}

// Metadata implements [transport.Settler].
func (p *pile) Metadata(token any) transport.Metadata {
	key, _ := token.(uint64)

	d, held := p.letters[key]
	if !held {
		return transport.Metadata{}
	}

	return d.Settler.Metadata(d.Token)
}

// stuck reports that the broker has more and does not deliver it.
func (p *pile) stuck() error {
	if p.waiting == 0 || len(p.letters) == 0 {
		return nil
	}

	return fmt.Errorf("%w: %d more dead letters wait, and the group gives out no more while %d are unsettled, which are to be kept: "+
		"raise its limit of unsettled messages (MaxAckPending), or read the stream in place, without WithQueueGroup",
		ErrUnsupported, p.waiting, len(p.letters))
}

// handBack returns to the group what is left, in order. What it does not get
// comes back when the lease runs out.
func (p *pile) handBack() {
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()

	for _, key := range slices.Sorted(maps.Keys(p.letters)) {
		d := p.letters[key]
		_ = d.Settler.Settle(ctx, d.Token, transport.Verdict{Action: transport.Nak})
	}
}
