package transport

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Opener makes a transport from a URL with the scheme it was registered for.
// What it connects to, the transport's Close closes. It returns
// [ErrInvalidOption] for a query parameter it does not know.
type Opener func(ctx context.Context, u *url.URL) (Transport, error)

var registry = struct {
	sync.RWMutex
	openers map[string]Opener
}{openers: map[string]Opener{}}

// Register makes a scheme known to [Open]. Transports call it from an init
// function, so that a program links only what it imports. It panics when the
// scheme is taken, which is a mistake in the program, found when it starts.
func Register(scheme string, open Opener) {
	registry.Lock()
	defer registry.Unlock()

	if _, taken := registry.openers[scheme]; taken {
		//nolint:forbidigo // a mistake in the program, found when it starts
		panic("goflux: the transport scheme " + scheme + " is registered twice")
	}

	registry.openers[scheme] = open
}

// Open returns the transport that rawURL describes; the caller closes it.
//
// The scheme selects the transport, and the program imports the package that
// provides it, if only for that:
//
//	memory:                                       github.com/foomo/goflux/transport/memory
//	nats://host:4222                              github.com/foomo/goflux/transport/nats
//	jetstream://host:4222?stream=EVENTS           github.com/foomo/goflux/transport/jetstream
//	embedded:?dir=/var/lib/app&stream=EVENTS      github.com/foomo/goflux/transport/embedded
//
// ctx bounds the opening. An unknown scheme and an unknown parameter are
// [ErrInvalidOption]. No error shows the user or password of a URL.
func Open(ctx context.Context, rawURL string) (Transport, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// The error of url.Parse quotes the URL, credentials included.
		return nil, &Error{Op: "open", Err: fmt.Errorf("%w: the URL cannot be parsed", ErrInvalidOption)}
	}

	registry.RLock()
	open, known := registry.openers[u.Scheme]
	schemes := slices.Sorted(maps.Keys(registry.openers))
	registry.RUnlock()

	if !known {
		return nil, &Error{Op: "open", Subject: place(u), Err: unknownScheme(u.Scheme, schemes)}
	}

	t, err := open(ctx, u)
	if err != nil {
		return nil, &Error{Op: "open", Subject: place(u), Err: err}
	}

	return t, nil
}

// unknownScheme says what to import. The packages have the names of their
// schemes.
func unknownScheme(scheme string, registered []string) error {
	name, _, _ := strings.Cut(scheme, "+")
	if slices.Contains([]string{"memory", "nats", "jetstream", "embedded"}, name) {
		return fmt.Errorf("%w: the scheme %q is not registered: import _ %q",
			ErrInvalidOption, scheme, "github.com/foomo/goflux/transport/"+name)
	}

	return fmt.Errorf("%w: no transport has the scheme %q; registered are: %s: import the package of the one you want",
		ErrInvalidOption, scheme, strings.Join(registered, ", "))
}

// place names a URL without what may be secret in it: a token stands where a
// user name does, so url.URL.Redacted would show it.
func place(u *url.URL) string { return u.Scheme + "://" + u.Host }

// CheckQuery reports with [ErrInvalidOption] a query parameter of u that is not
// among known: a mistyped setting must not be ignored.
func CheckQuery(u *url.URL, known ...string) error {
	// url.URL.Query drops what it cannot parse.
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fmt.Errorf("%w: the parameters cannot be parsed", ErrInvalidOption)
	}

	for k := range q {
		if !slices.Contains(known, k) {
			return fmt.Errorf("%w: the parameter %q is not known; known are: %s", ErrInvalidOption, k, strings.Join(known, ", "))
		}
	}

	return nil
}
