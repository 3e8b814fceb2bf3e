package protobuf_test

import (
	"fmt"
	"time"

	"github.com/foomo/goflux/codec/protobuf"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func ExampleNewCodec() {
	codec := protobuf.NewCodec[*timestamppb.Timestamp]()

	data, err := codec.Encode(timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
	if err != nil {
		fmt.Println(err)
		return
	}

	var at *timestamppb.Timestamp
	if err := codec.Decode(data, &at); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(data), "bytes:", at.AsTime())
	// Output: 6 bytes: 2026-01-02 03:04:05 +0000 UTC
}
