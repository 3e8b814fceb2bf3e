// Package jetstream carries messages over JetStream: stored, acknowledged,
// delivered again until they are settled.
//
// [New] makes a portable [Transport] over a JetStream handle, [Bind] a
// subscriber over one consumer that the caller configured, and [NewStream] the
// stream and the handle in one call. [NewPublisher], [NewSubscriber] and
// [NewConsumer] are the typed doors to the same code. Whoever imports the
// package can also open jetstream:// URLs with transport.Open:
//
//	jetstream://host:4222?stream=EVENTS&subjects=events.>
//
// The connection is always the caller's and is never closed here, save the one
// that transport.Open made.
//
// # How much is in flight
//
// The server is asked for exactly as many messages as there is room for: no
// message waits in a buffer of the client while its ack wait runs. What was
// asked for and not delivered goes back to the server at once when a
// subscription pauses or closes. The server counts an attempt for the few that
// it was about to send.
//
// # When things vanish
//
// A consumer that is deleted ends its subscriptions with
// [transport.ErrConsumerNotFound] or [transport.ErrStreamNotFound]; one that
// vanished unannounced, with the restart of a server or through its inactive
// threshold, is noticed within five seconds. A connection that is lost is waited
// for.
package jetstream
