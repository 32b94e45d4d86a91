"""genmote beside its peers, in one run: what `make bench` measures, keeps as records and prints."""
