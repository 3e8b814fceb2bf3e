// Package chaos puts messaging under faults and proves what is left of its
// promises.
//
// It has two parts that know nothing of each other. A [Proxy] stands between a
// client and a server and does to the TCP connection what networks do: it cuts,
// half-closes, loses, holds back and delays. A [Checker] is the ledger: it is
// told of each call to publish and each attempt of it, of each message that was
// handled and of each that is found in the stream afterwards, and
// [Checker.Verify] holds these against one another.
//
// A scenario has four steps:
//
//  1. Make a Checker with the promises that the scenario is about. For each
//     message take its identity from [Checker.Send], and publish it with
//     [ID.String] as its message id.
//  2. Tell [Checker.Published] how each call ended, and [Checker.Attempted] of
//     what went over the network. What matters is the difference between
//     [Failed], certainly not stored, and [Unknown], which a timeout or a lost
//     connection leaves.
//  3. In the handler, call [Checker.Handled] with [ParseID] of the message's id
//     once its work is done.
//  4. When all is quiet, read the stream back with [Checker.ReadStream] and
//     check the [Report] of [Checker.Verify]. Its String is a table.
//
// Both parts are made to be run from a seed: everything random in a scenario
// should come from one, and the scenario should print it.
package chaos
