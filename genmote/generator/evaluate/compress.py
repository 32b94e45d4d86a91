"""What `genmote signal compress` saves on recordings, beside general compressors that get the same whole numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genmote.device.meter import Meter
from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.generator.evaluate.data import Recording
from genmote.generator.evaluate.result import Result
from genmote.generator.scores import compression as scores
from genmote.signals import container, reading
from genmote.signals.chart import Panel
from genmote.signals.kinds import Series


def evaluate(
    test: Sequence[Recording],
    *,
    model: Path | None = None,
    max_error: float = 0.0,
    threads: int | None = 1,
    notes: list[str] | None = None,
    progress: Progress = quiet,
) -> Result:
    """Each recording compressed, given back and compared; with `model`'s help, where one is given. With `max_error`,
    all sides get the numbers that samples are rounded to. SignalError where no recording can be compressed, and where
    one came back changed."""
    told: list[str] = [] if notes is None else notes
    teller, model_bytes = None, 0  # without a model the coder learns as it goes: there is nothing to carry
    if model is not None:
        from genmote.generator.compress import Teller

        teller, model_bytes = Teller.load(model, threads=threads), model.stat().st_size
    items: list[dict[str, Any]] = []
    for number, one in enumerate(test):
        if not isinstance(one.signal, Series) or (one.signal.grid is None and not max_error):
            told.append(f"{one.name}: is no series of whole numbers (see --max-error); left out")
            continue
        items.append(_item(one.name, one.signal, max_error, threads, teller))
        progress("compressing", number + 1, len(test))
    if not items:
        raise SignalError("--test: holds no series of whole numbers; give --max-error, such as 0.01, to round others")
    plain = sum(item["plain_bytes"] for item in items)
    seconds, back = (sum(item[key] for item in items) for key in ("seconds", "decode_seconds"))
    joules = [item["joules"] for item in items]
    sides = {name: sum(item[f"{name}_bytes"] for item in items) for name in ("ours", *PEERS)}
    best = min(PEERS, key=lambda name: sides[name])
    values: dict[str, Any] = {
        "recordings": len(items),
        "plain_bytes": plain,
        "sides": {name: {"bytes": size, "ratio": plain / size} for name, size in sides.items()},
        "best_peer": best,
        "smaller_than_best_peer_percent": 100 * (1 - sides["ours"] / sides[best]),
        "mb_per_s": plain / 1e6 / max(seconds, 1e-9),
        "decode_mb_per_s": plain / 1e6 / max(back, 1e-9),
        "joules_per_mb": None if None in joules else sum(joules) / (plain / 1e6),
        "energy": items[0]["energy"],
        "model": model,
        "model_bytes": model_bytes,
        "max_error": max_error,
    }
    paid = scores.paid_after(model_bytes, sides["ours"] / plain, sides[best] / plain)
    values["model_paid_after_mb"] = None if paid is None else paid / 1e6
    return Result(values, items, _panels(items))


PEERS = ("xz", "bzip2")


def _item(name: str, series: Series, max_error: float, threads: int | None, teller: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="genmote-eval-") as folder:
        path = Path(folder) / "ours.gmsc"
        with Meter() as meter:
            made = container.write(path, [series], max_error=max_error, threads=threads, teller=teller)
        with Meter() as back:
            again = reading.joined_all(container.read(path, teller))[0]
    assert isinstance(again, Series) and again.grid is not None
    if series.grid is not None and not max_error and (again.grid.integers != series.grid.integers).any():
        raise SignalError(f"{name}: came back changed; please report it")
    integers = again.grid.integers
    return {
        "recording": name,
        "samples": int(integers.size),
        "plain_bytes": len(scores.plain(integers)),
        "ours_bytes": made.bytes,
        **{f"{peer}_bytes": size for peer, size in scores.peers(integers).items()},
        "seconds": meter.reading.wall_s,
        "decode_seconds": back.reading.wall_s,
        "joules": meter.reading.energy.joules,
        "energy": meter.reading.energy.how,
    }


def _panels(items: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is left of each recording, in percent, ours and the peers'."""
    x = np.repeat(np.arange(len(items) + 1.0), 2)[1:-1]
    panels = []
    for side in ("ours", *PEERS):
        left = np.array([100 * item[f"{side}_bytes"] / item["plain_bytes"] for item in items])
        panels.append(Panel(side, x, np.repeat(left, 2), "recordings, in their order", "% of the numbers"))
    return panels
