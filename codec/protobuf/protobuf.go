// Package protobuf encodes Protocol Buffers messages in their binary wire
// format.
//
// The payload's type is the pointer to the generated message:
//
//	pub := jetstream.NewPublisher(js, protobuf.NewCodec[*pb.Order]())
//	err := pub.Publish(ctx, "orders.created", &pb.Order{Id: "o-1"})
//
//	sub := jetstream.NewSubscriber(consumer, protobuf.NewCodec[*pb.Order]())
//	err = sub.Subscribe(ctx, "orders.created",
//		func(ctx context.Context, msg goflux.Message[*pb.Order]) error {
//			return ship(ctx, msg.Payload.GetId())
//		})
//
// Nothing but the codec changes for a service that comes from JSON, where it is
// json.NewCodec[Order]() of github.com/foomo/goencode/json/v1.
package protobuf

import (
	"errors"
	"fmt"

	"github.com/foomo/goencode"
	"google.golang.org/protobuf/proto"
)

// ErrNoMessage is returned by Encode for a nil message, which has no encoding,
// and by Decode if there is no place for the message: a nil target, or a
// message type that is known at run time only, such as *dynamicpb.Message.
var ErrNoMessage = errors.New("protobuf: no message")

// Message is met by the pointer to every generated message, whose struct is M.
// A generic function that calls [NewCodec] for a type of its caller's repeats
// both parameters: func f[T protobuf.Message[M], M any]().
type Message[M any] interface {
	*M
	proto.Message
}

// NewCodec returns a codec for messages of type T, a pointer to a generated
// message; M is inferred. It is called as NewCodec[*pb.Order](). Types that
// cannot be decoded, such as the interface proto.Message or the struct
// pb.Order, do not compile.
//
// Encode returns [ErrNoMessage] for a nil message, and an error that matches
// [proto.Error] for a message that has no valid encoding: a required field that
// is not set, a string that is not UTF-8. Maps are encoded in random order, so
// equal messages may differ in bytes.
//
// Decode allocates a new message each time and leaves the target alone if it
// fails. Bytes that are not an encoding of T give an error that matches
// [proto.Error]. An empty payload is a message with no field set. Fields that T
// does not know are kept and encoded again.
//
// The wire format does not name its message: bytes of another message type may
// decode without an error, to fields that mean something else.
//
// Encoded bytes share no memory with the message, nor a decoded message with
// the bytes. The codec is safe for concurrent use, as long as nobody changes a
// message while it is encoded.
func NewCodec[T Message[M], M any]() goencode.Codec[T, []byte] {
	return goencode.Codec[T, []byte]{
		Encode: encode[T, M],
		Decode: decode[T, M],
	}
}

func encode[T Message[M], M any](v T) ([]byte, error) {
	if v == nil {
		return nil, fmt.Errorf("%w: cannot encode a nil %T", ErrNoMessage, v)
	}
	data, err := proto.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("protobuf: encode %T: %w", v, err)
	}
	return data, nil
}

func decode[T Message[M], M any](data []byte, v *T) error {
	if v == nil {
		return fmt.Errorf("%w: cannot decode into a nil %T", ErrNoMessage, v)
	}
	msg := T(new(M))
	// Only a message that gets its type at run time is not valid when new.
	if !msg.ProtoReflect().IsValid() {
		return fmt.Errorf("%w: a new %T has no fields to decode into, use a generated type", ErrNoMessage, msg)
	}
	if err := proto.Unmarshal(data, msg); err != nil {
		return fmt.Errorf("protobuf: decode %T: %w", msg, err)
	}
	*v = msg
	return nil
}
