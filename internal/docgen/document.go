package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

const (
	opening = "<!-- "
	closing = " -->"
)

// document returns the text with its generated parts made anew.
func document(root *os.Root, text []byte) ([]byte, error) {
	var (
		out    strings.Builder
		block  string // what is being replaced: "matrix", "code"; empty outside
		fenced bool   // within a code block, where nothing is a directive
	)

	for i, line := range strings.SplitAfter(string(text), "\n") {
		if block == "" && strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}

		words := directive(line)

		switch {
		case fenced || len(words) == 0:
			if block == "" {
				out.WriteString(line)
			}
		case words[0] == block+":end":
			block = ""

			out.WriteString(line)
		case block != "" || strings.HasSuffix(words[0], ":end"):
			return nil, fmt.Errorf("line %d: %q stands where it does not belong", i+1, strings.TrimSpace(line))
		default:
			content, err := generate(root, words)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}

			block = strings.TrimSuffix(words[0], ":begin")

			out.WriteString(line)
			out.WriteString(content)
		}
	}

	if block != "" {
		return nil, fmt.Errorf("a %s:begin has no %s:end", block, block)
	}

	return []byte(out.String()), nil
}

// directive returns the words of a line like "<!-- code:begin path -->", nil if
// the line is another one.
func directive(line string) []string {
	line = strings.TrimSpace(line)
	if !strings.HasPrefix(line, opening) || !strings.HasSuffix(line, closing) {
		return nil
	}

	words := strings.Fields(line[len(opening) : len(line)-len(closing)])
	if len(words) == 0 {
		return nil
	}

	switch words[0] {
	case "matrix:begin", "matrix:end", "code:begin", "code:end":
		return words
	default:
		return nil
	}
}

// generate returns what belongs behind a begin line.
func generate(root *os.Root, words []string) (string, error) {
	switch n := len(words); {
	case words[0] == "matrix:begin" && n == 1:
		return matrix()
	case words[0] == "code:begin" && (n == 2 || n == 3):
		return code(root, words[1], strings.Join(words[2:], ""))
	case words[0] == "code:begin":
		return "", errors.New("code:begin takes the path of a file and, if wanted, a region")
	default:
		return "", errors.New("matrix:begin takes nothing")
	}
}
