"""A model that has learnt a few waves, and what it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genmote.generator.model import Generator
from genmote.generator.train import Training, train
from genmote.signals.kinds import Field, Records, Series

RATE = 20.0


def wave(seed: int, steps: int = 400, kind: str = "slow") -> Series:
    """Two channels of one wave, with noise: fast or slow, at a phase of its own."""
    draw = np.random.default_rng(seed)
    turn = 2 * np.pi * (np.arange(steps) / (20 if kind == "slow" else 8) + draw.random())
    values = np.stack([np.sin(turn), np.cos(turn)], axis=1) + 0.03 * draw.standard_normal((steps, 2))
    return Series(f"{kind}-{seed}", values.astype(np.float32), RATE, ("a", "b"), ("mV", "mV"), labels={"speed": kind})


def waves(count: int = 24, steps: int = 400) -> list[Series]:
    return [wave(seed, steps, "slow" if seed % 2 else "fast") for seed in range(count)]


def doors(seed: int, rows: int = 200) -> Records:
    """A door that is opened and closed in turn, and a count that goes with it."""
    draw = np.random.default_rng(seed)
    what = np.array(["open" if n % 2 else "close" for n in range(rows)], object)
    count = np.where(what == "open", 3, 7).astype(np.int64)
    times = np.cumsum(draw.exponential(10, rows))
    return Records(f"door-{seed}", (Field("what", "category"), Field("count", "integer")), (what, count), times)


SETTINGS = Training(
    size="tiny", context=192, bins=32, steps=110, batch=1536, labels=("speed",), rate=4e-3, dropout=0.0, shift=0.0
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generator") / "waves.gguf"
    train(waves(), path, SETTINGS)
    return path


@pytest.fixture(scope="session")
def model(trained: Path) -> Generator:
    return Generator.load(trained, threads=1)


@pytest.fixture(scope="session")
def of_rows(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    path = tmp_path_factory.mktemp("generator") / "doors.gguf"
    train([doors(seed) for seed in range(4)], path, Training(size="tiny", context=128, steps=60, batch=1024, rate=4e-3))
    return Generator.load(path, threads=1)
