package jetstream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// Browse yields the messages that filter selects and that are stored when the
// loop begins, in their order. They are read in place, without a consumer:
// nobody else misses what is looked at. Ack, AckSync and Term delete a message
// from the stream, for all of its consumers; Nak and Extend leave it.
//
// The stream is the one that has filter; [WithStream] decides where several
// have. An error, an [*transport.Error] around [transport.ErrStreamNotFound],
// [transport.ErrInvalidOption] or what [Transport.Publish] may fail with, is
// the last thing it yields. It costs a round trip per message.
//
// goflux.Redrive reads dead letters with it.
func (t *Transport) Browse(ctx context.Context, filter string) iter.Seq2[transport.Delivery, error] {
	return func(yield func(transport.Delivery, error) bool) {
		b := browsing{}

		if err := b.begin(ctx, t, filter); err != nil {
			yield(transport.Delivery{}, b.failure("browse", filter, err))

			return
		}

		for next := b.first; next <= b.last; {
			msg, err := b.stream.GetMsg(ctx, next, natsjs.WithGetMsgSubject(filter))
			if errors.Is(err, natsjs.ErrMsgNotFound) {
				return
			}

			if err != nil {
				yield(transport.Delivery{}, b.failure("browse", filter, err))

				return
			}

			if msg.Sequence > b.last || !yield(b.delivery(msg), nil) {
				return
			}

			next = msg.Sequence + 1
		}
	}
}

// browsing is the settler of what is browsed; its tokens are [*stored].
type browsing struct {
	name        string
	stream      natsjs.Stream
	first, last uint64
}

type stored struct {
	sequence uint64
	time     time.Time
}

func (b *browsing) begin(ctx context.Context, t *Transport, filter string) error {
	if t.closed.Load() {
		return transport.ErrClosed
	}

	if err := transport.ValidateFilter(filter); err != nil {
		return err
	}

	name, err := t.find(ctx, filter)
	if errors.Is(err, transport.ErrInvalidOption) && t.stream != "" {
		name, err = t.stream, nil // several have it
	}

	if err != nil {
		return err
	}

	b.name = name

	if b.stream, err = t.js.Stream(ctx, name); err != nil {
		return mapError(err)
	}

	state := b.stream.CachedInfo().State
	b.first, b.last = max(state.FirstSeq, 1), state.LastSeq

	return nil
}

func (b *browsing) failure(op, filter string, err error) error {
	return &transport.Error{Op: op, Subject: filter, Stream: b.name, Err: mapError(err)}
}

func (b *browsing) delivery(msg *natsjs.RawStreamMsg) transport.Delivery {
	return transport.Delivery{
		Subject: msg.Subject,
		Header:  storedHeader(b.stream, msg),
		Data:    msg.Data,
		Token:   &stored{msg.Sequence, msg.Time},
		Settler: b,
	}
}

// storedHeader returns the headers of a message as the stream has them. A stream
// with direct access adds some of its own (nats-server v2.15.2).
func storedHeader(stream natsjs.Stream, msg *natsjs.RawStreamMsg) transport.Header {
	if stream.CachedInfo().Config.AllowDirect {
		for _, key := range []string{natsjs.StreamHeader, natsjs.SequenceHeader, natsjs.TimeStampHeaer, natsjs.SubjectHeader} {
			delete(msg.Header, key)
		}
	}

	if len(msg.Header) == 0 {
		return nil
	}

	return transport.Header(msg.Header)
}

// Settle implements [transport.Settler].
func (b *browsing) Settle(ctx context.Context, token any, v transport.Verdict) error {
	s, ok := token.(*stored)
	if !ok {
		return invalid("the token is a %T, not a message that was browsed", token)
	}

	switch v.Action {
	case transport.Nak, transport.Extend:
		return nil
	case transport.Ack, transport.AckSync, transport.Term:
		err := deleteMessage(ctx, b.stream, s.sequence)
		if err != nil {
			return b.failure("delete", fmt.Sprintf("sequence %d", s.sequence), err)
		}

		return nil
	default:
		return invalid("a verdict with the action %d", v.Action)
	}
}

// deleteMessage deletes a message that may be gone already.
func deleteMessage(ctx context.Context, stream natsjs.Stream, sequence uint64) error {
	err := stream.DeleteMsg(ctx, sequence)
	if err == nil {
		return nil
	}

	if _, gone := stream.GetMsg(ctx, sequence); errors.Is(gone, natsjs.ErrMsgNotFound) {
		return nil
	}

	return mapError(err)
}

// Metadata implements [transport.Settler].
func (b *browsing) Metadata(token any) transport.Metadata {
	s, ok := token.(*stored)
	if !ok {
		return transport.Metadata{}
	}

	return transport.Metadata{Stream: b.name, Sequence: s.sequence, Timestamp: s.time}
}
