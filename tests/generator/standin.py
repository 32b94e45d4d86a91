"""Models with a generator's interface that are simple enough to know what they must be given as scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from genmote.signals import coding
from genmote.signals.kinds import Records, Series, Signal


@dataclass
class Sampled:
    samples: np.ndarray


@dataclass
class Bootstrap:
    """Gives out stretches of the signals that it was made of. Forecasts: the last sample, off by differences that were
    seen. Scores: how far a row is from the nearest row that was seen."""

    signals: Sequence[Signal]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        first = self.signals[0]
        name = "fields" if isinstance(first, Records) else "bins"
        self.codec: Any = coding.fit(name, self.signals, labels=self.labels)

    def generate(
        self, count: int = 1, *, steps: int | None = None, labels: Mapping[str, str] | None = None, seed: int = 0
    ) -> list[Signal]:
        rng = np.random.default_rng(seed)
        asked = dict(labels or {})
        assert steps is not None
        fits = [s for s in self.signals if all(s.labels.get(k) == v for k, v in asked.items()) and len(s) >= steps]
        found = []
        for _ in range(count):
            one = fits[int(rng.integers(len(fits)))]
            at = int(rng.integers(len(one) - steps + 1))
            found.append(one.part(at, at + steps))
        return found

    def forecast(self, history: Series, steps: int, *, paths: int = 32, seed: int = 0) -> Sampled:
        rng = np.random.default_rng(seed)
        moves = np.concatenate([np.diff(s.values, axis=0) for s in self.signals if isinstance(s, Series)])
        drawn = moves[rng.integers(len(moves), size=(paths, steps))]
        return Sampled(history.values[-1] + np.cumsum(drawn, axis=1))

    def impute(self, series: Series, *, paths: int = 16, seed: int = 0) -> Sampled:
        values = series.values.copy()
        there = np.isfinite(values[:, 0])
        for channel in range(values.shape[1]):
            values[:, channel] = np.interp(np.arange(len(values)), np.flatnonzero(there), values[there, channel])
        return Sampled(np.repeat(values[None], paths, axis=0))

    def scores(self, signal: Any) -> np.ndarray:
        def rows(one: Signal) -> np.ndarray:
            if isinstance(one, Series):
                return one.values.astype(np.float64)
            numbers = [c for f, c in zip(one.fields, one.columns, strict=True) if f.type in ("number", "integer")]
            return np.stack(numbers, axis=1).astype(np.float64)

        seen = np.unique(np.concatenate([rows(one) for one in self.signals]), axis=0)
        return np.array([np.abs(seen - row).sum(axis=1).min() for row in rows(signal)], np.float32)


@dataclass
class Fresh(Bootstrap):
    """Generates out of other signals than it learnt from, of one distribution with them."""

    source: Sequence[Signal] = ()

    def generate(self, count: int = 1, **asked: Any) -> list[Signal]:
        return Bootstrap(self.source, self.labels).generate(count, **asked)


def labelled(signals: Sequence[Signal], key: str, values: Sequence[str]) -> list[Signal]:
    return [replace(one, labels={key: value}) for one, value in zip(signals, values, strict=True)]
