package main

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// code returns a region of a file, or all of it, as a code block.
func code(root *os.Root, name, region string) (string, error) {
	data, err := root.ReadFile(name)
	if err != nil {
		return "", err
	}

	lines, err := cut(strings.Split(strings.TrimRight(string(data), "\n"), "\n"), region)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}

	return "```" + strings.TrimPrefix(path.Ext(name), ".") + "\n" + strings.Join(unindent(lines), "\n") + "\n```\n", nil
}

// cut returns the lines of a region; all of them if it has no name. The comments
// that mark regions are left out.
func cut(lines []string, region string) ([]string, error) {
	var (
		found []string
		open  []string // the regions that a line is in
		seen  int
	)

	for i, line := range lines {
		mark := strings.Fields(line)

		switch {
		case len(mark) == 3 && isComment(mark[0]) && mark[1] == "region":
			open = append(open, mark[2])

			if mark[2] == region {
				seen++
			}
		case len(mark) >= 2 && isComment(mark[0]) && mark[1] == "endregion":
			if len(open) == 0 {
				return nil, fmt.Errorf("line %d: endregion without a region", i+1)
			}

			open = open[:len(open)-1]
		case region == "" || slices.Contains(open, region):
			found = append(found, line)
		}
	}

	switch {
	case len(open) > 0:
		return nil, fmt.Errorf("the region %q has no endregion", open[len(open)-1])
	case region != "" && seen == 0:
		return nil, fmt.Errorf("there is no region %q", region)
	case region != "" && seen > 1:
		return nil, fmt.Errorf("there are %d regions %q", seen, region)
	}

	return trim(found), nil
}

func isComment(s string) bool { return s == "//" || s == "#" }

// trim removes empty lines at both ends.
func trim(lines []string) []string {
	for len(lines) > 0 && strings.TrimSpace(lines[0]) == "" {
		lines = lines[1:]
	}

	for len(lines) > 0 && strings.TrimSpace(lines[len(lines)-1]) == "" {
		lines = lines[:len(lines)-1]
	}

	return lines
}

// unindent removes the white space that all lines begin with.
func unindent(lines []string) []string {
	common := ""
	first := true

	for _, line := range lines {
		if strings.TrimSpace(line) == "" {
			continue
		}

		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if first {
			common, first = indent, false
		}

		for !strings.HasPrefix(indent, common) {
			common = common[:len(common)-1]
		}
	}

	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = strings.TrimPrefix(line, common)
	}

	return out
}
