package goflux

import "fmt"

// WithOrderingKey handles messages of one key one after the other, in the order
// of arrival, while those of other keys are handled in parallel, up to the
// concurrency. A slow or failing key holds back only itself, as long as not
// more than 8192 messages, or 64 MiB of them, are waiting for one before them.
//
// T must be the type of the subscriber, else building it fails with
// [ErrInvalidOption]. The function must be quick and must not block. Messages
// are decoded before it is called, one at a time. Where it panics, the message
// has failed.
//
// A failed message is redelivered later, after messages of its key that came
// behind it; see [WithStrictOrder] for the strict form. Order holds within one
// subscription: replicas that share a queue group each see a part of a key.
func WithOrderingKey[T any](key func(Message[T]) string) SubscriberOption {
	return subscriberOption{"WithOrderingKey", func(c *subscriberConfig) error {
		if key == nil {
			return fmt.Errorf("%w: the key function is nil", ErrInvalidOption)
		}

		c.key = key

		return nil
	}}
}

// WithStrictOrder makes a failing message hold its ordering key, or the whole
// subscription where there is no key and the concurrency is 1, until it is
// settled: it is tried again here, after the time the retry policy says, with
// its lease kept, instead of being handed back to the broker. Tries here count
// as attempts, so a limit of deliveries (MaxDeliver) ends them. Should the
// process die, the broker redelivers what was not settled. When the subscription
// ends, a message that waits goes back to the broker at once, with those behind
// it, whatever its delay: else they would pass it.
//
// A message that does not decode, or whose key function panics, has no key: it
// holds none, but the subscription where there are no keys. With [WithManualAck]
// it is refused with [ErrInvalidOption].
//
// Order can still break when a lease is lost: when the broker cannot be
// reached for longer than the ack wait.
func WithStrictOrder() SubscriberOption {
	return subscriberOption{"WithStrictOrder", func(c *subscriberConfig) error {
		c.strict = true

		return nil
	}}
}

func keyFits[T any](key any) bool {
	_, fits := key.(func(Message[T]) string)

	return fits
}

// single is the one lane of a strict subscription without keys.
const single = ""
