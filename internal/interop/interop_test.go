//go:build interop

package interop_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"testing"

	jsoncodec "github.com/foomo/goencode/json/v1"
	"github.com/nats-io/nats.go/micro"
	"go.uber.org/goleak"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/internal/natstest"
	"github.com/foomo/goflux/transport/nats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var words = jsoncodec.NewCodec[string]()

// answer is what the peer saw of one reply.
type answer struct {
	Value   *string `json:"value"`
	Code    int     `json:"code"`
	Message string  `json:"message"`
	Details string  `json:"details"`
	Word    string  `json:"word"`
}

// report is what the peer prints.
type report struct {
	Good        answer        `json:"good"`
	Told        answer        `json:"told"`
	Kept        answer        `json:"kept"`
	Undecodable answer        `json:"undecodable"`
	Nobody      string        `json:"nobody"`
	Pings       []micro.Ping  `json:"pings"`
	Infos       []micro.Info  `json:"infos"`
	Stats       []micro.Stats `json:"stats"`
	Everybody   []string      `json:"everybody"`
}

func TestJavaScript(t *testing.T) {
	t.Parallel()

	server := natstest.RunTCP(t)

	serve(t, server)

	seen := peer(t, server.URL())

	t.Run("its client calls our responder", func(t *testing.T) {
		t.Parallel()

		if a := seen.Good; a.Value == nil || *a.Value != "hello" || a.Code != 0 || a.Word != "hello" {
			t.Errorf("reply %+v", a)
		}

		for name, c := range map[string]struct{ got, want answer }{
			"told":        {seen.Told, answer{Code: 409, Message: "taken", Details: `{"by":"Ada"}`}},
			"kept":        {seen.Kept, answer{Code: 500, Message: "internal error"}},
			"undecodable": {seen.Undecodable, answer{Code: 400, Message: "the request could not be decoded"}},
		} {
			if c.got != c.want {
				t.Errorf("%s: %+v, want %+v", name, c.got, c.want)
			}
		}

		if seen.Nobody == "" || seen.Nobody == "TimeoutError" {
			t.Errorf("a request to nobody ends with %q", seen.Nobody)
		}
	})

	t.Run("it lists and inspects our responder", func(t *testing.T) {
		t.Parallel()

		if len(seen.Pings) != 1 || len(seen.Infos) != 1 || len(seen.Stats) != 1 {
			t.Fatalf("%d pings, %d infos, %d stats", len(seen.Pings), len(seen.Infos), len(seen.Stats))
		}

		ping, info, stats := seen.Pings[0], seen.Infos[0], seen.Stats[0]
		if ping.ID == "" || ping.ID != info.ID || ping.ID != stats.ID || ping.Name != "goflux-echo" || ping.Version != "1.2.3" {
			t.Errorf("ping %+v", ping)
		}

		if info.Description != "Says it again." || len(info.Endpoints) != 1 || info.Endpoints[0].Subject != "go.echo" || info.Endpoints[0].QueueGroup != "q" {
			t.Errorf("info %+v", info)
		}

		if len(stats.Endpoints) != 1 || stats.Endpoints[0].NumRequests != 4 || stats.Endpoints[0].NumErrors != 3 ||
			stats.Endpoints[0].LastError != "400: the request could not be decoded" {
			t.Errorf("stats %+v", stats)
		}

		if !slices.Equal(seen.Everybody, []string{"goflux-echo", "peer"}) {
			t.Errorf("services %v", seen.Everybody)
		}
	})

	t.Run("our requester calls its service", func(t *testing.T) {
		t.Parallel()

		ctx, cancel := context.WithTimeout(t.Context(), natstest.Limit)
		defer cancel()

		asking := nats.NewRequester(natstest.Connect(t, server), words, words)
		defer asking.Close()

		reply, err := asking.RequestMessage(goflux.WithMessageID(ctx, "m1"), "js.upper", "hello")
		if err != nil || reply.Payload != "HELLO" || reply.ID() != "m1" {
			t.Errorf("reply %+v, error %v", reply, err)
		}

		_, err = asking.Request(ctx, "js.upper", "")

		var remote *goflux.RemoteError
		if !errors.As(err, &remote) || remote.Code != 422 || remote.Message != "nothing to do" || string(remote.Details) != `{"field":"word"}` {
			t.Errorf("error %v", err)
		}

		if _, err := asking.Request(ctx, "js.upper", "garble"); !errors.Is(err, goflux.ErrDecode) {
			t.Errorf("error %v", err)
		}

		if _, err := asking.Request(ctx, "js.nobody", "x"); !errors.Is(err, goflux.ErrNoResponders) {
			t.Errorf("error %v", err)
		}
	})
}

// serve answers on go.echo until the test ends.
func serve(t *testing.T, server *natstest.Server) {
	t.Helper()

	ready := make(chan struct{})
	r := nats.NewResponder(natstest.Connect(t, server), words, words,
		goflux.WithLogger(slog.New(slog.DiscardHandler)),
		goflux.WithService("goflux-echo", "1.2.3", "Says it again."),
		goflux.WithReady(func() { close(ready) }))
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)

	go func() {
		served <- r.Serve(ctx, "go.echo", func(ctx context.Context, word string) (string, error) {
			switch word {
			case "told":
				return "", goflux.NewError(409, "taken").WithDetails(map[string]string{"by": "Ada"})
			case "kept":
				return "", errors.New("a secret")
			default:
				goflux.CallFromContext(ctx).ReplyHeader().Set("Word", word)

				return word, nil
			}
		})
	}()

	t.Cleanup(func() {
		stop()

		if err := <-served; err != nil {
			t.Error(err)
		}
	})

	<-ready
}

// peer starts the other side, which runs until the test ends, and returns its
// report.
func peer(t *testing.T, url string) (r report) {
	t.Helper()

	if _, err := os.Stat("node_modules"); err != nil {
		t.Fatal("node_modules is missing: run npm ci in this folder, or make interop")
	}

	// Not the test's context, which ends before the peer is told to.
	ctx, cancel := context.WithTimeout(context.Background(), 3*natstest.Limit)

	cmd := exec.CommandContext(ctx, "node", "peer.mjs", url)
	cmd.Stderr = os.Stderr

	t.Cleanup(cancel)

	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}

	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}

	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	lines := bufio.NewReader(out)

	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}

		_, _ = io.Copy(io.Discard, lines)

		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})

	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}

	if err != nil {
		t.Fatalf("the peer printed %q: %v", line, err)
	}

	return r
}
