package transport_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/foomo/goflux/transport"
)

func TestHeader(t *testing.T) {
	t.Parallel()

	h := transport.Header{}
	h.Set("Key", "1")
	h.Add("Key", "2")
	h.Add("key", "3")

	if h.Get("Key") != "1" || h.Get("key") != "3" || h.Get("KEY") != "" {
		t.Errorf("got %v", h)
	}

	if v := h.Values("Key"); !slices.Equal(v, []string{"1", "2"}) {
		t.Errorf("values %v", v)
	}

	h.Set("Key", "4")
	h.Del("key")
	h.Del("missing")

	if !maps.EqualFunc(h, transport.Header{"Key": {"4"}}, slices.Equal) {
		t.Errorf("got %v", h)
	}

	if h = (transport.Header{"none": {}}); h.Get("none") != "" {
		t.Errorf("a key without values has %q", h.Get("none"))
	}
}

func TestNilHeaderIsEmpty(t *testing.T) {
	t.Parallel()

	var h transport.Header

	h.Del("k")

	if h.Get("k") != "" || h.Values("k") != nil || h.Clone() != nil || h.Validate() != nil || h.ValidateUser() != nil {
		t.Error("it is not")
	}
}

func TestHeaderClone(t *testing.T) {
	t.Parallel()

	h := transport.Header{"a": {"1", "2"}, "b": {""}, "none": {}}
	c := h.Clone()

	if !maps.EqualFunc(h, c, slices.Equal) {
		t.Fatalf("got %v", c)
	}

	c["a"][0] = "x"
	c.Add("a", "y")
	c.Set("c", "z")
	c.Del("b")

	if !maps.EqualFunc(h, transport.Header{"a": {"1", "2"}, "b": {""}, "none": {}}, slices.Equal) {
		t.Errorf("the original became %v", h)
	}

	if c := (transport.Header{}).Clone(); c == nil || len(c) != 0 {
		t.Errorf("the clone of an empty header is %v", c)
	}
}

func TestHeaderValidate(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		name string
		h    transport.Header
		ok   bool
	}{
		{"empty", transport.Header{}, true},
		{"plain", transport.Header{"Key-1": {"value"}}, true},
		{"all that a token may hold", transport.Header{"azAZ09!#$%&'*+-.^_`|~": {"v"}}, true},
		{"many values", transport.Header{"k": {"a", "", "c"}}, true},
		{"blanks within a value", transport.Header{"k": {"a b\tc"}}, true},
		{"any other bytes in a value", transport.Header{"k": {"ä: \x01\x00\xff;,"}}, true},
		{"reserved, for Validate", transport.Header{"Nats-Msg-Id": {"1"}}, true},
		{"no key", transport.Header{"": {"v"}}, false},
		{"blank in the key", transport.Header{"a b": {"v"}}, false},
		{"colon in the key", transport.Header{"a:b": {"v"}}, false},
		{"line break in the key", transport.Header{"a\r\nb": {"v"}}, false},
		{"control byte in the key", transport.Header{"a\x7f": {"v"}}, false},
		{"not ASCII in the key", transport.Header{"ä": {"v"}}, false},
		{"no values", transport.Header{"k": {}}, false},
		{"nil values", transport.Header{"k": nil}, false},
		{"CR in a value", transport.Header{"k": {"a\rb"}}, false},
		{"LF in a value", transport.Header{"k": {"a\nb"}}, false},
		{"leading space", transport.Header{"k": {" a"}}, false},
		{"trailing space", transport.Header{"k": {"a "}}, false},
		{"leading tab", transport.Header{"k": {"\ta"}}, false},
		{"trailing tab", transport.Header{"k": {"a\t"}}, false},
		{"a space alone", transport.Header{"k": {" "}}, false},
		{"the second value", transport.Header{"k": {"a", " b"}}, false},
		{"the second key", transport.Header{"a": {"b"}, "k:": {"b"}}, false},
	} {
		for name, validate := range map[string]func() error{"Validate": tc.h.Validate, "ValidateUser": tc.h.ValidateUser} {
			want := tc.ok && (name == "Validate" || !strings.HasPrefix(tc.name, "reserved"))

			if err := validate(); want != (err == nil) || (err != nil && !errors.Is(err, transport.ErrInvalidHeader)) {
				t.Errorf("%s: %s: %v", tc.name, name, err)
			}
		}
	}

	for _, c := range `()<>@,;:\"/[]?={} ` {
		if (transport.Header{"a" + string(c): {"v"}}).Validate() == nil {
			t.Errorf("a key may hold %q", c)
		}
	}
}

func TestErrorsDoNotShowHeaderValues(t *testing.T) {
	t.Parallel()

	for _, v := range []string{"secret\n", " secret"} {
		if err := (transport.Header{"k": {v}}).Validate(); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
}

func TestReserved(t *testing.T) {
	t.Parallel()

	for key, want := range map[string]bool{
		"Nats-Msg-Id": true, "nats-ttl": true, "NATS-": true, "Goflux-Reply-To": true, "goflux-x": true,
		transport.HeaderMessageID: true, "x-message-id": true, "traceparent": true, "Traceparent": true,
		"tracestate": true, "TRACESTATE": true, "Status": true, "status": true,
		"": false, "Nats": false, "X-Nats-A": false, "Goflux": false, "X-Message-ID-2": false, "X-Status": false,
		"baggage": false, "trace": false,
	} {
		remedy, reserved := transport.Reserved(key)
		if reserved != want || (remedy != "") != want {
			t.Errorf("%q: %q, %v", key, remedy, reserved)
		}

		err := transport.Header{key: {"v"}}.ValidateUser()
		if want && (!errors.Is(err, transport.ErrInvalidHeader) || !strings.Contains(err.Error(), remedy)) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func FuzzHeaderValidate(f *testing.F) {
	for _, s := range [][2]string{{"k", "v"}, {"", ""}, {"a:b", "v"}, {"k", " v"}, {"k", "a\r\nb"}, {"ä", "ä"}, {"k", "\t"}, {"a\x7f", ""}} {
		f.Add(s[0], s[1])
	}

	const token = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"

	f.Fuzz(func(t *testing.T, key, value string) {
		want := key != "" && strings.Trim(key, token) == "" &&
			!strings.ContainsAny(value, "\r\n") && strings.Trim(value, " \t") == value

		if err := (transport.Header{key: {value}}).Validate(); (err == nil) != want || (err != nil && !errors.Is(err, transport.ErrInvalidHeader)) {
			t.Errorf("%q: %q: %v", key, value, err)
		}
	})
}

func TestHeaderValidateDoesNotAllocate(t *testing.T) { //nolint:paralleltest // counts allocations
	h := transport.Header{"X-Request-ID": {"1"}, "key": {"a", "b c"}}

	if n := testing.AllocsPerRun(100, func() { _ = h.ValidateUser() }); n != 0 {
		t.Errorf("it allocates %v times", n)
	}
}
