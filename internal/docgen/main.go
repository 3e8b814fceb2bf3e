// Command docgen writes into README.md and docs/*.md what is generated there:
// the capability matrix of the transports, and code from files that compile.
//
//	go run ./internal/docgen          rewrites the documents
//	go run ./internal/docgen -check   changes nothing, exits with 1 if something would change
//
// What stands between two lines like these is replaced; the lines stay:
//
//	<!-- matrix:begin -->
//	<!-- matrix:end -->
//
//	<!-- code:begin examples/quickstart/main.go publish -->
//	<!-- code:end -->
//
// The path is relative to the top of the module. The second word, if there is
// one, names a region of the file: what stands between the comments
// "// region publish" and "// endregion". Without it the whole file is taken.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

func main() {
	dir := flag.String("dir", ".", "the top of the module")
	check := flag.Bool("check", false, "change nothing, and exit with 1 if something would change")
	flag.Parse()

	stale, err := run(*dir, *check)

	for _, name := range stale {
		if *check {
			fmt.Fprintln(os.Stderr, "docgen: out of date:", name)
		} else {
			fmt.Println("docgen: rewrote", name)
		}
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
	}

	if err != nil || (*check && len(stale) > 0) {
		os.Exit(1)
	}
}

// run brings the documents below dir up to date, or only looks, and returns the
// names of those that were not.
func run(dir string, check bool) (stale []string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()

	names, err := filepath.Glob(filepath.Join(dir, "docs", "*.md"))
	if err != nil {
		return nil, err
	}

	for i, name := range names {
		names[i] = "docs/" + filepath.Base(name)
	}

	if _, err := root.Stat("README.md"); err == nil {
		names = slices.Insert(names, 0, "README.md")
	}

	var errs []error

	for _, name := range names {
		before, err := root.ReadFile(name)
		if err != nil {
			return stale, err
		}

		after, err := document(root, before)

		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", name, err))

			continue
		case bytes.Equal(before, after):
			continue
		}

		stale = append(stale, name)

		if !check {
			if err := root.WriteFile(name, after, 0o644); err != nil {
				return stale, err
			}
		}
	}

	return stale, errors.Join(errs...)
}
