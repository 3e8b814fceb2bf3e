package kvstore

import (
	"crypto/sha256"
	"encoding/base64"

	"github.com/foomo/goflux/middleware"
)

// maxToken is how long a part of a key may be as it is. A server takes 4096
// bytes for subject and all (nats-server v2.15.2, max_control_line).
const maxToken = 512

// subjectOf returns the key of the bucket, "scope.id". Buckets take letters,
// digits and -/_=. only (nats.go v1.55.0), so each other byte is written as =
// and two hexadecimal digits, as in quoted-printable; so are = and the dot. Two
// keys never become one.
func subjectOf(key middleware.Key) string {
	b := make([]byte, 0, len(key.Scope)+1+len(key.ID))
	b = appendToken(b, key.Scope)
	b = append(b, '.')

	return string(appendToken(b, key.ID))
}

func appendToken(b []byte, s string) []byte {
	if s == "" {
		return append(b, "=empty"...)
	}

	begin := len(b)

	for i := range len(s) {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			const digits = "0123456789ABCDEF"

			b = append(b, '=', digits[c>>4], digits[c&15])
		}

		if len(b)-begin > maxToken {
			sum := sha256.Sum256([]byte(s))

			return base64.RawURLEncoding.AppendEncode(append(b[:begin], "=sha256="...), sum[:])
		}
	}

	return b
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '/'
}
