package nats

// Waiting returns how many requests wait for a reply.
func (t *Transport) Waiting() int {
	t.inbox.mu.Lock()
	defer t.inbox.mu.Unlock()

	return len(t.inbox.calls)
}
