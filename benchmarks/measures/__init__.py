"""One file a measure, found by its name: `measure(bench)` yields the rows of the numbers that it is about."""
