package embedded

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natsconn"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

func init() { //nolint:gochecknoinits // importing the package makes its scheme known
	transport.Register("embedded", open)
}

// Transport is a JetStream transport over a server of its own in the process.
type Transport struct {
	*jetstream.Transport

	nc     *nats.Conn
	server *Server
}

// Server returns the server behind the transport, to connect to it otherwise.
func (t *Transport) Server() *Server { return t.server }

// Close closes the transport, the connection and the server, in this order. A
// second call is a no-op.
func (t *Transport) Close() error {
	err := t.Transport.Close()
	t.nc.Close()

	if serr := t.server.Shutdown(); err == nil {
		err = serr
	}

	return err
}

// open is the opener of URLs such as
// embedded:?stream=EVENTS&subjects=events.>&dir=/var/lib/app.
//
//   - stream, subjects: the stream to create if it is missing; subjects are
//     separated by commas.
//   - dir: where it is stored; without it, in a temporary directory that Close
//     removes.
//   - listen: host:port to let others connect; without it nobody can.
//   - ackwait, maxdeliver, maxackpending: the limits of the consumers that
//     subscriptions create, as of the scheme jetstream.
func open(ctx context.Context, u *url.URL) (transport.Transport, error) {
	if err := transport.CheckQuery(u, append(natsconn.ConsumerParams(), "stream", "subjects", "dir", "listen")...); err != nil {
		return nil, err
	}

	if u.Host != "" || u.Path != "" || u.Opaque != "" {
		return nil, fmt.Errorf("%w: an embedded server has no host and no path: write embedded:?stream=... and name a directory with dir",
			transport.ErrInvalidOption)
	}

	q := u.Query()
	name, subjects := q.Get("stream"), q.Get("subjects")

	if (name == "") != (subjects == "") {
		return nil, fmt.Errorf("%w: stream and subjects go together", transport.ErrInvalidOption)
	}

	if name != "" {
		for subject := range strings.SplitSeq(subjects, ",") {
			if err := transport.ValidateFilter(subject); err != nil {
				return nil, err
			}
		}
	}

	opts, err := options(q)
	if err != nil {
		return nil, err
	}

	consumers, err := natsconn.ConsumerConfig(q)
	if err != nil {
		return nil, err
	}

	server, err := Start(ctx, opts...)
	if err != nil {
		return nil, err
	}

	t, err := connect(ctx, server, name, subjects, jetstream.WithConsumerConfig(consumers))
	if err != nil {
		_ = server.Shutdown()

		return nil, err
	}

	return t, nil
}

func options(q url.Values) ([]Option, error) {
	var opts []Option

	if dir := q.Get("dir"); dir != "" {
		opts = append(opts, WithStoreDir(dir))
	}

	if listen := q.Get("listen"); listen != "" {
		host, text, err := net.SplitHostPort(listen)
		if err != nil {
			return nil, fmt.Errorf("%w: listen is host:port, not %q", transport.ErrInvalidOption, listen)
		}

		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%w: the port of listen is a number, not %q", transport.ErrInvalidOption, text)
		}

		opts = append(opts, WithListen(host, int(port)))
	}

	return opts, nil
}

func connect(ctx context.Context, server *Server, name, subjects string, with ...jetstream.TransportOption) (*Transport, error) {
	nc, err := server.Connect()
	if err != nil {
		return nil, err
	}

	t := &Transport{nc: nc, server: server}

	var js natsjs.JetStream

	if name == "" {
		js, err = natsjs.New(nc)
	} else {
		js, err = jetstream.NewStream(ctx, nc, natsjs.StreamConfig{Name: name, Subjects: strings.Split(subjects, ",")})
		with = append(with, jetstream.WithStream(name))
	}

	if err == nil {
		t.Transport, err = jetstream.New(js, with...)
	}

	if err != nil {
		nc.Close()

		return nil, err
	}

	return t, nil
}
