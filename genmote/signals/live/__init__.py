"""Signals that arrive while one looks: messages of a broker, in pieces."""
