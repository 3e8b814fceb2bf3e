package nats

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"

	"github.com/foomo/goflux/internal/natserr"
	"github.com/foomo/goflux/transport"
)

// announcement is one instance of a NATS service (ADR-32), with one endpoint: it
// answers those who look for services on the subjects $SRV.PING, $SRV.INFO and
// $SRV.STATS.
//
// It speaks the protocol itself, with the types of package micro: AddService of
// nats.go v1.55.0 puts its own handlers in the place of the connection's, calls
// the handlers of an endpoint one after the other, and does not wait for them
// when it stops.
type announcement struct {
	t        *Transport
	service  transport.Service
	identity micro.ServiceIdentity
	endpoint string
	started  time.Time

	asked chan *natsgo.Msg
	subs  []*natsgo.Subscription
	quit  chan struct{}
	done  chan struct{}
}

// pendingQuestions is how many questions may wait. More are dropped: nobody who
// asks all instances relies on every answer.
const pendingQuestions = 64

// Announce implements [transport.Announcer].
func (r responder) Announce(ctx context.Context, s transport.Service) (withdraw func(), err error) {
	a := &announcement{
		t:       r.Transport,
		service: s,
		identity: micro.ServiceIdentity{
			Name:     cmp.Or(s.Name, serviceName(r.nc)),
			ID:       nuid.Next(),
			Version:  cmp.Or(s.Version, programVersion()),
			Metadata: map[string]string{},
		},
		endpoint: cmp.Or(word(s.Subject), "default"),
		started:  time.Now().UTC(),
		asked:    make(chan *natsgo.Msg, pendingQuestions),
		quit:     make(chan struct{}),
		done:     make(chan struct{}),
	}

	if err := a.subscribe(ctx); err != nil {
		a.unsubscribe()

		return nil, &transport.Error{Op: "announce", Subject: s.Subject, Err: natserr.Map(err)}
	}

	go a.answer()

	return a.withdraw, nil
}

func (a *announcement) subscribe(ctx context.Context) error {
	// A refusal of another subscription is told from the connection's last
	// error, which these would change if they were refused.
	select {
	case a.t.attaching <- struct{}{}:
		defer func() { <-a.t.attaching }()
	case <-ctx.Done():
		return ctx.Err()
	}

	for _, verb := range []micro.Verb{micro.PingVerb, micro.InfoVerb, micro.StatsVerb} {
		for _, to := range [][2]string{{}, {a.identity.Name}, {a.identity.Name, a.identity.ID}} {
			subject, err := micro.ControlSubject(verb, to[0], to[1])
			if err != nil {
				return fmt.Errorf("%w: %w", transport.ErrInvalidOption, err)
			}

			sub, err := a.t.nc.ChanSubscribe(subject, a.asked)
			if err != nil {
				return err //nolint:wrapcheck // Announce does
			}

			a.subs = append(a.subs, sub)
		}
	}

	return flush(ctx, a.t.nc)
}

func (a *announcement) unsubscribe() {
	for _, sub := range a.subs {
		_ = sub.Unsubscribe() // It fails only where there is none any more.
	}
}

func (a *announcement) withdraw() {
	a.unsubscribe()
	close(a.quit)
	<-a.done
}

func (a *announcement) answer() {
	defer close(a.done)

	for {
		select {
		case m := <-a.asked:
			data, err := json.Marshal(a.about(m.Subject))
			if err == nil && m.Reply != "" {
				// Who asks learns of a failure by the missing answer.
				_ = m.Respond(data)
			}
		case <-a.quit:
			return
		}
	}
}

// about returns the answer to a question on a control subject.
func (a *announcement) about(subject string) any {
	verb, _, _ := strings.Cut(strings.TrimPrefix(subject, micro.APIPrefix+"."), ".")

	switch verb {
	case micro.InfoVerb.String():
		return micro.Info{
			ServiceIdentity: a.identity,
			Type:            micro.InfoResponseType,
			Description:     a.service.Description,
			Endpoints: []micro.EndpointInfo{{
				Name: a.endpoint, Subject: a.service.Subject, QueueGroup: a.service.Group, Metadata: map[string]string{},
			}},
		}
	case micro.StatsVerb.String():
		return micro.Stats{
			ServiceIdentity: a.identity,
			Type:            micro.StatsResponseType,
			Started:         a.started,
			Endpoints:       []*micro.EndpointStats{a.stats()},
		}
	default:
		return micro.Ping{ServiceIdentity: a.identity, Type: micro.PingResponseType}
	}
}

func (a *announcement) stats() *micro.EndpointStats {
	s := &micro.EndpointStats{Name: a.endpoint, Subject: a.service.Subject, QueueGroup: a.service.Group}

	if a.service.Stats == nil {
		return s
	}

	now := a.service.Stats()
	s.NumRequests, s.NumErrors, s.LastError, s.ProcessingTime = now.Requests, now.Errors, now.LastError, now.ProcessingTime

	if now.Requests > 0 {
		s.AverageProcessingTime = now.ProcessingTime / time.Duration(now.Requests)
	}

	return s
}

// serviceName returns the name of a service that was given none.
func serviceName(nc *natsgo.Conn) string {
	return cmp.Or(word(nc.Opts.Name), word(filepath.Base(os.Args[0])), "goflux")
}

var notInWord = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// word makes of s what can name a service or an endpoint; of a subject's
// wildcards nothing is left.
func word(s string) string { return strings.Trim(notInWord.ReplaceAllString(s, "-"), "-") }

var semanticVersion = regexp.MustCompile(`^\d+\.\d+\.\d+`)

// programVersion returns the version of the program's module, where it was built
// from a released one.
func programVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		if v := semanticVersion.FindString(strings.TrimPrefix(info.Main.Version, "v")); v != "" {
			return v
		}
	}

	return "0.0.0"
}
