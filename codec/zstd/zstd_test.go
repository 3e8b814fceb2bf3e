package zstd_test

import (
	"bytes"
	"encoding/binary"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/foomo/goencode"
	"github.com/foomo/goencode/json/v1"
	"github.com/foomo/goflux/codec/raw"
	"github.com/foomo/goflux/codec/zstd"
	reference "github.com/klauspost/compress/zstd"
)

const (
	mebibyte = 1 << 20

	// seedSize bounds a fuzz test's seeds, which it mutates faster when small.
	seedSize = 4096
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()

	for _, test := range payloads() {
		for _, level := range levels {
			t.Run(fmt.Sprintf("%s/level %d", test.name, level), func(t *testing.T) {
				t.Parallel()
				codec := newCodec(t, zstd.WithLevel(level))
				payload := test.data

				data, err := codec.Encode(payload)
				if err != nil {
					t.Fatal(err)
				}
				if most := len(payload) + 16 + len(payload)>>10; len(data) > most {
					t.Errorf("%d bytes grew to %d, want at most %d", len(payload), len(data), most)
				}
				var got []byte
				if err := codec.Decode(data, &got); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, payload) {
					t.Errorf("%d bytes came back as %d others", len(payload), len(got))
				}
			})
		}
	}
}

func TestEveryLevelReadsEveryOther(t *testing.T) {
	t.Parallel()

	payload := bytes.Repeat([]byte(`{"id":"o-1"}`), 1000)
	for _, from := range levels {
		data, err := newCodec(t, zstd.WithLevel(from)).Encode(payload)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range levels {
			var got []byte
			if err := newCodec(t, zstd.WithLevel(to)).Decode(data, &got); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("level %d to %d: %d bytes, error %v", from, to, len(got), err)
			}
		}
	}
}

func TestForeignSenders(t *testing.T) {
	t.Parallel()

	payload := bytes.Repeat([]byte(`{"id":"o-1"}`), 50_000)
	encoder, err := reference.NewWriter(nil, reference.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	half := len(payload) / 2
	for name, data := range map[string][]byte{
		"declared size": encoder.EncodeAll(payload, nil),
		"streamed":      stream(t, bytes.NewReader(payload), zstd.DefaultMaxSize),
		"two frames":    encoder.EncodeAll(payload[half:], encoder.EncodeAll(payload[:half], nil)),
		"skippable frame first": append([]byte{0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'h', 'i'},
			encoder.EncodeAll(payload, nil)...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []byte
			if err := newCodec(t).Decode(data, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, payload) {
				t.Errorf("got %d bytes, want %d", len(got), len(payload))
			}
		})
	}
}

func TestForeignReceiver(t *testing.T) {
	t.Parallel()

	payload := bytes.Repeat([]byte(`{"id":"o-1"}`), 100)
	data, err := newCodec(t).Encode(payload)
	if err != nil {
		t.Fatal(err)
	}
	var header reference.Header
	if err := header.Decode(data); err != nil {
		t.Fatal(err)
	}
	if !header.HasFCS || header.FrameContentSize != uint64(len(payload)) || !header.HasCheckSum || header.DictionaryID != 0 {
		t.Errorf("the frame does not declare what the documentation promises: %+v", header)
	}
	decoder, err := reference.NewReader(bytes.NewReader(data), reference.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	if got, err := io.ReadAll(decoder); err != nil || !bytes.Equal(got, payload) {
		t.Errorf("got %d bytes, error %v", len(got), err)
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()

	for _, limit := range []int{1024, 1025, 4000, mebibyte} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			codec := newCodec(t, zstd.WithMaxSize(limit))
			wide := newCodec(t, zstd.WithMaxSize(2*limit))

			// Exactly the limit passes, both ways, one byte more neither way.
			for _, size := range []int{1, 1023, limit - 1, limit} {
				payload := random(size)
				data, err := codec.Encode(payload)
				if err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				var got []byte
				if err := codec.Decode(data, &got); err != nil || !bytes.Equal(got, payload) {
					t.Fatalf("%d bytes: got %d, error %v", size, len(got), err)
				}
			}
			payload := random(limit + 1)
			if data, err := codec.Encode(payload); !errors.Is(err, zstd.ErrTooLarge) || data != nil {
				t.Errorf("Encode of limit + 1: got %d bytes, error %v", len(data), err)
			}
			data, err := wide.Encode(payload)
			if err != nil {
				t.Fatal(err)
			}
			got := []byte("kept")
			if err := codec.Decode(data, &got); !errors.Is(err, zstd.ErrTooLarge) || string(got) != "kept" {
				t.Errorf("Decode of limit + 1: got %d bytes, error %v", len(got), err)
			}
		})
	}
}

func TestDefaultLimit(t *testing.T) {
	t.Parallel()
	codec := newCodec(t)

	if _, err := codec.Encode(make([]byte, zstd.DefaultMaxSize)); err != nil {
		t.Error(err)
	}
	if _, err := codec.Encode(make([]byte, zstd.DefaultMaxSize+1)); !errors.Is(err, zstd.ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
}

//nolint:paralleltest // the memory that a decoding takes is read off the whole process
func TestBombsTakeBoundedMemory(t *testing.T) {
	const (
		limit    = mebibyte
		gibibyte = 1 << 30
	)
	codec := newCodec(t, zstd.WithMaxSize(limit))

	// The bombs are made by hand: first see that such frames are valid ones.
	for name, data := range map[string][]byte{
		"undeclared": zeros(undeclared(limit), limit),
		"declared":   zeros(declared(limit), limit),
	} {
		var got []byte
		if err := codec.Decode(data, &got); err != nil || !bytes.Equal(got, make([]byte, limit)) {
			t.Fatalf("%s: %d bytes that are not a mebibyte of zeros, error %v", name, len(got), err)
		}
	}

	for name, bomb := range map[string]struct {
		data []byte
		want error
	}{
		"size undeclared":             {zeros(undeclared(limit), gibibyte), zstd.ErrTooLarge},
		"size declared":               {zeros(declared(gibibyte), gibibyte), zstd.ErrTooLarge},
		"declared, nothing follows":   {declared(gibibyte), zstd.ErrTooLarge},
		"declared beyond 64 bits":     {declared(math.MaxUint64), zstd.ErrTooLarge},
		"made by an encoder":          {stream(t, io.LimitReader(zeroReader{}, gibibyte), limit), zstd.ErrTooLarge},
		"window":                      {zeros(undeclared(gibibyte), 1), zstd.ErrTooLarge},
		"many frames":                 {bytes.Repeat(zeros(undeclared(limit), limit), 1024), zstd.ErrTooLarge},
		"second frame declared":       {append(zeros(declared(1), 1), declared(gibibyte)...), zstd.ErrTooLarge},
		"more than declared":          {zeros(declared(16), gibibyte), zstd.ErrMalformed},
		"less than declared":          {zeros(declared(limit), 1), zstd.ErrMalformed},
		"skippable frame without end": {[]byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 0}, zstd.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			var got []byte
			var err error
			allocated := allocatedBytes(func() { err = codec.Decode(bomb.data, &got) })
			if !errors.Is(err, bomb.want) || got != nil {
				t.Errorf("got %d bytes, error %v, want %v", len(got), err, bomb.want)
			}
			if allocated > 16*limit {
				t.Errorf("%d bytes of input allocated %d bytes, the limit is %d", len(bomb.data), allocated, limit)
			}
			t.Logf("%d bytes of input allocated %d bytes: %v", len(bomb.data), allocated, err)
		})
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	codec := newCodec(t)

	intact, err := codec.Encode(bytes.Repeat([]byte(`{"id":"o-1"}`), 100))
	if err != nil {
		t.Fatal(err)
	}
	altered := bytes.Clone(intact)
	altered[len(altered)-1] ^= 1

	cases := map[string][]byte{
		"nil":              nil,
		"empty":            {},
		"never compressed": []byte(`{"id":"o-1"}`),
		"gzip":             {0x1f, 0x8b, 8, 0, 0, 0, 0, 0},
		"checksum":         altered,
		"trailing bytes":   append(bytes.Clone(intact), "trailing"...),
		"reserved bit":     {0x28, 0xb5, 0x2f, 0xfd, 0x28, 0, 1, 0, 0},
		"reserved block":   {0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 0x07, 0, 0},
		"dictionary":       {0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 1, 0x09, 0, 0, 'x'},
	}
	for n := range intact {
		cases[fmt.Sprintf("cut after %d bytes", n)] = intact[:n]
	}
	for name, data := range cases {
		got := []byte("kept")
		if err := codec.Decode(data, &got); !errors.Is(err, zstd.ErrMalformed) || string(got) != "kept" {
			t.Errorf("%s: got %d bytes, error %v, want ErrMalformed", name, len(got), err)
		}
	}
	if err := codec.Decode(altered, new([]byte)); !errors.Is(err, reference.ErrCRCMismatch) {
		t.Errorf("the cause is lost: %v", err)
	}
}

func TestInnerErrorsPass(t *testing.T) {
	t.Parallel()

	encodeErr := errors.New("inner encode")
	failing, err := zstd.NewCodec(goencode.Codec[int, []byte]{
		Encode: func(int) ([]byte, error) { return nil, encodeErr },
		Decode: json.Decoder[int],
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := failing.Encode(1); !errors.Is(err, encodeErr) || err.Error() != encodeErr.Error() {
		t.Errorf("Encode: got %v, want the error of the inner codec", err)
	}

	data, err := newCodec(t).Encode([]byte("{"))
	if err != nil {
		t.Fatal(err)
	}
	var syntax *stdjson.SyntaxError
	if err := failing.Decode(data, new(int)); !errors.As(err, &syntax) {
		t.Errorf("Decode: got %v, want the error of the inner codec", err)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()

	inner := raw.Bytes()
	for name, test := range map[string]struct {
		inner goencode.Codec[[]byte, []byte]
		opts  []zstd.Option
		valid bool
	}{
		"none":                {inner, nil, true},
		"least size":          {inner, []zstd.Option{zstd.WithMaxSize(1 << 10)}, true},
		"greatest size":       {inner, []zstd.Option{zstd.WithMaxSize(1 << 30)}, true},
		"fastest":             {inner, []zstd.Option{zstd.WithLevel(zstd.LevelFastest)}, true},
		"best":                {inner, []zstd.Option{zstd.WithLevel(zstd.LevelBest)}, true},
		"last one counts":     {inner, []zstd.Option{zstd.WithMaxSize(0), zstd.WithMaxSize(2048)}, true},
		"size too small":      {inner, []zstd.Option{zstd.WithMaxSize(1<<10 - 1)}, false},
		"size too large":      {inner, []zstd.Option{zstd.WithMaxSize(1<<30 + 1)}, false},
		"size zero":           {inner, []zstd.Option{zstd.WithMaxSize(0)}, false},
		"size negative":       {inner, []zstd.Option{zstd.WithMaxSize(-1)}, false},
		"level zero":          {inner, []zstd.Option{zstd.WithLevel(0)}, false},
		"level beyond best":   {inner, []zstd.Option{zstd.WithLevel(zstd.LevelBest + 1)}, false},
		"inner lacks all":     {goencode.Codec[[]byte, []byte]{}, nil, false},
		"inner lacks encoder": {goencode.Codec[[]byte, []byte]{Decode: inner.Decode}, nil, false},
		"inner lacks decoder": {goencode.Codec[[]byte, []byte]{Encode: inner.Encode}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			codec, err := zstd.NewCodec(test.inner, test.opts...)
			if test.valid != (err == nil) || test.valid != (codec.Encode != nil) {
				t.Fatalf("got error %v, want valid %t", err, test.valid)
			}
			if !test.valid && !errors.Is(err, zstd.ErrInvalidOption) {
				t.Errorf("got %v, want ErrInvalidOption", err)
			}
		})
	}
}

func TestGreatestLimitDecodes(t *testing.T) {
	t.Parallel()
	codec := newCodec(t, zstd.WithMaxSize(1<<30))

	// Declared beyond the window of 512 MiB at which the decoder stops by
	// default: damaged, since nothing follows, but not too large.
	err := codec.Decode(undeclared(1<<30), new([]byte))
	if !errors.Is(err, zstd.ErrMalformed) || errors.Is(err, reference.ErrWindowSizeExceeded) {
		t.Errorf("got %v, want ErrMalformed for the missing block", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	codec := newCodec(t)

	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			payload := bytes.Repeat([]byte{byte(i), 'x', byte(i)}, 100*(i+1))
			for range 50 {
				data, err := codec.Encode(payload)
				if err != nil {
					t.Error(err)
					return
				}
				var got []byte
				if err := codec.Decode(data, &got); err != nil || !bytes.Equal(got, payload) {
					t.Errorf("got %d bytes, error %v", len(got), err)
					return
				}
				// A bomb must not harm its neighbours.
				if err := codec.Decode(declared(math.MaxUint64), &got); !errors.Is(err, zstd.ErrTooLarge) {
					t.Errorf("got %v, want ErrTooLarge", err)
				}
			}
		})
	}
	wg.Wait()
}

//nolint:paralleltest // the memory is read off the whole process
func TestCodecsShareTheirCompressors(t *testing.T) {
	payload := bytes.Repeat([]byte("x"), 1000)
	if _, err := newCodec(t).Encode(payload); err != nil { // the first one allocates
		t.Fatal(err)
	}
	allocated := allocatedBytes(func() {
		for range 100 {
			if _, err := newCodec(t).Encode(payload); err != nil {
				t.Fatal(err)
			}
		}
	})
	if allocated > 2*mebibyte {
		t.Errorf("100 codecs allocated %d bytes", allocated)
	}
}

//nolint:paralleltest // AllocsPerRun counts the allocations of the whole process
func TestOneAllocationEachWayBeyondInner(t *testing.T) {
	codec := newCodec(t)
	payload := bytes.Repeat([]byte(`{"id":"o-1"}`), 100)
	data, err := codec.Encode(payload)
	if err != nil {
		t.Fatal(err)
	}

	var encoded, decoded []byte
	if n := testing.AllocsPerRun(100, func() { encoded, _ = codec.Encode(payload) }); n > 2 {
		t.Errorf("Encode allocates %v times, want 2: raw's copy, the compressed bytes", n)
	}
	if n := testing.AllocsPerRun(100, func() { _ = codec.Decode(data, &decoded) }); n > 3 {
		t.Errorf("Decode allocates %v times, want 3: the bytes, their slice header, raw's copy", n)
	}
	if !bytes.Equal(encoded, data) || !bytes.Equal(decoded, payload) {
		t.Error("the measured calls did not do their work")
	}
}

func FuzzDecode(f *testing.F) {
	const limit = 1 << 16
	codec := newCodec(f, zstd.WithMaxSize(limit))
	for _, seed := range payloads() {
		if len(seed.data) > seedSize {
			continue
		}
		data, err := codec.Encode(seed.data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{})
	f.Add(zeros(undeclared(limit), limit+1))
	f.Add(zeros(undeclared(limit), 17))
	f.Add(zeros(declared(limit), limit))
	f.Add(declared(math.MaxUint64))
	f.Add(append(zeros(declared(1), 1), zeros(undeclared(limit), limit)...))

	f.Fuzz(func(t *testing.T, data []byte) {
		var got []byte
		if err := codec.Decode(data, &got); err != nil {
			if !errors.Is(err, zstd.ErrMalformed) && !errors.Is(err, zstd.ErrTooLarge) {
				t.Fatalf("got %v, want ErrMalformed or ErrTooLarge", err)
			}
			if got != nil {
				t.Fatalf("%d bytes in spite of %v", len(got), err)
			}
			return
		}
		if len(got) > limit {
			t.Fatalf("got %d bytes, the limit is %d", len(got), limit)
		}
		again, err := codec.Encode(got)
		if err != nil {
			t.Fatal(err)
		}
		var second []byte
		if err := codec.Decode(again, &second); err != nil || !bytes.Equal(second, got) {
			t.Fatalf("%d bytes came back as %d others, error %v", len(got), len(second), err)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	for i, seed := range payloads() {
		if len(seed.data) <= seedSize {
			f.Add(seed.data, uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte, level uint8) {
		// Not the best level: its tables make a fuzz worker slow.
		codec := newCodec(t, zstd.WithLevel(levels[level%3]))
		data, err := codec.Encode(payload)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		if err := codec.Decode(data, &got); err != nil || !bytes.Equal(got, payload) {
			t.Fatalf("%d bytes came back as %d others, error %v", len(payload), len(got), err)
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	codec := newCodec(b)
	var payload []byte
	for i := range 40 {
		payload = fmt.Appendf(payload, `{"id":"o-%d","total":%d,"state":"created"},`, i, i*i*17)
	}
	data, err := codec.Encode(payload)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(payload)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := codec.Encode(payload); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(payload))/float64(len(data)), "ratio")
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(payload)))
		b.ReportAllocs()
		var got []byte
		for b.Loop() {
			if err := codec.Decode(data, &got); err != nil {
				b.Fatal(err)
			}
		}
	})
}

var levels = []zstd.Level{zstd.LevelFastest, zstd.LevelDefault, zstd.LevelBetter, zstd.LevelBest}

func newCodec(tb testing.TB, opts ...zstd.Option) goencode.Codec[[]byte, []byte] {
	tb.Helper()
	codec, err := zstd.NewCodec(raw.Bytes(), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return codec
}

type payload struct {
	name string
	data []byte
}

func payloads() []payload {
	return []payload{
		{"empty", []byte{}},
		{"one byte", []byte{0}},
		{"text", []byte(`{"id":"o-1"}`)},
		{"repeated text", bytes.Repeat([]byte(`{"id":"o-1"}`), 1000)},
		{"compressed already", zeros(declared(3), 3)},
		{"random 1024", random(1024)},
		{"random 64 KiB", random(1 << 16)},
		{"random 300 KiB", random(300 << 10)},
		{"repeated 3 MiB", bytes.Repeat(random(1<<16), 48)},
		{"zeros over 1 MiB", make([]byte, mebibyte+1)},
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

// stream compresses what r yields as a sender does that does not know the size
// beforehand.
func stream(t *testing.T, r io.Reader, window int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := reference.NewWriter(&buf,
		reference.WithEncoderConcurrency(1), // no goroutine
		reference.WithEncoderLevel(reference.SpeedFastest),
		reference.WithWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, r); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// undeclared is the header of a frame that does not tell its size, with a
// window of a power of two (RFC 8878, section 3.1.1.1).
func undeclared(window int) []byte {
	exponent := 0
	for 1<<(10+exponent) < window {
		exponent++
	}
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, byte(exponent << 3)}
}

// declared is the header of a frame of a single segment that tells its size.
func declared(size uint64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, size)
}

// zeros appends n zeros to a frame's header, in blocks of up to 64 KiB that
// take four bytes each.
func zeros(frame []byte, n int) []byte {
	const block, repeated, last = 1 << 16, 1 << 1, 1
	for n > block {
		frame = binary.LittleEndian.AppendUint32(frame, block<<3|repeated)
		n -= block
	}
	return binary.LittleEndian.AppendUint32(frame, uint32(n)<<3|repeated|last)
}

// allocatedBytes returns all that f allocates, freed or not.
func allocatedBytes(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
