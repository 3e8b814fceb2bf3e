package transporttest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
	"github.com/foomo/goflux/transport/transporttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A suite is worth what it finds: each row breaks a transport in one way, and
// names the item that has to fail and what it has to say.
var defects = map[string]struct {
	harm func(w *wrapper)
	item string
	says string
}{
	"loses one message of a hundred": {
		func(w *wrapper) {
			var n atomic.Int64
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) {
				if n.Add(1)%100 != 0 {
					sink(d)
				}
			}
		}, "02_Delivery_NothingIsLostAmongManySubscribers", "waited in vain for: all subscribers",
	},
	"delivers twice": {
		func(w *wrapper) {
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) { sink(d); sink(d) }
		}, "04_Delivery_GroupsShareAndOthersGetAll", "2 times, want once",
	},
	"changes the payload": {
		func(w *wrapper) {
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) {
				d.Data = bytes.ToValidUTF8(d.Data, []byte("?"))
				sink(d)
			}
		}, "24_Content_BodiesRoundTrip", "arrived as",
	},
	"drops a header": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				delete(msg.Header, "lower-case")

				return w.Transport.Publish(ctx, msg)
			}
		}, "01_Delivery_MessagesArriveUnaltered", "has the headers",
	},
	"keeps one value of a header": {
		func(w *wrapper) {
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) {
				for k, vs := range d.Header {
					d.Header[k] = vs[:1]
				}
				sink(d)
			}
		}, "25_Content_HeadersRoundTrip", "arrived as",
	},
	"folds the case of headers": {
		func(w *wrapper) {
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) {
				for k, vs := range maps.Clone(d.Header) {
					delete(d.Header, k)
					d.Header[strings.ToLower(k)] = vs
				}
				sink(d)
			}
		}, "25_Content_HeadersOfForeignClients", `the header "X-Foreign" arrived as []`,
	},
	"takes * for >": {
		func(w *wrapper) {
			w.subscribe = func(cfg transport.SubscribeConfig) transport.SubscribeConfig {
				if cut, ok := strings.CutSuffix(cfg.Subject, ".*"); ok {
					cfg.Subject = cut + ".>"
				}

				return cfg
			}
		}, "03_Delivery_WildcardsAsNATSDefinesThem", "the filter",
	},
	"gives each member of a group everything": {
		func(w *wrapper) {
			w.subscribe = func(cfg transport.SubscribeConfig) transport.SubscribeConfig {
				cfg.Group = ""

				return cfg
			}
		}, "04_Delivery_GroupsShareAndOthersGetAll", "times, want once",
	},
	"gives one member of a group everything": {
		func(w *wrapper) {
			var first sync.Map
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) { sink(d) }
			w.subscribe = func(cfg transport.SubscribeConfig) transport.SubscribeConfig {
				if _, taken := first.LoadOrStore(cfg.Group, true); taken && cfg.Group != "" {
					cfg.Subject += ".nothing"
					cfg.Group += "-others"
				}

				return cfg
			}
		}, "04_Delivery_GroupsShareAndOthersGetAll", "gets nothing while the others are busy",
	},
	"mixes up the order": {
		func(w *wrapper) {
			var kept sync.Map
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) {
				// The third goes behind the fourth.
				switch string(d.Data) {
				case "3":
					kept.Store("3", d)
				case "4":
					sink(d)
					if d, ok := kept.LoadAndDelete("3"); ok {
						sink(d.(transport.Delivery))
					}
				default:
					sink(d)
				}
			}
		}, "05_Delivery_OrderIsKept", "want [0 1 2 3 4",
	},
	"claims a history that it does not have": {
		func(w *wrapper) { w.caps |= transport.Of(transport.Replay) },
		"06_Delivery_LateSubscribersAndHistory", "got [after], want [0 1 2 3 4 after]",
	},
	"denies that its groups are durable": {
		func(w *wrapper) { w.caps &^= transport.Of(transport.Durable) },
		"06_Delivery_GroupsKeepTheirPlace", "got [with a member without a member",
	},
	"does not redeliver": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				if v.Action == transport.Nak {
					v.Action = transport.Term
				}

				return next(v)
			}
		}, "07_Settlement_NakIsRedelivered", "waited in vain for: the deliveries of a naked message",
	},
	"denies that it redelivers": {
		func(w *wrapper) {
			w.caps &^= transport.Of(transport.Redelivery, transport.DelayedNak, transport.Leases)
			// Under the covers it comes back.
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) {
				sink(d)
				if string(d.Data) == "again" {
					sink(d)
				}
			}
		}, "07_Settlement_FailureIsRedelivered", "got [again again], want [again]",
	},
	"leaves redelivering to the lease": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				if v.Action == transport.Nak {
					return nil
				}

				return next(v)
			}
		}, "20_Lifecycle_DrainFinishesWhatRuns", "waited in vain for: what the draining member had buffered",
	},
	"ignores the delay": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				v.Delay = 0

				return next(v)
			}
		}, "08_Settlement_DelaysAreHonoured", "redelivered after",
	},
	"does not count attempts": {
		func(w *wrapper) {
			w.metadata = func(m transport.Metadata) transport.Metadata {
				m.Attempt = 1

				return m
			}
		}, "09_Settlement_AttemptsAreCounted", "got [1 1 1 1], want [1 2 3 4]",
	},
	"does not limit attempts": {
		func(w *wrapper) { w.maxDeliver = 0 },
		"09_Settlement_AttemptsAreLimited", "Info().MaxDeliver is 0, want 3",
	},
	"redelivers after Term": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				if v.Action == transport.Term {
					v.Action = transport.Nak
				}

				return next(v)
			}
		}, "10_Settlement_TermIsFinal", "want [reject drop]",
	},
	"loses Term on its way": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				if v.Action == transport.Term {
					return nil
				}

				return next(v)
			}
		}, "10_Settlement_TermIsFinal", "want [reject drop]",
	},
	"has no leases": {
		func(w *wrapper) {
			ackWait := w.ackWait
			w.ackWait = time.Hour
			w.info = func(i transport.Info) transport.Info {
				i.AckWait = ackWait

				return i
			}
		}, "11_Settlement_LeasesExpire", "waited in vain for: the delivery after the lease ran out",
	},
	"does not extend leases": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				if v.Action == transport.Extend {
					return nil
				}

				return next(v)
			}
		}, "11_Settlement_LeasesAreExtended", "want [slow behind]",
	},
	"lets the leases of handlers run out": {
		func(w *wrapper) {
			w.info = func(i transport.Info) transport.Info {
				i.AckWait = time.Hour // as long as this nobody needs to extend

				return i
			}
		}, "11_Settlement_WorkingHandlersKeepTheirLeases", "times, want once",
	},
	"takes a second verdict": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				if err := next(v); !errors.Is(err, transport.ErrSettled) {
					return err
				}

				return nil
			}
		}, "12_Settlement_SecondSettleIsHarmless", "want one that matches",
	},
	"loses acks": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				if v.Action == transport.Ack {
					return nil
				}

				return next(v)
			}
		}, "13_Settlement_OutcomesAutomatic", "nil: the handler saw the message 2 times, want 1",
	},
	"forgets a group that has no members": {
		func(w *wrapper) {
			var n atomic.Int64
			w.subscribe = func(cfg transport.SubscribeConfig) transport.SubscribeConfig {
				if cfg.Group != "" {
					cfg.Group = fmt.Sprintf("%s-%d", cfg.Group, n.Add(1))
				}

				return cfg
			}
		}, "15_Lifecycle_CancelledSubscribeReturnsAndTheRestWaits", "waited in vain for: the rest",
	},
	"loses what a subscription hands back": {
		func(w *wrapper) {
			w.settle = func(next settle, v transport.Verdict) error {
				if v.Action == transport.Nak && v.Delay == 0 {
					v.Action = transport.Ack
				}

				return next(v)
			}
		}, "20_Lifecycle_DrainFinishesWhatRuns", "waited in vain for: what the draining member had buffered",
	},
	"fails when it is closed twice": {
		func(w *wrapper) {
			var closed atomic.Bool
			w.close = func() error {
				if closed.Swap(true) {
					return errors.New("closed already")
				}

				return w.Transport.Close()
			}
		}, "16_Lifecycle_ManyMayCloseAtOnce", "closed already",
	},
	"publishes in silence after Close": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				r, err := w.Transport.Publish(ctx, msg)
				if errors.Is(err, transport.ErrClosed) {
					return transport.Receipt{}, nil
				}

				return r, err
			}
		}, "17_Lifecycle_UseAfterCloseIsATypedError", "publish after closing the transport: error <nil>",
	},
	"leaves subscriptions waiting when it is closed": {
		func(w *wrapper) { w.done = make(chan struct{}) },
		"17_Lifecycle_UseAfterCloseIsATypedError", "waited in vain for: Subscribe to return",
	},
	"publishes whatever ctx says": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				return w.Transport.Publish(context.WithoutCancel(ctx), msg)
			}
		}, "19_Lifecycle_CancelledContexts", "Publish of the transport: error <nil>",
	},
	"leaves a goroutine behind": {
		func(w *wrapper) {
			forever := make(chan struct{})
			w.subscribe = func(cfg transport.SubscribeConfig) transport.SubscribeConfig {
				go func() { <-forever }()

				return cfg
			}
			w.end = func() { close(forever) }
		}, "21_Lifecycle_NoGoroutineIsLeft", "all goroutines of the transport to end",
	},
	"says nothing of size": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				r, err := w.Transport.Publish(ctx, msg)
				if errors.Is(err, transport.ErrTooLarge) {
					err = errors.New("failed")
				}

				return r, err
			}
		}, "24_Content_BodiesRoundTrip", "a body over the limit",
	},
	"stores an id twice": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				msg.ID = ""

				return w.Transport.Publish(ctx, msg)
			}
		}, "27_Content_SameIDIsStoredOnce", "the receipt of",
	},
	"does not tell of a duplicate": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				r, err := w.Transport.Publish(ctx, msg)
				r.Duplicate = false

				return r, err
			}
		}, "27_Content_SameIDIsStoredOnce", "the receipt of",
	},
	"ignores credit": {
		func(w *wrapper) { w.request = func(s transport.Subscription, n int) { s.Request(1000 * n) } },
		"31_Contract_CreditIsNeverExceeded", "deliveries for a credit of 3",
	},
	"forgets credit": {
		func(w *wrapper) { w.request = func(s transport.Subscription, _ int) { s.Request(1) } },
		"31_Contract_CreditIsNeverExceeded", "waited in vain for: what was requested",
	},
	"does not pause": {
		func(w *wrapper) { w.pause = func() error { return nil } },
		"32_Contract_PauseTakesCreditBack", "waited in vain for: a message for the other member",
	},
	"delivers after Close": {
		func(w *wrapper) { w.closeSub = func() error { return nil } },
		"33_Contract_CloseHandsOver", "deliveries after Close",
	},
	"calls the sink from several goroutines": {
		func(w *wrapper) {
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) {
				go sink(d)
			}
		}, "35_Contract_SinkIsCalledSerially", "the sink is called while it runs",
	},
	"keeps the publisher's buffer": {
		func(w *wrapper) {
			var last []byte
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				last = msg.Data

				return w.Transport.Publish(ctx, msg)
			}
			w.deliver = func(sink func(transport.Delivery), d transport.Delivery) {
				d.Data = last
				sink(d)
			}
		}, "36_Contract_BuffersBelongToTheirOwners", "want what was published",
	},
	"settles in silence without acks": {
		func(w *wrapper) {
			w.caps = transport.Of(transport.Groups)
			w.settle = func(settle, transport.Verdict) error { return nil }
		}, "07_Settlement_NakIsRedelivered", "ack without acks: error <nil>",
	},
	"has receipts and denies it": {
		func(w *wrapper) { w.caps &^= transport.Of(transport.Receipts, transport.Deduplication) },
		"01_Delivery_MessagesArriveUnaltered", "want none without the capability",
	},
	"de-duplicates and denies it": {
		func(w *wrapper) { w.caps &^= transport.Of(transport.Deduplication) },
		"27_Content_SameIDIsStoredOnce", "the receipt of",
	},
	"claims what it does not implement": {
		func(w *wrapper) { w.caps |= transport.Of(transport.RequestReply) },
		"37_Contract_CapabilitiesAndInfo", "the transport claims request-reply and does not implement it",
	},
	"takes what is expected for granted": {
		func(w *wrapper) {
			w.remember()
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				msg.Terms = nil

				return w.Transport.Publish(ctx, msg)
			}
		}, "39_Publish_ExpectedSequenceHolds", "error <nil>, want one that matches \"conflict",
	},
	"takes the subject for the stream": {
		func(w *wrapper) {
			w.remember()
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				if terms := msg.Terms; terms != nil && terms.LastSequence == nil {
					msg.Terms = &transport.Terms{LastSequence: terms.LastSubjectSequence}
				}

				return w.Transport.Publish(ctx, msg)
			}
		}, "39_Publish_ExpectedSequenceHolds", "send third with the last sequence as it is expected",
	},
	"does not tell what conflicts": {
		func(w *wrapper) {
			w.remember()
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				r, err := w.Transport.Publish(ctx, msg)
				if conflict, some := errors.AsType[*transport.ConflictError](err); some {
					conflict.Expected, conflict.Last = conflict.Last, conflict.Expected
				}

				return r, err
			}
		}, "39_Publish_ExpectedSequenceHolds", "the conflict is between",
	},
	"conflicts with itself": {
		func(w *wrapper) {
			w.remember()
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				if msg.Terms != nil {
					msg.ID = ""
				}

				return w.Transport.Publish(ctx, msg)
			}
		}, "39_Publish_ExpectedSequenceHolds", "send again with the last sequence as it is expected",
	},
	"lets all of a race win": {
		func(w *wrapper) {
			w.remember()
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				if string(msg.Data) == "won" {
					msg.Terms = nil
				}

				return w.Transport.Publish(ctx, msg)
			}
		}, "39_Publish_ExpectedSequenceHolds", "8 of 8 who expect the same sequence succeed",
	},
	"keeps messages for ever": {
		func(w *wrapper) { w.caps |= transport.Of(transport.MessageTTL) }, // for who comes back
		"40_Publish_MessagesExpire", "the end of a message with a TTL of a second",
	},
	"keeps messages in its history for ever": {
		func(w *wrapper) {
			w.remember()
			w.caps |= transport.Of(transport.MessageTTL)
		}, "40_Publish_MessagesExpire", "the end of a message with a TTL of a second",
	},
	"keeps messages with a TTL for a moment": {
		func(w *wrapper) {
			w.caps |= transport.Of(transport.MessageTTL)
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				if msg.Terms != nil {
					return transport.Receipt{Stream: memory.Stream, Sequence: 1}, nil
				}

				return w.Transport.Publish(ctx, msg)
			}
		}, "40_Publish_MessagesExpire", `the first message that is kept is "for ever"`,
	},
	"has TTLs and keeps nothing": {
		func(w *wrapper) { w.caps = transport.Of(transport.MessageTTL) },
		"40_Publish_MessagesExpire", "the transport claims message TTL and keeps no messages",
	},
	"does not wait until it is time": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				msg.Terms = nil

				return w.Transport.Publish(ctx, msg)
			}
		}, "41_Publish_LaterIsNeverEarly", `"at" arrived`,
	},
	"counts in seconds": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				if msg.Terms != nil {
					msg.Terms = &transport.Terms{At: msg.Terms.At.Truncate(time.Second)}
				}

				return w.Transport.Publish(ctx, msg)
			}
		}, "41_Publish_LaterIsNeverEarly", `"at" arrived`,
	},
	"forgets what waits": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				if msg.Terms != nil {
					return transport.Receipt{Stream: memory.Stream, Sequence: 1}, nil
				}

				return w.Transport.Publish(ctx, msg)
			}
		}, "41_Publish_LaterIsNeverEarly", "waited in vain for: all messages",
	},
	"lets an id wait twice": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				msg.ID = ""

				return w.Transport.Publish(ctx, msg)
			}
		}, "41_Publish_LaterIsNeverEarly", "got at 2 times, want once",
	},
	"publishes an atomic batch one by one": {
		func(w *wrapper) {
			w.atomic = func(ctx context.Context, msgs []transport.Message) (r transport.Receipt, err error) {
				for _, msg := range msgs {
					if r, err = w.Publish(ctx, msg); err != nil {
						return transport.Receipt{}, err
					}
				}

				return r, nil
			}
		}, "42_Publish_AtomicBatchesAreAllOrNothing", "want [alone first second x y z mine 1 mine 2",
	},
	"lets others between an atomic batch": {
		func(w *wrapper) {
			w.atomic = func(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
				if bytes.HasPrefix(msgs[0].Data, []byte("batch")) {
					if _, err := w.plainAtomic(ctx, msgs[:1]); err != nil {
						return transport.Receipt{}, err
					}

					msgs = msgs[1:]

					if _, err := w.Publish(ctx, transport.Message{Subject: msgs[0].Subject, Data: []byte("single")}); err != nil {
						return transport.Receipt{}, err
					}
				}

				return w.plainAtomic(ctx, msgs)
			}
		}, "42_Publish_AtomicBatchesAreAllOrNothing", "a batch arrived as [batch",
	},
	"does not know what became of an atomic batch": {
		func(w *wrapper) {
			w.atomic = func(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
				r, err := w.plainAtomic(ctx, msgs)
				if err != nil {
					err = transport.Mark(transport.ErrPublishUnknown, err)
				}

				return r, err
			}
		}, "42_Publish_AtomicBatchesAreAllOrNothing", "want it to be known that nothing is stored",
	},
	"answers a batch with the receipts of others": {
		func(w *wrapper) {
			w.outcome = func(done outcome, token uint64, r transport.Receipt, err error) {
				if r.Sequence > 0 {
					r.Sequence = 1000 - r.Sequence
				}
				done(token, r, err)
			}
		}, "43_Publish_BatchesAnswerInOrder", "a batch: the receipt 1 is",
	},
	"does not tell of the duplicates of a batch": {
		func(w *wrapper) {
			w.outcome = func(done outcome, token uint64, r transport.Receipt, err error) {
				r.Duplicate = false
				done(token, r, err)
			}
		}, "43_Publish_BatchesAnswerInOrder", "when it was published again",
	},
	"mixes up the messages of a batch": {
		func(w *wrapper) {
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				switch string(msg.Data) {
				case "3":
					msg.Data = []byte("4")
				case "4":
					msg.Data = []byte("3")
				}

				return w.Transport.Publish(ctx, msg)
			}
		}, "43_Publish_BatchesAnswerInOrder", "want [0 1 2 3 4",
	},
	"answers under another token": {
		func(w *wrapper) {
			w.outcome = func(done outcome, token uint64, r transport.Receipt, err error) { done(token&0xffffffff, r, err) }
		}, "44_Publish_PipelinesAnswerByToken", "done got",
	},
	"answers twice": {
		func(w *wrapper) {
			w.outcome = func(done outcome, token uint64, r transport.Receipt, err error) {
				done(token, r, err)
				done(token, r, err)
			}
		}, "44_Publish_PipelinesAnswerByToken", "2 times, want once",
	},
	"answers from several goroutines": {
		func(w *wrapper) {
			w.outcome = func(done outcome, token uint64, r transport.Receipt, err error) {
				var answering sync.WaitGroup
				for range 2 {
					answering.Go(func() { done(token, r, err) })
				}
				answering.Wait()
			}
		}, "44_Publish_PipelinesAnswerByToken", "done is called while it runs",
	},
	"answers after Close": {
		func(w *wrapper) {
			var closed atomic.Bool
			w.closePipe = func(next func() error, done outcome) error {
				if closed.Swap(true) {
					done(0, transport.Receipt{}, nil)
				}

				return next()
			}
		}, "44_Publish_PipelinesAnswerByToken", "done is called after Close",
	},
	"leaves what is under way waiting when it is closed": {
		func(w *wrapper) { w.endless = true },
		"44_Publish_PipelinesAnswerByToken", "waited in vain for: the end of the pipeline",
	},
	"flushes nothing": {
		func(w *wrapper) {
			w.caps = transport.Of(transport.Groups)

			var kept sync.Map // the last message, until the next one is sent
			w.publish = func(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
				last, some := kept.LoadAndDelete("last")
				if !some {
					kept.Store("last", msg)

					return transport.Receipt{}, nil
				}

				_, err := w.Transport.Publish(ctx, msg)
				_, lastErr := w.Transport.Publish(ctx, last.(transport.Message))

				return transport.Receipt{}, errors.Join(err, lastErr)
			}
		}, "45_Publish_FlushedIsThere", "the subscription got [1 0 3 2",
	},
	"loses every tenth answer": {
		func(w *wrapper) {
			w.outcome = func(done outcome, token uint64, r transport.Receipt, err error) {
				if r.Sequence%10 > 0 {
					done(token, r, err)
				}
			}
		}, "45_Publish_FlushedIsThere", "context deadline exceeded",
	},
	"has delays without redelivery": {
		func(w *wrapper) { w.caps = transport.Of(transport.Acks, transport.DelayedNak) },
		"37_Contract_CapabilitiesAndInfo", "the transport has delayed nak without redelivery",
	},
}

func TestDefectsAreFound(t *testing.T) {
	t.Parallel()

	var (
		running sync.WaitGroup
		slots   = make(chan struct{}, 12)
	)

	for name, defect := range defects { //nolint:paralleltest // they run side by side all the same
		slots <- struct{}{}

		running.Go(func() {
			defer func() { <-slots }()

			t.Run(name, func(t *testing.T) {
				said := try(t, broken(defect.harm), defect.item)
				if !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, defect.says) }) {
					t.Errorf("%s says %q, want something with %q", defect.item, said[:min(5, len(said))], defect.says)
				}
			})
		})
	}

	running.Wait()
}

// Without a defect the same items have nothing to say.
func TestUnbrokenPasses(t *testing.T) {
	t.Parallel()

	var running sync.WaitGroup

	for _, name := range transporttest.Names() { //nolint:paralleltest // they run side by side all the same
		if !slices.ContainsFunc(slices.Collect(maps.Values(defects)), func(d struct {
			harm func(w *wrapper)
			item string
			says string
		}) bool {
			return d.item == name
		}) {
			continue
		}

		running.Go(func() {
			t.Run(name, func(t *testing.T) {
				if said := try(t, broken(func(*wrapper) {}), name); len(said) > 0 {
					t.Errorf("says %q", said)
				}
			})
		})
	}

	running.Wait()
}

// try runs an item and returns how it failed.
func try(t *testing.T, h transporttest.Harness, item string) []string {
	t.Helper()

	r := &recorder{TB: t}
	done := make(chan struct{})

	go func() {
		defer close(done)
		defer r.end()

		transporttest.RunItem(r, h, item)
	}()
	<-done

	r.mu.Lock()
	defer r.mu.Unlock()

	return r.said
}

// recorder is a test that keeps to itself how it fails.
type recorder struct {
	testing.TB

	mu       sync.Mutex
	said     []string
	cleanups []func()
	ctx      context.Context
	cancel   context.CancelFunc
}

func (r *recorder) say(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.said = append(r.said, s)
}

func (r *recorder) Error(args ...any)                 { r.say(fmt.Sprint(args...)) }
func (r *recorder) Errorf(format string, args ...any) { r.say(fmt.Sprintf(format, args...)) }

func (r *recorder) Fatal(args ...any) {
	r.Error(args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Log(...any)          {}
func (r *recorder) Logf(string, ...any) {}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	return len(r.said) > 0
}

func (r *recorder) Context() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()

	if r.ctx == nil {
		r.ctx, r.cancel = context.WithCancel(r.TB.Context())
	}

	return r.ctx
}

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.cleanups = append(r.cleanups, f)
}

func (r *recorder) end() {
	_ = r.Context()
	r.cancel()

	for {
		r.mu.Lock()

		n := len(r.cleanups)
		if n == 0 {
			r.mu.Unlock()

			return
		}

		f := r.cleanups[n-1]
		r.cleanups = r.cleanups[:n-1]
		r.mu.Unlock()

		f()
	}
}

type (
	settle  func(v transport.Verdict) error
	outcome func(token uint64, r transport.Receipt, err error)
)

// wrapper is a transport in memory, and what is to go wrong with it.
type wrapper struct {
	transport.Transport

	ackWait    time.Duration
	maxDeliver int
	history    int

	caps      transport.Capabilities
	publish   func(ctx context.Context, msg transport.Message) (transport.Receipt, error)
	atomic    func(ctx context.Context, msgs []transport.Message) (transport.Receipt, error)
	outcome   func(done outcome, token uint64, r transport.Receipt, err error)
	closePipe func(next func() error, done outcome) error
	endless   bool // pipelines do not tell of their end
	subscribe func(cfg transport.SubscribeConfig) transport.SubscribeConfig
	deliver   func(sink func(transport.Delivery), d transport.Delivery)
	settle    func(next settle, v transport.Verdict) error
	metadata  func(m transport.Metadata) transport.Metadata
	info      func(i transport.Info) transport.Info
	request   func(s transport.Subscription, n int)
	pause     func() error
	closeSub  func() error
	done      chan struct{}
	close     func() error
	end       func() // when the test ends
}

// broken is a harness for transports that are harmed.
func broken(harm func(w *wrapper)) transporttest.Harness {
	return transporttest.Harness{
		Patience: 3 * time.Second,
		Start: func(tb testing.TB, cfg transporttest.Config) transporttest.Broker {
			tb.Helper()

			w := &wrapper{ackWait: cfg.AckWait, maxDeliver: cfg.MaxDeliver}

			plain, err := memory.New()
			if err != nil {
				tb.Fatal(err)
			}

			// What the wrapper hides.
			w.caps = plain.Capabilities() &^ transport.Of(transport.RequestReply)
			harm(w)

			m, err := memory.New(memory.WithAckWait(w.ackWait), memory.WithMaxDeliver(w.maxDeliver), memory.WithHistory(w.history))
			if err != nil {
				tb.Fatal(err)
			}

			w.Transport = m

			tb.Cleanup(func() {
				_ = m.Close()

				if w.end != nil {
					w.end()
				}
			})

			return transporttest.Broker{Open: func(testing.TB) transport.Transport { return w }}
		},
	}
}

// remember gives the transport a history.
func (w *wrapper) remember() {
	w.history = 1000
	w.caps |= transport.Of(transport.Replay, transport.ExpectedSequence)
}

func (w *wrapper) Capabilities() transport.Capabilities { return w.caps }

func (w *wrapper) Publish(ctx context.Context, msg transport.Message) (transport.Receipt, error) {
	if w.publish != nil {
		return w.publish(ctx, msg)
	}

	return w.Transport.Publish(ctx, msg)
}

func (w *wrapper) PublishAtomic(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	if w.atomic != nil {
		return w.atomic(ctx, msgs)
	}

	return w.plainAtomic(ctx, msgs)
}

func (w *wrapper) plainAtomic(ctx context.Context, msgs []transport.Message) (transport.Receipt, error) {
	return w.Transport.(transport.AtomicPublisher).PublishAtomic(ctx, msgs)
}

// Flush has nothing to wait for.
func (w *wrapper) Flush(context.Context) error { return nil }

// OpenPipeline opens a pipeline that publishes at once and tells of it later.
func (w *wrapper) OpenPipeline(
	ctx context.Context, done func(token uint64, r transport.Receipt, err error), ended func(err error),
) (transport.Pipeline, error) {
	// It fails when the transport is closed, and ends with it.
	s, err := w.Transport.Subscribe(ctx, transport.SubscribeConfig{Subject: "pipeline", Sink: func(transport.Delivery) {}})
	if err != nil {
		return nil, err
	}

	p := &pipeline{w: w, s: s, done: done, answers: make(chan func(), 1<<13), closing: make(chan struct{})}

	p.telling.Go(func() {
		for {
			select {
			case <-p.closing:
				return
			case answer := <-p.answers:
				answer()
			case <-s.Done():
				if !w.endless {
					ended(s.Err())
				}

				return
			}
		}
	})

	return p, nil
}

type pipeline struct {
	w       *wrapper
	s       transport.Subscription
	done    outcome
	answers chan func()
	close   sync.Once
	closing chan struct{}
	telling sync.WaitGroup
}

func (p *pipeline) Send(token uint64, msg transport.Message) error {
	r, err := p.w.Publish(context.Background(), msg)
	if err != nil {
		return err
	}

	p.answers <- func() {
		if p.w.outcome != nil {
			p.w.outcome(p.done, token, r, nil)
		} else {
			p.done(token, r, nil)
		}
	}

	return nil
}

func (p *pipeline) Close() error {
	if p.w.closePipe != nil {
		return p.w.closePipe(p.end, p.done)
	}

	return p.end()
}

func (p *pipeline) end() error {
	p.close.Do(func() { close(p.closing) })
	p.telling.Wait()

	return p.s.Close(context.Background())
}

func (w *wrapper) Subscribe(ctx context.Context, cfg transport.SubscribeConfig) (transport.Subscription, error) {
	if w.subscribe != nil {
		cfg = w.subscribe(cfg)
	}

	sink := cfg.Sink
	cfg.Sink = func(d transport.Delivery) {
		d.Settler = &settler{d.Settler, w}

		if w.deliver != nil {
			w.deliver(sink, d)
		} else {
			sink(d)
		}
	}

	s, err := w.Transport.Subscribe(ctx, cfg)
	if err != nil {
		return nil, err
	}

	return &subscription{s, w}, nil
}

func (w *wrapper) Close() error {
	if w.close != nil {
		return w.close()
	}

	return w.Transport.Close()
}

type settler struct {
	transport.Settler

	w *wrapper
}

func (s *settler) Settle(ctx context.Context, token any, v transport.Verdict) error {
	next := func(v transport.Verdict) error { return s.Settler.Settle(ctx, token, v) }
	if s.w.settle != nil {
		return s.w.settle(next, v)
	}

	return next(v)
}

func (s *settler) Metadata(token any) transport.Metadata {
	m := s.Settler.Metadata(token)
	if s.w.metadata != nil {
		return s.w.metadata(m)
	}

	return m
}

type subscription struct {
	transport.Subscription

	w *wrapper
}

func (s *subscription) Info() transport.Info {
	if s.w.info != nil {
		return s.w.info(s.Subscription.Info())
	}

	return s.Subscription.Info()
}

func (s *subscription) Request(n int) {
	if s.w.request != nil && n > 0 {
		s.w.request(s.Subscription, n)
	} else {
		s.Subscription.Request(n)
	}
}

func (s *subscription) Pause(ctx context.Context) error {
	if s.w.pause != nil {
		return s.w.pause()
	}

	return s.Subscription.Pause(ctx)
}

func (s *subscription) Close(ctx context.Context) error {
	if s.w.closeSub != nil {
		return s.w.closeSub()
	}

	return s.Subscription.Close(ctx)
}

func (s *subscription) Done() <-chan struct{} {
	if s.w.done != nil {
		return s.w.done
	}

	return s.Subscription.Done()
}
