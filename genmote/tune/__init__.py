"""A model adapted to what a device sees: training, drift, and which examples to learn from ([tune](docs/tune.md))."""
