package transport_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/foomo/goflux/transport"
)

func TestValidateSubjectAndFilter(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		in              string
		subject, filter bool // whether it is valid as one
	}{
		{"a", true, true},
		{"a.b.c", true, true},
		{"A.b-c_d.1$", true, true},
		{"größe.naïve", true, true},
		{"a*", true, true},
		{"a.*b", true, true},
		{"a.b>", true, true},
		{">a", true, true},
		{"**", true, true},
		{">>", true, true},
		{"$JS.API", true, true},
		{"*", false, true},
		{">", false, true},
		{"a.*", false, true},
		{"*.a", false, true},
		{"*.*.>", false, true},
		{"a.>", false, true},
		{"", false, false},
		{".", false, false},
		{".a", false, false},
		{"a.", false, false},
		{"a..b", false, false},
		{">.a", false, false},
		{"a.>.b", false, false},
		{">.>", false, false},
		{"a.>.", false, false},
		{"a b", false, false},
		{" a", false, false},
		{"a ", false, false},
		{"a\tb", false, false},
		{"a\nb", false, false},
		{"a\rb", false, false},
		{"a\x00", false, false},
		{"a\x7f", false, false},
		{"a.\x1f.b", false, false},
	} {
		for _, check := range []struct {
			name     string
			validate func(string) error
			want     bool
		}{
			{"ValidateSubject", transport.ValidateSubject, tc.subject},
			{"ValidateFilter", transport.ValidateFilter, tc.filter},
		} {
			err := check.validate(tc.in)
			if check.want != (err == nil) || (err != nil && !errors.Is(err, transport.ErrInvalidSubject)) {
				t.Errorf("%s(%q): %v", check.name, tc.in, err)
			}
		}
	}
}

func TestValidateName(t *testing.T) {
	t.Parallel()

	for name, want := range map[string]bool{
		"workers": true, "a-b_c1": true, "größe": true, "a:b": true, "$x": true,
		"": false, "a.b": false, "a*": false, "a>": false, "a/b": false, `a\b`: false,
		"a b": false, "a\tb": false, "a\n": false, "\x00": false, "a\x7f": false,
	} {
		err := transport.ValidateName(name)
		if want != (err == nil) || (err != nil && !errors.Is(err, transport.ErrInvalidOption)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		wide, filter string
		want         bool
	}{
		{"a", "a", true},
		{"a", "b", false},
		{"a", "A", false},
		{"a", "a.b", false},
		{"a.b", "a", false},
		{"a.b", "a.b", true},
		{"a.*", "a.b", true},
		{"a.*", "a", false},
		{"a.*", "a.b.c", false},
		{"a.*", "a.*", true},
		{"a.*", "a.>", false},
		{"a.*.c", "a.b.c", true},
		{"a.*.c", "a.b.d", false},
		{"*", "a", true},
		{"*", "*", true},
		{"*", ">", false},
		{"*.>", "a.>", true},
		{"*.>", ">", false},
		{"*.*", "a.*", true},
		{">", "a", true},
		{">", "a.b.c", true},
		{">", "*", true},
		{">", ">", true},
		{"a.>", "a", false},
		{"a.>", "a.b", true},
		{"a.>", "a.b.c", true},
		{"a.>", "a.*", true},
		{"a.>", "a.*.>", true},
		{"a.>", "*.b", false},
		{"a.b", "a.*", false},
		{"a*", "ab", false},
		{"a*", "a*", true},
		{"a.*", "a.b*", true},
	} {
		if got := transport.Covers(tc.wide, tc.filter); got != tc.want {
			t.Errorf("Covers(%q, %q) is %v", tc.wide, tc.filter, got)
		}
	}
}

// Covers by its definition: over all subjects that could tell two filters
// apart, what one selects the other selects too.
func TestCoversIsInclusion(t *testing.T) {
	t.Parallel()

	filters := slices.DeleteFunc(sentences([]string{"a", "b", "*", ">"}, 3), func(s string) bool {
		return transport.ValidateFilter(s) != nil
	})
	// "z" stands for all tokens that no filter names, four tokens for all
	// subjects that are longer than a filter.
	subjects := sentences([]string{"a", "b", "z"}, 4)

	for _, wide := range filters {
		for _, filter := range filters {
			want := !slices.ContainsFunc(subjects, func(s string) bool { return selects(filter, s) && !selects(wide, s) })

			if got := transport.Covers(wide, filter); got != want {
				t.Errorf("Covers(%q, %q) is %v", wide, filter, got)
			}
		}
	}
}

// sentences are all subjects of one to n of the tokens.
func sentences(tokens []string, n int) []string {
	all, last := make([]string, 0, 128), []string{""}

	for range n {
		longer := make([]string, 0, len(last)*len(tokens))

		for _, s := range last {
			for _, token := range tokens {
				longer = append(longer, strings.TrimPrefix(s+"."+token, "."))
			}
		}

		all = append(all, longer...)
		last = longer
	}

	return all
}

// selects tells, apart from Covers, whether a filter selects a subject.
func selects(filter, subject string) bool {
	fs, ss := strings.Split(filter, "."), strings.Split(subject, ".")

	if fs[len(fs)-1] == ">" {
		if len(ss) < len(fs) {
			return false
		}

		fs, ss = fs[:len(fs)-1], ss[:len(fs)-1]
	}

	return slices.EqualFunc(fs, ss, func(f, s string) bool { return f == "*" || f == s })
}

// valid says what a subject is with the means of package strings.
func valid(s string, wildcards bool) bool {
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 127 }) {
		return false
	}

	tokens := strings.Split(s, ".")
	for i, token := range tokens {
		switch token {
		case "":
			return false
		case "*":
			if !wildcards {
				return false
			}
		case ">":
			if !wildcards || i < len(tokens)-1 {
				return false
			}
		}
	}

	return true
}

func FuzzValidate(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "a..b", ".a", "a.", "*", ">", "a.>", "a.*.b", ">.a", "a b", "a\x00", "\xff.a", "größe"} {
		f.Add(s)
	}

	f.Fuzz(func(t *testing.T, s string) {
		if err := transport.ValidateSubject(s); (err == nil) != valid(s, false) || (err != nil && !errors.Is(err, transport.ErrInvalidSubject)) {
			t.Errorf("ValidateSubject(%q): %v", s, err)
		}

		if err := transport.ValidateFilter(s); (err == nil) != valid(s, true) || (err != nil && !errors.Is(err, transport.ErrInvalidSubject)) {
			t.Errorf("ValidateFilter(%q): %v", s, err)
		}
	})
}

func FuzzCovers(f *testing.F) {
	for _, s := range [][2]string{
		{"a", "a"}, {"a.*", "a.b"}, {"a.>", "a.b.c"}, {">", "*"}, {"*.>", "a.>"}, {"a.*", "a.>"}, {"a.b", "a"}, {"a*", "ab"},
	} {
		f.Add(s[0], s[1])
	}

	f.Fuzz(func(t *testing.T, wide, filter string) {
		got := transport.Covers(wide, filter) // returns, whatever it is given

		if !valid(wide, true) || !valid(filter, true) {
			return
		}

		if !transport.Covers(wide, wide) || !transport.Covers(">", wide) {
			t.Errorf("%q is not covered by itself or not by >", wide)
		}

		switch {
		case valid(filter, false):
			if want := selects(wide, filter); got != want {
				t.Errorf("Covers(%q, %q) is %v", wide, filter, got)
			}
		case got:
			// What the filter selects, with names for its wildcards.
			tokens := strings.Split(filter, ".")
			for i, token := range tokens {
				if token == "*" || token == ">" {
					tokens[i] = "z"
				}
			}

			one := strings.Join(tokens, ".")
			if !selects(wide, one) || (strings.HasSuffix(filter, ">") && !selects(wide, one+".z") && tokens[len(tokens)-1] == "z") {
				t.Errorf("Covers(%q, %q), but not %q", wide, filter, one)
			}
		}
	})
}

func TestSubjectsDoNotAllocate(t *testing.T) { //nolint:paralleltest // counts allocations
	for name, f := range map[string]func(){
		"ValidateSubject": func() { _ = transport.ValidateSubject("orders.europe.created.v1") },
		"ValidateFilter":  func() { _ = transport.ValidateFilter("orders.*.created.>") },
		"ValidateName":    func() { _ = transport.ValidateName("workers") },
		"Covers":          func() { _ = transport.Covers("orders.*.created.>", "orders.europe.created.v1") },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkCovers(b *testing.B) {
	b.ReportAllocs()

	for b.Loop() {
		transport.Covers("orders.*.created.>", "orders.europe.created.v1")
	}
}

func BenchmarkValidateSubject(b *testing.B) {
	b.ReportAllocs()

	for b.Loop() {
		_ = transport.ValidateSubject("orders.europe.created.v1")
	}
}
