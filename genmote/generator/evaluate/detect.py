"""How well a model that has seen what is normal tells what is not, in recordings that nobody has seen.

What is judged is a row, where rows have labels; the rows about a mark, where marks are of one sample (a beat); a
recording, where labels are of whole recordings. The score of the last two is the mean over their rows. A scorer is a
function of a signal that gives a score for each row, the higher the more unusual: a peer of another package can be
judged on the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.generator.evaluate.data import NONE, Columns, Recording, stretches
from genmote.generator.evaluate.model import Make
from genmote.generator.evaluate.result import Result
from genmote.generator.scores import detection as scores
from genmote.signals.chart import Panel
from genmote.signals.kinds import Records, Series

Scorer = Callable[[Series | Records], NDArray[np.floating]]
SHORTEST = 32  # rows of a normal stretch of a series; shorter ones are left out
KEPT_BACK = 0.1  # of what is normal: to set the threshold by, not to learn from
FEW = 20  # items below which a quantile of them says nothing
NORMAL = ("normal", "benign", "ok", "n", "0")
Z_DISTANCE = "z distance"


@dataclass(frozen=True, eq=False)
class Items:
    """What is judged of a recording: rows [starts, stops) and their labels, (N,) each."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    labels: NDArray[np.object_]

    def scores(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N,): means of the rows' scores (T,)."""
        sums = np.concatenate([[0.0], np.cumsum(rows, dtype=np.float64)])
        return np.asarray((sums[self.stops] - sums[self.starts]) / (self.stops - self.starts), np.float64)


def items(one: Recording, whole: bool, ignored: Sequence[str] = ()) -> Items:
    """Of a recording with labels: itself where labels are of the `whole`, else its marks or rows. What has no label, or
    one that is `ignored`, is left out."""
    assert one.rows is not None
    if whole:
        pairs = [(0, len(one.rows))]
    elif one.points:
        pairs = [(start, stop) for start, stop in stretches(one.points, len(one.rows)) if start < stop]
    else:
        pairs = [(at, at + 1) for at in range(len(one.rows))]
    starts, stops = np.array(pairs, np.int64).reshape(-1, 2).T
    labels = one.rows[starts]
    kept = ~np.isin(labels.astype(str), [NONE, *ignored])
    return Items(starts[kept], stops[kept], labels[kept])


def normal_of(train: Sequence[Recording], normal: Sequence[str]) -> list[str]:
    """The labels of what is normal: those given, or the one of the training recordings that is a word for it, or their
    commonest."""
    rows = [one.rows[one.rows != NONE].astype(str) for one in train if one.rows is not None]
    names, counts = np.unique(np.concatenate([*rows, np.zeros(0, str)]), return_counts=True)
    if not len(names):
        raise SignalError("--train: has no label, by which what is normal could be told; name one with --label")
    if not normal:
        usual = [str(name) for name in names if name.lower() in NORMAL]
        return usual[:1] if len(usual) == 1 else [str(names[counts.argmax()])]
    for name in normal:
        if name not in names:
            raise SignalError(f"normal={name!r}: no row of --train is so; there are {', '.join(names[:20])}")
    return list(normal)


def clean(train: Sequence[Recording], normal: Sequence[str]) -> list[Recording]:
    """What is normal: of records and of series with times of their own all such rows, of others all such stretches."""
    found = []
    for one in train:
        assert one.rows is not None
        fits = np.isin(one.rows.astype(str), list(normal))
        if fits.all():
            found.append(one)
        elif isinstance(one.signal, Series) and one.signal.rate_hz > 0:
            edges = np.flatnonzero(np.diff(np.concatenate([[False], fits, [False]]).astype(np.int8)))
            for start, stop in edges.reshape(-1, 2).tolist():
                if stop - start >= SHORTEST:
                    found.append(part(one, start, stop))
        elif fits.any():
            found.append(replace(one, signal=_chosen(one.signal, fits), rows=one.rows[fits], points=()))
    if not found:
        raise SignalError(f"--train: has no stretch of {SHORTEST} normal rows ({', '.join(normal)})")
    return found


def part(one: Recording, start: int, stop: int) -> Recording:
    """Rows [start, stop)."""
    rows = None if one.rows is None else one.rows[start:stop]
    points = tuple(at - start for at in one.points if start <= at < stop)
    return replace(one, signal=one.signal.part(start, stop), rows=rows, points=points)


def _chosen(signal: Series | Records, rows: NDArray[np.bool_]) -> Series | Records:
    times = None if signal.times_s is None else signal.times_s[rows]
    if isinstance(signal, Records):
        return replace(signal, columns=tuple(column[rows] for column in signal.columns), times_s=times)
    grid = None if signal.grid is None else replace(signal.grid, integers=signal.grid.integers[rows])
    return replace(signal, values=signal.values[rows], times_s=times, grid=grid, marks=())


def kept_back(parts: Sequence[Recording]) -> tuple[list[Recording], list[Recording]]:
    """What is learnt from, and a tenth to set the threshold by: each tenth where there are many, else all ends."""
    if len(parts) >= 1 / KEPT_BACK:
        every = round(1 / KEPT_BACK)
        return [p for n, p in enumerate(parts) if n % every], list(parts[::every])
    learnt, kept = [], []
    for one in parts:
        cut = len(one.signal) - max(1, int(KEPT_BACK * len(one.signal)))
        if cut < 1:
            learnt.append(one)
            continue
        learnt.append(part(one, 0, cut))
        kept.append(part(one, cut, len(one.signal)))
    return learnt, kept


def evaluate(
    train: Sequence[Recording],
    test: Sequence[Recording],
    make: Make,
    *,
    normal: Sequence[str] = (),
    ignored: Sequence[str] = (),
    quantile: float = 0.99,
    smooth: int = 1,
    notes: list[str] | None = None,
    progress: Progress = quiet,
) -> Result:
    """`normal`: labels of what is normal, `ignored`: of what is not judged; `quantile`: part of the normal items that
    stay below the threshold; `smooth`: rows over which scores are averaged, this one and those before."""
    told: list[str] = [] if notes is None else notes
    usual = normal_of(train, normal)
    learnt, kept = kept_back(clean(train, usual))
    model = make([one.signal for one in learnt])
    columns = Columns.fit(learnt)
    known = np.concatenate([columns(one.signal) for one in learnt])
    sides: dict[str, Scorer] = {
        "model": model.scores,
        Z_DISTANCE: lambda signal: scores.z_distance(columns(signal), known),
    }
    judged = judge(test, kept, sides, usual, ignored=ignored, quantile=quantile, smooth=smooth, progress=progress)
    if judged.values["kept_back"] < FEW:
        told.append(
            f"only {judged.values['kept_back']} normal items were kept back to set the threshold by: precision, recall "
            "and f1 say little"
        )
    stated = {"normal": usual, "label": train[0].key, "quantile": quantile, "smooth": smooth}
    return Result({**stated, **judged.values}, judged.items, judged.panels)


def judge(
    test: Sequence[Recording],
    kept: Sequence[Recording],
    sides: Mapping[str, Scorer],
    normal: Sequence[str],
    *,
    ignored: Sequence[str] = (),
    quantile: float = 0.99,
    smooth: int = 1,
    progress: Progress = quiet,
) -> Result:
    """All scorers on all test recordings; each threshold is the quantile of its scores of the `kept` normal ones."""
    if any(one.rows is None for one in test):
        raise SignalError("--test: has no label, by which what is unusual could be told; name one with --label")
    whole = len(test) > 1 and all(one.whole is not None and not one.points for one in test)
    chosen = [items(one, whole, ignored) for one in test]
    labels = np.concatenate([each.labels for each in chosen]).astype(str)
    truth = ~np.isin(labels, list(normal))
    if truth.all() or not truth.any():
        what = "unusual" if truth.all() else f"normal ({', '.join(normal)})"
        raise SignalError(f"--test: all of its {len(truth)} items are {what}; wanted some of both, see --normal")
    kept = [one for one in kept if len(one.signal)]
    kept_items = [items(one, whole) for one in kept]
    total = len(sides) * (len(test) + len(kept))
    found: dict[str, NDArray[np.float64]] = {}
    values: dict[str, Any] = {}
    shown: dict[str, NDArray[np.float64]] = {}
    drawn = int(np.argmax([(~np.isin(each.labels.astype(str), list(normal))).any() for each in chosen]))
    done = 0
    for name, scorer in sides.items():

        def rows(one: Recording, scorer: Scorer = scorer, name: str = name) -> NDArray[np.float64]:
            nonlocal done
            given = np.asarray(scorer(one.signal), np.float64)
            if given.shape != (len(one.signal),):
                raise SignalError(f"{name}: gave {given.shape} scores, wanted {(len(one.signal),)}")
            done += 1
            progress("scoring", done, total)
            return smoothed(given, smooth)

        by_row = [rows(one) for one in test]
        shown[name] = by_row[drawn]
        found[name] = np.concatenate([each.scores(row) for each, row in zip(chosen, by_row, strict=True)])
        usual = [each.scores(rows(one)) for each, one in zip(kept_items, kept, strict=True)]
        threshold = float(np.quantile(np.concatenate(usual), quantile)) if usual else float("nan")
        values[name] = {
            "auroc": scores.auroc(found[name], truth),
            "auprc": scores.auprc(found[name], truth),
            "threshold": threshold,
            **scores.f1(found[name], truth, threshold),
        }
    listed: list[dict[str, Any]] = []
    at = 0
    for one, each in zip(test, chosen, strict=True):
        for n in range(len(each.labels)):
            item = {"recording": one.name, "start": int(each.starts[n]), "stop": int(each.stops[n])}
            item |= {"label": str(each.labels[n]), "unusual": bool(truth[at])}
            listed.append({**item, **{name: float(found[name][at]) for name in sides}})
            at += 1
    judged = "recording" if whole else "mark" if any(one.points for one in test) else "row"
    stated = {"judged": judged, "items": len(truth), "unusual": int(truth.sum())}
    stated["kept_back"] = sum(len(each.labels) for each in kept_items)
    return Result({**stated, "sides": values}, listed, _panels(test[drawn], chosen[drawn], normal, shown, values))


def smoothed(rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(T,): the mean of each row and of the `count - 1` before it, as far as there are any."""
    sums = np.concatenate([[0.0], np.cumsum(rows)])
    stops = np.arange(1, len(rows) + 1)
    starts = np.maximum(0, stops - count)
    return np.asarray((sums[stops] - sums[starts]) / (stops - starts), np.float64)


def _panels(
    one: Recording,
    each: Items,
    normal: Sequence[str],
    shown: Mapping[str, NDArray[np.float64]],
    values: Mapping[str, Mapping[str, float]],
) -> list[Panel]:
    """The scores of a recording and their threshold; what is unusual is shaded."""
    unusual = np.zeros(len(one.signal) + 2, np.int8)
    for start, stop, label in zip(each.starts, each.stops, each.labels, strict=True):
        unusual[start + 1 : stop + 1] = str(label) not in normal
    shades = [(float(a), float(b)) for a, b in np.flatnonzero(np.diff(unusual)).reshape(-1, 2)]
    x = np.arange(float(len(one.signal)))
    panels = []
    for name, y in shown.items():
        at = values[name]["threshold"]
        line = None if np.isnan(at) else (x[[0, -1]], np.full(2, at), np.full(2, at))
        panels.append(Panel(f"{one.name}: {name}", x, y, "rows", "score", shades=shades, band=line))
    return panels
