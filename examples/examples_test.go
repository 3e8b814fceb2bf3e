// Package examples_test runs the programs below this folder and looks at what
// they print.
package examples_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/foomo/goflux/internal/natstest"
)

func TestPrograms(t *testing.T) {
	t.Parallel()

	for dir, want := range map[string]string{
		"jetstream/push":    "received: 1 signup\n",
		"jetstream/durable": "welcome, Ann\n",
		"jetstream/manualack": "acked: now\n" +
			"put off: later\n" +
			"terminated: poison\n" +
			"acked: later\n",
		"portable":        "memory:: order 1\nembedded:?stream=ORDERS&subjects=orders.>: order 1\n",
		"jetstream/fetch": "pulled: 1 reading\npulled: 2 reading\npulled: 3 reading\n",
	} {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()

			server := natstest.RunTCP(t)
			program := build(t, dir, server.URL())

			got, err := exec.CommandContext(t.Context(), program).Output()
			if err != nil {
				t.Fatal(err)
			}

			if string(got) != want {
				t.Errorf("it printed\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// build compiles an example that connects to nats.DefaultURL so that it
// connects to url, and starts no server of its own. Nothing else is changed.
func build(t *testing.T, dir, url string) string {
	t.Helper()

	tmp := t.TempDir()
	overlay := map[string]map[string]string{"Replace": {}}

	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}

	for i, name := range files {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}

		path, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}

		replaced := filepath.Join(tmp, strconv.Itoa(i)+".go")
		source = bytes.ReplaceAll(source, []byte("nats.DefaultURL"), []byte(strconv.Quote(url)))
		source = bytes.ReplaceAll(source, []byte(`	_ "github.com/foomo/goflux/examples/internal/defaultserver"`), nil)

		if err := os.WriteFile(replaced, source, 0o600); err != nil {
			t.Fatal(err)
		}

		overlay["Replace"][path] = replaced
	}

	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(tmp, "overlay.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}

	program := filepath.Join(tmp, strings.ReplaceAll(dir, "/", "-"))

	out, err := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(tmp, "overlay.json"),
		"-o", program, "./"+dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	return program
}
