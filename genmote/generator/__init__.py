"""A small generative model of signals: trained by one command, and its five jobs."""
