package facts_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natstest"
)

// roundTrip sends h through the server and returns what arrives.
func roundTrip(t *testing.T, h nats.Header) nats.Header {
	t.Helper()
	e := setup(t)
	sub, err := e.nc.SubscribeSync("h")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.nc.PublishMsg(&nats.Msg{Subject: "h", Header: h, Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(natstest.Limit)
	if err != nil {
		t.Fatal(err)
	}
	return m.Header
}

func TestHeaderWithoutValuesVanishes(t *testing.T) {
	t.Parallel()
	got := roundTrip(t, nats.Header{"None": {}, "Nil": nil, "Empty": {""}})
	if len(got) != 1 || !slices.Equal(got["Empty"], []string{""}) {
		t.Errorf("header %q", got)
	}
}

func TestHeaderCRLFBecomesSpaces(t *testing.T) {
	t.Parallel()
	got := roundTrip(t, nats.Header{"K": {"a\r\nB: b\nc\rd"}})
	if len(got) != 1 || got.Get("K") != "a  B: b c d" {
		t.Errorf("header %q", got)
	}
}

func TestHeaderValueIsTrimmed(t *testing.T) {
	t.Parallel()
	got := roundTrip(t, nats.Header{"K": {" \t a b\t ", " "}})
	if !slices.Equal(got["K"], []string{"a b", ""}) {
		t.Errorf("header %q", got)
	}
}

func TestHeaderKeyKeepsItsCase(t *testing.T) {
	t.Parallel()
	got := roundTrip(t, nats.Header{"traceparent": {"lower"}, "Traceparent": {"upper", "and more"}})
	if len(got) != 2 || !slices.Equal(got["traceparent"], []string{"lower"}) || !slices.Equal(got["Traceparent"], []string{"upper", "and more"}) {
		t.Errorf("header %q", got)
	}
}

func TestHeaderValueMayBeAnyOtherByte(t *testing.T) {
	t.Parallel()
	var value []byte
	for b := range 256 {
		if b != '\r' && b != '\n' {
			value = append(value, byte(b))
		}
	}
	value = append(append([]byte{'<'}, value...), '>') // So that nothing is trimmed.
	if got := roundTrip(t, nats.Header{"K": {string(value)}}).Get("K"); got != string(value) {
		t.Errorf("value %q", got)
	}
}

func TestHeaderKeyOutsideTokenIsErrBadHeaderMsg(t *testing.T) {
	t.Parallel()
	e := setup(t)
	for _, key := range []string{"", "a b", "a:b", "ä", "a\r\nb", "a\x00b", "(a)", "a/b", `"a"`, "a@b", "a=b", "a,b", "a;b", "[a]", "{a}", "a?b", "<a>", `a\b`} {
		err := e.nc.PublishMsg(&nats.Msg{Subject: "h", Header: nats.Header{key: {"v"}}})
		if !errors.Is(err, nats.ErrBadHeaderMsg) {
			t.Errorf("key %q: error %v", key, err)
		}
	}
	if err := e.nc.PublishMsg(&nats.Msg{Subject: "h", Header: nats.Header{"!#$%&'*+-.^_`|~09azAZ": {"v"}}}); err != nil {
		t.Error(err)
	}
}
