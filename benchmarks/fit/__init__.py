"""The memory set: what `make bench-memory` measures, ours and the peer's inside the same kind of control group."""
