"""The device: profiles of boards, what a run takes (meter), a laptop that behaves like a board (jail)."""
