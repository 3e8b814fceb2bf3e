package goflux

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/foomo/goflux/transport"
)

// The pause after the first announcement that failed, which doubles each time,
// and the longest one.
const (
	announcePause    = time.Second
	maxAnnouncePause = time.Minute
)

// announce makes the service known to those who look for services. Requests are
// answered whether that succeeds or not: if not, it is tried again until drain.
func (a *answering) announce(info transport.Info) {
	announcer, can := a.responder.(transport.Announcer)
	if !can || a.hidden {
		return
	}

	s := a.service
	s.Subject, s.Group, s.Stats = info.Filter, a.cfg.group, a.stats

	ctx, cancel := context.WithCancel(context.Background())
	withdraw := a.tryAnnounce(ctx, announcer, s)

	var trying sync.WaitGroup

	if withdraw == nil {
		trying.Go(func() {
			for pause := announcePause; withdraw == nil && ctx.Err() == nil; pause = min(2*pause, maxAnnouncePause) {
				select {
				case <-ctx.Done():
				case <-time.After(pause):
					withdraw = a.tryAnnounce(ctx, announcer, s)
				}
			}
		})
	}

	a.retract = sync.OnceFunc(func() {
		cancel()
		trying.Wait()

		if withdraw != nil {
			withdraw()
		}
	})
}

// tryAnnounce returns nil where it fails.
func (a *answering) tryAnnounce(ctx context.Context, announcer transport.Announcer, s transport.Service) (withdraw func()) {
	trying, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()

	withdraw, err := announcer.Announce(trying, s)
	if err == nil || ctx.Err() != nil {
		return withdraw
	}

	a.cfg.log().LogAttrs(ctx, slog.LevelWarn, "goflux: a service could not be announced; trying again while it serves",
		slog.String("subject", s.Subject), slog.Any("error", err))

	return nil
}
