package goflux

import (
	"context"
	"errors"
	"fmt"
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
// stopped the rest first. An error that says nothing but that the task was
// stopped ([context.Canceled], also within other errors) is none. A task that
// panics has failed with a [*PanicError], and one that is nil makes Run fail with
// [ErrInvalidOption] before it starts any.
func Run(ctx context.Context, tasks ...Task) error {
	for i, task := range tasks {
		if task == nil {
			return fmt.Errorf("goflux: run: %w: task %d of %d is nil", ErrInvalidOption, i+1, len(tasks))
		}
	}

	ended := make(chan error, len(tasks))
	stops := make([]context.CancelFunc, len(tasks))
	done := make([]chan struct{}, len(tasks))

	for i, task := range tasks {
		tctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		stops[i], done[i] = stop, make(chan struct{})

		go func() {
			defer close(done[i])

			err := errTaskExited
			defer func() { ended <- err }()

			err = guard(func() error { return task(tctx) })
		}()
	}

	var errs []error

	for range tasks {
		select {
		case err := <-ended:
			if err == nil {
				continue
			}

			errs = append(errs, err)
		case <-ctx.Done():
		}

		break
	}

	for i, stop := range slices.Backward(stops) {
		stop()
		<-done[i]
	}

	close(ended)

	for err := range ended {
		if err != nil && !onlyCanceled(err) {
			errs = append(errs, err)
		}
	}

	return errors.Join(errs...)
}

// errTaskExited is what Run makes of a task that neither returns nor panics.
var errTaskExited = errors.New("goflux: run: a task ended its goroutine (runtime.Goexit) instead of returning")

// onlyCanceled reports whether err is nothing but the end of a context: a task
// that hands on that of its own was not in trouble. What is joined with it, such
// as a DrainError, is trouble.
func onlyCanceled(err error) bool {
	switch e := err.(type) { //nolint:errorlint // it looks at each error of the tree by itself
	case interface{ Unwrap() []error }:
		errs := e.Unwrap()

		return len(errs) > 0 && !slices.ContainsFunc(errs, func(err error) bool { return !onlyCanceled(err) })
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return onlyCanceled(inner)
		}
	}

	return errors.Is(err, context.Canceled)
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
