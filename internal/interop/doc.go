// Package interop tests goflux against a client of NATS that was written by
// others in another language: services and requests in both directions. It has
// no code, only tests behind the build tag interop, since they need node and
// what npm installs:
//
//	make interop
package interop
