package transporttest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// outcome is a row of the table that says what becomes of a message.
type outcome struct {
	// name is also the payload.
	name string

	// handle is what the handler does at the first delivery, or at the last one
	// where deliveries are limited; later ones succeed.
	handle textHandler

	// deliveries is how often the handler sees the message where there is
	// redelivery; elsewhere it sees it once at the most.
	deliveries int
}

func returns(err error) textHandler {
	return func(context.Context, goflux.Message[string]) error { return err }
}

func panics(v any) textHandler {
	return func(context.Context, goflux.Message[string]) error {
		panic(v) //nolint:forbidigo // one of the outcomes
	}
}

var errHandler = errors.New("the handler's error")

// automatic is the table for automatic acks.
var automatic = []outcome{
	{"nil", returns(nil), 1},
	{"an error", returns(errHandler), 2},
	{"a wrapped error", returns(fmt.Errorf("wrapped: %w", errHandler)), 2},
	{"a context's error", returns(context.Canceled), 2},
	{"retry", returns(goflux.RetryAfter(0, nil)), 2},
	{"retry with a reason", returns(goflux.RetryAfter(1, errHandler)), 2},
	{"a wrapped retry", returns(fmt.Errorf("wrapped: %w", goflux.RetryAfter(0, nil))), 2},
	{"a joined retry", returns(errors.Join(errHandler, goflux.RetryAfter(0, nil))), 2},
	{"reject", returns(goflux.Reject(errHandler)), 1},
	{"reject without a reason", returns(goflux.Reject(nil)), 1},
	{"a wrapped reject", returns(fmt.Errorf("wrapped: %w", goflux.Reject(errHandler))), 1},
	{"a joined reject", returns(errors.Join(errHandler, goflux.Reject(nil))), 1},
	{"drop", returns(goflux.Drop(errHandler)), 1},
	{"drop without a reason", returns(goflux.Drop(nil)), 1},
	{"a wrapped drop", returns(fmt.Errorf("wrapped: %w", goflux.Drop(errHandler))), 1},
	{"a reject around a retry", returns(goflux.Reject(goflux.RetryAfter(0, nil))), 1},
	{"a retry around a drop", returns(goflux.RetryAfter(0, goflux.Drop(nil))), 2},
	{"a panic", panics("with a text"), 2},
	{"a panic with an error", panics(errHandler), 2},
	{undecodable, returns(nil), 0},
	{explosive, returns(nil), 0},
}

// byHand is the table for manual acks.
var byHand = []outcome{
	{"nothing", returns(nil), 2}, // its lease runs out
	{"an error", returns(errHandler), 2},
	{"reject", returns(goflux.Reject(nil)), 2},
	{"ack", verb("ack", nil), 1},
	{"ack sync", verb("ack sync", nil), 1},
	{"ack and an error", verb("ack", errHandler), 1},
	{"ack and a panic", func(_ context.Context, msg goflux.Message[string]) error {
		_ = msg.Ack()

		panic("too late") //nolint:forbidigo // one of the outcomes
	}, 1},
	{"nak", verb("nak", nil), 2},
	{"nak with delay", verb("nak with delay", nil), 2},
	{"term", verb("term", nil), 1},
	{"in progress", verb("in progress", nil), 2}, // its lease runs out, later
	{"a panic", panics("with a text"), 2},
	{undecodable, returns(nil), 0},
	{explosive, returns(nil), 0},
}

// lastAttempt is the table for messages that are delivered twice at the most,
// and of which the first delivery has failed.
var lastAttempt = []outcome{
	{"nil", returns(nil), 2},
	{"an error", returns(errHandler), 2},
	{"retry", returns(goflux.RetryAfter(0, nil)), 2},
	{"reject", returns(goflux.Reject(errHandler)), 2},
	{"drop", returns(goflux.Drop(nil)), 2},
	{"a panic", panics("with a text"), 2},
	{undecodable, returns(nil), 0},
}

func verb(name string, err error) textHandler {
	return func(_ context.Context, msg goflux.Message[string]) error {
		if verr := verbs[name](msg); verr != nil {
			return verr
		}

		return err
	}
}

func outcomesAutomatic(e *env) { e.outcomes(Config{AckWait: leased}, automatic, false) }

func outcomesManual(e *env) { e.outcomes(Config{AckWait: leased}, byHand, true) }

func outcomesLastAttempt(e *env) {
	e.outcomes(Config{AckWait: leased, MaxDeliver: 2}, lastAttempt, false)
}

// outcomes sends one message for each row of the table, and holds the number of
// its deliveries against it when nothing can come back any more.
func (e *env) outcomes(cfg Config, table []outcome, manual bool) {
	b := e.start(cfg)
	t := b.open()
	subject := b.subject("outcomes")

	var opts []goflux.SubscriberOption

	if manual {
		if !b.has(transport.Acks) {
			_, err := goflux.NewSubscriber(t, text, goflux.WithManualAck())
			e.is(err, goflux.ErrUnsupported, "WithManualAck without acks")

			return
		}

		opts = append(opts, goflux.WithManualAck())
	}

	decisive := 1

	if b.has(transport.Redelivery) {
		opts = append(opts, goflux.WithRetryPolicy(goflux.ConstantRetry(0)))
		decisive = max(decisive, cfg.MaxDeliver)
	}

	var (
		rows  = map[string]outcome{}
		mu    sync.Mutex
		calls = map[string]int{}
		guard = b.sentinel()
	)

	guard.manual = manual

	for _, row := range table {
		rows[row.name] = row
	}

	e.subscribe(t, subject, guard.guard(func(ctx context.Context, msg goflux.Message[string]) error {
		row, known := rows[msg.Payload]
		if !known {
			e.Errorf("a message %q was never sent", msg.Payload)

			return nil
		}

		mu.Lock()
		calls[row.name]++
		call := calls[row.name]
		mu.Unlock()

		switch {
		case call < decisive:
			return goflux.RetryAfter(0, nil)
		case call == decisive:
			return row.handle(ctx, msg)
		case manual:
			return msg.Ack()
		default:
			return nil
		}
	}), opts...)

	want := map[string]int{}

	for _, row := range table {
		want[row.name] = row.deliveries

		switch {
		case !b.has(transport.Redelivery):
			want[row.name] = min(1, row.deliveries)
		case manual && !b.has(transport.Leases) && slices.Contains([]string{"nothing", "an error", "reject", "in progress"}, row.name):
			want[row.name] = 1
		}

		e.publish(t, subject, row.name)
	}

	guard.behind(t, subject)

	mu.Lock()
	defer mu.Unlock()

	for _, name := range slices.Sorted(maps.Keys(want)) {
		if calls[name] != want[name] {
			e.Errorf("%s: the handler saw the message %d times, want %d", name, calls[name], want[name])
		}
	}
}
