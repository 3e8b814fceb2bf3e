package transport_test

import (
	"context"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"

	"github.com/foomo/goflux/transport"
)

// opened is the transport of the scheme of a test.
type opened struct {
	transport.Transport

	url *url.URL
	ctx context.Context
}

func TestOpen(t *testing.T) {
	t.Parallel()

	transport.Register("test-open", func(ctx context.Context, u *url.URL) (transport.Transport, error) {
		return &opened{url: u, ctx: ctx}, nil
	})

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	tr, err := transport.Open(ctx, "test-open://user@host:42/path?a=b")
	if err != nil {
		t.Fatal(err)
	}

	got, ok := tr.(*opened)
	if !ok || got.ctx != ctx || got.url.String() != "test-open://user@host:42/path?a=b" {
		t.Errorf("the opener got %+v", got)
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()

	transport.Register("test-fail", func(context.Context, *url.URL) (transport.Transport, error) {
		return nil, io.ErrUnexpectedEOF
	})

	for _, tc := range []struct {
		name, url string
		want      error
		says      string
	}{
		{"unknown scheme", "unknown://token-secret:secret@host", transport.ErrInvalidOption, `"unknown"`},
		{"it tells those that are known", "unknown:", transport.ErrInvalidOption, "test-fail"},
		{"one of ours that is not imported", "memory:", transport.ErrInvalidOption, `import _ "github.com/foomo/goflux/transport/memory"`},
		{"over TLS", "nats+tls://host", transport.ErrInvalidOption, `import _ "github.com/foomo/goflux/transport/nats"`},
		{"no scheme", "host", transport.ErrInvalidOption, "test-fail"},
		{"empty", "", transport.ErrInvalidOption, "test-fail"},
		{"not a URL", "test-fail://secret:secret@host:port\x7f", transport.ErrInvalidOption, "parsed"},
		{"not a URL, no scheme", ":secret", transport.ErrInvalidOption, "parsed"},
		{"the opener's own", "test-fail://secret:secret@host:42?token=secret", io.ErrUnexpectedEOF, "test-fail://host:42"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()

			tr, err := transport.Open(t.Context(), tc.url)
			if tr != nil || !errors.Is(err, tc.want) {
				t.Fatalf("got %v, %v", tr, err)
			}

			if text := err.Error(); !strings.Contains(text, tc.says) || strings.Contains(text, "secret") {
				t.Errorf("it says %q", text)
			}

			rich := &transport.Error{}
			if !errors.As(err, &rich) || rich.Op != "open" {
				t.Errorf("got %+v", rich)
			}
		})
	}
}

func TestRegisterTwice(t *testing.T) {
	t.Parallel()

	opener := func(context.Context, *url.URL) (transport.Transport, error) { return &opened{}, nil }
	transport.Register("test-twice", opener)

	defer func() {
		if r := recover(); r == nil || !strings.Contains(r.(string), "test-twice") {
			t.Errorf("it panics with %v", r)
		}

		// And the registry is not left locked.
		if _, err := transport.Open(t.Context(), "test-twice:"); err != nil {
			t.Error(err)
		}
	}()

	transport.Register("test-twice", opener)
}

func TestCheckQuery(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		query string
		known []string
		ok    bool
	}{
		{"", nil, true},
		{"", []string{"a"}, true},
		{"a=1", []string{"a", "b"}, true},
		{"a=1&b=2&a=3", []string{"a", "b"}, true},
		{"a", []string{"a"}, true},
		{"a=1&c=2", []string{"a", "b"}, false},
		{"A=1", []string{"a"}, false},
		{"a=1", nil, false},
		{"=1", []string{"a"}, false},
	} {
		err := transport.CheckQuery(&url.URL{RawQuery: tc.query}, tc.known...)
		if tc.ok != (err == nil) || (err != nil && !errors.Is(err, transport.ErrInvalidOption)) {
			t.Errorf("%q: %v", tc.query, err)
		}
	}

	err := transport.CheckQuery(&url.URL{RawQuery: "password=secret"}, "history", "ackwait")
	if text := err.Error(); !strings.Contains(text, "history, ackwait") || strings.Contains(text, "secret") {
		t.Errorf("it says %q", text)
	}
}
