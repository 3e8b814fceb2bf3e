package jetstream

import (
	"fmt"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// filters returns what the consumer selects by, if anything.
func filters(c natsjs.ConsumerConfig) []string {
	if c.FilterSubject != "" {
		return []string{c.FilterSubject}
	}

	return c.FilterSubjects
}

// cover checks that subject covers what the consumer of info will deliver.
// subjects are those of the stream, if they are known. Where the consumer has no
// filter and they are not, only the messages can tell: then unproven is true.
func cover(subject string, info *natsjs.ConsumerInfo, subjects []string) (unproven bool, err error) {
	if subject == "" || subject == ">" {
		return false, nil
	}

	selected := filters(info.Config)

	for _, filter := range selected {
		if transport.Covers(subject, filter) {
			continue
		}

		if transport.Covers(filter, subject) {
			return false, fmt.Errorf("%w: %q is a part of %q, which the consumer selects: subscribe to that, or create a consumer for %q",
				transport.ErrSubjectMismatch, subject, filter, subject)
		}

		return false, fmt.Errorf("%w: %q does not cover %q, which the consumer selects", transport.ErrSubjectMismatch, subject, filter)
	}

	if len(selected) > 0 {
		return false, nil
	}

	for _, stored := range subjects {
		if !transport.Covers(subject, stored) {
			return false, fmt.Errorf("%w: the consumer has no filter and delivers all of its stream, which has %q; %q does not cover that",
				transport.ErrSubjectMismatch, stored, subject)
		}
	}

	return len(subjects) == 0, nil
}
