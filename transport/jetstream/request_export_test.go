package jetstream

import (
	"time"

	"github.com/foomo/goflux"
)

// WithLookAgain sets how often Await looks for a reply of which no word comes.
func WithLookAgain(d time.Duration) goflux.Option {
	return requesterOption{name: "WithLookAgain", apply: func(r *requests) error {
		r.again = d

		return nil
	}}
}
