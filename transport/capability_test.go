package transport_test

import (
	"slices"
	"testing"

	"github.com/foomo/goflux/transport"
)

func TestAllCapabilities(t *testing.T) {
	t.Parallel()

	names := map[string]bool{"unknown": true}

	for i, c := range slices.Collect(transport.AllCapabilities()) {
		if c != 1<<i {
			t.Errorf("%s is out of place: %d, after %d others", c, c, i)
		}

		if names[c.String()] {
			t.Errorf("the name %q is taken", c)
		}

		names[c.String()] = true

		if c.Meaning() == "" || c.Meaning()[len(c.Meaning())-1] != '.' {
			t.Errorf("%s means %q", c, c.Meaning())
		}
	}

	for c := range transport.AllCapabilities() {
		if c != transport.Acks {
			t.Errorf("the first is %s", c)
		}

		break
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()

	set := transport.Of(transport.Replay, transport.Acks)

	for c := range transport.AllCapabilities() {
		if want := c == transport.Replay || c == transport.Acks; set.Has(c) != want {
			t.Errorf("has %s: %v", c, set.Has(c))
		}
	}

	if !set.Has() || !set.Has(transport.Acks, transport.Replay) || set.Has(transport.Acks, transport.Leases) {
		t.Error("Has takes one for all")
	}

	if transport.Of() != 0 || transport.Of(transport.Acks, transport.Acks) != transport.Of(transport.Acks) {
		t.Error("Of is not a set")
	}

	for want, set := range map[string]transport.Capabilities{
		"":                      0,
		"acks":                  transport.Of(transport.Acks),
		"acks, replay":          set, // in the order of the documentation
		"acks, attempt counter": transport.Of(transport.Attempts, transport.Acks),
	} {
		if got := set.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}

	if n := len(slices.Collect(transport.AllCapabilities())); n <= 11 || !transport.Capabilities(1<<n-1).Has(transport.Fetching) {
		t.Errorf("there are %d", n)
	}

	if c := transport.Capability(1 << 31); c.String() != "unknown" || c.Meaning() != "" {
		t.Errorf("an unknown one is %q: %q", c, c.Meaning())
	}
}

func TestActionNames(t *testing.T) {
	t.Parallel()

	for a, want := range map[transport.Action]string{
		transport.Ack: "ack", transport.AckSync: "ack sync", transport.Nak: "nak", transport.Term: "term",
		transport.Extend: "in progress", 0: "unknown", 99: "unknown",
	} {
		if got := a.String(); got != want {
			t.Errorf("%d is %q, want %q", a, got, want)
		}
	}
}
