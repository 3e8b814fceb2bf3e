package jetstream_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport"
	"github.com/foomo/goflux/transport/jetstream"
)

func TestNewStream(t *testing.T) { //nolint:paralleltest // it looks at what goes to the default logger
	nc := natstest.Connect(t, natstest.Run(t))

	var log bytes.Buffer

	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))

	cfg := natsjs.StreamConfig{
		Name:     "EVENTS",
		Subjects: []string{"events.>", "audit"},
		MaxAge:   400 * 24 * time.Hour,
		Storage:  natsjs.MemoryStorage,
		Metadata: map[string]string{"team": "a"},
		Sources:  []*natsjs.StreamSource{{Name: "OTHER", FilterSubject: "o.>"}},
	}

	natstest.Stream(t, natstest.JetStream(t, nc), natsjs.StreamConfig{Name: "OTHER", Subjects: []string{"o.>"}})

	js, err := jetstream.NewStream(t.Context(), nc, cfg, nil, natsjs.WithDefaultTimeout(time.Minute))
	must(t, err)

	if js.Options().DefaultTimeout != time.Minute {
		t.Errorf("the options were lost: %+v", js.Options())
	}

	created, err := js.Stream(t.Context(), "EVENTS")
	must(t, err)

	// The same again, in all its forms.
	same := cfg
	same.Subjects = []string{"audit", "events.>"}

	for _, cfg := range []natsjs.StreamConfig{cfg, same, {Name: "EVENTS"}} {
		_, err = jetstream.NewStream(t.Context(), nc, cfg)
		must(t, err)
	}

	if log.Len() > 0 {
		t.Errorf("logged: %s", log.String())
	}

	other := cfg
	other.Subjects = []string{"events.>"}
	other.MaxAge = time.Hour
	other.Description = "other"
	other.Metadata = map[string]string{"team": "b"}
	other.Sources = []*natsjs.StreamSource{{Name: "OTHER", FilterSubject: "o.x"}}
	other.Retention = natsjs.WorkQueuePolicy

	_, err = jetstream.NewStream(t.Context(), nc, other)
	must(t, err)

	if want := `level=WARN msg="goflux: the stream exists with another configuration and is left as it is" stream=EVENTS ` +
		`fields="[description max_age metadata retention sources subjects]"`; !strings.Contains(log.String(), want) {
		t.Errorf("logged %q, want %q", log.String(), want)
	}

	now, err := js.Stream(t.Context(), "EVENTS")
	must(t, err)

	if was, is := created.CachedInfo().Config, now.CachedInfo().Config; is.MaxAge != was.MaxAge || len(is.Subjects) != 2 {
		t.Errorf("the stream was changed: %+v", is)
	}
}

// Several replicas of a service create the stream at the same time.
func TestNewStreamConcurrently(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))

	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := jetstream.NewStream(t.Context(), nc, natsjs.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
				t.Error(err)
			}
		})
	}

	wg.Wait()
}

func TestNewStreamErrors(t *testing.T) {
	t.Parallel()

	nc := natstest.Connect(t, natstest.Run(t))

	_, err := jetstream.NewStream(t.Context(), nc, natsjs.StreamConfig{Name: "A", Subjects: []string{"a.>"}})
	must(t, err)

	canceled, cancel := context.WithCancel(t.Context())
	cancel()

	gone := natstest.RunTCP(t)
	reconnecting := natstest.Connect(t, gone)
	gone.Stop()
	natstest.Eventually(t, reconnecting.IsReconnecting, "the client to see that the server is gone")
	t.Cleanup(func() { must(t, gone.Start()) })

	bad := func(*natsjs.JetStreamOptions) error { return errors.New("bad") }

	for name, tc := range map[string]struct {
		err  func() error
		want error
	}{
		"no connection": {func() error {
			_, err := jetstream.NewStream(t.Context(), nil, natsjs.StreamConfig{Name: "S"})
			return err
		}, transport.ErrInvalidOption},
		"no name": {func() error { _, err := jetstream.NewStream(t.Context(), nc, natsjs.StreamConfig{}); return err }, transport.ErrInvalidOption},
		"bad name": {func() error {
			_, err := jetstream.NewStream(t.Context(), nc, natsjs.StreamConfig{Name: "a.b"})
			return err
		}, transport.ErrInvalidOption},
		"bad option": {func() error {
			_, err := jetstream.NewStream(t.Context(), nc, natsjs.StreamConfig{Name: "S"}, bad)

			return err
		}, transport.ErrInvalidOption},
		"canceled": {func() error { _, err := jetstream.NewStream(canceled, nc, natsjs.StreamConfig{Name: "S"}); return err }, context.Canceled},
		"no server": {func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()

			_, err := jetstream.NewStream(ctx, reconnecting, natsjs.StreamConfig{Name: "S"})

			return err
		}, transport.ErrDisconnected},
		"overlap": {func() error {
			_, err := jetstream.NewStream(t.Context(), nc, natsjs.StreamConfig{Name: "B", Subjects: []string{"a.b"}})

			return err
		}, &natsjs.APIError{ErrorCode: 10065}},
	} {
		if e := details(t, tc.err(), tc.want); e.Op != "open" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}
