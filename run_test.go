package goflux_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
)

// untilStopped is a task that returns what makes of the end of its context.
func untilStopped(makes func(error) error) goflux.Task {
	return func(ctx context.Context) error {
		<-ctx.Done()

		return makes(ctx.Err())
	}
}

// Run drops what says nothing but that a task was stopped, and nothing else.
func TestRunErrorsOfStoppedTasks(t *testing.T) {
	t.Parallel()

	errDB := errors.New("the database could not be closed")
	drain := &goflux.DrainError{Abandoned: 3}

	for name, c := range map[string]struct {
		makes func(error) error
		is    []error // of what Run returns; none: nil
	}{
		"nil":                 {func(error) error { return nil }, nil},
		"the end":             {func(err error) error { return err }, nil},
		"wrapped":             {func(err error) error { return fmt.Errorf("serving: %w", err) }, nil},
		"with circumstances":  {func(err error) error { return &goflux.Error{Op: "subscribe", Err: err} }, nil},
		"twice":               {func(err error) error { return errors.Join(err, fmt.Errorf("serving: %w", err)) }, nil},
		"of a dial":           {func(error) error { return dialCanceled() }, nil},
		"another error":       {func(error) error { return errDB }, []error{errDB}},
		"a deadline":          {func(error) error { return context.DeadlineExceeded }, []error{context.DeadlineExceeded}},
		"joined with others":  {func(err error) error { return errors.Join(err, drain, errDB) }, []error{drain, errDB}},
		"wrapped with others": {func(err error) error { return fmt.Errorf("%w; %w", err, drain) }, []error{drain}},
		"deep":                {func(err error) error { return fmt.Errorf("a: %w", errors.Join(fmt.Errorf("b: %w", err), errDB)) }, []error{errDB}},
		"of unknown outcome": {
			func(err error) error { return transport.Mark(goflux.ErrPublishUnknown, err) }, []error{goflux.ErrPublishUnknown},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			ctx, cancel := context.WithCancel(t.Context())
			cancel()

			err := goflux.Run(ctx, untilStopped(c.makes))
			if (err == nil) != (c.is == nil) {
				t.Errorf("got %v", err)
			}

			for _, want := range c.is {
				if !errors.Is(err, want) {
					t.Errorf("%v is not %v", err, want)
				}
			}
		})
	}
}

// dialCanceled is an error that is the end of a context without being
// context.Canceled.
func dialCanceled() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()

	_, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:1")

	return err
}

// The first error stops the others, in reverse order, and comes first; what they
// return after it is kept as well. The end of a context that is not their own is
// an error like others.
func TestRunStopsInReverseOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		errFirst, errLast := errors.New("first"), errors.New("last")

		var stopped []string

		task := func(name string, err error) goflux.Task {
			return func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Second) // the next one waits for it

				stopped = append(stopped, name)

				return err
			}
		}

		err := goflux.Run(t.Context(),
			task("a", errLast),
			func(context.Context) error { return nil }, // has finished; the others go on
			task("b", nil),
			func(context.Context) error {
				time.Sleep(time.Minute)

				return errors.Join(errFirst, context.Canceled)
			},
			task("c", context.Canceled),
		)

		if want := []string{"c", "b", "a"}; !slices.Equal(stopped, want) {
			t.Errorf("stopped %v, want %v", stopped, want)
		}

		if !errors.Is(err, errFirst) || !errors.Is(err, errLast) || !strings.HasPrefix(err.Error(), "first") {
			t.Errorf("got %v", err)
		}
	})
}

func TestRunUntilAllHaveFinished(t *testing.T) {
	t.Parallel()

	if err := goflux.Run(t.Context()); err != nil {
		t.Errorf("no tasks: %v", err)
	}

	done := func(context.Context) error { return nil }
	if err := goflux.Run(t.Context(), done, done); err != nil {
		t.Errorf("two tasks: %v", err)
	}
}

// A task that panics, or ends its goroutine, has failed: the others are stopped in
// order.
func TestRunOfTasksThatDoNotReturn(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		task goflux.Task
		is   error
		says string
	}{
		"panics":             {func(context.Context) error { panic("oops") }, goflux.ErrPanic, "oops"},
		"panics with nil":    {func(context.Context) error { write(nil); return nil }, goflux.ErrPanic, "nil map"},
		"ends its goroutine": {func(context.Context) error { runtime.Goexit(); return nil }, nil, "Goexit"},
		"a typed nil":        {func(context.Context) error { return typedNil() }, goflux.ErrPanic, "*goflux_test.failure"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			stopped := false
			err := goflux.Run(t.Context(), untilStopped(func(error) error {
				stopped = true

				return nil
			}), c.task)

			if err == nil || !stopped || !strings.Contains(err.Error(), c.says) || (c.is != nil && !errors.Is(err, c.is)) {
				t.Errorf("got %v, and the other one was stopped: %v", err, stopped)
			}
		})
	}
}

func TestRunRefusesNil(t *testing.T) {
	t.Parallel()

	begun := false
	err := goflux.Run(t.Context(), func(context.Context) error {
		begun = true

		return nil
	}, nil)

	if !errors.Is(err, goflux.ErrInvalidOption) || !strings.Contains(err.Error(), "task 2 of 2") || begun {
		t.Errorf("got %v, and others were begun: %v", err, begun)
	}
}

// child tells this test binary to be the process that gets the signals.
const child = "GOFLUX_TEST_SIGNALS"

// A signal stops the tasks in order, in a process of its own; a second one ends
// it, as it does by default.
func TestRunUntilSignal(t *testing.T) {
	t.Parallel()

	if kind := os.Getenv(child); kind != "" {
		os.Exit(untilSignal(kind))
	}

	for name, c := range map[string]struct {
		kind   string
		first  os.Signal
		second os.Signal
	}{
		"interrupt":   {"stops", os.Interrupt, nil},
		"SIGTERM":     {"stops", syscall.SIGTERM, nil},
		"twice":       {"hangs", syscall.SIGTERM, syscall.SIGTERM},
		"another one": {"hangs", syscall.SIGTERM, os.Interrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
			defer cancel()

			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestRunUntilSignal$")
			cmd.Env = append(os.Environ(), child+"="+c.kind)

			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}

			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}

			lines := bufio.NewScanner(out)
			await := func(want string) {
				if !lines.Scan() || lines.Text() != want {
					t.Errorf("the process says %q, want %q", lines.Text(), want)
				}
			}

			await("running")

			if err := cmd.Process.Signal(c.first); err != nil {
				t.Error(err)
			}

			await("stopping")

			if c.second == nil {
				await("returned <nil>")
			}

			gone := make(chan struct{})

			go func() {
				_, _ = io.Copy(io.Discard, out)
				close(gone)
			}()

			// Until it has noticed the first one, it takes others for it.
			again := time.NewTicker(10 * time.Millisecond)
			defer again.Stop()

			for over := false; !over; {
				if c.second != nil {
					_ = cmd.Process.Signal(c.second)
				}

				select {
				case <-gone:
					over = true
				case <-again.C:
				}
			}

			err = cmd.Wait()

			if c.second == nil {
				if err != nil {
					t.Errorf("the process ended with %v", err)
				}

				return
			}

			status, told := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !told || !status.Signaled() || status.Signal() != c.second {
				t.Errorf("the process ended with %v, want the signal %v", err, c.second)
			}
		})
	}
}

func write(m map[string]int) { m["a"]++ }

// untilSignal is what the process runs.
func untilSignal(kind string) (code int) {
	err := goflux.RunUntilSignal(context.Background(), func(ctx context.Context) error {
		fmt.Fprintln(os.Stdout, "running")
		<-ctx.Done()
		fmt.Fprintln(os.Stdout, "stopping")

		if kind == "hangs" {
			<-context.Background().Done() // never
		}

		return ctx.Err()
	})
	fmt.Fprintln(os.Stdout, "returned", err)

	return 0
}
