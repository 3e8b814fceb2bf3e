package chaos

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// IDOf returns the identity of a message from its headers: that of Nats-Msg-Id,
// or of X-Message-ID where the former is missing. Without both it is one that
// nobody sent.
func IDOf(h nats.Header) ID {
	if id := h.Get(jetstream.MsgIDHeader); id != "" {
		return ParseID(id)
	}
	return ParseID(h.Get("X-Message-ID"))
}

// ReadStream enters every message that is in the stream now, [IDOf] its headers,
// in the stream's order and each once. It fetches headers only, and bears leader
// changes and lost connections as an ordered consumer does. It returns an error
// when the stream cannot be read or ctx ends.
func (c *Checker) ReadStream(ctx context.Context, js jetstream.JetStream, stream string) error {
	if err := c.readStream(ctx, js, stream); err != nil {
		return fmt.Errorf("chaos: read stream %q: %w", stream, err)
	}
	return nil
}

func (c *Checker) readStream(ctx context.Context, js jetstream.JetStream, stream string) error {
	s, err := answered(ctx, func(ctx context.Context) (jetstream.Stream, error) { return js.Stream(ctx, stream) })
	if err != nil {
		return err
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	cons, err := answered(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	})
	if err != nil {
		return err
	}
	msgs, err := cons.Messages()
	if err != nil {
		return err
	}
	defer msgs.Stop()
	for n := uint64(1); ; n++ {
		m, err := msgs.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("message %d of %d: %w", n, state.Msgs, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		c.Stored(IDOf(m.Headers()), meta.Sequence.Stream)
		// Not the last sequence, which may have been deleted; and not NumPending
		// alone, which a replica tells that may be behind the leader.
		if n >= state.Msgs && meta.NumPending == 0 {
			return nil
		}
	}
}

// answerTimeout bounds one question to a cluster. One that is asked while a
// leader changes is never answered.
const answerTimeout = 2 * time.Second

// answered asks until there is an answer, or ctx ends.
func answered[T any](ctx context.Context, ask func(ctx context.Context) (T, error)) (T, error) {
	for {
		try, cancel := context.WithTimeout(ctx, answerTimeout)
		answer, err := ask(try)
		late := try.Err() != nil
		cancel()
		if !late || ctx.Err() != nil {
			return answer, err
		}
	}
}
