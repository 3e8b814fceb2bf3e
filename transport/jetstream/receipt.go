package jetstream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/foomo/goflux/transport"
)

// receipts reads what streams answer to a publish.
type receipts struct {
	stream atomic.Pointer[string] // of the last one: mostly that of the next, too
}

// pubAck is what a stream answers.
type pubAck struct {
	Error     *natsjs.APIError `json:"error"`
	Stream    string           `json:"stream"`
	Sequence  uint64           `json:"seq"`
	Duplicate bool             `json:"duplicate"`
}

// parse reads an answer. Its errors are translated; with them the receipt tells
// the stream, if one has answered.
func (c *receipts) parse(msg *nats.Msg) (transport.Receipt, error) {
	if noResponders(msg) {
		return transport.Receipt{}, mapError(natsjs.ErrNoStreamResponse)
	}

	stream := c.stream.Load()

	if stream != nil {
		if seq, ok := plainReceipt(msg.Data, *stream); ok {
			return transport.Receipt{Stream: *stream, Sequence: seq}, nil
		}
	}

	var ack pubAck

	switch err := json.Unmarshal(msg.Data, &ack); {
	case err == nil && ack.Error != nil && ack.Error.ErrorCode != 0:
		return transport.Receipt{Stream: ack.Stream}, refusal(ack.Error)
	case err != nil, ack.Error != nil, ack.Stream == "", ack.Sequence == 0:
		// Whether there is a stream, too, is not told. To ask again would be to
		// call somebody again who may do something each time.
		return transport.Receipt{}, transport.Final(transport.Mark(transport.ErrPublishUnknown, mapError(fmt.Errorf(
			"%w: what answers on this subject is no stream, or not alone: let nobody else answer there", natsjs.ErrInvalidJSAck))))
	}

	if stream == nil || *stream != ack.Stream {
		c.stream.Store(new(ack.Stream))
	}

	return transport.Receipt{Stream: ack.Stream, Sequence: ack.Sequence, Duplicate: ack.Duplicate}, nil
}

// noResponders reports the answer of a server that knows nobody who would take
// the message.
func noResponders(msg *nats.Msg) bool {
	return len(msg.Data) == 0 && msg.Header.Get("Status") == "503"
}

// plainReceipt reads the receipt that servers send but for duplicates, domains
// and errors, `{"stream":"NAME", "seq":1}`, if it is of the given stream. It
// declines everything else. It does not allocate.
func plainReceipt(data []byte, stream string) (uint64, bool) {
	rest, ok := bytes.CutPrefix(data, []byte(`{"stream":"`))
	if !ok || len(rest) <= len(stream) || string(rest[:len(stream)]) != stream || rest[len(stream)] != '"' {
		return 0, false
	}

	rest = bytes.TrimLeft(rest[len(stream)+1:], ", ")

	if rest, ok = bytes.CutPrefix(rest, []byte(`"seq":`)); !ok || len(rest) < 2 || rest[len(rest)-1] != '}' {
		return 0, false
	}

	var seq uint64

	for _, c := range rest[:len(rest)-1] {
		if c < '0' || c > '9' || seq > 1<<60 {
			return 0, false
		}

		seq = seq*10 + uint64(c-'0')
	}

	return seq, seq > 0
}
