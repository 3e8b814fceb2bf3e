package nats

import (
	"context"
	"fmt"
	"net/url"
	"slices"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natsconn"
	"github.com/foomo/goflux/transport"
)

// schemes are those of URLs that name servers of NATS.
var schemes = []string{"nats", "nats+tls", "tls"}

// Connect connects to NATS as a service wants it, and returns a connection for
// whatever is built on one: [New], [NewPublisher] and those of
// transport/jetstream. The caller closes it.
//
// rawURL is what [transport.Open] takes for core NATS, such as
// nats://host:4222?name=orders&server=other:4222&reconnectbuf=65536, without the
// parameters of the transport: one of the schemes nats, nats+tls and tls, and the
// parameters that docs/transports.md lists under "Connections by URL". opts are
// those of nats.go, applied after the URL, so that they win.
//
// Other than with [natsgo.Connect], the connection never gives up reconnecting, not
// even where the server refuses its credentials for a while. It asks the server for
// a sign of life every 20 s, so that a loss is noticed within a minute; a write may
// take 10 s. It has the program's name, and logs with [log/slog.Default] when it is
// lost, when it is back, and what goes wrong on it. It buffers 8 MiB of what is
// published while it is lost: reconnectbuf in the URL, or [natsgo.ReconnectBufSize],
// sets another size in bytes, and -1 none, so that publishing fails at once with
// [transport.ErrBufferFull].
//
// ctx bounds the connecting. With [natsgo.RetryOnFailedConnect] it returns
// without a server, and connects when there is one. Errors, each in a
// [*transport.Error]: [transport.ErrInvalidOption] for what is wrong with the URL
// or an option, [transport.ErrDisconnected] when no server can be reached, those
// of ctx, and of nats.go for what the server refuses, such as
// [natsgo.ErrAuthorization]. None of them shows a credential.
func Connect(ctx context.Context, rawURL string, opts ...natsgo.Option) (*natsgo.Conn, error) {
	u, err := url.Parse(rawURL)

	switch {
	case err != nil:
		// The error of url.Parse quotes the URL, credentials included.
		return nil, connectError("the URL cannot be parsed; it is one such as nats://host:4222?server=another:4222")
	case !slices.Contains(schemes, u.Scheme):
		return nil, connectError(fmt.Sprintf("the scheme of the URL is %q, not nats, nats+tls or tls, as in nats://host:4222", u.Scheme))
	}

	nc, err := connect(ctx, u, nil, opts...)
	if err != nil {
		return nil, &transport.Error{Op: "connect", Subject: u.Scheme + "://" + u.Host, Err: err}
	}

	return nc, nil
}

func connectError(text string) error {
	return &transport.Error{Op: "connect", Err: fmt.Errorf("%w: %s", transport.ErrInvalidOption, text)}
}

// connect connects to where u says. more are parameters of u that are not about
// the connection.
func connect(ctx context.Context, u *url.URL, more []string, opts ...natsgo.Option) (*natsgo.Conn, error) {
	if err := transport.CheckQuery(u, slices.Concat(natsconn.Params(), more)...); err != nil {
		return nil, err
	}

	return natsconn.Connect(ctx, u, opts...)
}
