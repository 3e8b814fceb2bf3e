package nats_test

import (
	"errors"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/internal/natstest"
)

// The tests in this file pin what nats.go v1.55.0 does where this package goes
// a way of its own. When one fails, so may its reason.

// Why Close does not use Drain without a connection.
func TestFact_DrainWhileReconnectingLeavesTheSubscriptionOnTheServer(t *testing.T) {
	t.Parallel()

	srv := natstest.RunTCP(t)
	nc := natstest.Connect(t, srv)

	sub, err := nc.QueueSubscribe("s", "workers", func(*natsgo.Msg) {})
	if err != nil {
		t.Fatal(err)
	}

	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	srv.Stop()
	natstest.Eventually(t, nc.IsReconnecting, "the client to notice")

	removed := sub.StatusChanged(natsgo.SubscriptionClosed)
	if err := sub.Drain(); err != nil {
		t.Fatal(err)
	}

	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}

	<-removed

	if n := nc.NumSubscriptions(); n != 0 {
		t.Fatalf("the client has %d subscriptions", n)
	}

	// The server has it still: a request finds a responder that never answers.
	_, err = natstest.Connect(t, srv).Request("s", nil, 50*time.Millisecond)
	if !errors.Is(err, natsgo.ErrTimeout) {
		t.Errorf("%v, want a timeout", err)
	}
}

// Why messages are taken over from nats.go at once.
func TestFact_CloseOfTheConnectionDiscardsWhatACallbackHasNotTaken(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))
	entered, leave, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	calls := 0

	sub, err := nc.Subscribe("s", func(*natsgo.Msg) {
		calls++
		if calls == 1 {
			close(entered)
			<-leave
		}
	})
	if err != nil {
		t.Fatal(err)
	}

	sub.SetClosedHandler(func(string) { close(ended) })

	for range 10 {
		if err := nc.Publish("s", nil); err != nil {
			t.Fatal(err)
		}
	}

	<-entered

	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	if n, _, err := sub.Pending(); n != 10 || err != nil {
		t.Fatalf("%d pending, %v", n, err)
	}

	nc.Close()
	close(leave)
	<-ended

	if calls != 1 {
		t.Errorf("%d messages were delivered, want the one under way", calls)
	}

	if _, err := sub.Dropped(); !errors.Is(err, natsgo.ErrBadSubscription) {
		t.Errorf("Dropped: %v, want that it cannot be read any more", err)
	}
}

// Why a refusal is read from the connection's last error.
func TestFact_ASubscriptionWithACallbackDoesNotTellOfItsRefusal(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t, denied("secret")), natsgo.UserInfo("u", "p"), natsgo.PermissionErrOnSubscribe(true), quiet)

	sub, err := nc.Subscribe("secret", func(*natsgo.Msg) {})
	if err != nil {
		t.Fatal(err)
	}

	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	if !sub.IsValid() {
		t.Error("the subscription is not valid")
	}

	if err := nc.LastError(); !errors.Is(err, natsgo.ErrPermissionViolation) {
		t.Errorf("last error %v", err)
	}
}

// Why filters are checked before they are sent.
func TestFact_AMalformedFilterClosesTheConnection(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t), quiet)

	if _, err := nc.Subscribe("a.>.b", func(*natsgo.Msg) {}); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, nc.IsClosed, "the connection to be closed")
	t.Log(nc.LastError())
}
