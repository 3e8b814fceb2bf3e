package goflux

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// Task is something that serves until its context ends: a call of Subscribe or
// Serve, mostly. See [SubscribeTask].
type Task func(ctx context.Context) error

// SubscribeTask returns a Task that serves one subscription.
func SubscribeTask[T any](s Subscriber[T], subject string, handler Handler[T]) Task {
	return func(ctx context.Context) error { return s.Subscribe(ctx, subject, handler) }
}

// Run runs several tasks as one. It starts them all, and stops them when ctx
// ends or one of them returns an error: in reverse order, each one when the one
// after it has returned, so that what others rely on is named first and stops
// last. A task that returns nil has finished; the others go on.
//
// Run returns when all tasks have returned: nil when ctx ended and all of them
// drained, or when all finished; otherwise the joined errors, the one that
// stopped the rest first.
func Run(ctx context.Context, tasks ...Task) error {
	type result struct {
		index int
		err   error
	}

	ended := make(chan result, len(tasks))
	stops := make([]context.CancelFunc, len(tasks))
	done := make([]chan struct{}, len(tasks))

	for i, task := range tasks {
		tctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		stops[i], done[i] = stop, make(chan struct{})

		go func() {
			defer close(done[i])

			ended <- result{i, task(tctx)}
		}()
	}

	var errs []error

	for range tasks {
		select {
		case r := <-ended:
			if r.err == nil {
				continue
			}

			errs = append(errs, r.err)
		case <-ctx.Done():
		}

		break
	}

	for i, stop := range slices.Backward(stops) {
		stop()
		<-done[i]
	}

	close(ended)

	for r := range ended {
		// A task that hands on the end of its own context was not in trouble.
		if r.err != nil && !errors.Is(r.err, context.Canceled) {
			errs = append(errs, r.err)
		}
	}

	return errors.Join(errs...)
}

// RunUntilSignal is [Run], and stops the tasks also when the process gets an
// interrupt (Ctrl-C) or SIGTERM. A second signal ends the process at once, as it
// does by default.
func RunUntilSignal(ctx context.Context, tasks ...Task) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()

	context.AfterFunc(ctx, stop) // from now on signals do what they do by default

	return Run(ctx, tasks...)
}
