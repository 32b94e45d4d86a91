"""Models of signals, and plain baselines, judged on recordings that they have not seen: a module for each job."""
