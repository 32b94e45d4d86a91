"""Examples of instruction data: signals, a question about them, its answer. And the file that they are kept in.

The file is one `.npz` (so it appears whole or not at all), read without pickle: `about`, JSON in UTF-8, with the
examples and the signals' names, and the samples of all signals behind one another in `float32`, `float64` and `int64`.
A signal that several examples share is kept once. Labels and marks of a signal are left out, as they tell the answer.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ExamplesError, SignalError
from genmote.home import atomic_write
from genmote.signals.kinds import Field, Records, Series, Signal

FORMAT = 1
POOLS = ("float32", "float64", "int64")


@dataclass(frozen=True, eq=False)
class Example:
    """`signals`: windows of series or records, one or more, in the order in which the question counts them.
    `about`: the kind of question, such as `trend`. `choices`: where the answer is one of these, all of them. `group`:
    the patient, subject or recording that it is of; a split keeps each group together. `held_out`: the question's
    wording is one that training never sees. `tolerance`: by how much a number in the answer may be off, and `value`
    that number in `unit`, where the answer is one; else NaN. Times are in s, though the answer may say min."""

    signals: tuple[Signal, ...]
    question: str
    answer: str
    about: str
    choices: tuple[str, ...] = ()
    group: str = ""
    held_out: bool = False
    value: float = float("nan")
    unit: str = ""
    tolerance: float = float("nan")


def bare(signal: Signal) -> Signal:
    """The signal without what tells the answer (labels, marks) and without its whole numbers. SignalError for frames.

    >>> bare(Series("a", np.zeros((2, 1), np.float32), 1.0, ("x",), ("",), labels={"kind": "b"})).labels
    {}
    """
    if isinstance(signal, Series):
        if signal.grid is None and not signal.labels and not signal.marks and not signal.continues:
            return signal  # the same one, which a file keeps once
        return replace(signal, grid=None, labels={}, marks=(), continues=False)
    if isinstance(signal, Records):
        return replace(signal, labels={}, continues=False) if signal.labels or signal.continues else signal
    raise SignalError(f"{signal.name}: holds frames; series and records are described so far")


def write(path: Path, examples: Iterable[Example]) -> int:
    """Write examples to a file, whole or not at all; how many. ExamplesError for none, SignalError for frames."""
    told: list[dict[str, Any]] = []
    signals: list[dict[str, Any]] = []
    kept: dict[int, tuple[int, Signal]] = {}  # by identity; the signal is held, so that no other takes its place
    pools = _Pools()
    for example in examples:
        numbers = []
        for signal in example.signals:
            if id(signal) not in kept:
                kept[id(signal)] = len(signals), signal
                signals.append(_told(bare(signal), pools))
            numbers.append(kept[id(signal)][0])
        one = {**asdict(replace(example, signals=())), "signals": numbers}
        told.append({key: value for key, value in one.items() if value == value})  # JSON has no NaN
    if not told:
        raise ExamplesError(f"{path.name}: there is no example to write: wanted at least one")
    about = json.dumps({"format": FORMAT, "signals": signals, "examples": told}, ensure_ascii=False)
    with atomic_write(path) as out:
        arrays: dict[str, Any] = {"about": np.frombuffer(about.encode(errors="replace"), np.uint8), **pools.joined()}
        np.savez(out, **arrays)
    return len(told)


def read(path: Path) -> list[Example]:
    """The examples of a file. ExamplesError where it cannot be read, is damaged or none of ours."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as held:
            about = json.loads(held["about"].tobytes().decode())
            pools = {name: held[name] for name in POOLS}
        if about["format"] != FORMAT:
            raise ExamplesError(f"{path}: is of format {about['format']}, this genmote reads {FORMAT}: make it again")
        signals = [_signal(one, pools) for one in about["signals"]]
        return [_example(one, signals) for one in about["examples"]]
    except OSError as fault:
        raise ExamplesError(f"{path}: cannot be read ({fault.strerror or fault}): wanted a file of examples") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, zipfile.BadZipFile, SignalError):
        raise ExamplesError(f"{path}: is damaged, or no file of examples: make it again") from None


class _Pools:
    """Arrays behind one another, by type."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in POOLS}
        self._sizes = dict.fromkeys(POOLS, 0)

    def put(self, array: NDArray[Any]) -> list[Any]:
        """Where it lies: the pool's name, where it begins, its shape."""
        name = str(array.dtype)
        self._parts[name].append(array.reshape(-1))
        start = self._sizes[name]
        self._sizes[name] += array.size
        return [name, start, list(array.shape)]

    def joined(self) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate([np.zeros(0, name), *parts]) for name, parts in self._parts.items()}


def _told(signal: Signal, pools: _Pools) -> dict[str, Any]:
    times = None if signal.times_s is None else pools.put(np.asarray(signal.times_s, np.float64))
    if isinstance(signal, Series):
        return {
            "kind": "series",
            "name": signal.name,
            "rate_hz": signal.rate_hz,
            "channels": signal.channels,
            "units": signal.units,
            "start_s": signal.start_s,
            "times": times,
            "values": pools.put(np.asarray(signal.values, np.float32)),
        }
    assert isinstance(signal, Records)
    columns = [
        pools.put(column) if column.dtype != object else [None if cell is None else str(cell) for cell in column]
        for column in signal.columns
    ]
    fields = [[field.name, field.type, field.unit] for field in signal.fields]
    return {"kind": "records", "name": signal.name, "fields": fields, "times": times, "columns": columns}


def _signal(told: dict[str, Any], pools: dict[str, NDArray[Any]]) -> Signal:
    times = None if told["times"] is None else _taken(told["times"], pools)
    if told["kind"] == "series":
        values = _taken(told["values"], pools)
        channels, units = tuple(told["channels"]), tuple(told["units"])
        return Series(told["name"], values, told["rate_hz"], channels, units, times, start_s=told["start_s"])
    fields = tuple(Field(*field) for field in told["fields"])
    columns = tuple(
        np.array(column, object) if field.type in ("category", "text") else _taken(column, pools)
        for field, column in zip(fields, told["columns"], strict=True)
    )
    return Records(told["name"], fields, columns, times)


def _taken(place: Sequence[Any], pools: dict[str, NDArray[Any]]) -> NDArray[Any]:
    name, start, shape = place
    return pools[name][start : start + int(np.prod(shape))].reshape(shape)


def _example(told: dict[str, Any], signals: list[Signal]) -> Example:
    own = tuple(signals[number] for number in told["signals"])
    return Example(**{**told, "signals": own, "choices": tuple(told["choices"])})
