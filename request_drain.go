package goflux

import (
	"context"
	"time"

	"github.com/foomo/goflux/internal/engine"
	"github.com/foomo/goflux/transport"
)

// drain takes the announcement back, since no new request will be taken.
func (a *answering) drain() {
	if a.retract != nil {
		a.retract()
	}
}

// abandon tells the caller of a live request that was not started that it will
// not be. One whose handler ended its goroutine was, and has failed.
func (a *answering) abandon(ctx context.Context, job *engine.Job) {
	if job.Exited != nil {
		_, _ = a.crashed(ctx, job, exited(job))

		return
	}

	if due, bounded := a.responder.Deadline(job.Delivery, job.Arrived()); bounded && !time.Now().Before(due) {
		a.skip(ctx, job)

		return
	}

	header := errStopping.write(a.replyHeader(ctx, &Call{Header: job.Delivery.Header}))

	if err := a.responder.Reply(ctx, job.Delivery, transport.Message{Header: header}); err != nil {
		a.logFailure(job, "a request could not be answered", err)
	}
}
