package jetstream

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natsconn"
	"github.com/foomo/goflux/transport"
)

// The parameters of a URL that are about this transport; the others are those
// of the connection.
const (
	paramStream    = "stream"
	paramSubjects  = "subjects"
	paramStorage   = "storage"
	paramRetention = "retention"
	paramReplicas  = "replicas"
	paramDomain    = "domain"
)

func init() { //nolint:gochecknoinits // importing the package makes its schemes known
	for _, scheme := range []string{"jetstream", "jetstream+tls"} {
		transport.Register(scheme, open)
	}
}

// open is the opener of URLs such as
// jetstream://host:4222?stream=EVENTS&subjects=events.>,audit.>&replicas=3.
//
//   - stream: the stream that is subscribed to; it must exist, unless subjects
//     are given.
//   - subjects: what the stream stores, separated by commas; the stream is
//     created with them when it is missing. With it go storage (file, the
//     default, or memory), retention (limits, the default, interest or
//     workqueue) and replicas (1).
//   - domain: the JetStream domain.
//   - ackwait, maxdeliver, maxackpending: the limits of the consumers that
//     subscriptions create; see natsconn.
//
// The other parameters are those of natsconn.
func open(ctx context.Context, u *url.URL) (transport.Transport, error) {
	err := transport.CheckQuery(u, slices.Concat(natsconn.Params(), natsconn.ConsumerParams(),
		[]string{paramStream, paramSubjects, paramStorage, paramRetention, paramReplicas, paramDomain})...)
	if err != nil {
		return nil, err
	}

	consumers, err := natsconn.ConsumerConfig(u.Query())
	if err != nil {
		return nil, err
	}

	cfg, err := streamConfig(u.Query())
	if err != nil {
		return nil, err
	}

	opts := []TransportOption{WithConsumerConfig(consumers)}
	if cfg.Name != "" {
		opts = append(opts, WithStream(cfg.Name))
	}

	nc, err := natsconn.Connect(ctx, u)
	if err != nil {
		return nil, err
	}

	t, err := openOn(ctx, nc, cfg, u.Query().Get(paramDomain), opts)
	if err != nil {
		nc.Close()

		return nil, mapError(err)
	}

	t.disconnect = func() error { return natsconn.Close(nc) }

	return t, nil
}

// openOn makes the transport over a connection that is its own.
func openOn(ctx context.Context, nc *nats.Conn, cfg natsjs.StreamConfig, domain string, opts []TransportOption) (*Transport, error) {
	js, err := natsjs.New(nc)
	if domain != "" {
		js, err = natsjs.NewWithDomain(nc, domain)
	}

	if err != nil {
		return nil, transport.Mark(transport.ErrInvalidOption, err)
	}

	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()

	switch {
	case len(cfg.Subjects) > 0:
		err = ensureStream(ctx, js, cfg)
	case cfg.Name != "":
		_, err = js.Stream(ctx, cfg.Name)
	}

	if err != nil {
		return nil, &transport.Error{Op: opOpen, Stream: cfg.Name, Err: mapError(err)}
	}

	return New(js, opts...)
}

// streamConfig reads the parameters of the stream.
func streamConfig(q url.Values) (natsjs.StreamConfig, error) {
	cfg := natsjs.StreamConfig{Name: q.Get(paramStream)}

	for _, list := range q[paramSubjects] {
		cfg.Subjects = append(cfg.Subjects, strings.Split(list, ",")...)
	}

	for _, subject := range cfg.Subjects {
		if err := transport.ValidateFilter(subject); err != nil {
			return cfg, err
		}
	}

	if len(cfg.Subjects) > 0 && cfg.Name == "" {
		return cfg, invalid("subjects are those of a stream: name it with the parameter stream")
	}

	for _, param := range []string{paramStorage, paramRetention, paramReplicas} {
		if q.Has(param) && len(cfg.Subjects) == 0 {
			return cfg, invalid("%s is for a stream that may have to be created: give its subjects", param)
		}
	}

	if v := q.Get(paramStorage); v != "" {
		i := slices.Index([]string{"file", "memory"}, v)
		if i < 0 {
			return cfg, invalid("storage is file or memory, not %q", v)
		}

		cfg.Storage = natsjs.StorageType(i)
	}

	if v := q.Get(paramRetention); v != "" {
		i := slices.Index([]string{"limits", "interest", "workqueue"}, v)
		if i < 0 {
			return cfg, invalid("retention is limits, interest or workqueue, not %q", v)
		}

		cfg.Retention = natsjs.RetentionPolicy(i)
	}

	if v := q.Get(paramReplicas); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 5 {
			return cfg, invalid("replicas is a number from 1 to 5, not %q", v)
		}

		cfg.Replicas = n
	}

	return cfg, nil
}
