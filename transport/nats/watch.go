package nats

import (
	"errors"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/foomo/goflux/transport"
)

// errLost is what the owner of a subscription is told of a lost connection.
var errLost = transport.Mark(transport.ErrDisconnected,
	errors.New("the connection was lost: what is published until it is restored does not arrive"))

// reportEvery is how long drops are gathered for one report.
const reportEvery = 100 * time.Millisecond

// watch reports drops and lost connections until the subscription ends.
func (s *subscription) watch() {
	// A listener of our own, besides the handlers that belong to the caller.
	status := s.t.nc.StatusChanged(natsgo.CONNECTED, natsgo.RECONNECTING)
	defer s.t.nc.RemoveStatusListener(status)

	// Failed attempts to reconnect are announced too.
	connected := true

	for {
		select {
		case <-s.quit:
			return
		case <-s.gone:
			s.report()

			return
		case now := <-status:
			if now == natsgo.RECONNECTING && connected {
				s.cfg.Notify(&transport.Error{Op: opSubscribe, Subject: s.cfg.Subject, Err: errLost})
			}

			connected = now == natsgo.CONNECTED
		case <-s.kick:
			select {
			case <-time.After(reportEvery):
			case <-s.quit:
			case <-s.gone:
			}

			s.report()
		}
	}
}

// report tells how many messages were dropped since the last report, if any.
func (s *subscription) report() {
	s.mu.Lock()
	n := s.dropped
	s.dropped = 0
	s.mu.Unlock()

	if n > 0 && s.cfg.Notify != nil {
		s.cfg.Notify(&transport.DroppedError{Subject: s.cfg.Subject, Count: uint64(n)})
	}
}
