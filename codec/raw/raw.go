// Package raw carries payloads that are encoded already, or have no encoding
// at all: bytes and text, unchanged.
//
// It is the codec for a subject whose payload another program defines, for
// blobs, and for plain text:
//
//	pub := jetstream.NewPublisher(js, raw.Bytes())
//	err := pub.Publish(ctx, "thumbnails.created", jpeg)
//
// A payload that has a Go type deserves a codec that knows it, such as
// json.NewCodec of github.com/foomo/goencode/json/v1:
//
//	pub := jetstream.NewPublisher(js, json.NewCodec[Order]())
//
// # Ownership
//
// Both codecs copy in both directions, as every codec does that builds its
// output. Encoded bytes are kept past the return of Publish, by a transport
// that stores them in memory or publishes again when an acknowledgement is
// late: the caller's slice is free for reuse as soon as Publish has returned.
// Received bytes are kept past the decoding, for the other subscribers of an
// in-memory transport, a redelivery or a dead letter: a handler may change
// what it was given.
package raw

import "github.com/foomo/goencode"

// Bytes returns a codec that passes bytes through unchanged, whatever they are.
//
// The encoded and the decoded slice are copies that share no memory with their
// source. The wire knows no difference between a nil and an empty slice: both
// arrive as an empty slice that is not nil. Neither direction returns an error.
// The codec is safe for concurrent use.
func Bytes() goencode.Codec[[]byte, []byte] {
	return goencode.Codec[[]byte, []byte]{
		Encode: func(v []byte) ([]byte, error) {
			return clone(v), nil
		},
		Decode: func(data []byte, v *[]byte) error {
			*v = clone(data)
			return nil
		},
	}
}

// String returns a codec that passes a string through unchanged.
//
// Text is neither validated nor repaired: what is not UTF-8 arrives as it was
// sent. Neither direction returns an error. The codec is safe for concurrent
// use.
func String() goencode.Codec[string, []byte] {
	return goencode.Codec[string, []byte]{
		Encode: func(v string) ([]byte, error) {
			return []byte(v), nil
		},
		Decode: func(data []byte, v *string) error {
			*v = string(data)
			return nil
		},
	}
}

// clone differs from bytes.Clone in that it never returns nil: what a handler
// sees of an empty payload does not depend on the transport.
func clone(b []byte) []byte {
	return append([]byte{}, b...)
}
