package protobuf_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/foomo/goflux/codec/protobuf"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()

	order, err := structpb.NewStruct(map[string]any{
		"id":    "o-1",
		"total": 12.5,
		"lines": []any{"sandwich", map[string]any{"drink": true}, nil},
	})
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, "empty", &emptypb.Empty{})
	roundTrip(t, "zero value", &timestamppb.Timestamp{})
	roundTrip(t, "scalar", timestamppb.New(time.Unix(1, 2)))
	roundTrip(t, "negative", wrapperspb.Int64(math.MinInt64))
	roundTrip(t, "text", wrapperspb.String("žluťoučký"))
	roundTrip(t, "bytes", wrapperspb.Bytes([]byte{0, 0xff}))
	roundTrip(t, "large", wrapperspb.Bytes(make([]byte, 1<<20)))
	roundTrip(t, "nested", order)
}

func roundTrip[T protobuf.Message[M], M any](t *testing.T, name string, want T) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		codec := protobuf.NewCodec[T]()

		data, err := codec.Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		if data == nil {
			t.Error("a message was encoded as nil")
		}
		var got T
		if err := codec.Decode(data, &got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestDecodeIntoFreshMessage(t *testing.T) {
	t.Parallel()
	codec := protobuf.NewCodec[*timestamppb.Timestamp]()

	data, err := codec.Encode(&timestamppb.Timestamp{Seconds: 1})
	if err != nil {
		t.Fatal(err)
	}
	earlier := &timestamppb.Timestamp{Seconds: 7, Nanos: 7}
	got := earlier
	if err := codec.Decode(data, &got); err != nil {
		t.Fatal(err)
	}
	if got == earlier || earlier.GetSeconds() != 7 || earlier.GetNanos() != 7 {
		t.Errorf("the earlier message was reused: %v", earlier)
	}
	if got.GetSeconds() != 1 || got.GetNanos() != 0 {
		t.Errorf("got %v, want one second", got)
	}
}

func TestEmptyPayloadIsEmptyMessage(t *testing.T) {
	t.Parallel()

	for _, data := range [][]byte{nil, {}} {
		var got *timestamppb.Timestamp
		if err := protobuf.NewCodec[*timestamppb.Timestamp]().Decode(data, &got); err != nil {
			t.Fatal(err)
		}
		if got == nil || !proto.Equal(got, &timestamppb.Timestamp{}) {
			t.Errorf("got %v, want an empty message", got)
		}
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	t.Parallel()

	data := protowire.AppendTag(nil, 99, protowire.BytesType)
	data = protowire.AppendString(data, "from a newer version")

	codec := protobuf.NewCodec[*timestamppb.Timestamp]()
	var got *timestamppb.Timestamp
	if err := codec.Decode(data, &got); err != nil {
		t.Fatal(err)
	}
	again, err := codec.Encode(got)
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != string(data) {
		t.Errorf("got %x, want %x", again, data)
	}
}

func TestMessageSharesNoMemory(t *testing.T) {
	t.Parallel()
	codec := protobuf.NewCodec[*wrapperspb.BytesValue]()

	data, err := codec.Encode(wrapperspb.Bytes([]byte("first")))
	if err != nil {
		t.Fatal(err)
	}
	received := string(data)
	var got *wrapperspb.BytesValue
	if err := codec.Decode(data, &got); err != nil {
		t.Fatal(err)
	}
	copy(got.GetValue(), "other")
	if string(data) != received {
		t.Error("a handler's change of a message shows in what was received")
	}
}

func TestNoMessage(t *testing.T) {
	t.Parallel()
	codec := protobuf.NewCodec[*timestamppb.Timestamp]()
	dynamic := protobuf.NewCodec[*dynamicpb.Message]()

	_, encodeNil := codec.Encode(nil)
	_, encodeNilDynamic := dynamic.Encode(nil)
	var target *dynamicpb.Message
	for name, err := range map[string]error{
		"encode nil":          encodeNil,
		"encode nil dynamic":  encodeNilDynamic,
		"decode nil target":   codec.Decode(nil, nil),
		"decode dynamic type": dynamic.Decode(nil, &target),
	} {
		if !errors.Is(err, protobuf.ErrNoMessage) {
			t.Errorf("%s: got %v, want ErrNoMessage", name, err)
		}
	}
	if !strings.Contains(encodeNil.Error(), "timestamppb.Timestamp") {
		t.Errorf("the error does not name the type: %v", encodeNil)
	}
}

func TestEncodeDynamicMessage(t *testing.T) {
	t.Parallel()

	msg := dynamicpb.NewMessage((&timestamppb.Timestamp{}).ProtoReflect().Descriptor())
	msg.Set(msg.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(5))
	data, err := protobuf.NewCodec[*dynamicpb.Message]().Encode(msg)
	if err != nil {
		t.Fatal(err)
	}
	var got *timestamppb.Timestamp
	if err := protobuf.NewCodec[*timestamppb.Timestamp]().Decode(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.GetSeconds() != 5 {
		t.Errorf("got %v, want 5 seconds", got)
	}
}

func TestEncodeInvalidMessage(t *testing.T) {
	t.Parallel()

	_, badText := protobuf.NewCodec[*wrapperspb.StringValue]().Encode(wrapperspb.String("\xff"))
	_, noRequired := protobuf.NewCodec[*descriptorpb.UninterpretedOption_NamePart]().
		Encode(&descriptorpb.UninterpretedOption_NamePart{})
	for name, err := range map[string]error{
		"string not UTF-8":       badText,
		"required field not set": noRequired,
	} {
		if !errors.Is(err, proto.Error) {
			t.Errorf("%s: got %v, want proto.Error", name, err)
		}
	}
}

func TestDecodeHostileBytes(t *testing.T) {
	t.Parallel()

	// A value that is a list of one value that is a list: two levels a round,
	// valid but for its depth.
	var deep []byte
	for range protowire.DefaultRecursionLimit/2 + 1 {
		list := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), deep)
		deep = protowire.AppendBytes(protowire.AppendTag(nil, 6, protowire.BytesType), list)
	}
	for name, data := range map[string][]byte{
		"not protobuf":       []byte(`{"id":"o-1"}`),
		"field number zero":  {0x00, 0x01},
		"wire type reserved": {0x0f},
		"cut in a varint":    {0x08, 0x80},
		"varint too long":    {0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
		"length past end":    {0x0a, 0x7f, 0x00},
		"length of 2^63":     {0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01},
		"group not closed":   {0x0b},
		"text not UTF-8":     {0x1a, 0x01, 0xff},
		"nested too deep":    deep,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kept := structpb.NewBoolValue(true)
			got := kept
			err := protobuf.NewCodec[*structpb.Value]().Decode(data, &got)
			if !errors.Is(err, proto.Error) {
				t.Fatalf("got %v, want proto.Error", err)
			}
			if !strings.Contains(err.Error(), "structpb.Value") {
				t.Errorf("the error does not name the type: %v", err)
			}
			if got != kept {
				t.Errorf("the target was changed to %v", got)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	codec := protobuf.NewCodec[*structpb.Value]()
	for _, seed := range []*structpb.Value{
		structpb.NewNullValue(),
		structpb.NewNumberValue(math.Inf(1)),
		structpb.NewStringValue("text"),
		structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewBoolValue(true)}}),
		structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewStringValue("b")}}),
	} {
		data, err := codec.Encode(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{})
	f.Add([]byte{0x0b})
	f.Add([]byte{0x1a, 0x01, 0xff})

	f.Fuzz(func(t *testing.T, data []byte) {
		var first *structpb.Value
		if err := codec.Decode(data, &first); err != nil {
			if !errors.Is(err, proto.Error) {
				t.Fatalf("got %v, want proto.Error", err)
			}
			return
		}
		again, err := codec.Encode(first)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		var second *structpb.Value
		if err := codec.Decode(again, &second); err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
		// NaN is not equal to itself, so the messages are compared as bytes.
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		got, err := proto.MarshalOptions{Deterministic: true}.Marshal(second)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Fatalf("got %x, want %x", got, want)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add("id", "o-1", 1.5, true)
	f.Add("", "", math.Inf(-1), false)
	f.Fuzz(func(t *testing.T, key, text string, number float64, flag bool) {
		codec := protobuf.NewCodec[*structpb.Struct]()
		want := &structpb.Struct{Fields: map[string]*structpb.Value{
			key:      structpb.NewStringValue(text),
			"number": structpb.NewNumberValue(number),
			"flag":   structpb.NewBoolValue(flag),
		}}
		data, err := codec.Encode(want)
		if err != nil {
			if !errors.Is(err, proto.Error) {
				t.Fatalf("got %v, want proto.Error", err)
			}
			return
		}
		var got *structpb.Struct
		if err := codec.Decode(data, &got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

//nolint:paralleltest // AllocsPerRun counts the allocations of the whole process
func TestOneAllocationEachWay(t *testing.T) {
	codec := protobuf.NewCodec[*timestamppb.Timestamp]()
	now := timestamppb.New(time.Unix(1_700_000_000, 1))
	data, err := codec.Encode(now)
	if err != nil {
		t.Fatal(err)
	}

	var encoded []byte
	if n := testing.AllocsPerRun(100, func() { encoded, _ = codec.Encode(now) }); n != 1 {
		t.Errorf("Encode allocates %v times, want 1: the bytes", n)
	}
	var got *timestamppb.Timestamp
	if n := testing.AllocsPerRun(100, func() { _ = codec.Decode(data, &got) }); n != 1 {
		t.Errorf("Decode allocates %v times, want 1: the message", n)
	}
	if len(encoded) == 0 || !proto.Equal(got, now) {
		t.Error("the measured calls did not do their work")
	}
}
