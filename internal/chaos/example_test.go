package chaos_test

import (
	"fmt"

	"github.com/foomo/goflux/internal/chaos"
)

// Three messages: one went well, of one the publisher never heard back, and one
// was accepted and then lost.
func ExampleChecker() {
	c := chaos.NewChecker(chaos.StoredOnce | chaos.HandledAtLeastOnce)

	good := c.Send("orders")
	c.Published(good, chaos.Accepted, 1)
	c.Handled(good, 1)

	timeout := c.Send("orders")
	c.Published(timeout, chaos.Unknown, 0)
	c.Published(timeout, chaos.Unknown, 0)
	c.Handled(timeout, 2)

	lost := c.Send("orders")
	c.Published(lost, chaos.Accepted, 3)

	// Afterwards, from the stream; ReadStream does this.
	c.Stored(chaos.ParseID("orders#1"), 1)
	c.Stored(chaos.ParseID("orders#2"), 2)

	fmt.Print(c.Verify())

	// Output:
	// keys                           1
	// sent                           3
	//   accepted                     2
	//   unknown                      1
	//   failed                       0
	// publish calls                  4
	// stored                         2
	//   of the unknown               1
	// handled                        2
	//   more than once               0
	// handlings                      2
	//   of redeliveries              1
	//   highest attempt              2
	// lost                           1
	// duplicated                     0
	// stored though failed           0
	// handled but not stored         0
	// wrong receipt                  0
	// not handled                    0
	// foreign                        0
	// lost: orders#3 (accepted at 3, 1 calls)
}
