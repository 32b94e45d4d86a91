"""The model that is judged: one that is there, or one that is trained for it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from genmote.fetch import Progress, quiet
from genmote.signals.coding import Codec
from genmote.signals.kinds import Series, Signal


class Sampled(Protocol):
    """What may have been: `samples` (P, T, C)."""

    @property
    def samples(self) -> NDArray[np.float32]: ...


class Model(Protocol):
    """What is asked of a model; `genmote.generator.model.Generator` is one."""

    @property
    def codec(self) -> Codec: ...

    def generate(
        self, count: int = 1, *, steps: int | None = None, labels: Mapping[str, str] | None = None, seed: int = 0
    ) -> list[Signal]: ...

    def forecast(self, history: Series, steps: int, *, paths: int = 32, seed: int = 0) -> Sampled: ...

    def impute(self, series: Series, *, paths: int = 16, seed: int = 0) -> Sampled: ...

    def scores(self, signal: Any) -> NDArray[np.float32]: ...


class Make(Protocol):
    """Gives the model that is judged; where it must be trained, then on these signals, told of these labels."""

    def __call__(self, signals: Sequence[Signal], labels: tuple[str, ...] = ()) -> Model: ...


@dataclass(frozen=True, kw_only=True)
class Maker:
    """The model in the file `model`, whatever the signals; without one, one that is trained, and kept as `save`."""

    model: Path | None = None
    save: Path | None = None
    size: Literal["tiny", "small", "medium", "large"] = "small"
    minutes: float = 10.0
    steps: int = 0
    seed: int = 0
    threads: int | None = None
    progress: Progress = quiet

    def __call__(self, signals: Sequence[Signal], labels: tuple[str, ...] = ()) -> Model:
        from genmote.generator.model import Generator

        if self.model is not None:
            return Generator.load(self.model, threads=self.threads)
        from genmote.generator import train

        training = train.Training(labels=labels, size=self.size, minutes=self.minutes, steps=self.steps, seed=self.seed)
        with tempfile.TemporaryDirectory(prefix="genmote-eval-") as folder:
            output = self.save or Path(folder) / "trained.gguf"
            train.train(signals, output, training, progress=self.progress)
            return Generator.load(output, threads=self.threads)
