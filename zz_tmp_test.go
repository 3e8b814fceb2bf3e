package goflux_test
import ("testing";natsjs "github.com/nats-io/nats.go/jetstream";"github.com/foomo/goflux";"github.com/foomo/goflux/codec/raw";"github.com/foomo/goflux/internal/natstest";"github.com/foomo/goflux/transport/jetstream")
func TestZZ(t *testing.T){
	js := natstest.JetStream(t, natstest.Connect(t, natstest.Run(t)))
	c := natstest.Consumer(t, natstest.Stream(t, js, natsjs.StreamConfig{Name: "O", Subjects: []string{"o"}}), natsjs.ConsumerConfig{Durable:"w",AckPolicy: natsjs.AckNonePolicy})
	for _, o := range []goflux.SubscriberOption{goflux.WithManualAck(), goflux.WithAckSync(), goflux.WithStrictOrder(), goflux.WithRetryPolicy(goflux.ConstantRetry(0))} {
	sub, err := goflux.NewSubscriber(jetstream.Bind(c), raw.Bytes(), o)
	t.Log(o, err, sub != nil, jetstream.Bind(c).Capabilities())
	}
}
