// Package zstd compresses what another codec encodes, with Zstandard
// (RFC 8878).
//
// It wraps the codec of the payload's type:
//
//	codec, err := zstd.NewCodec(json.NewCodec[Order]())
//	if err != nil {
//		return err
//	}
//	pub := jetstream.NewPublisher(js, codec)
//
// Here json is github.com/foomo/goencode/json/v1. Publisher and subscriber must
// agree: a subscriber without compression cannot read what a publisher with
// compression sends, nor the other way round. Compression pays for text from
// some hundred bytes on; what cannot be compressed grows by 13 bytes, a large
// payload by a few more.
//
// Any program that knows Zstandard may send or read such a payload. What this
// package sends is one frame that declares its size, has a checksum unless the
// payload is empty, and needs no dictionary.
//
// # Hostile payloads
//
// A few bytes can inflate to gigabytes. Decoding stops at a limit, 8 MiB unless
// [WithMaxSize] says otherwise, and its memory stays within a small multiple of
// the limit whatever a payload declares or contains.
package zstd

import (
	"errors"
	"fmt"
	"sync"

	"github.com/foomo/goencode"
	"github.com/klauspost/compress/zstd"
)

var (
	// ErrTooLarge is returned by Encode and Decode for a payload that is,
	// uncompressed, larger than the limit of [WithMaxSize], and by Decode also
	// for one that asks the decoder for a window larger than the limit.
	ErrTooLarge = errors.New("zstd: payload too large")

	// ErrMalformed is returned by Decode for bytes that are no intact
	// Zstandard data: never compressed, cut, altered, or made with a
	// dictionary. The cause is wrapped.
	ErrMalformed = errors.New("zstd: malformed payload")

	// ErrInvalidOption is returned by [NewCodec] for an option out of its range
	// and for an inner codec that lacks Encode or Decode.
	ErrInvalidOption = errors.New("zstd: invalid option")
)

// NewCodec returns a codec that encodes with inner and then compresses, and
// decompresses and then decodes with inner.
//
// Encode returns inner's error as it is, or [ErrTooLarge]. Decode returns
// [ErrTooLarge] or [ErrMalformed], which leave the target alone, or inner's error
// as it is. NewCodec itself returns [ErrInvalidOption].
//
// The codec starts no goroutine, needs no Close and is safe for concurrent use,
// if inner is. Codecs with equal options share their compressors, of which there
// are as many as GOMAXPROCS says; further calls wait for a free one. From the
// first Encode on these are kept, and each holds what [Level] tells.
func NewCodec[T any](inner goencode.Codec[T, []byte], opts ...Option) (goencode.Codec[T, []byte], error) {
	if inner.Encode == nil || inner.Decode == nil {
		return goencode.Codec[T, []byte]{}, fmt.Errorf("%w: the inner codec needs Encode and Decode", ErrInvalidOption)
	}
	o, err := newOptions(opts)
	if err != nil {
		return goencode.Codec[T, []byte]{}, err
	}
	c, err := compressorFor(o)
	if err != nil {
		return goencode.Codec[T, []byte]{}, err
	}
	return goencode.PipeCodec(inner, goencode.Codec[[]byte, []byte]{
		Encode: c.deflate,
		Decode: c.inflate,
	}), nil
}

// compressors holds one compressor for each value of options in use. A service
// has a codec for each of its types: without sharing, each would hold tables
// and buffers of its own for every processor.
//
//nolint:gochecknoglobals // what all codecs of a process share has no other owner
var compressors = struct {
	sync.Mutex
	of map[options]*compressor
}{of: make(map[options]*compressor)}

// compressor is safe for concurrent use and starts no goroutine: EncodeAll and
// DecodeAll work in their caller's. As of klauspost/compress v1.20 each of the
// decoder's slots keeps the last payload that it inflated reachable, so up to
// GOMAXPROCS times maxSize outlive their messages.
type compressor struct {
	maxSize uint64
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

func compressorFor(o options) (*compressor, error) {
	compressors.Lock()
	defer compressors.Unlock()

	if c, ok := compressors.of[o]; ok {
		return c, nil
	}
	c, err := newCompressor(o)
	if err != nil {
		return nil, err
	}
	compressors.of[o] = c
	return c, nil
}

func newCompressor(o options) (*compressor, error) {
	maxSize := uint64(o.maxSize) //nolint:gosec // newOptions lets no negative one pass

	encoder, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevel(o.level)),
		// Messages are small: the usual 8 MiB would make every encoder hold
		// 16 MiB from the first payload of more than 128 KiB on.
		zstd.WithWindowSize(1<<20),
		// A single segment always declares its size, so that a receiver
		// allocates once and refuses at once.
		zstd.WithSingleSegment(true),
	)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	decoder, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0), // GOMAXPROCS, as the encoder
		zstd.WithDecoderMaxMemory(maxSize),
		zstd.WithDecoderMaxWindow(maxSize),
	)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	return &compressor{maxSize: maxSize, encoder: encoder, decoder: decoder}, nil
}

func (c *compressor) deflate(plain []byte) ([]byte, error) {
	// What no receiver with the same codec would accept is not sent.
	if uint64(len(plain)) > c.maxSize {
		return nil, fmt.Errorf("%w: %d bytes exceed the limit of %d bytes, see WithMaxSize", ErrTooLarge, len(plain), c.maxSize)
	}
	return c.encoder.EncodeAll(plain, nil), nil
}

func (c *compressor) inflate(data []byte, v *[]byte) error {
	// The header is read first because DecodeAll takes no bytes at all for an
	// empty payload, and to tell a window that is too large, which is a matter
	// of limits, from a block larger than its window, which is damage.
	var header zstd.Header
	if err := header.Decode(data); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if size := max(header.FrameContentSize, header.WindowSize); size > c.maxSize {
		return fmt.Errorf("%w: it asks for %d bytes, the limit is %d bytes, see WithMaxSize", ErrTooLarge, size, c.maxSize)
	}
	plain, err := c.decoder.DecodeAll(data, nil)
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return fmt.Errorf("%w: it exceeds the limit of %d bytes, see WithMaxSize", ErrTooLarge, c.maxSize)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	*v = plain
	return nil
}
