package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// streamTimeout bounds [NewStream].
const streamTimeout = 10 * time.Second

// NewStream returns a JetStream handle on nc and makes sure that the stream of
// cfg exists: it is created when it is missing, and left as it is when it is
// there. Where the existing one differs from what cfg sets, the names of the
// differing fields are logged as a warning to [slog.Default]; fields that cfg
// leaves at zero are the server's choice and do not count.
//
// It takes ten seconds at most, less if ctx ends before. opts are those of
// [natsjs.New], for instance a domain's API prefix. The connection stays the
// caller's.
//
// Errors are [*transport.Error] values around [transport.ErrInvalidOption] (no
// connection, no name, a bad option), those of ctx, with
// [transport.ErrDisconnected] where no server was there, and what the server
// refuses as [*natsjs.APIError], for instance subjects that overlap with
// another stream's.
func NewStream(ctx context.Context, nc *nats.Conn, cfg natsjs.StreamConfig, opts ...natsjs.JetStreamOpt) (natsjs.JetStream, error) {
	js, err := newStream(ctx, nc, cfg, opts)
	if errors.Is(err, context.DeadlineExceeded) && !nc.IsConnected() {
		err = transport.Mark(transport.ErrDisconnected, err)
	}

	if err != nil {
		return nil, &transport.Error{Op: opOpen, Stream: cfg.Name, Err: mapError(err)}
	}

	return js, nil
}

func newStream(ctx context.Context, nc *nats.Conn, cfg natsjs.StreamConfig, opts []natsjs.JetStreamOpt) (natsjs.JetStream, error) {
	if nc == nil {
		return nil, invalid("the connection is nil")
	}

	if cfg.Name == "" {
		return nil, invalid("the stream has no name")
	}

	// nats.go calls what it is given.
	opts = slices.DeleteFunc(slices.Clone(opts), func(opt natsjs.JetStreamOpt) bool { return opt == nil })

	js, err := natsjs.New(nc, opts...)
	if err != nil {
		return nil, transport.Mark(transport.ErrInvalidOption, err)
	}

	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()

	return js, ensureStream(ctx, js, cfg)
}

// ensureStream looks before it creates: a service whose stream was made by
// somebody else needs no permission to create streams.
func ensureStream(ctx context.Context, js natsjs.JetStream, cfg natsjs.StreamConfig) error {
	existing, err := js.Stream(ctx, cfg.Name)
	if errors.Is(err, natsjs.ErrStreamNotFound) {
		_, err = js.CreateStream(ctx, cfg)
		if errors.Is(err, natsjs.ErrStreamNameAlreadyInUse) {
			// Another process came first.
			existing, err = js.Stream(ctx, cfg.Name)
		}
	}

	if err != nil || existing == nil {
		return mapError(err)
	}

	if fields := differing(cfg, existing.CachedInfo().Config); len(fields) > 0 {
		slog.Default().WarnContext(ctx, "goflux: the stream exists with another configuration and is left as it is",
			"stream", cfg.Name, "fields", fields)
	}

	return nil
}

// differing returns the names, in the words of the JetStream API, of the fields
// that want sets and have does not have.
func differing(want, have natsjs.StreamConfig) []string {
	w, h := fields(want), fields(have)

	var names []string

	for name, value := range w {
		if !contains(h[name], value) {
			names = append(names, name)
		}
	}

	slices.Sort(names)

	return names
}

// fields returns the configuration as it goes over the wire.
func fields(cfg natsjs.StreamConfig) map[string]any {
	var m map[string]any

	// A configuration consists of types that marshal; if one did not, there
	// would be nothing to compare.
	data, _ := json.Marshal(cfg) //nolint:errchkjson // see above
	_ = json.Unmarshal(data, &m)

	// What is at its default was not set: JSON has these names for zero.
	for name, zero := range map[string]any{"retention": "limits", "storage": "file", "discard": "old", "compression": "none"} {
		if m[name] == zero {
			delete(m, name)
		}
	}

	return m
}

// contains reports whether have holds what want sets, at any depth.
func contains(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		h, _ := have.(map[string]any)
		for name, value := range want {
			if !contains(h[name], value) {
				return false
			}
		}

		return true
	case []any:
		h, _ := have.([]any)
		if len(h) != len(want) {
			return false
		}

		// Subjects, and sources, are sets.
		for _, value := range want {
			if !slices.ContainsFunc(h, func(v any) bool { return contains(v, value) }) {
				return false
			}
		}

		return true
	default:
		return want == nil || reflect.ValueOf(want).IsZero() || want == have
	}
}
