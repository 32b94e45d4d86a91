"""A device's signals: what genmote knows of them, and what is in a file."""
