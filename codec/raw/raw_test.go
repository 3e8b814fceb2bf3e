package raw_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/foomo/goflux/codec/raw"
)

// payloads are the contents that a codec may be tempted to alter.
var payloads = []struct{ name, data string }{
	{"empty", ""},
	{"text", "hello"},
	{"white space", " \r\n\t "},
	{"NUL", "a\x00b\x00"},
	{"not UTF-8", "\xff\xfe\xc3\x28"},
	{"byte order mark", "\xef\xbb\xbfhello"},
	{"one mebibyte", strings.Repeat("x", 1<<20)},
}

func TestBytesRoundTrip(t *testing.T) {
	t.Parallel()

	for _, payload := range payloads {
		t.Run(payload.name, func(t *testing.T) {
			t.Parallel()
			checkBytes(t, []byte(payload.data))
		})
	}
}

func TestStringRoundTrip(t *testing.T) {
	t.Parallel()

	for _, payload := range payloads {
		t.Run(payload.name, func(t *testing.T) {
			t.Parallel()
			checkString(t, payload.data)
		})
	}
}

func FuzzBytes(f *testing.F) {
	for _, payload := range payloads {
		f.Add([]byte(payload.data))
	}
	f.Fuzz(checkBytes)
}

func FuzzString(f *testing.F) {
	for _, payload := range payloads {
		f.Add(payload.data)
	}
	f.Fuzz(checkString)
}

func TestBytesNilArrivesEmpty(t *testing.T) {
	t.Parallel()
	codec := raw.Bytes()

	data, err := codec.Encode(nil)
	if err != nil || data == nil || len(data) != 0 {
		t.Fatalf("Encode(nil) = %#v, %v; want an empty slice", data, err)
	}
	for _, data := range [][]byte{nil, {}} {
		got := []byte("stale")
		if err := codec.Decode(data, &got); err != nil || got == nil || len(got) != 0 {
			t.Fatalf("Decode(%#v) = %#v, %v; want an empty slice", data, got, err)
		}
	}
}

func TestBytesShareNoMemory(t *testing.T) {
	t.Parallel()
	codec := raw.Bytes()

	source := []byte("first")
	sent, err := codec.Encode(source)
	if err != nil {
		t.Fatal(err)
	}
	copy(source, "other")
	if string(sent) != "first" {
		t.Errorf("a caller's change after Encode shows in what is sent: %q", sent)
	}

	var got []byte
	if err := codec.Decode(sent, &got); err != nil {
		t.Fatal(err)
	}
	copy(got, "other")
	if string(sent) != "first" {
		t.Errorf("a handler's change shows in what was received: %q", sent)
	}
}

//nolint:paralleltest // AllocsPerRun counts the allocations of the whole process
func TestOneAllocationEachWay(t *testing.T) {
	var (
		payload = bytes.Repeat([]byte("x"), 1024)
		text    = string(payload)
		asBytes = raw.Bytes()
		asText  = raw.String()

		data    []byte
		decoded []byte
		decText string
	)
	for name, run := range map[string]func(){
		"Bytes.Encode":  func() { data, _ = asBytes.Encode(payload) },
		"Bytes.Decode":  func() { _ = asBytes.Decode(payload, &decoded) },
		"String.Encode": func() { data, _ = asText.Encode(text) },
		"String.Decode": func() { _ = asText.Decode(payload, &decText) },
	} {
		if n := testing.AllocsPerRun(100, run); n != 1 {
			t.Errorf("%s allocates %v times, want 1", name, n)
		}
	}
	if len(data) != len(payload) || len(decoded) != len(payload) || len(decText) != len(payload) {
		t.Error("the measured calls did not do their work")
	}
}

func checkBytes(t *testing.T, payload []byte) {
	t.Helper()
	codec := raw.Bytes()

	data, err := codec.Encode(payload)
	if err != nil || !bytes.Equal(data, payload) {
		t.Fatalf("Encode changed %d bytes to %d, error %v", len(payload), len(data), err)
	}
	var got []byte
	if err := codec.Decode(data, &got); err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("Decode changed %d bytes to %d, error %v", len(data), len(got), err)
	}
}

func checkString(t *testing.T, payload string) {
	t.Helper()
	codec := raw.String()

	data, err := codec.Encode(payload)
	if err != nil || string(data) != payload {
		t.Fatalf("Encode changed %d bytes to %d, error %v", len(payload), len(data), err)
	}
	var got string
	if err := codec.Decode(data, &got); err != nil || got != payload {
		t.Fatalf("Decode changed %d bytes to %d, error %v", len(data), len(got), err)
	}
}
