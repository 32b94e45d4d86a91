"""Rows whose keys are short: they tend to draw attention, and no query is needed to tell (Devoto et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genmote.runtime.evict._base import Evict, Float32, Seen


@dataclass(frozen=True)
class Keynorm(Evict):
    """The lower the L2 norm of a key, the longer its row stays."""

    def score(self, seen: Seen) -> Float32:
        norms: Float32 = np.sqrt(np.einsum("thd,thd->ht", seen.keys, seen.keys))  # without a copy of the keys
        return -norms
