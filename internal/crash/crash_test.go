package crash_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/foomo/goflux/internal/crash"
)

// limit ends a test that is stuck.
const limit = 20 * time.Second

func TestMain(m *testing.M) {
	crash.Main(map[string]crash.Role{
		// It says that it is there, and then whether it could end in order.
		"polite": func(ctx context.Context, arg string, say func(string)) error {
			say("hello " + arg)
			<-ctx.Done()
			say("bye")
			return nil
		},
		"failing": func(context.Context, string, func(string)) error { return errors.New("no") },
	})
	goleak.VerifyTestMain(m)
}

// start starts a child and returns what it says; the channel is closed at its
// end.
func start(t *testing.T, role, arg string) (*crash.Child, <-chan string) {
	t.Helper()
	said := make(chan string, 10)
	c := crash.Start(t, role, arg, func(line string) { said <- line })
	return c, said
}

func hear(t *testing.T, said <-chan string, want string) {
	t.Helper()
	select {
	case got := <-said:
		if got != want {
			t.Fatalf("the child said %q, want %q", got, want)
		}
	case <-time.After(limit):
		t.Fatal("the child says nothing")
	}
}

func TestChildEndsInOrder(t *testing.T) {
	t.Parallel()
	c, said := start(t, "polite", "world")
	hear(t, said, "hello world")
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	hear(t, said, "bye")
}

func TestChildIsKilled(t *testing.T) {
	t.Parallel()
	c, said := start(t, "polite", "")
	hear(t, said, "hello ")
	c.Kill()
	select {
	case <-c.Ended():
	default:
		t.Error("it was killed and has not ended")
	}
	if err := c.Stop(); err == nil {
		t.Error("a killed child ended without an error")
	}
	if len(said) > 0 {
		t.Errorf("a killed child said %q", <-said)
	}
	c.Kill()
}

func TestChildFails(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"failing", "unknown"} {
		c, _ := start(t, role, "")
		<-c.Ended()
		if err := c.Stop(); err == nil {
			t.Errorf("%s: no error", role)
		}
	}
}
