package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/foomo/goflux/transport"
)

// The types are what dashboards are built on: they do not change.
func TestSentinels(t *testing.T) {
	t.Parallel()

	sentinels := map[string]error{
		"invalid_subject":    transport.ErrInvalidSubject,
		"invalid_header":     transport.ErrInvalidHeader,
		"invalid_option":     transport.ErrInvalidOption,
		"too_large":          transport.ErrTooLarge,
		"unsupported":        transport.ErrUnsupported,
		"closed":             transport.ErrClosed,
		"disconnected":       transport.ErrDisconnected,
		"buffer_full":        transport.ErrBufferFull,
		"no_responders":      transport.ErrNoResponders,
		"no_stream":          transport.ErrNoStream,
		"stream_not_found":   transport.ErrStreamNotFound,
		"consumer_not_found": transport.ErrConsumerNotFound,
		"subject_mismatch":   transport.ErrSubjectMismatch,
		"settled":            transport.ErrSettled,
		"dropped":            transport.ErrDropped,
	}

	for typ, sentinel := range sentinels {
		if got := transport.ErrorType(sentinel); got != typ {
			t.Errorf("%v has the type %q, want %q", sentinel, got, typ)
		}

		for other, err := range sentinels {
			if (other == typ) != errors.Is(sentinel, err) {
				t.Errorf("%v and %v", sentinel, err)
			}
		}
	}
}

func TestErrorType(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{io.EOF, "_OTHER"},
		{context.Canceled, "canceled"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), "timeout"},
		{fmt.Errorf("x: %w", transport.ErrClosed), "closed"},
		{&transport.Error{Op: "publish", Err: transport.ErrTooLarge}, "too_large"},
		{&transport.Error{Op: "publish", Err: context.Canceled}, "canceled"},
		{transport.Mark(transport.ErrDisconnected, io.EOF), "disconnected"},
		{transport.Mark(transport.ErrDisconnected, context.DeadlineExceeded), "disconnected"},
		{transport.NewSentinel("mine", "text"), "mine"},
	} {
		if got := transport.ErrorType(tc.err); got != tc.want {
			t.Errorf("%v has the type %q, want %q", tc.err, got, tc.want)
		}
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()

	for want, err := range map[string]*transport.Error{
		`goflux: open: closed`:                                          {Op: "open"},
		`goflux: publish "a.b": closed`:                                 {Op: "publish", Subject: "a.b"},
		`goflux: fetch (stream "S"): closed`:                            {Op: "fetch", Stream: "S"},
		`goflux: fetch (consumer "C"): closed`:                          {Op: "fetch", Consumer: "C"},
		`goflux: subscribe "a.*" (consumer "C" of stream "S"): closed`:  {Op: "subscribe", Subject: "a.*", Stream: "S", Consumer: "C"},
		`goflux: settle "with \"quotes\"\n" (consumer "C\x00"): closed`: {Op: "settle", Subject: "with \"quotes\"\n", Consumer: "C\x00"},
	} {
		err.Err = transport.ErrClosed

		if got := err.Error(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestErrorUnwraps(t *testing.T) {
	t.Parallel()

	cause := &transport.Error{Op: "fetch", Err: io.EOF}
	err := fmt.Errorf("outer: %w", &transport.Error{Op: "publish", Err: transport.Mark(transport.ErrNoStream, cause)})

	if !errors.Is(err, transport.ErrNoStream) || !errors.Is(err, io.EOF) || errors.Is(err, transport.ErrClosed) {
		t.Errorf("%v", err)
	}

	rich := &transport.Error{}
	if !errors.As(err, &rich) || rich.Op != "publish" {
		t.Errorf("got %+v", rich)
	}
}

func TestMark(t *testing.T) {
	t.Parallel()

	err := transport.Mark(transport.ErrClosed, io.EOF)
	if !errors.Is(err, transport.ErrClosed) || !errors.Is(err, io.EOF) || err.Error() != "closed: EOF" {
		t.Errorf("got %v", err)
	}
}

func TestNewSentinel(t *testing.T) {
	t.Parallel()

	one, two := transport.NewSentinel("same", "same"), transport.NewSentinel("same", "same")
	if !errors.Is(one, one) || errors.Is(one, two) || one.Error() != "same" {
		t.Errorf("got %v, %v", one, two)
	}
}

func TestDroppedError(t *testing.T) {
	t.Parallel()

	err := fmt.Errorf("x: %w", &transport.DroppedError{Subject: "a.*", Count: 7})
	if !errors.Is(err, transport.ErrDropped) || errors.Is(err, transport.ErrClosed) {
		t.Errorf("%v", err)
	}

	dropped := &transport.DroppedError{}
	if !errors.As(err, &dropped) || dropped.Count != 7 {
		t.Errorf("got %+v", dropped)
	}

	if text := err.Error(); !strings.Contains(text, "7 messages") || !strings.Contains(text, `"a.*"`) {
		t.Errorf("it says %q", text)
	}
}
