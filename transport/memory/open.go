package memory

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/foomo/goflux/transport"
)

// Scheme is what a URL for [transport.Open] begins with when this package is
// imported, as in "memory:?history=1000&ackwait=1s". Its parameters are the
// options of [New], each at most once:
//
//	ackwait          WithAckWait, as in 500ms or 30s
//	duplicatewindow  WithDuplicateWindow, as in 2m
//	history          WithHistory
//	maxdeliver       WithMaxDeliver
//	maxpayload       WithMaxPayload
//	maxpending       WithMaxPending
//
// Every call of Open makes a transport of its own.
const Scheme = "memory"

func init() { transport.Register(Scheme, open) } //nolint:gochecknoinits // what transport.Register is made for

func open(_ context.Context, u *url.URL) (transport.Transport, error) {
	if u.Host != "" || u.User != nil || u.Opaque != "" || (u.Path != "" && u.Path != "/") || u.Fragment != "" {
		return nil, fmt.Errorf("%w: a memory transport is nowhere: use memory: and parameters only", transport.ErrInvalidOption)
	}

	// Not u.Query, which leaves out in silence what it cannot parse.
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: the parameters cannot be parsed: separate them with &", transport.ErrInvalidOption)
	}

	if err := transport.CheckQuery(u, "ackwait", "duplicatewindow", "history", "maxdeliver", "maxpayload", "maxpending"); err != nil {
		return nil, err
	}

	opts := make([]Option, 0, len(query))

	// Sorted, so that of several errors it is always the same one.
	for _, name := range slices.Sorted(maps.Keys(query)) {
		values := query[name]
		if len(values) > 1 {
			return nil, fmt.Errorf("%w: the parameter %q is given %d times", transport.ErrInvalidOption, name, len(values))
		}

		opt, err := parameter(name, values[0])
		if err != nil {
			return nil, fmt.Errorf("%w: the parameter %q: %w", transport.ErrInvalidOption, name, err)
		}

		opts = append(opts, opt)
	}

	t, err := build(opts)
	if err != nil {
		return nil, err
	}

	return t, nil
}

// parameter makes the option of a parameter that CheckQuery let pass.
func parameter(name, value string) (Option, error) {
	switch name {
	case "ackwait":
		return option(WithAckWait, time.ParseDuration, value)
	case "duplicatewindow":
		return option(WithDuplicateWindow, time.ParseDuration, value)
	case "history":
		return option(WithHistory, strconv.Atoi, value)
	case "maxdeliver":
		return option(WithMaxDeliver, strconv.Atoi, value)
	case "maxpayload":
		return option(WithMaxPayload, strconv.Atoi, value)
	default:
		return option(WithMaxPending, strconv.Atoi, value)
	}
}

func option[V any](with func(V) Option, parse func(string) (V, error), value string) (Option, error) {
	v, err := parse(value)
	if err != nil {
		return nil, err
	}

	return with(v), nil
}
