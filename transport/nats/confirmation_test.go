package nats_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/embedded"
	"github.com/foomo/goflux/transport/nats"
)

// answer has somebody answer on subject with the same words every time.
func answer(tb testing.TB, s *natstest.Server, subject, words string) {
	tb.Helper()

	nc := natstest.Connect(tb, s, natsgo.UserInfo("other", "p"))

	_, err := nc.Subscribe(subject, func(m *natsgo.Msg) { _ = m.Respond([]byte(words)) })
	if err == nil {
		err = nc.Flush()
	}

	if err != nil {
		tb.Fatal(err)
	}
}

// first returns what one gets from a subject, alone and among many.
func first(tb testing.TB, tr *nats.Transport, subject string) (data string, err error) {
	tb.Helper()

	d, err := tr.Request(limited(tb), transport.Message{Subject: subject})

	for many, merr := range tr.RequestMany(limited(tb), transport.Message{Subject: subject}) {
		if (err == nil) != (merr == nil) || string(many.Data) != string(d.Data) {
			tb.Errorf("one: %q, %v; many: %q, %v", d.Data, err, many.Data, merr)
		}

		break
	}

	return string(d.Data), err
}

// A responder may use the words of a stream.
func TestReplyThatLooksLikeAConfirmation(t *testing.T) {
	t.Parallel()

	for name, opts := range map[string][]embedded.Option{
		"with JetStream":    nil,
		"without JetStream": {embedded.WithConfig(func(o *server.Options) { o.JetStream = false })},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			s := natstest.Run(t, opts...)
			nc := natstest.Connect(t, s)

			if opts == nil {
				js := natstest.JetStream(t, nc)
				natstest.Stream(t, js, jetstream.StreamConfig{Name: "CAMERAS", Subjects: []string{"cameras.*"}})
				natstest.Stream(t, js, jetstream.StreamConfig{Name: "SILENT", Subjects: []string{"silent"}, NoAck: true})
			}

			tr := newTransport(t, nc)

			for subject, reply := range map[string]string{
				"no-stream":         `{"stream":"camera-1","seq":42}`,
				"another-stream":    `{"stream":"CAMERAS","seq":42}`,
				"cameras.too.long":  `{"stream":"CAMERAS","seq":42,"duplicate":true}`,
				"silent":            `{"stream":"SILENT","seq":1}`,
				"more":              `{"stream":"CAMERAS","seq":1,"mine":true}`,
				"less":              `{"stream":"CAMERAS"}`,
				"broken":            `{"stream":`,
				"no-name":           `{"stream":"a.b","seq":1}`,
				"no-domain":         `{"stream":"CAMERAS","seq":1,"domain":"a.b"}`,
				"somebody's-domain": `{"stream":"CAMERAS","seq":1,"domain":"hub"}`,
			} {
				answer(t, s, subject, reply)

				if got, err := first(t, tr, subject); err != nil || got != reply {
					t.Errorf("%s: reply %q, error %v", subject, got, err)
				}
			}
		})
	}
}

// The server is not asked with each of them.
func TestServerIsAskedOnceAboutASubject(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t)
	nc := natstest.Connect(t, s)
	asked := natstest.Connect(t, s)

	var questions atomic.Int64

	_, err := asked.Subscribe("$JS.API.STREAM.INFO.*", func(*natsgo.Msg) { questions.Add(1) })
	if err == nil {
		err = asked.Flush()
	}

	if err != nil {
		t.Fatal(err)
	}

	tr := newTransport(t, nc)

	for _, subject := range []string{"a", "b"} {
		answer(t, s, subject, `{"stream":"camera-1","seq":42}`)

		for range 5 {
			if _, err := first(t, tr, subject); err != nil {
				t.Fatal(err)
			}
		}
	}

	// What was asked about them is there when the end of it is.
	if _, err := nc.Request("$JS.API.STREAM.INFO.last", nil, natstest.Limit); err != nil {
		t.Fatal(err)
	}

	natstest.Eventually(t, func() bool { return questions.Load() >= 3 }, "the questions to arrive")

	if n := questions.Load(); n != 3 {
		t.Errorf("%d questions, want one about each subject and the last", n)
	}
}

// Where nobody can tell, there is an error and no value that nobody sent.
func TestConfirmationThatCannotBeChecked(t *testing.T) {
	t.Parallel()

	s := natstest.Run(t, embedded.WithConfig(func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "u", Password: "p", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Deny: []string{"$JS.API.>"}},
			}},
			{Username: "other", Password: "p"},
		}
	}))
	natstest.Stream(t, natstest.JetStream(t, natstest.Connect(t, s, natsgo.UserInfo("other", "p"))),
		jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	answer(t, s, "other", `{"stream":"S","seq":1}`)

	tr := newTransport(t, natstest.Connect(t, s, natsgo.UserInfo("u", "p"), quiet))

	for _, subject := range []string{"s", "other"} {
		_, err := tr.Request(limited(t), transport.Message{Subject: subject})
		wantError(t, err, "request", subject, transport.ErrInvalidSubject)

		if !strings.Contains(err.Error(), "$JS.API.STREAM.INFO.S") || errors.Is(err, transport.ErrNoResponders) {
			t.Errorf("%v does not say what to allow", err)
		}
	}
}
