package transporttest_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/memory"
	"github.com/foomo/goflux/transport/transporttest"
)

type capable transport.Capabilities

func (c capable) Capabilities() transport.Capabilities { return transport.Capabilities(c) }

var columns = []transporttest.NamedTransport{
	{Name: "all", Capable: ^capable(0)},
	{Name: "none", Capable: capable(0)},
	{Name: "acks", Capable: capable(transport.Of(transport.Acks))},
}

func TestMatrix(t *testing.T) {
	t.Parallel()

	for name, row := range map[string]struct {
		write   func(w *strings.Builder) error
		yes, no string
		header  int
		cells   func(line string) []string
	}{
		"terminal": {
			func(w *strings.Builder) error { return transporttest.Matrix(w, columns...) },
			"yes", "-", 1, strings.Fields,
		},
		"markdown": {
			func(w *strings.Builder) error { return transporttest.MatrixMarkdown(w, columns...) },
			"✓", "–", 2, func(line string) []string {
				return strings.Fields(strings.ReplaceAll(line, "|", " "))
			},
		},
	} {
		var w strings.Builder
		if err := row.write(&w); err != nil {
			t.Fatal(err)
		}

		lines := strings.Split(strings.TrimSuffix(w.String(), "\n"), "\n")
		if !strings.Contains(lines[0], "all") || !strings.Contains(lines[0], "none") {
			t.Errorf("%s: the header is %q", name, lines[0])
		}

		lines = lines[row.header:]

		for c := range transport.AllCapabilities() {
			if len(lines) == 0 {
				t.Fatalf("%s: there is no row for %v", name, c)
			}

			line := lines[0]
			lines = lines[1:]

			want := []string{row.yes, row.no, row.no}
			if c == transport.Acks {
				want[2] = row.yes
			}

			cells := row.cells(line)
			if got := cells[len(cells)-3:]; strings.Join(got, " ") != strings.Join(want, " ") ||
				!strings.Contains(line, c.String()) || !strings.Contains(line, c.Meaning()) {
				t.Errorf("%s: the row of %v is %q, want it to end with %v", name, c, line, want)
			}
		}

		if len(lines) > 0 {
			t.Errorf("%s: there are more lines: %q", name, lines)
		}
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestMatrixReportsTheWriter(t *testing.T) {
	t.Parallel()

	for _, err := range []error{
		transporttest.Matrix(brokenPipe{}, columns...),
		transporttest.MatrixMarkdown(brokenPipe{}, columns...),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("error %v", err)
		}
	}
}

// The file of a transport's author.
func ExampleRun() {
	_ = func(t *testing.T) { // TestConformance
		transporttest.Run(t, transporttest.Harness{
			Start: func(tb testing.TB, cfg transporttest.Config) transporttest.Broker {
				tb.Helper()

				tr, err := memory.New(memory.WithAckWait(cfg.AckWait), memory.WithMaxDeliver(cfg.MaxDeliver))
				if err != nil {
					tb.Fatal(err)
				}

				return transporttest.Broker{Open: func(testing.TB) transport.Transport { return tr }}
			},
		})
	}
	// Output:
}
