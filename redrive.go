package goflux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/foomo/goflux/transport"
)

// RedriveResult tells what [Redrive] did.
type RedriveResult struct {
	// Sent is how many messages were sent back to their subjects. They are no
	// longer among the dead letters.
	Sent int

	// Duplicate is how many more the broker already had, from an earlier run
	// that did not come to its end. They are no longer among the dead letters
	// either.
	Duplicate int

	// Kept is how many dead letters the filter left where they are.
	Kept int

	// Failed is how many could not be sent back, and are where they were.
	Failed int
}

// Redrive sends dead letters back to the subjects they came from, one after the
// other, and removes them. It takes those on subject, which may have wildcards,
// that filter wants, or all if filter is nil; the others stay. It returns when
// there are no more at the moment. A filter that always returns false shows
// what is there and changes nothing:
//
//	_, err := goflux.Redrive(ctx, from, to, "dead.orders", func(d goflux.DeadLetter[[]byte]) bool {
//		fmt.Println(d.Time, d.Subject, d.Reason, d.Error)
//		return false
//	})
//
// On JetStream, from is the transport of jetstream.New(js), and the dead
// letters are read, in their order, in the stream that has them: one that was
// sent back is deleted from it, the others are not touched. On other
// transports, and where opts have [WithQueueGroup], they are taken as a member of
// that group: one that was sent back is acked, the others are handed back at the
// end. A group gives out no more than its limit of unsettled messages, and
// Redrive fails when those it keeps have reached it; a group with a limit of
// deliveries is refused. to is mostly the same transport; on one without
// receipts (core NATS) a message is lost where nobody listens.
//
// A message is sent back with its bytes and its headers, save those that
// instructed the server (Nats-...) and those that no client can send, and with
// a header Goflux-Redriven that counts how often. It keeps its id
// ([Message.ID]). All who subscribe to its subject receive it, also those who
// had handled it; they recognise it by the id.
//
// Each message is sent once, also when Redrive is interrupted and run again: it
// goes out under an id for the broker's de-duplication that is always the same,
// and its dead letter is removed when the broker has stored it. The end of ctx
// interrupts between two messages. What a crash interrupted between sending and
// removing is sent twice if the next run comes later than the de-duplication
// window of the stream (2 minutes by default), or if that has none; it can be
// one message a crash. With a queue group, that one comes back only when its
// lease has run out.
//
// A dead letter that cannot be sent back does not stop the others, unless the
// broker is the reason. The error tells the first one: an [*Error] around
// [ErrInvalidSubject] (what it holds is no dead letter, or its subject is the
// server's own), [ErrNoStream], [ErrTooLarge], [ErrStreamNotFound],
// [ErrDisconnected], [ErrUnsupported] or ctx's own error.
func Redrive(
	ctx context.Context, from transport.Subscriber, to transport.Publisher, subject string,
	filter func(DeadLetter[[]byte]) bool, opts ...ConsumerOption,
) (RedriveResult, error) {
	var (
		result RedriveResult
		first  error
	)

	letters, cfg, err := deadLetters(ctx, from, to, subject, opts)
	if err != nil {
		return result, &Error{Op: "redrive", Subject: subject, Err: err}
	}

	r := redrive{to: to, filter: filter, subject: subject, telemetry: cfg.tel()}

	for d, err := range letters {
		if err == nil {
			err = r.send(ctx, d, &result)
		}

		switch {
		case err == nil:
		case ends(err):
			return result, &Error{Op: "redrive", Subject: subject, Err: err}
		default:
			result.Failed++
			first = cmp.Or(first, err)
		}
	}

	if first != nil {
		return result, &Error{Op: "redrive", Subject: subject, Err: fmt.Errorf(
			"%d dead letters could not be sent back, and stay; the first: %w", result.Failed, first)}
	}

	return result, nil
}

// keptError is about one dead letter, and says nothing of the others.
type keptError struct{ error }

func (e keptError) Unwrap() error { return e.error }

func ends(err error) bool {
	_, kept := errors.AsType[keptError](err)

	return !kept
}

type redrive struct {
	to        transport.Publisher
	filter    func(DeadLetter[[]byte]) bool
	subject   string
	telemetry *Telemetry
}

// send sends one message back and removes its dead letter.
func (r *redrive) send(ctx context.Context, d transport.Delivery, result *RedriveResult) error {
	if err := ctx.Err(); err != nil {
		return err
	}

	dead := parseDeadLetter(d.Header, d.Data)

	// What was begun is finished, so that the end of ctx leaves nothing in
	// between.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*settleTimeout)
	defer cancel()

	if r.filter != nil && !r.filter(dead) {
		result.Kept++

		return keep(ctx, d, nil)
	}

	if err := r.check(dead); err != nil {
		return keep(ctx, d, keptError{err})
	}

	start := r.telemetry.clock(ctx, r.telemetry.sent, r.telemetry.duration)
	msg := redriven(dead)
	spanned, span := r.telemetry.startSend(ctx, msg.Subject, headerID(msg.Header))
	receipt, err := r.to.Publish(spanned, msg)
	r.telemetry.endSend(spanned, span, start, err)

	switch {
	case err == nil:
	case errors.Is(err, ErrNoStream), errors.Is(err, ErrTooLarge), errors.Is(err, ErrInvalidHeader), errors.Is(err, ErrInvalidSubject):
		return keep(ctx, d, keptError{err})
	default:
		return keep(ctx, d, err)
	}

	if err := d.Settler.Settle(ctx, d.Token, transport.Verdict{Action: transport.AckSync}); err != nil {
		return fmt.Errorf("a message was sent back to %q, but its dead letter could not be removed: %w", dead.Subject, err)
	}

	if receipt.Duplicate {
		result.Duplicate++
	} else {
		result.Sent++
	}

	return nil
}

// keep leaves a dead letter where it is, and returns err.
func keep(ctx context.Context, d transport.Delivery, err error) error {
	return errors.Join(err, d.Settler.Settle(ctx, d.Token, transport.Verdict{Action: transport.Nak}))
}

// check refuses what must not be sent. The subject comes from whoever may write
// to the dead letters: it must not become a request to the server with the
// rights of the one who redrives.
func (r *redrive) check(dead DeadLetter[[]byte]) error {
	switch err := transport.ValidateSubject(dead.Subject); {
	case dead.Subject == "":
		return fmt.Errorf("%w: a message on %q is no dead letter: it does not tell where it came from", ErrInvalidSubject, r.subject)
	case err != nil:
		return err
	case strings.HasPrefix(dead.Subject, "$"):
		return fmt.Errorf("%w: %q is a subject of the server", ErrInvalidSubject, dead.Subject)
	case transport.Covers(r.subject, dead.Subject):
		return fmt.Errorf("%w: %q would come back among the dead letters", ErrInvalidSubject, dead.Subject)
	default:
		return nil
	}
}

// redriven returns the message that died.
func redriven(dead DeadLetter[[]byte]) transport.Message {
	h := make(Header, len(dead.Header)+1)

	for key, values := range dead.Header {
		if !hasPrefixFold(key, "Nats-") && (Header{key: values}).Validate() == nil {
			h[key] = values
		}
	}

	// The broker gets another id to de-duplicate by, since it may remember
	// the first; the receiver's stays.
	if id := dead.ID(); id != "" && transport.ValidateValue(transport.HeaderMessageID, id) == nil {
		h.Set(transport.HeaderMessageID, id)
	}

	h.Set(headerRedriven, strconv.Itoa(dead.Redriven+1))

	return transport.Message{Subject: dead.Subject, Header: h, Data: dead.Raw, ID: redriveID(dead)}
}

// browser is a transport that can read stored messages where they are. An ack
// of what it yields removes the message, a nak leaves it.
type browser interface {
	// Browse yields the messages that are stored when it is called and that
	// filter selects, in their order. An error is the last thing it yields.
	Browse(ctx context.Context, filter string) iter.Seq2[transport.Delivery, error]
}

// deadLetters returns what is among the dead letters at the moment.
func deadLetters(
	ctx context.Context, from transport.Subscriber, to transport.Publisher, subject string, opts []ConsumerOption,
) (iter.Seq2[transport.Delivery, error], *consumerConfig, error) {
	var cfg consumerConfig

	if from == nil || to == nil {
		return nil, nil, fmt.Errorf("%w: a transport is nil", ErrInvalidOption)
	}

	if err := transport.ValidateFilter(subject); err != nil {
		return nil, nil, err
	}

	if err := applyOptions(opts, ConsumerOption.applyConsumer, &cfg); err != nil {
		return nil, nil, err
	}

	if cfg.deadLetter != nil {
		return nil, nil, fmt.Errorf("%w: WithDeadLetter: what is redriven comes from the dead letters", ErrInvalidOption)
	}

	b, browses := from.(browser)

	switch {
	case cfg.group != "":
		c, err := NewConsumer(from, passThrough, subject, opts...)
		if err != nil {
			return nil, nil, err
		}

		return lettersOfGroup(ctx, c), &cfg, nil
	case browses:
		return b.Browse(ctx, subject), &cfg, nil
	default:
		return nil, nil, fmt.Errorf("%w: what is stored cannot be read in place here: use WithQueueGroup "+
			"with the group that keeps the dead letters", ErrUnsupported)
	}
}
