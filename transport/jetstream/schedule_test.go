package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

// A message comes when its time has come and not before, from its own subject,
// with its headers; its schedule is gone, and consumers never saw it.
func TestPublishAfter(t *testing.T) {
	t.Parallel()

	for name, cfg := range map[string]natsjs.StreamConfig{
		"limits":     {Retention: natsjs.LimitsPolicy},
		"work queue": {Retention: natsjs.WorkQueuePolicy},
		"memory":     {Storage: natsjs.MemoryStorage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := setup(t)
			cfg.Name, cfg.Subjects, cfg.AllowMsgSchedules = "LATER", []string{"later.>", "schedule.later.>"}, true
			s := natstest.Stream(t, e.js, cfg)
			tr := e.transport(t)
			pub := publisher(t, tr)
			ctx := within(t)

			box := newInbox()
			c := box.config("later.>")
			c.Group = "workers"
			sub := subscribe(t, tr, c)
			sub.Request(100)

			// Not at a full second, which nats.go would round down to.
			due := time.Now().Truncate(time.Second).Add(1300 * time.Millisecond)

			headers := goflux.WithHeader(goflux.WithMessageID(ctx, "m-1"), goflux.Header{"Tenant": {"t"}})
			must(t, pub.PublishAt(headers, "later.a", "one", due))
			must(t, pub.PublishAt(headers, "later.a", "one", due)) // a duplicate
			must(t, pub.PublishAfter(ctx, "later.a", "two", time.Until(due)))
			must(t, pub.PublishAfter(ctx, "later.b", "now", 0))
			must(t, pub.PublishAt(ctx, "later.b", "past", time.Unix(0, 0)))

			early := box.wait(t, 2)
			if time.Now().Before(due) && (len(early) != 2 || string(early[0].Data) != "now" || string(early[1].Data) != "past") {
				t.Errorf("%d messages came at once: %+v", len(early), early)
			}

			got := box.wait(t, 4)
			if now := time.Now(); now.Before(due) {
				t.Errorf("it came %v early", due.Sub(now))
			}

			if len(got) != 4 {
				t.Fatalf("%d messages", len(got))
			}

			ack(t, got...)

			for _, d := range got[2:] {
				m := d.Settler.Metadata(d.Token)
				if m.Timestamp.Before(due) || d.Subject != "later.a" {
					t.Errorf("%q on %s, stored %v early", d.Data, d.Subject, due.Sub(m.Timestamp))
				}

				if id := d.Header.Get("X-Message-ID"); string(d.Data) == "one" && (id != "m-1" || d.Header.Get("Tenant") != "t") {
					t.Errorf("headers %v", d.Header)
				}

				if d.Header.Get("Nats-Schedule") != "" || d.Header.Get("Nats-Msg-Id") != "" {
					t.Errorf("headers %v", d.Header)
				}
			}

			natstest.Eventually(t, func() bool {
				info, err := s.Info(ctx, natsjs.WithSubjectFilter("schedule.>"))

				return err == nil && len(info.State.Subjects) == 0
			}, "the schedules to be gone")
		})
	}
}

// What the server would take for a time that is over (nats-server v2.15.2) is
// refused before it is sent.
func TestPublishAtAfterTheServersCalendar(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "LATER", Subjects: []string{"later.>", "schedule.later.>"}, AllowMsgSchedules: true})

	pub := publisher(t, e.transport(t))
	ctx := within(t)

	for _, at := range []time.Time{
		time.Unix(0, 1<<63-1), time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().Add(1<<63 - 1),
	} {
		err := pub.PublishAt(ctx, "later.a", "x", at)
		if _ = details(t, err, goflux.ErrInvalidOption); !strings.Contains(err.Error(), "2262") || errors.Is(err, goflux.ErrPublishUnknown) {
			t.Errorf("%v: %v", at, err)
		}
	}

	// The last of its times waits.
	must(t, pub.PublishAt(ctx, "later.a", "x", time.Date(2262, 4, 11, 0, 0, 0, 0, time.UTC)))
	must(t, pub.PublishAfter(ctx, "later.b", "soon", 100*time.Millisecond))

	s, err := e.js.Stream(ctx, "LATER")
	must(t, err)

	natstest.Eventually(t, func() bool {
		_, err := s.GetLastMsgForSubject(ctx, "later.b")

		return err == nil
	}, "the message that is due")

	if msg, err := s.GetLastMsgForSubject(ctx, "later.a"); err == nil {
		t.Errorf("it was delivered at once: %+v", msg)
	}
}

func TestScheduleNeedsItsStream(t *testing.T) {
	t.Parallel()

	e := setup(t)

	for name, cfg := range map[string]natsjs.StreamConfig{
		"NONE":     {Subjects: []string{"none.>"}, AllowMsgSchedules: true},
		"FLAG":     {Subjects: []string{"flag.>", "schedule.flag.>"}},
		"INTEREST": {Subjects: []string{"interest.>", "schedule.interest.>"}, AllowMsgSchedules: true, Retention: natsjs.InterestPolicy},
		"APART":    {Subjects: []string{"apart.>"}, AllowMsgSchedules: true},
		"OTHER":    {Subjects: []string{"schedule.apart.>"}, AllowMsgSchedules: true},
	} {
		cfg.Name = name
		natstest.Stream(t, e.js, cfg)
	}

	pub := publisher(t, e.transport(t))
	ctx := within(t)

	for subject, test := range map[string]struct {
		want error
		text string
	}{
		"none.a":     {goflux.ErrStreamNotFound, `add "schedule.none.a.*" to the subjects`},
		"flag.a":     {goflux.ErrUnsupported, "set AllowMsgSchedules"},
		"interest.a": {goflux.ErrUnsupported, "interest retention"},
		"apart.a":    {goflux.ErrUnsupported, "OTHER"},
		"nowhere":    {goflux.ErrStreamNotFound, "nowhere"},
		"bad.*":      {goflux.ErrInvalidSubject, "wildcard"},
	} {
		err := pub.PublishAfter(ctx, subject, "x", time.Hour)
		if _ = details(t, err, test.want); !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got %v, want %q in it", subject, err, test.text)
		}
	}

	streams := e.js.ListStreams(ctx)
	for info := range streams.Info() {
		if info.State.LastSeq != 0 {
			t.Errorf("something was stored in %s", info.Config.Name)
		}
	}

	must(t, streams.Err())

	// What is missing may come.
	_, err := e.js.UpdateStream(ctx, natsjs.StreamConfig{Name: "NONE", Subjects: []string{"none.>", "schedule.none.>"}, AllowMsgSchedules: true})
	must(t, err)
	must(t, pub.PublishAfter(ctx, "none.a", "x", time.Hour))

	// And go again.
	must(t, e.js.DeleteStream(ctx, "NONE"))

	if err := pub.PublishAfter(ctx, "none.a", "x", time.Hour); !errors.Is(err, goflux.ErrNoStream) {
		t.Errorf("got %v", err)
	}
}

// What was seen of a stream is not relied upon for ever.
func TestScheduleAfterAChangeOfRetention(t *testing.T) {
	t.Parallel()

	e := setup(t)
	cfg := natsjs.StreamConfig{Name: "LATER", Subjects: []string{"later", "schedule.later.*"}, AllowMsgSchedules: true}
	natstest.Stream(t, e.js, cfg)

	tr := e.transport(t)
	pub := publisher(t, tr)
	ctx := within(t)

	must(t, pub.PublishAfter(ctx, "later", "x", time.Hour))

	cfg.Retention = natsjs.InterestPolicy
	_, err := e.js.UpdateStream(ctx, cfg)
	must(t, err)

	jetstream.AgeSchedules(tr)

	if err := pub.PublishAfter(ctx, "later", "x", time.Hour); !errors.Is(err, goflux.ErrUnsupported) {
		t.Errorf("got %v", err)
	}

	cfg.Retention = natsjs.LimitsPolicy
	_, err = e.js.UpdateStream(ctx, cfg)
	must(t, err)

	must(t, pub.PublishAfter(ctx, "later", "x", time.Hour))
}

func TestWithSchedulePrefix(t *testing.T) {
	t.Parallel()

	e := setup(t)
	s := natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "L", Subjects: []string{"l.*", "wait.>"}, AllowMsgSchedules: true})
	pub := publisher(t, e.transport(t, jetstream.WithSchedulePrefix("wait.here")))
	ctx := within(t)

	at := time.Now().Add(time.Hour)

	// One message an id, also when the de-duplication window has passed: it has
	// one subject.
	for range 2 {
		must(t, pub.PublishAt(goflux.WithMessageID(ctx, "m 1.*"), "l.a", "x", at))
	}

	for i := range 3 {
		must(t, pub.PublishAt(ctx, "l.a", fmt.Sprint(i), at))
	}

	info, err := s.Info(ctx, natsjs.WithSubjectFilter("wait.here.l.a.*"))
	must(t, err)

	if len(info.State.Subjects) != 4 || info.State.Msgs != 4 {
		t.Errorf("subjects %v", info.State.Subjects)
	}

	msg, err := s.GetMsg(ctx, 1)
	must(t, err)

	if got := msg.Header.Get("Nats-Schedule-Target"); got != "l.a" {
		t.Errorf("target %q", got)
	}

	sched, err := time.Parse(time.RFC3339Nano, strings.TrimPrefix(msg.Header.Get("Nats-Schedule"), "@at "))
	if err != nil || sched.Before(at) || sched.Sub(at) > time.Millisecond {
		t.Errorf("schedule %q for %v", msg.Header.Get("Nats-Schedule"), at)
	}

	for _, prefix := range []string{"", "a..b", "a.*", "a.>"} {
		_, err := jetstream.New(e.js, jetstream.WithSchedulePrefix(prefix))
		mustBe(t, err, transport.ErrInvalidOption)
	}
}

// A message that waits survives a restart, and is never delivered twice.
func TestScheduleSurvivesRestart(t *testing.T) {
	t.Parallel()

	e := setup(t)
	natstest.Stream(t, e.js, natsjs.StreamConfig{Name: "LATER", Subjects: []string{"later", "schedule.later.*"}, AllowMsgSchedules: true})

	tr := e.transport(t)
	pub := publisher(t, tr, goflux.WithPublishRetry(0))
	due := time.Now().Add(700 * time.Millisecond)

	must(t, pub.PublishAt(within(t), "later", "x", due))
	must(t, e.server.Restart())

	box := newInbox()
	cfg := box.config("later")
	cfg.Group = "g"

	var sub transport.Subscription

	natstest.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		var err error
		sub, err = tr.Subscribe(ctx, cfg)

		return err == nil
	}, "a subscription")
	t.Cleanup(func() { must(t, sub.Close(context.Background())) })

	sub.Request(10)

	got := box.wait(t, 1)
	if now := time.Now(); now.Before(due) {
		t.Errorf("it came %v early", due.Sub(now))
	}

	ack(t, got...)

	// Another one, later, shows that the first did not come again.
	must(t, pub.PublishAfter(within(t), "later", "y", 300*time.Millisecond))

	if got := box.wait(t, 2); len(got) != 2 || string(got[1].Data) != "y" {
		t.Errorf("%d messages", len(got))
	}
}
