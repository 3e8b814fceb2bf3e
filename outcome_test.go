package goflux_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/foomo/goflux"
)

func TestOutcomeOf(t *testing.T) {
	t.Parallel()

	boom := errors.New("boom")

	for name, c := range map[string]struct {
		err    error
		class  goflux.Outcome
		chosen bool
	}{
		"nil":                      {nil, goflux.OutcomeOK, false},
		"plain":                    {boom, goflux.OutcomeFailed, false},
		"text like an outcome":     {errors.New("rejected: boom"), goflux.OutcomeFailed, false},
		"panic":                    {&goflux.PanicError{Value: 1}, goflux.OutcomePanicked, false},
		"retry":                    {goflux.RetryAfter(0, boom), goflux.OutcomeDelayed, true},
		"retry without a reason":   {goflux.RetryAfter(1, nil), goflux.OutcomeDelayed, true},
		"reject":                   {goflux.Reject(boom), goflux.OutcomeRejected, true},
		"reject without a reason":  {goflux.Reject(nil), goflux.OutcomeRejected, true},
		"drop":                     {goflux.Drop(boom), goflux.OutcomeDropped, true},
		"wrapped":                  {fmt.Errorf("storing: %w", goflux.Reject(boom)), goflux.OutcomeRejected, true},
		"joined":                   {errors.Join(boom, goflux.Drop(boom)), goflux.OutcomeDropped, true},
		"the outermost wins":       {goflux.RetryAfter(1, goflux.Reject(boom)), goflux.OutcomeDelayed, true},
		"panic with an outcome":    {&goflux.PanicError{Value: goflux.Drop(boom)}, goflux.OutcomeDropped, true},
		"wrapped panic":            {fmt.Errorf("storing: %w", &goflux.PanicError{Value: 1}), goflux.OutcomePanicked, false},
		"rejection of a panic too": {goflux.Reject(&goflux.PanicError{Value: 1}), goflux.OutcomeRejected, true},
	} {
		if got := goflux.OutcomeOf(c.err); got != c.class || got.Chosen() != c.chosen {
			t.Errorf("%s: %s, chosen: %v; want %s", name, got, got.Chosen(), c.class)
		}
	}
}
