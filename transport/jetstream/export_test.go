package jetstream

import "time"

// AgeSchedules lets pass, in a moment, the time for which is relied upon what was
// seen of streams that keep schedules.
func AgeSchedules(t *Transport) {
	t.schedulable.mu.Lock()
	defer t.schedulable.mu.Unlock()

	for i := range t.schedulable.streams {
		t.schedulable.streams[i].seen = time.Now().Add(-scheduleTrust)
	}
}
