package transporttest

import "testing"

// RunItem runs one item; it panics when there is none of that name.
func RunItem(tb testing.TB, h Harness, name string) {
	tb.Helper()

	for _, it := range items {
		if it.name == name {
			it.run(newEnv(tb, h))

			return
		}
	}

	panic("no item " + name)
}

// Names returns the names of all items.
func Names() []string {
	names := make([]string, 0, len(items))
	for _, it := range items {
		names = append(names, it.name)
	}

	return names
}
