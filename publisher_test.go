package goflux_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	json "github.com/foomo/goencode/json/v1"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// recorder is a transport that keeps the last message.
type recorder struct {
	caps transport.Capabilities
	last transport.Message
	sent atomic.Int64
	err  error
}

func (r *recorder) Capabilities() transport.Capabilities { return r.caps }

func (r *recorder) Publish(_ context.Context, m transport.Message) (transport.Receipt, error) {
	r.last = m
	r.sent.Add(1)

	return transport.Receipt{}, r.err
}

type order struct {
	ID     string `json:"id"`
	Amount int    `json:"amount"`
}

var fixed = []byte(`{"id":"1"}`)

// constant is a codec that allocates nothing.
func constant() goflux.Codec[order] {
	return goflux.Codec[order]{
		Encode: func(order) ([]byte, error) { return fixed, nil },
		Decode: func([]byte, *order) error { return nil },
	}
}

//nolint:paralleltest // allocations are counted
func TestPublishAddsNoAllocation(t *testing.T) {
	pub, err := goflux.NewPublisher(&recorder{}, constant())
	if err != nil {
		t.Fatal(err)
	}

	ctx := t.Context()

	if n := testing.AllocsPerRun(1000, func() {
		if err := pub.Publish(ctx, "orders.created", order{ID: "1"}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per publish", n)
	}
}

func TestPublishSendsIDAndHeaders(t *testing.T) {
	t.Parallel()

	r := &recorder{}
	pub, err := goflux.NewPublisher(r, json.NewCodec[order]())
	if err != nil {
		t.Fatal(err)
	}

	mine := goflux.Header{"Tenant": {"a", "b"}, "lower": {""}}
	ctx := goflux.WithHeader(goflux.WithMessageID(t.Context(), "m-1"), mine)

	if err := pub.Publish(ctx, "orders.created", order{ID: "1", Amount: 2}); err != nil {
		t.Fatal(err)
	}

	if string(r.last.Data) != `{"id":"1","amount":2}` || r.last.ID != "m-1" || r.last.Subject != "orders.created" {
		t.Errorf("sent %+v", r.last)
	}

	if got := r.last.Header.Values("Tenant"); len(got) != 2 || got[1] != "b" || r.last.Header.Get("X-Message-ID") != "m-1" {
		t.Errorf("sent headers %v", r.last.Header)
	}

	r.last.Header.Set("Tenant", "changed")

	if len(mine) != 2 || mine.Get("Tenant") != "a" {
		t.Errorf("the caller's header was changed: %v", mine)
	}
}

func TestPublishRefusesBeforeSending(t *testing.T) {
	t.Parallel()

	unencodable := errors.New("no")
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()

	for name, test := range map[string]struct {
		ctx     func(context.Context) context.Context
		subject string
		value   order
		want    error
	}{
		"empty subject": {subject: "", want: goflux.ErrInvalidSubject},
		"wildcard":      {subject: "orders.*", want: goflux.ErrInvalidSubject},
		"tail wildcard": {subject: "orders.>", want: goflux.ErrInvalidSubject},
		"empty token":   {subject: "orders..a", want: goflux.ErrInvalidSubject},
		"white space":   {subject: "orders a", want: goflux.ErrInvalidSubject},
		"zero byte":     {subject: "orders\x00", want: goflux.ErrInvalidSubject},
		"header key":    {ctx: header("a b", "v"), subject: "a", want: goflux.ErrInvalidHeader},
		"line break":    {ctx: header("a", "v\r\nx: y"), subject: "a", want: goflux.ErrInvalidHeader},
		"trimmed value": {ctx: header("a", " v"), subject: "a", want: goflux.ErrInvalidHeader},
		"no values":     {ctx: header("a"), subject: "a", want: goflux.ErrInvalidHeader},
		"reserved":      {ctx: header("nats-Msg-Id", "v"), subject: "a", want: goflux.ErrInvalidHeader},
		"reserved id":   {ctx: header("x-message-id", "v"), subject: "a", want: goflux.ErrInvalidHeader},
		"status":        {ctx: header("Status", "503"), subject: "a", want: goflux.ErrInvalidHeader},
		"id":            {ctx: messageID("a\nb"), subject: "a", want: goflux.ErrInvalidHeader},
		"unencodable":   {subject: "a", value: order{ID: "bad"}, want: goflux.ErrEncode},
		"its cause":     {subject: "a", value: order{ID: "bad"}, want: unencodable},
		"cancelled ctx": {ctx: func(context.Context) context.Context { return cancelled }, subject: "a", want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			r := &recorder{}
			codec := constant()
			codec.Encode = func(o order) ([]byte, error) {
				if o.ID == "bad" {
					return nil, unencodable
				}

				return fixed, nil
			}

			pub, err := goflux.NewPublisher(r, codec)
			if err != nil {
				t.Fatal(err)
			}

			ctx := t.Context()
			if test.ctx != nil {
				ctx = test.ctx(ctx)
			}

			err = pub.Publish(ctx, test.subject, test.value)

			var told *goflux.Error
			if !errors.Is(err, test.want) || !errors.As(err, &told) || told.Op != "publish" {
				t.Errorf("got %v, want an *Error around %v", err, test.want)
			}

			if r.sent.Load() != 0 {
				t.Error("it was sent all the same")
			}
		})
	}
}

func header(key string, values ...string) func(context.Context) context.Context {
	return func(ctx context.Context) context.Context { return goflux.WithHeader(ctx, goflux.Header{key: values}) }
}

func messageID(id string) func(context.Context) context.Context {
	return func(ctx context.Context) context.Context { return goflux.WithMessageID(ctx, id) }
}

func TestClosedPublisher(t *testing.T) {
	t.Parallel()

	r := &recorder{}
	pub, err := goflux.NewPublisher(r, constant())
	if err != nil {
		t.Fatal(err)
	}

	for range 2 {
		if err := pub.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}

	if err := pub.Publish(t.Context(), "a", order{}); !errors.Is(err, goflux.ErrClosed) || r.sent.Load() != 0 {
		t.Errorf("got %v", err)
	}
}

func TestConstructorsRefuse(t *testing.T) {
	t.Parallel()

	r := &recorder{}

	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"nil transport":   {err: second(goflux.NewPublisher[order](nil, constant())), want: "transport is nil"},
		"no encoder":      {err: second(goflux.NewPublisher(r, goflux.Codec[order]{})), want: "cannot encode"},
		"nil option":      {err: second(goflux.NewPublisher(r, constant(), nil)), want: "nil option"},
		"foreign option":  {err: goflux.BindPublisher(r, nil, constant(), goflux.WithManualAck()).Publish(t.Context(), "a", order{}), want: "WithManualAck does not apply to a publisher"},
		"deferred":        {err: goflux.BindPublisher(nil, errNone, constant()).Publish(t.Context(), "a", order{}), want: "no connection"},
		"deferred closed": {err: goflux.BindPublisher(nil, errNone, constant()).Close()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			switch {
			case test.want == "":
				if test.err != nil {
					t.Errorf("got %v", test.err)
				}
			case test.err == nil || !strings.Contains(test.err.Error(), test.want):
				t.Errorf("got %v, want %q in it", test.err, test.want)
			}
		})
	}
}

var errNone = errors.New("no connection")

func second[A any](_ A, err error) error { return err }
