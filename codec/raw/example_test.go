package raw_test

import (
	"fmt"

	"github.com/foomo/goflux/codec/raw"
)

func ExampleBytes() {
	codec := raw.Bytes()

	data, err := codec.Encode([]byte{0xff, 0xd8, 0xff})
	if err != nil {
		fmt.Println(err)
		return
	}

	var image []byte
	if err := codec.Decode(data, &image); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("% x\n", image)
	// Output: ff d8 ff
}

func ExampleString() {
	codec := raw.String()

	data, err := codec.Encode("ready")
	if err != nil {
		fmt.Println(err)
		return
	}

	var text string
	if err := codec.Decode(data, &text); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(text)
	// Output: ready
}
