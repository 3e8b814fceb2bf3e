package jetstream

import "github.com/foomo/goflux"

// Option is any option of goflux. One that does not fit the role it is given
// to makes every call of what was built fail with goflux.ErrInvalidOption.
type Option = goflux.Option

// WithTelemetry sets where spans and metrics go; see [goflux.WithTelemetry].
func WithTelemetry(t *goflux.Telemetry) goflux.CommonOption { return goflux.WithTelemetry(t) }

// WithManualAck leaves settling to the handler of a subscriber; see
// [goflux.WithManualAck].
func WithManualAck() goflux.SubscriberOption { return goflux.WithManualAck() }
