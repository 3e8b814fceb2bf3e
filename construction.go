package goflux

// The constructors of the transports return no error, so that they read like
// those of nats.go: what was wrong with their arguments is returned by the first
// call. Err tells it when the program starts.

// Err returns what was wrong with the arguments of the constructor, or nil: what
// every Publish would return.
func (s *sender) Err() error { return s.err }

// Err returns what was wrong with the arguments of the constructor, or nil: what
// every Subscribe, or Serve, would return. Whether messages can arrive is told by
// Health.
func (r *receiver) Err() error { return r.err }

// Err returns what was wrong with the arguments of the constructor, or nil: what
// every Fetch would return.
func (c *BoundConsumer[T]) Err() error { return c.err }

// Err returns what was wrong with the arguments of the constructor, or nil: what
// every request would return.
func (a *asker) Err() error { return a.err }
