package zstd

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// DefaultMaxSize is the limit of a codec without [WithMaxSize], 8 MiB in bytes:
// eight times the largest message a NATS server takes by default, and the
// window that RFC 8878 recommends every decoder to support.
const DefaultMaxSize = 8 << 20

// The least window of a Zstandard frame, and what one message may reasonably be.
const (
	leastMaxSize    = zstd.MinWindowSize
	greatestMaxSize = 1 << 30
)

// Level says how much work is spent on compression. It concerns Encode alone:
// what one level made, every codec decodes.
type Level int

// The levels, with the level of the reference implementation that each is
// nearest to, and the memory that each of the compressors holds, measured with
// payloads of 3 MiB; small payloads need less.
const (
	// LevelFastest is about level 1, in 3 MiB.
	LevelFastest = Level(zstd.SpeedFastest)

	// LevelDefault is about level 3, in 4 MiB. It is the default.
	LevelDefault = Level(zstd.SpeedDefault)

	// LevelBetter is about level 7, in 7 MiB.
	LevelBetter = Level(zstd.SpeedBetterCompression)

	// LevelBest is about level 11, in 38 MiB. It is for few and large payloads.
	LevelBest = Level(zstd.SpeedBestCompression)
)

// Option configures [NewCodec]. The last of several of a kind counts.
type Option interface {
	apply(*options)
}

// WithMaxSize limits the uncompressed payload to n bytes, in both directions:
// Encode and Decode return [ErrTooLarge] for a larger one. The default is
// [DefaultMaxSize]; n is between 1 KiB and 1 GiB, both included, else NewCodec
// returns [ErrInvalidOption].
//
// The limit covers the window as well. A sender that streams, and thus cannot
// declare the size of its payload, asks for a window that follows from its
// compression level, up to 8 MiB in common use: a smaller limit refuses its
// payloads, however small they are. Codecs of this package always declare the
// size.
func WithMaxSize(n int) Option {
	return optionFunc(func(o *options) { o.maxSize = n })
}

// WithLevel sets the compression level. The default is [LevelDefault]; what is
// none of the Level constants makes NewCodec return [ErrInvalidOption].
func WithLevel(level Level) Option {
	return optionFunc(func(o *options) { o.level = level })
}

// options is comparable: equal options share a compressor.
type options struct {
	maxSize int
	level   Level
}

type optionFunc func(*options)

func (f optionFunc) apply(o *options) { f(o) }

func newOptions(opts []Option) (options, error) {
	o := options{maxSize: DefaultMaxSize, level: LevelDefault}
	for _, opt := range opts {
		opt.apply(&o)
	}
	if o.maxSize < leastMaxSize || o.maxSize > greatestMaxSize {
		return options{}, fmt.Errorf("%w: WithMaxSize(%d) is not between %d and %d bytes",
			ErrInvalidOption, o.maxSize, leastMaxSize, greatestMaxSize)
	}
	if o.level < LevelFastest || o.level > LevelBest {
		return options{}, fmt.Errorf("%w: WithLevel(%d) is none of the levels of this package", ErrInvalidOption, o.level)
	}
	return o, nil
}
