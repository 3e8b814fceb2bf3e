package memory

// Responders returns how many responders are subscribed, and how many requests
// wait for them.
func (t *Transport) Responders() (n, waiting int) {
	t.live.mu.Lock()
	defer t.live.mu.Unlock()

	for _, s := range t.live.listeners {
		waiting += len(s.queue)
	}

	return len(t.live.listeners), waiting
}
