package jetstream

import "testing"

//nolint:paralleltest // allocations are counted
func TestRedelivered(t *testing.T) {
	for reply, want := range map[string]bool{
		"$JS.ACK.EVENTS.worker.1.22.33.1700000000000000000.0":                     false,
		"$JS.ACK.EVENTS.worker.2.22.33.1700000000000000000.0":                     true,
		"$JS.ACK.EVENTS.worker.11.22.33.1700000000000000000.0":                    true,
		"$JS.ACK.hub.AbCdEf12.EVENTS.worker.1.22.33.1700000000000000000.0":        false,
		"$JS.ACK.hub.AbCdEf12.EVENTS.worker.3.22.33.1700000000000000000.0":        true,
		"$JS.ACK._.AbCdEf12.EVENTS.worker.1.22.33.1700000000000000000.0.somemore": false,
		"$JS.ACK._.AbCdEf12.EVENTS.worker.2.1.1.1700000000000000000.0.somemore":   true,
	} {
		if got := redelivered(reply); got != want {
			t.Errorf("%s: %v, want %v", reply, got, want)
		}

		if n := testing.AllocsPerRun(100, func() { redelivered(reply) }); n != 0 {
			t.Errorf("%s: %v allocations", reply, n)
		}
	}
}
