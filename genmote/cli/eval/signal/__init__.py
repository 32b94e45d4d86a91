"""Judge a model of signals on recordings that it has not seen: its five jobs, each with plain baselines beside it."""
