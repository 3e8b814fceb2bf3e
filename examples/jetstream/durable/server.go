package main

import (
	// Where no server listens at nats.DefaultURL, this starts one.
	_ "github.com/foomo/goflux/examples/internal/defaultserver"
)
