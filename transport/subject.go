package transport

import (
	"fmt"
	"strings"
)

// ValidateSubject reports with [ErrInvalidSubject] why a message cannot be
// published on subject: it is empty, has an empty token, a wildcard token,
// white space or a control byte. Clients accept most of these and store the
// message where nobody looks (nats.go v1.55.0), so goflux does not.
//
// A '*' or '>' inside a longer token is an ordinary character, as it is for
// the server.
func ValidateSubject(subject string) error {
	return validate(subject, false)
}

// ValidateFilter is [ValidateSubject] for subjects that are subscribed to:
// the token "*" stands for one token, and ">", as the last one, for one or
// more.
func ValidateFilter(filter string) error {
	return validate(filter, true)
}

// ValidateName reports with [ErrInvalidOption] why name cannot name a queue
// group: it is empty, or holds white space, a control byte or one of ".*>/\".
// These are the rules of JetStream for consumers, so that a group has the same
// name on every transport.
func ValidateName(name string) error {
	if name == "" {
		return fmt.Errorf("%w: the name of a queue group is empty", ErrInvalidOption)
	}

	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 127 || strings.IndexByte(`.*>/\`, c) >= 0 {
			return fmt.Errorf("%w: the name of a queue group, %q, holds %q", ErrInvalidOption, name, c)
		}
	}

	return nil
}

// validate walks the subject once and allocates nothing when it is good.
func validate(s string, wildcards bool) error {
	if s == "" {
		return fmt.Errorf("%w: it is empty", ErrInvalidSubject)
	}

	start := 0

	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			if c := s[i]; c <= ' ' || c == 127 {
				return fmt.Errorf("%w: %q holds %q: white space and control bytes are not allowed", ErrInvalidSubject, s, c)
			}

			continue
		}

		switch token := s[start:i]; {
		case token == "":
			return fmt.Errorf("%w: %q has an empty token: dots stand between tokens only", ErrInvalidSubject, s)
		case token != "*" && token != ">":
		case !wildcards:
			return fmt.Errorf("%w: %q has the wildcard %q: messages are published on one subject", ErrInvalidSubject, s, token)
		case token == ">" && i < len(s):
			return fmt.Errorf("%w: %q: > is allowed as the last token only", ErrInvalidSubject, s)
		}

		start = i + 1
	}

	return nil
}

// Covers reports whether every subject that filter selects is also selected by
// wide. Both are valid filters; a plain subject is a filter that selects
// itself. So Covers(filter, subject) is how a subscription matches a message.
func Covers(wide, filter string) bool {
	for {
		w, wrest, wmore := strings.Cut(wide, ".")
		f, frest, fmore := strings.Cut(filter, ".")

		if w == ">" {
			return true
		}

		if f == ">" || (w != "*" && w != f) {
			return false
		}

		if !wmore || !fmore {
			return wmore == fmore
		}

		wide, filter = wrest, frest
	}
}
