"""Adapt a model on the device: an adapter learnt from examples, through the quantised base, without PyTorch.

`run.tune` is the whole of it; `settings.Tuning` has what may be chosen.
"""
