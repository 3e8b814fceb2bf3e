package jetstream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux/transport"
)

// The headers of an atomic batch (ADR-50). nats.go v1.55.0 has no names for
// them.
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

var _ transport.AtomicPublisher = (*Transport)(nil)

// PublishAtomic implements [transport.AtomicPublisher]. The stream needs
// AllowAtomicPublish (nats-server 2.12) and takes 1000 messages at the most;
// more are [transport.ErrTooLarge]. [transport.ErrUnavailable] says that the
// server dropped the batch before its last message came: because the leader of
// the stream changed, because there are too many batches at once, or because
// its subjects belong to several streams.
func (t *Transport) PublishAtomic(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	if len(msgs) == 0 {
		return transport.Receipt{}, nil
	}

	r, err := t.publishAtomic(ctx, msgs)
	if err != nil {
		return transport.Receipt{}, &transport.Error{Op: opPublish, Subject: msgs[0].Subject, Stream: r.Stream, Err: err}
	}

	return r, nil
}

func (t *Transport) publishAtomic(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	if t.closed.Load() {
		return transport.Receipt{}, transport.ErrClosed
	}

	if _, some := ctx.Deadline(); !some {
		var cancel context.CancelFunc

		ctx, cancel = context.WithTimeout(ctx, t.DefaultTimeout())
		defer cancel()
	}

	if err := connected(ctx, t.js.Conn()); err != nil {
		return transport.Receipt{}, err
	}

	if err := requires(t.js.Conn(), 12, "atomic batches (AllowAtomicPublish)"); err != nil {
		return transport.Receipt{}, err
	}

	r, err := t.commit(ctx, msgs)
	if !errors.Is(err, transport.ErrDuplicate) {
		return r, err
	}

	// It may be this very batch, of an earlier attempt, that is stored.
	if slices.ContainsFunc(msgs, func(msg transport.Message) bool { return msg.ID == "" }) {
		return r, err
	}

	switch last, stored, perr := t.allStored(ctx, msgs); {
	case perr != nil:
		return r, transport.Mark(transport.ErrPublishUnknown, transport.Mark(err, perr))
	case !stored:
		return r, err
	default:
		return last, nil
	}
}

// allStored is stored for several messages, and returns the receipt of the last
// one. It asks for all at once: one after the other, the time of an attempt
// would be over before.
func (t *Transport) allStored(ctx context.Context, msgs []transport.Message) (transport.Receipt, bool, error) {
	var (
		wg      sync.WaitGroup
		last    transport.Receipt
		missing atomic.Bool
		errs    = make([]error, len(msgs))
	)

	for i, msg := range msgs {
		wg.Go(func() {
			r, stored, err := t.stored(ctx, msg.Subject, msg.ID)
			if errs[i] = err; err == nil && !stored {
				missing.Store(true)
			}

			if i == len(msgs)-1 {
				last = r
			}
		})
	}

	wg.Wait()

	if missing.Load() {
		return transport.Receipt{}, false, nil
	}

	for _, err := range errs {
		if err != nil {
			return transport.Receipt{}, false, err
		}
	}

	return last, true, nil
}

// commit sends the messages of a batch, the last of which commits it. The
// server answers to the first, so that a stream without batches shows at once.
func (t *Transport) commit(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	nc := t.js.Conn()
	id := rand.Text()
	last := len(msgs) - 1
	headers := make([]nats.Header, len(msgs))

	for i, msg := range msgs {
		if msg.Reply != "" || msg.Terms != nil {
			return transport.Receipt{}, fmt.Errorf("%w: a reply subject or terms in a batch", transport.ErrUnsupported)
		}

		header, err := publishHeader(msg)
		if err != nil {
			return transport.Receipt{}, err
		}

		if header == nil {
			header = make(nats.Header, 3)
		}

		header.Set(headerBatchID, id)
		header.Set(headerBatchSequence, strconv.Itoa(i+1))

		if i == last {
			header.Set(headerBatchCommit, "1")
		}

		if err := checkHeader(header); err != nil {
			return transport.Receipt{}, err
		}

		// Before the first is sent: the server keeps a batch that has begun for
		// a while, and takes few at once.
		if err := checkSize(nc, header, msg.Data); err != nil {
			return transport.Receipt{}, err
		}

		headers[i] = header
	}

	for i, msg := range msgs[:last] {
		if i == 0 {
			if err := t.begin(ctx, msg, headers[0]); err != nil {
				return transport.Receipt{}, err
			}

			continue
		}

		if err := writable(nc); err != nil {
			return transport.Receipt{}, err
		}

		if err := nc.PublishMsg(&nats.Msg{Subject: msg.Subject, Header: headers[i], Data: msg.Data}); err != nil {
			return transport.Receipt{}, withoutEffect(sendError(err))
		}
	}

	var retry *transport.Retry
	if last > 0 {
		retry = &transport.Retry{} // the batch is gone with its leader
	} else {
		retry = msgs[0].Retry
	}

	return t.confirm(ctx, msgs[last].Subject, headers[last], msgs[last].Data, retry)
}

// begin sends the first message of a batch, of which nothing is stored without
// the last one.
func (t *Transport) begin(ctx context.Context, msg transport.Message, header nats.Header) error {
	reply, err := t.ask(ctx, msg.Subject, header, msg.Data, msg.Retry)
	if err != nil {
		return withoutEffect(err)
	}

	if len(reply.Data) == 0 {
		return nil // accepted
	}

	r, err := t.published.parse(reply)
	if err != nil {
		return err
	}

	return transport.Final(transport.Mark(transport.ErrPublishUnknown, fmt.Errorf(
		"%w: the server of stream %q knows no atomic batches (nats-server 2.12): it stored the first message alone, as %d: "+
			"delete it", transport.ErrUnsupported, r.Stream, r.Sequence)))
}

// withoutEffect is the error of a message before the last: what became of it
// does not matter.
func withoutEffect(err error) error {
	if unconfirmed, some := errors.AsType[*unconfirmedError](err); some {
		return unconfirmed.error
	}

	return err
}
