package natstest

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports from here to there are handed out. They lie below those that Linux
// (32768), macOS and Windows (49152) give to outgoing connections: while a
// server is stopped nobody else gets its port by chance, and a client that
// keeps dialling it cannot end up connected to itself, which TCP allows when
// the port it dials is also the one it was given.
const portLow, portHigh = 20000, 32000

var ports = struct {
	sync.Mutex
	taken map[int]bool
}{taken: map[int]bool{}}

// FreePort returns a TCP port of the loopback address on which nothing listens.
// No later call within this process returns it again.
func FreePort(tb testing.TB) int {
	tb.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range portHigh - portLow {
		port := portLow + rand.IntN(portHigh-portLow)
		if ports.taken[port] {
			continue
		}
		l, err := net.Listen("tcp", addr(port))
		if err != nil {
			continue
		}
		_ = l.Close()
		ports.taken[port] = true
		return port
	}
	tb.Fatal("natstest: no free port")
	return 0
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
