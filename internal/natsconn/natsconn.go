// Package natsconn makes the connections behind transports that are opened by
// URL. A connection of a service never gives up reconnecting, has a name by
// which operators find it, and shows its credentials to nobody.
package natsconn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natserr"
	"github.com/foomo/goflux/transport"
)

// What a service wants, rather than what nats.go does by default.
const (
	// pingInterval is how often the server is asked for a sign of life. The
	// third time that it has given none, the connection is given up: after a
	// minute, where nats.go takes six.
	pingInterval = 20 * time.Second

	// writeTimeout is how long a write may take: everything that uses the
	// connection waits for it, whatever its ctx says. nats-server gives its own
	// writes as much. Where the buffer of a reconnect is not written within
	// it, it is lost: for 8 MiB that is a network of 7 Mbit/s.
	writeTimeout = 10 * time.Second
)

// CloseTimeout is how long [Close] waits for the server to have everything that
// was sent, when there is no connection for the moment.
const CloseTimeout = 2 * time.Second

// The parameters of a URL that [Connect] understands.
const (
	paramName         = "name"
	paramServer       = "server"
	paramReconnectBuf = "reconnectbuf"
	paramCreds        = "creds"
	paramNkey         = "nkey"
	paramTLSCA        = "tlsca"
	paramTLSCert      = "tlscert"
	paramTLSKey       = "tlskey"
	paramTLSFirst     = "tlsfirst"
)

// Params returns the names of the query parameters that [Connect] reads, for
// [transport.CheckQuery]:
//
//   - name: the connection's name on the server; the program's by default.
//   - server: one more server of the cluster, as host:port; may be repeated.
//   - reconnectbuf: how many bytes are buffered while reconnecting; -1 turns
//     buffering off, so that publishing fails at once. 8 MB by default.
//   - creds: a file with a user's JWT and seed, as nsc writes it.
//   - nkey: a file with a user's nkey seed.
//   - tlsca: a PEM file with the authorities to trust; may be repeated. The
//     system's by default.
//   - tlscert, tlskey: PEM files with the client's certificate and key.
//   - tlsfirst: true makes the TLS handshake before the server says anything.
func Params() []string {
	return []string{
		paramName, paramServer, paramReconnectBuf, paramCreds, paramNkey,
		paramTLSCA, paramTLSCert, paramTLSKey, paramTLSFirst,
	}
}

// Connect connects to the server that u names by host and port (4222 unless
// given), with what its query says, see [Params]; parameters of others are not
// looked at. The scheme tls, and one that ends in "+tls", insist on TLS. A user
// with a password is a user name; a user without one is a token.
//
// opts are applied last. The connection reconnects for as long as it takes and
// reports to [slog.Default] when it is lost, when it is back, and what goes wrong
// on it; nothing is written to standard error.
//
// ctx bounds the connecting. When it ends first, an attempt under way finishes
// in the background, within 2 s a server, and is closed. Errors:
// [transport.ErrInvalidOption] for what the URL says,
// [transport.ErrDisconnected] when no server can be reached, those of ctx, and
// of nats.go for what the server refuses ([nats.ErrAuthorization]). None of
// them shows a credential.
func Connect(ctx context.Context, u *url.URL, opts ...nats.Option) (*nats.Conn, error) {
	o, err := options(u)
	if err != nil {
		return nil, err
	}

	for _, opt := range opts {
		if opt == nil {
			continue
		}

		if err := opt(&o); err != nil {
			return nil, transport.Mark(transport.ErrInvalidOption, err)
		}
	}

	if err := ctx.Err(); err != nil {
		return nil, err
	}

	type result struct {
		nc  *nats.Conn
		err error
	}

	out := make(chan result)

	// nats.go connects without a context.
	go func() {
		nc, err := o.Connect()

		select {
		case out <- result{nc, err}:
		case <-ctx.Done():
			if nc != nil {
				nc.Close()
			}
		}
	}()

	select {
	case r := <-out:
		return r.nc, connectError(r.err)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close sends what is left in the connection's buffer and closes it. It waits
// for the server's confirmation, or for a reconnect, up to [CloseTimeout], and
// returns why there was none; the connection is closed either way. Before that it
// waits for a write that is under way, no longer than FlusherTimeout. A closed
// connection is left alone.
func Close(nc *nats.Conn) error {
	if nc.IsClosed() {
		return nil
	}

	defer nc.Close()

	return natserr.Map(nc.FlushTimeout(CloseTimeout))
}

// connectError gives a name to what nats.go reports when it cannot connect.
func connectError(err error) error {
	var refused net.Error

	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused), errors.Is(err, nats.ErrNoInfoReceived):
		return transport.Mark(transport.ErrDisconnected, err)
	default:
		return natserr.Map(err)
	}
}

// options translates the URL.
func options(u *url.URL) (nats.Options, error) {
	o := nats.GetDefaultOptions()
	q := u.Query()

	if u.Host == "" {
		return o, invalid("the URL names no host: write %s://host:4222", u.Scheme)
	}

	if strings.Trim(u.Path, "/") != "" {
		// Not shown: in a list of servers it holds the credentials of the second.
		return o, invalid("the URL has a path: settings are query parameters, and so is each server beyond the first (server=host:port)")
	}

	scheme := "nats"
	if u.Scheme == "tls" || strings.HasSuffix(u.Scheme, "+tls") {
		scheme = "tls"
		o.Secure = true
	}

	for _, host := range append([]string{u.Host}, q[paramServer]...) {
		if host == "" || strings.ContainsAny(host, "/@,") {
			return o, invalid("server wants host:port, without scheme or user, once for each server")
		}

		o.Servers = append(o.Servers, scheme+"://"+host)
	}

	// Credentials that the server refuses for a while, since its own source of
	// them is away or they are being renewed, are no reason to give up, either.
	o.MaxReconnect, o.IgnoreAuthErrorAbort = -1, true
	o.PingInterval, o.FlusherTimeout = pingInterval, writeTimeout
	o.AsyncErrorCB = logError
	o.DisconnectedErrCB = logLost
	o.ReconnectedCB = logBack
	o.Name = filepath.Base(os.Args[0])

	if name := q.Get(paramName); name != "" {
		o.Name = name
	}

	// Among the options, not in the URL of each server: nats.go has the URL
	// at hand where it reports and connects to discovered servers, which
	// have none of their own.
	if u.User != nil {
		if password, ok := u.User.Password(); ok {
			o.User, o.Password = u.User.Username(), password
		} else {
			o.Token = u.User.Username()
		}
	}

	if q.Has(paramReconnectBuf) {
		n, err := strconv.Atoi(q.Get(paramReconnectBuf))
		if err != nil || n < -1 || n == 0 { // nats.go takes 0 for its default
			return o, invalid("reconnectbuf wants a number of bytes, or -1 for none, not %q", q.Get(paramReconnectBuf))
		}

		o.ReconnectBufSize = n
	}

	err := secure(&o, q)

	return o, err
}

// secure applies the parameters that name files, and those for TLS.
func secure(o *nats.Options, q url.Values) error {
	var opts []nats.Option

	// nats.go reads some of these only when it connects, and then says
	// nothing of the file.
	for _, param := range []string{paramCreds, paramNkey, paramTLSCA, paramTLSCert, paramTLSKey} {
		for _, file := range q[param] {
			if _, err := os.Stat(file); err != nil { //nolint:gosec // whoever writes the URL may read the file
				return invalid("%s wants a file: %w", param, err)
			}
		}
	}

	if file := q.Get(paramCreds); file != "" {
		opts = append(opts, nats.UserCredentials(file))
	}

	if file := q.Get(paramNkey); file != "" {
		opt, err := nats.NkeyOptionFromSeed(file)
		if err != nil {
			return invalid("nkey: the file %q holds no seed of a user", file)
		}

		opts = append(opts, opt)
	}

	if files := q[paramTLSCA]; len(files) > 0 {
		opts = append(opts, nats.RootCAs(files...))
	}

	switch cert, key := q.Get(paramTLSCert), q.Get(paramTLSKey); {
	case cert != "" && key != "":
		opts = append(opts, nats.ClientCert(cert, key))
	case cert != "" || key != "":
		return invalid("tlscert and tlskey go together")
	}

	if q.Has(paramTLSFirst) {
		first, err := strconv.ParseBool(q.Get(paramTLSFirst))
		if err != nil {
			return invalid("tlsfirst wants true or false, not %q", q.Get(paramTLSFirst))
		}

		if first {
			opts = append(opts, nats.TLSHandshakeFirst())
		}
	}

	for _, opt := range opts {
		if err := opt(o); err != nil {
			return transport.Mark(transport.ErrInvalidOption, err)
		}
	}

	return nil
}

// logError takes the place of nats.go's handler, which prints.
func logError(nc *nats.Conn, sub *nats.Subscription, err error) {
	log := slog.Default().With("connection", nc.Opts.Name)
	if sub != nil {
		log = log.With("subject", sub.Subject)
	}

	log.Warn("goflux: the connection to NATS reports an error", "error", err)
}

// logLost is called when the connection is lost, with nil when it is closed on
// purpose.
func logLost(nc *nats.Conn, err error) {
	if err != nil {
		slog.Warn("goflux: the connection to NATS is lost", "connection", nc.Opts.Name, "error", err)
	}
}

func logBack(nc *nats.Conn) {
	slog.Info("goflux: the connection to NATS is back", "connection", nc.Opts.Name, "server", nc.ConnectedUrlRedacted())
}

func invalid(format string, args ...any) error {
	return transport.Mark(transport.ErrInvalidOption, fmt.Errorf(format, args...))
}
