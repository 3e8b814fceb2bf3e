package nats

import (
	"context"
	"fmt"
	"net/url"
	"strconv"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natsconn"
	"github.com/foomo/goflux/transport"
)

// The parameters of a URL that are about this transport; the others are those
// of the connection.
const (
	paramPendingMsgs  = "pendingmsgs"
	paramPendingBytes = "pendingbytes"
)

func init() { //nolint:gochecknoinits // that is how a program links only what it imports
	for _, scheme := range schemes {
		transport.Register(scheme, open)
	}
}

// open is the opener of URLs such as
// nats://host:4222?name=orders&pendingmsgs=10000&pendingbytes=1048576.
func open(ctx context.Context, u *url.URL) (transport.Transport, error) {
	messages, err := limit(u, paramPendingMsgs, natsgo.DefaultSubPendingMsgsLimit)
	if err != nil {
		return nil, err
	}

	bytes, err := limit(u, paramPendingBytes, natsgo.DefaultSubPendingBytesLimit)
	if err != nil {
		return nil, err
	}

	nc, err := connect(ctx, u, []string{paramPendingMsgs, paramPendingBytes})
	if err != nil {
		return nil, err
	}

	t, err := New(nc, WithPendingLimits(messages, bytes))
	if err != nil {
		nc.Close()

		return nil, err
	}

	t.disconnect = func() error { return natsconn.Close(nc) }

	return t, nil
}

// limit reads a parameter of u that is a number other than zero.
func limit(u *url.URL, param string, otherwise int) (int, error) {
	q := u.Query()
	if !q.Has(param) {
		return otherwise, nil
	}

	n, err := strconv.Atoi(q.Get(param))
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%w: %s wants a number, negative for no limit, not %q", transport.ErrInvalidOption, param, q.Get(param))
	}

	return n, nil
}
