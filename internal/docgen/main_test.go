package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/foomo/goflux/transport"
)

// tree writes files to a directory and returns its path.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()

	dir := t.TempDir()

	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}

		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	return dir
}

func read(t *testing.T, dir, name string) string {
	t.Helper()

	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}

	return string(data)
}

const program = `package main

func main() {
	// region all

	one()
	// region part
	if two() {

		three()
	}
	// endregion
	four()

	// endregion
}
`

func TestRun(t *testing.T) {
	t.Parallel()

	dir := tree(t, map[string]string{
		"main.go": program,
		"README.md": "# Title\n<!-- code:begin main.go part -->\nold\n```go\nold\n```\n<!-- code:end -->\n" +
			"```\n<!-- matrix:begin -->\n```\n<!-- a comment -->\nend without a line break",
		"docs/all.md":    "<!-- code:begin main.go all -->\n<!-- code:end -->\n<!-- code:begin main.go -->\n<!-- code:end -->\n",
		"docs/matrix.md": "<!-- matrix:begin -->\n<!-- matrix:end -->\n",
		"docs/plain.md":  "nothing is generated here\n",
	})

	before := read(t, dir, "README.md")

	stale, err := run(dir, true)
	if err != nil || strings.Join(stale, " ") != "README.md docs/all.md docs/matrix.md" {
		t.Fatalf("stale %v, error %v", stale, err)
	}

	if read(t, dir, "README.md") != before {
		t.Error("a check has changed a document")
	}

	if _, err := run(dir, false); err != nil {
		t.Fatal(err)
	}

	want := "# Title\n<!-- code:begin main.go part -->\n```go\nif two() {\n\n\tthree()\n}\n```\n<!-- code:end -->\n" +
		"```\n<!-- matrix:begin -->\n```\n<!-- a comment -->\nend without a line break"
	if got := read(t, dir, "README.md"); got != want {
		t.Errorf("README.md is\n%s\nwant\n%s", got, want)
	}

	whole := strings.NewReplacer("\t// region all\n", "", "\t// region part\n", "", "\t// endregion\n", "").Replace(program)
	want = "<!-- code:begin main.go all -->\n```go\none()\nif two() {\n\n\tthree()\n}\nfour()\n```\n<!-- code:end -->\n" +
		"<!-- code:begin main.go -->\n```go\n" + whole + "```\n<!-- code:end -->\n"

	if got := read(t, dir, "docs/all.md"); got != want {
		t.Errorf("docs/all.md is\n%s\nwant\n%s", got, want)
	}

	if got := read(t, dir, "docs/matrix.md"); !strings.Contains(got, "| replay |") || !strings.Contains(got, "✓") ||
		!strings.Contains(got, "| live request-reply ¹ |") || !strings.Contains(got, "\n\n¹ JetStream") {
		t.Errorf("docs/matrix.md is\n%s", got)
	}

	if stale, err := run(dir, true); err != nil || len(stale) > 0 {
		t.Errorf("after a run %v are stale, error %v", stale, err)
	}
}

func TestRunErrors(t *testing.T) {
	t.Parallel()

	for name, row := range map[string]struct{ readme, want string }{
		"no end":         {"<!-- matrix:begin -->\n", "has no matrix:end"},
		"no begin":       {"text\n<!-- code:end -->\n", "line 2"},
		"nested":         {"<!-- matrix:begin -->\n<!-- code:begin main.go -->\n<!-- code:end -->\n<!-- matrix:end -->\n", "line 2"},
		"no path":        {"<!-- code:begin -->\n<!-- code:end -->\n", "path"},
		"too much":       {"<!-- matrix:begin all -->\n<!-- matrix:end -->\n", "takes nothing"},
		"no file":        {"<!-- code:begin none.go -->\n<!-- code:end -->\n", "none.go"},
		"outside":        {"<!-- code:begin ../main.go -->\n<!-- code:end -->\n", "escapes"},
		"no region":      {"<!-- code:begin main.go none -->\n<!-- code:end -->\n", `no region "none"`},
		"open region":    {"<!-- code:begin open.go -->\n<!-- code:end -->\n", "has no endregion"},
		"twice":          {"<!-- code:begin twice.go x -->\n<!-- code:end -->\n", "2 regions"},
		"only an ending": {"<!-- code:begin end.go -->\n<!-- code:end -->\n", "without a region"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			dir := tree(t, map[string]string{
				"README.md": row.readme,
				"main.go":   program,
				"open.go":   "// region x\n",
				"twice.go":  "// region x\n// endregion\n// region x\n// endregion\n",
				"end.go":    "// endregion\n",
			})

			_, err := run(dir, false)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error %v, want one with %q", err, row.want)
			}

			if got := read(t, dir, "README.md"); got != row.readme {
				t.Errorf("the document was changed to %q", got)
			}
		})
	}
}

func TestFootnoteNeedsItsRow(t *testing.T) {
	t.Parallel()

	if got, err := footnote("| replay |", transport.RequestReply, "x", "y"); err == nil {
		t.Errorf("a footnote to no row: %q", got)
	}
}
