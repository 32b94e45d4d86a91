"""A model that has learnt a few waves, and what it was made of."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
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


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file that is made once for all processes of a test run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    base = tmp_path_factory.getbasetemp()
    folder = base / "generator" if run is None else base.parent / f"generator-{run}"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path := folder / name).exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "waves.gguf", lambda path: train(waves(), path, SETTINGS))


@pytest.fixture(scope="session")
def model(trained: Path) -> Generator:
    return Generator.load(trained, threads=1)


@pytest.fixture(scope="session")
def of_rows(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    training = Training(size="tiny", context=128, steps=60, batch=1024, rate=4e-3)
    path = once(tmp_path_factory, "doors.gguf", lambda path: train([doors(n) for n in range(4)], path, training))
    return Generator.load(path, threads=1)
