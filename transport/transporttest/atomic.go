package transporttest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/foomo/goflux"
	"github.com/foomo/goflux/transport"
)

// batchOf returns the items of a batch, on two subjects in turn.
func batchOf(subjects [2]string, payloads ...string) []goflux.Item[string] {
	items := make([]goflux.Item[string], len(payloads))
	for i, s := range payloads {
		items[i] = goflux.Item[string]{Subject: subjects[i%2], Payload: s}
	}

	return items
}

func atomicBatches(e *env) {
	b := e.start(Config{})

	if !b.has(transport.AtomicBatches) {
		b.refusals(transport.AtomicBatches, map[string]func(p *goflux.BoundPublisher[string], subject string) error{
			"PublishAtomic": func(p *goflux.BoundPublisher[string], subject string) error {
				_, err := p.PublishAtomic(e.within(), goflux.Item[string]{Subject: subject}, goflux.Item[string]{Subject: subject})

				return err
			},
			"an empty batch": func(p *goflux.BoundPublisher[string], _ string) error {
				_, err := p.PublishAtomic(e.within())

				return err
			},
		})

		return
	}

	t := b.open()
	subjects := [2]string{b.subject("a", "one"), b.subject("a", "two")}
	got := e.payloads(b.open(), b.subject("a", "*"))
	p := e.publisher(t)

	want := e.atomicRefusals(b, t, subjects)

	e.publish(t, subjects[0], "behind")
	want = append(want, "behind")
	sameOrder(e, "the subscription", got.wait(e, len(want), "what was stored"), want)

	// Nothing comes between the messages of a batch.
	const size, batches, publishers = 5, 10, 4

	var publishing sync.WaitGroup

	for n := range publishers {
		publishing.Go(func() {
			for i := range batches {
				name := fmt.Sprintf("batch %d/%d ", n, i)

				payloads := numbers(size)
				for j := range payloads {
					payloads[j] = name + payloads[j]
				}

				r, err := p.PublishAtomic(e.within(), batchOf(subjects, payloads...)...)
				if err != nil || r.Sequence == 0 || r.Duplicate {
					e.Errorf("publish a batch: receipt %+v, error %v", r, err)
				}
			}
		})
		publishing.Go(func() {
			for range batches * size {
				e.check(p.Publish(e.within(), subjects[n%2], "single"), "publish")
			}
		})
	}

	publishing.Wait()

	all := got.wait(e, len(want)+2*publishers*batches*size, "all messages")[len(want):]
	complete := 0

	for i, s := range all {
		name, begins := strings.CutSuffix(s, " 0")
		if !begins {
			continue
		}

		whole := numbers(size)
		for j := range whole {
			whole[j] = name + " " + whole[j]
		}

		if rest := all[i:min(i+size, len(all))]; slices.Equal(rest, whole) {
			complete++
		} else {
			e.Errorf("a batch arrived as %v, want %v", rest, whole)
		}
	}

	if complete != publishers*batches {
		e.Errorf("%d batches arrived whole, want %d", complete, publishers*batches)
	}

	e.ok(t.Close(), "close the transport")

	r, err := p.PublishAtomic(e.within(), batchOf(subjects, "late", "late")...)
	e.refused(r, err, goflux.ErrClosed, "a batch after closing the transport")
}

// atomicRefusals publishes batches of which nothing may be stored, among some
// that are, and returns what is.
func (e *env) atomicRefusals(b *broker, t transport.Transport, subjects [2]string) (stored []string) {
	e.Helper()

	p := e.publisher(t)
	ended, end := context.WithCancel(e.within())
	end()

	publish := func(ids [3]string, payloads ...string) (goflux.Receipt, error) {
		items := batchOf(subjects, payloads...)
		for i := range items {
			items[i].ID = ids[i]
		}

		return p.PublishAtomic(e.within(), items...)
	}

	for i, payloads := range [][]string{{"alone"}, {"first", "second"}, {"x", "y", "z"}} {
		r, err := publish([3]string{}, payloads...)
		e.ok(err, "publish a batch")

		if r.Stream == "" || r.Sequence == 0 || r.Duplicate {
			e.Errorf("batch %d has the receipt %+v, want a stream, a sequence, and no duplicate", i, r)
		}

		stored = append(stored, payloads...)
	}

	r, err := p.PublishAtomic(e.within())
	if err != nil || r != (goflux.Receipt{}) {
		e.Errorf("an empty batch: receipt %+v, error %v", r, err)
	}

	bad := batchOf(subjects, "none", "none", "none")
	bad[1].Subject = "a.*"
	r, err = p.PublishAtomic(e.within(), bad...)
	e.refused(r, err, goflux.ErrInvalidSubject, "a batch with a subject that is none")

	for at := range 3 {
		items := batchOf(subjects, "none", "none", "none")
		items[at].Payload = string(make([]byte, e.harness.maxPayload()+1))
		r, err = p.PublishAtomic(e.within(), items...)
		e.refused(r, err, goflux.ErrTooLarge, fmt.Sprintf("a batch whose message %d is too large", at))
	}

	// As the transport sees it: afterwards the buffers are the caller's again.
	if p, does := t.(transport.AtomicPublisher); does {
		data := [][]byte{[]byte("mine 1"), []byte("mine 2")}
		msgs := []transport.Message{{Subject: subjects[0], Data: data[0]}, {Subject: subjects[1], Data: data[1]}}

		r, err = p.PublishAtomic(ended, msgs)
		e.refused(r, err, context.Canceled, "a batch under a ctx that had ended")

		_, err = p.PublishAtomic(e.within(), msgs)
		e.ok(err, "publish a batch")

		for i := range data {
			stored = append(stored, string(data[i]))
			copy(data[i], "DIRT")
		}
	}

	if !b.has(transport.Deduplication) {
		return stored
	}

	once, err := publish([3]string{"m-1", "m-2"}, "one", "two")
	e.ok(err, "publish a batch")

	stored = append(stored, "one", "two")

	// All of it again is the same batch, a part of it is another one.
	again, err := publish([3]string{"m-1", "m-2"}, "one", "two")
	e.ok(err, "publish a batch again")

	if once.Duplicate = true; again != once {
		e.Errorf("a batch that is stored has the receipt %+v, want %+v", again, once)
	}

	for what, ids := range map[string][3]string{
		"the first message": {"m-1", "m-3", "m-4"},
		"the last message":  {"", "", "m-1"},
	} {
		r, err := publish(ids, "none", "none", "none")
		e.refused(r, err, goflux.ErrDuplicate, "a batch of which "+what+" is stored")
	}

	// Ids are not used up by a batch that failed.
	r, err = publish([3]string{"m-3", "m-4"}, "three", "four")
	e.ok(err, "publish a batch with the ids of one that failed")

	if r.Duplicate {
		e.Errorf("the receipt %+v after a batch that failed with the same ids, want no duplicate", r)
	}

	return append(stored, "three", "four")
}
