package zstd_test

import (
	"errors"
	"fmt"
	"strings"

	"github.com/foomo/goencode/json/v1"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/codec/zstd"
)

func ExampleNewCodec() {
	type Order struct {
		ID    string
		Notes string
	}

	codec, err := zstd.NewCodec(json.NewCodec[Order]())
	if err != nil {
		fmt.Println(err)
		return
	}

	data, err := codec.Encode(Order{ID: "o-1", Notes: strings.Repeat("no onions, ", 100)})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("compressed to less than 100 bytes:", len(data) < 100)

	var order Order
	if err := codec.Decode(data, &order); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(order.ID, len(order.Notes))
	// Output:
	// compressed to less than 100 bytes: true
	// o-1 1100
}

func ExampleWithMaxSize() {
	codec, err := zstd.NewCodec(raw.String(), zstd.WithMaxSize(1024))
	if err != nil {
		fmt.Println(err)
		return
	}

	_, err = codec.Encode(strings.Repeat("x", 1025))
	fmt.Println(errors.Is(err, zstd.ErrTooLarge))
	fmt.Println(err)
	// Output:
	// true
	// zstd: payload too large: 1025 bytes exceed the limit of 1024 bytes, see WithMaxSize
}
