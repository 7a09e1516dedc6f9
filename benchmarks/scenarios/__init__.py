"""One claim per module; each has a `measure(bench)` that returns its figures."""
