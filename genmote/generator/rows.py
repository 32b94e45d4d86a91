"""Signals as lines of JSON: an object a row of records, a sample of a series, or a frame."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genmote.home import atomic_write
from genmote.signals.kinds import Frames, Records, Series, Signal
from genmote.signals.writing import is_date, moment


def write(path: Path, signals: Sequence[Signal]) -> None:
    """Write all signals, whole or not at all; where there are several, each line has its signal's name."""
    with atomic_write(path, "w") as out:
        for signal in signals:
            named = {"signal": signal.name} if len(signals) > 1 else {}
            for row in rows(signal):
                out.write(json.dumps({**named, **row}, ensure_ascii=False) + "\n")


def rows(signal: Signal) -> Iterator[dict[str, Any]]:
    """An object for each row, sample or frame: its time where it has one, and what it holds."""
    times = signal.times_s
    for n in range(len(signal)):
        row: dict[str, Any] = {}
        if times is not None:
            row["time"] = _time(float(times[n]))
        elif isinstance(signal, Series):
            row["time"] = _time((signal.start_s or 0.0) + n / signal.rate_hz)
        if isinstance(signal, Records):
            row |= {f.name: _plain(column[n]) for f, column in zip(signal.fields, signal.columns, strict=True)}
        elif isinstance(signal, Series):
            row |= {c: _plain(value) for c, value in zip(signal.channels, signal.values[n], strict=True)}
        elif isinstance(signal, Frames):
            row["frame"] = np.asarray(signal.frames[n], float).round(6).tolist()
        yield row


def _time(seconds: float) -> float | str:
    return moment(seconds) if is_date(seconds) else round(seconds, 6)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.7g}")
    return value
