package engine

import (
	"context"
	"errors"
	"time"

	"github.com/foomo/goflux/transport"
)

// keep is the one clock of an engine: it renews leases, ends handlers that run
// for too long, and starts what waits for its next try.
func (e *Engine) keep(ctx context.Context) {
	k := keeper{Engine: e}

	timer := time.NewTimer(k.interval())
	defer timer.Stop()

	for {
		select {
		case <-ctx.Done():
			return
		case <-e.kick:
		case <-timer.C:
		}

		now := time.Now()
		next := k.interval()

		if due, some := k.wakeWaiting(now); some {
			next = min(next, due)
		}

		k.endOverlong(now)

		if k.renewDue(now) {
			k.renew(ctx, now)
		}

		timer.Reset(max(next-time.Since(now), time.Millisecond))
	}
}

// keeper is the state of the clock.
type keeper struct {
	*Engine

	renewed time.Time // when leases were last looked at
	batch   []lease   // reused
}

// lease is what has to be known to renew a job's lease without the lock.
type lease struct {
	job        *Job
	generation uint64
	delivery   transport.Delivery
}

func (k *keeper) interval() time.Duration {
	d := time.Hour
	if k.info.AckWait > 0 {
		d = min(d, k.info.AckWait/3)
	}

	if k.cfg.MaxHandlingTime > 0 {
		d = min(d, k.cfg.MaxHandlingTime/8)
	}

	return max(d, time.Millisecond)
}

// wakeWaiting makes jobs ready whose next try is due, and returns the time to
// the next one.
func (k *keeper) wakeWaiting(now time.Time) (next time.Duration, some bool) {
	k.mu.Lock()
	defer k.mu.Unlock()

	if k.waiting == 0 {
		return 0, false
	}

	for j := k.held.first; j != nil; j = j.next {
		if j.state != waiting {
			continue
		}

		if left := j.due.Sub(now); left > 0 {
			if !some || left < next {
				next, some = left, true
			}

			continue
		}

		k.waiting--
		k.enqueue(j)
	}

	return next, some
}

// endOverlong cancels handlers that exceeded their maximum.
func (k *keeper) endOverlong(now time.Time) {
	if k.cfg.MaxHandlingTime <= 0 {
		return
	}

	k.mu.Lock()
	defer k.mu.Unlock()

	for j := k.held.first; j != nil; j = j.next {
		if j.state == running && now.Sub(j.started) >= k.cfg.MaxHandlingTime {
			j.end(ErrMaxHandlingTime)
		}
	}
}

// end cancels the job's handler. The caller holds the engine's lock.
func (j *Job) end(cause error) {
	if j.cancel != nil && !j.cancelled {
		j.cancelled = true
		j.cancel(cause)
	}
}

func (k *keeper) renewDue(now time.Time) bool {
	return k.info.AckWait > 0 && now.Sub(k.renewed) >= k.info.AckWait/3-k.info.AckWait/20
}

// renew extends the leases of all that is held, then asks the broker for a sign
// of life: extending is fire and forget, and a client that is reconnecting
// takes it without a word. Only what the broker has seen counts as renewed.
func (k *keeper) renew(ctx context.Context, now time.Time) {
	k.renewed = now
	k.collect(now)

	if len(k.batch) == 0 {
		return
	}

	ctx, cancel := context.WithTimeout(ctx, max(k.info.AckWait/4, 10*time.Millisecond))
	defer cancel()

	for _, l := range k.batch {
		if !l.job.settling.Load() {
			// A failure shows in the flush below, or the delivery is settled.
			_ = l.delivery.Settler.Settle(ctx, l.delivery.Token, transport.Verdict{Action: transport.Extend})
		}
	}

	err := k.sub.Flush(ctx)
	gone := errors.Is(err, transport.ErrConsumerNotFound) || errors.Is(err, transport.ErrStreamNotFound)
	after := time.Now()

	k.mu.Lock()
	defer k.mu.Unlock()

	for i, l := range k.batch {
		k.batch[i] = lease{}

		switch j := l.job; {
		case j.generation != l.generation:
		case err == nil:
			j.lease = now
		case j.state == running && (gone || after.Sub(j.lease) >= k.info.AckWait):
			j.end(ErrLeaseLost)
		}
	}

	k.batch = k.batch[:0]
}

// collect gathers what has been held for a while: what arrived just now is
// renewed the next time, well within its ack wait.
func (k *keeper) collect(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()

	for j := k.held.first; j != nil; j = j.next {
		if now.Sub(j.lease) < k.info.AckWait/6 || (j.state == running && j.cancelled) {
			continue
		}

		k.batch = append(k.batch, lease{j, j.generation, j.Delivery})
	}
}
