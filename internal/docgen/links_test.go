package main

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The top of the module, seen from here.
const top = "../.."

// documents returns the paths of the Markdown files that are written for users,
// relative to the top of the module.
func documents(t *testing.T) []string {
	t.Helper()

	var names []string

	for _, pattern := range []string{"*.md", "docs/*.md"} {
		found, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			t.Fatal(err)
		}

		for _, path := range found {
			name, err := filepath.Rel(top, path)
			if err != nil {
				t.Fatal(err)
			}

			names = append(names, filepath.ToSlash(name))
		}
	}

	if !slices.Contains(names, "README.md") {
		t.Fatalf("there is no README.md among %q", names)
	}

	return names
}

// prose returns a document without what stands in code blocks.
func prose(text string) string {
	var b strings.Builder

	fenced := false

	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced

			continue
		}

		if !fenced {
			b.WriteString(line)
		}
	}

	return b.String()
}

var (
	link    = regexp.MustCompile(`\]\(([^()\s]*(?:\([^()\s]*\))?[^()\s]*)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.*?) *$`)
	inline  = regexp.MustCompile("`[^`]*`")
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns what a document's headings are linked to by.
func anchors(text string) []string {
	var found []string

	for _, h := range heading.FindAllStringSubmatch(prose(text), -1) {
		anchor := dropped.ReplaceAllString(strings.ToLower(h[1]), "")
		found = append(found, strings.ReplaceAll(anchor, " ", "-"))
	}

	return found
}

// Every relative link leads to a file, or a heading, that is there. What is on
// other hosts is not looked at.
func TestLinksResolve(t *testing.T) {
	t.Parallel()

	for _, name := range documents(t) {
		text := read(t, top, name)

		for _, found := range link.FindAllStringSubmatch(inline.ReplaceAllString(prose(text), ""), -1) {
			u, err := url.Parse(found[1])
			if err != nil {
				t.Errorf("%s: the link %q cannot be parsed", name, found[1])

				continue
			}

			if u.Scheme != "" {
				continue
			}

			target := name
			if u.Path != "" {
				target = filepath.Join(filepath.Dir(name), filepath.FromSlash(u.Path))
			}

			info, err := os.Stat(filepath.Join(top, target))

			switch {
			case err != nil, strings.HasPrefix(target, ".."):
				t.Errorf("%s: the link %q leads nowhere", name, found[1])
			case u.Fragment == "":
			case info.IsDir() || filepath.Ext(target) != ".md" || !slices.Contains(anchors(read(t, top, target)), u.Fragment):
				t.Errorf("%s: the link %q leads to no heading", name, found[1])
			}
		}
	}
}

// A document in docs/ that the README does not lead to is not found.
func TestEveryDocumentIsLinked(t *testing.T) {
	t.Parallel()

	readme := read(t, top, "README.md")

	for _, name := range documents(t) {
		if strings.HasPrefix(name, "docs/") && !strings.Contains(readme, "("+name+")") {
			t.Errorf("README.md has no link to %s", name)
		}
	}
}

// docs/errors.md tells of each error that users can ask for by name.
func TestEveryErrorIsDocumented(t *testing.T) {
	t.Parallel()

	var (
		page     = read(t, top, "docs/errors.md")
		sentinel = regexp.MustCompile(`(?m)^\t(Err[A-Z]\w*) += `)
		names    []string
	)

	for _, match := range sentinel.FindAllStringSubmatch(read(t, top, "error.go"), -1) {
		names = append(names, match[1])
	}

	if len(names) < 20 {
		t.Fatalf("found no more errors than %q", names)
	}

	for _, name := range names {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("docs/errors.md does not tell of %s", name)
		}
	}
}

// docs/transports.md tells of each parameter of a URL.
func TestEveryParameterIsDocumented(t *testing.T) {
	t.Parallel()

	var (
		page      = read(t, top, "docs/transports.md")
		constant  = regexp.MustCompile(`(?m)^\tparam\w+ += "(\w+)"`)
		checked   = regexp.MustCompile(`CheckQuery\(u, (.*)\)`)
		parameter = regexp.MustCompile(`"(\w+)"`)
		names     []string
	)

	for _, file := range []string{
		"internal/natsconn/natsconn.go", "internal/natsconn/consumer.go", "transport/nats/open.go",
		"transport/jetstream/open.go", "transport/memory/open.go", "transport/embedded/open.go",
	} {
		text, before := read(t, top, file), len(names)

		for _, match := range constant.FindAllStringSubmatch(text, -1) {
			names = append(names, match[1])
		}

		for _, match := range checked.FindAllStringSubmatch(text, -1) {
			for _, p := range parameter.FindAllStringSubmatch(match[1], -1) {
				names = append(names, p[1])
			}
		}

		if len(names) == before {
			t.Errorf("found no parameters in %s", file)
		}
	}

	for _, name := range names {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("docs/transports.md does not tell of the parameter %q", name)
		}
	}
}
