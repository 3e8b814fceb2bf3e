package transporttest

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/foomo/goflux/transport"
)

// NamedTransport is a column of the capability matrix. Any transport will do,
// and so will whatever else knows its capabilities.
type NamedTransport struct {
	transport.Capable
	Name string
}

// Matrix writes to w which of the transports has which capability, as a table
// for a terminal: a row for each capability, in the order of
// [transport.AllCapabilities]. It returns the error of w.
func Matrix(w io.Writer, ts ...NamedTransport) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)

	for row := range rows(ts, "yes", "-") {
		if _, err := fmt.Fprintln(tab, strings.Join(row, "\t")); err != nil {
			return err
		}
	}

	return tab.Flush()
}

// MatrixMarkdown is [Matrix] as a table in Markdown.
func MatrixMarkdown(w io.Writer, ts ...NamedTransport) error {
	header := true

	for row := range rows(ts, "✓", "–") {
		line := "| " + strings.Join(row, " | ") + " |\n"

		if header {
			line += "|---|---|" + strings.Repeat(":-:|", len(ts)) + "\n"
			header = false
		}

		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}

	return nil
}

// rows yields the cells of the matrix, the header first.
func rows(ts []NamedTransport, yes, no string) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		header := slices.Grow([]string{"Capability", "What it gives"}, len(ts))
		for _, t := range ts {
			header = append(header, t.Name)
		}

		if !yield(header) {
			return
		}

		for c := range transport.AllCapabilities() {
			row := slices.Grow([]string{c.String(), c.Meaning()}, len(ts))

			for _, t := range ts {
				if t.Capabilities().Has(c) {
					row = append(row, yes)
				} else {
					row = append(row, no)
				}
			}

			if !yield(row) {
				return
			}
		}
	}
}
