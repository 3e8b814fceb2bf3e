// Package facts pins how nats.go (v1.55) and nats-server (v2.15) really behave,
// where that is surprising and goflux is built on it. It has no code, only
// tests, each named for its fact. One that fails after an upgrade means that
// code which relies on the fact has to be looked at again, and that the remedy
// it contains may not be needed any more.
package facts
