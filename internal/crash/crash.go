// Package crash runs parts of a test in a process of its own, which can be
// killed: the only honest way to see what a crash leaves behind. The process is
// the test's own binary, started again in another [Role].
package crash

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
)

// The environment of a child.
const (
	envRole = "GOFLUX_CRASH_ROLE"
	envArg  = "GOFLUX_CRASH_ARG"
)

// Role is what a child does. arg is what its parent gave it, and say sends the
// parent a line of text: when say has returned the parent gets the line, even if
// the child is killed right then. It may be called concurrently. ctx ends when
// the parent asks for an orderly end, or is gone itself; Role then returns. An
// error makes the child end with the exit code 1.
type Role func(ctx context.Context, arg string, say func(line string)) error

// Main has to be the first call in TestMain. In a child it plays the role and
// ends the process; otherwise it does nothing.
func Main(roles map[string]Role) {
	name, child := os.LookupEnv(envRole)
	if !child {
		return
	}
	role, known := roles[name]
	if !known {
		fmt.Fprintf(os.Stderr, "crash: no role %q\n", name)
		os.Exit(2)
	}
	if err := play(role, os.Getenv(envArg)); err != nil {
		fmt.Fprintf(os.Stderr, "crash: %s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func play(role Role, arg string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		// The parent never writes: this returns when it closes the pipe, or ends.
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var mu sync.Mutex
	return role(ctx, arg, func(line string) {
		mu.Lock()
		defer mu.Unlock()
		// One write, straight into the pipe: nothing of it is in this process when
		// it is killed.
		_, _ = os.Stdout.WriteString(line + "\n")
	})
}

// Child is a process that plays a [Role]. Its methods may be called from any
// goroutine, and more than once.
type Child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{} // closed when the process has ended and heard has seen all of its lines
	err   error         // of the process; set before ended is closed
}

// Start starts a child, which is killed when the test ends, if not before.
// heard is called with each line that it says, one after the other, from a
// goroutine of the child's. A failure to start ends the test.
func Start(tb testing.TB, role, arg string, heard func(line string)) *Child {
	tb.Helper()
	cmd := exec.Command(os.Args[0]) //nolint:gosec,noctx // it starts itself, and is killed by the test
	cmd.Env = append(os.Environ(), envRole+"="+role, envArg+"="+arg)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("crash: start %q: %v", role, err)
	}
	c := &Child{cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			heard(lines.Text())
		}
		// Not before everything is read: Wait closes the pipe.
		c.err = errors.Join(lines.Err(), cmd.Wait())
	}()
	tb.Cleanup(c.Kill)
	return c
}

// Kill ends the child without a warning (SIGKILL, where there is such a thing)
// and returns when heard has seen everything it said.
func (c *Child) Kill() {
	// It fails only when the child has ended before.
	_ = c.cmd.Process.Kill()
	<-c.ended
	_ = c.stdin.Close()
}

// Stop asks the child to end and returns when it has, with the error of how.
func (c *Child) Stop() error {
	_ = c.stdin.Close()
	<-c.ended
	return c.err
}

// Ended is closed when the child has ended, whoever wanted it.
func (c *Child) Ended() <-chan struct{} { return c.ended }
