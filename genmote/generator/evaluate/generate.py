"""Generated windows beside real ones: are they useful, hard to tell apart, alike, and do they give nothing away?

The real recordings that the model was trained on, and those that it has not seen, are cut into windows of one length;
the model makes as many, of the same labels. Every figure has the same figure beside it for real windows instead of
generated ones, which is what a perfect model would get.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.generator.evaluate.data import NONE, Columns, Floats, Recording, prepared
from genmote.generator.evaluate.model import Make, Model
from genmote.generator.evaluate.result import Result
from genmote.generator.scores import generation, leakage
from genmote.generator.windows import learnt_rows
from genmote.signals.chart import Panel
from genmote.signals.kinds import Records, Series

LEAST = 20  # windows of each side, below which nothing can be told
STEPS, SHOWN, DRAWN = 128, 4, 3  # of a window unless told; windows and columns that are drawn
LAGS = 64
SCORED = 400  # windows of each side whose likelihood is asked


@dataclass(frozen=True, eq=False)
class Window:
    """Rows [start, start + T) of a recording, with their label as a label of the signal."""

    recording: Recording
    start: int
    label: str
    signal: Series | Records


def evaluate(
    train: Sequence[Recording],
    test: Sequence[Recording],
    make: Make,
    *,
    steps: int | None = None,
    most: int = 1000,
    networks: bool = True,
    seed: int = 0,
    notes: list[str] | None = None,
    progress: Progress = quiet,
) -> Result:
    """`steps`: rows of a window; `most`: windows of each side; `networks`: also the scores for which one is trained,
    where PyTorch is here. SignalError for too few windows."""
    told: list[str] = [] if notes is None else notes
    steps = steps or min(STEPS, min(len(one.signal) for one in train))
    known, unseen = (windows(side, steps, most, seed, told) for side in (train, test))
    for name, side in (("train", known), ("test", unseen)):
        if len(side) < LEAST:
            raise SignalError(
                f"--{name}: has {len(side)} windows of {steps} rows, wanted at least {LEAST}; give more recordings, "
                "or a smaller --steps"
            )
    columns = Columns.fit(train)
    labelled = len({one.label for one in known}) > 1
    key = train[0].key
    # Where the label is of a whole recording, the model may learn from the recording as it is.
    whole = [
        replace(one.signal, labels={**one.signal.labels, key: one.whole}) for one in train if one.whole is not None
    ]
    learnt = whole if labelled and len(whole) == len(train) else [window.signal for window in known]
    by_recording = not labelled or len(whole) == len(train)
    signals = learnt if labelled else [one.signal for one in train]
    model = make(signals, (key,) if labelled else ())
    made, labels, short = generated(model, known, key if labelled else "", columns, steps, seed, train[0], progress)
    if short:
        told.append(f"{short} of {len(made)} generated signals are shorter than {steps} rows; their last row stays")
    nats = _nats(model, known, unseen, seed, progress)
    judged = judge(
        known,
        unseen,
        made,
        labels,
        columns,
        members=members(known, train if by_recording else [], learnt_rows(signals, seed)),
        nats=nats,
        networks=networks,
        seed=seed,
        notes=told,
        progress=progress,
    )
    stated = {"steps": steps, "label": key if labelled else None, "short": short}
    return Result({**stated, **judged.values}, judged.items, judged.panels)


def judge(
    known: Sequence[Window],
    unseen: Sequence[Window],
    made: Floats,
    labels: NDArray[np.object_],
    columns: Columns,
    *,
    members: NDArray[np.bool_] | None = None,
    nats: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    networks: bool = True,
    seed: int = 0,
    notes: list[str] | None = None,
    progress: Progress = quiet,
) -> Result:
    """Windows `made` (N, T, C) by anything, with `labels` (N,), beside those learnt from and those not seen. `members`
    (M,): which of the former are attacked as such, where a model judged itself by some of them; `nats`:
    how unlikely a model finds each of these two, NaN where it was not asked; None for what has no likelihoods."""
    told: list[str] = [] if notes is None else notes
    real, held_out = stacked(known, columns), stacked(unseen, columns)
    values: dict[str, Any] = {"windows": {"train": len(known), "test": len(unseen), "synthetic": len(made)}}
    predictions: dict[str, Any] = {}
    if len({one.label for one in known}) < 2 or any(one.label == NONE for one in unseen):
        told.append("no label for each window, or only one: train on synthetic, test on real is left out")
    elif (labels == NONE).any():
        told.append("generated windows have no label: train on synthetic, test on real is left out")
    else:
        values["trained_on"], predictions = _useful(real, known, made, labels, held_out, unseen, seed)
    values |= _alike(real, held_out, made, networks, seed, told, progress)
    values["leakage"] = _leaks(real, held_out, made, members, nats, seed)
    items = _items(real, held_out, made, labels, unseen, predictions, nats)
    return Result(values, items, _panels(real, made, columns))


def windows(side: Sequence[Recording], steps: int, most: int, seed: int, notes: list[str]) -> list[Window]:
    """Stretches of `steps` rows one after another, or about each mark of one sample; at most `most`, drawn by `seed`. A
    stretch's label is the one that most of its rows have."""
    found: list[Window] = []
    short = bare = 0
    for one in side:
        length = len(one.signal)
        short += length < steps
        if one.points:
            starts = [at - steps // 2 for at in one.points if steps // 2 <= at <= length - (steps - steps // 2)]
        else:
            starts = list(range(0, length - steps + 1, steps))
        for start in starts:
            label = NONE
            if one.rows is not None:
                middle = start + steps // 2
                label = str(one.rows[middle]) if one.points else _commonest(one.rows[start : start + steps])
            if one.rows is not None and label == NONE:
                bare += 1
                continue
            signal = one.signal.part(start, start + steps)
            if label != NONE:
                signal = replace(signal, labels={**signal.labels, one.key: label})
            found.append(Window(one, start, label, signal))
    if short:
        notes.append(f"{short} recordings are shorter than {steps} rows: left out")
    if bare:
        notes.append(f"{bare} windows without a label are left out")
    if len(found) > most:
        kept = np.sort(np.random.default_rng(seed).permutation(len(found))[:most])
        notes.append(f"{most} of {len(found)} windows are drawn")
        found = [found[n] for n in kept]
    return found


def members(known: Sequence[Window], train: Sequence[Recording], learnt: Sequence[int]) -> NDArray[np.bool_]:
    """(M,): which windows were learnt from, by more than half of their rows, where training holds some out to judge
    itself by. `learnt`: of each recording of `train`, or, where that is empty, of each window, the first rows."""
    if not train:
        return np.array(learnt) > 0
    rows = {id(one): count for one, count in zip(train, learnt, strict=True)}
    return np.array([one.start + len(one.signal) // 2 < rows[id(one.recording)] for one in known])


def _commonest(rows: NDArray[np.object_]) -> str:
    names, counts = np.unique(rows.astype(str), return_counts=True)
    return str(names[counts.argmax()])


def stacked(side: Sequence[Window], columns: Columns) -> Floats:
    """(N, T, C)"""
    return np.stack([columns(one.signal) for one in side])


def generated(
    model: Model,
    known: Sequence[Window],
    key: str,
    columns: Columns,
    steps: int,
    seed: int,
    like: Recording,
    progress: Progress,
) -> tuple[Floats, NDArray[np.object_], int]:
    """As many windows as `known`, as numbers (N, T, C), their labels (N,), and how many came out too short. Where the
    model knows the label `key`, as many of each as there are; else their own column of that name tells it."""
    asked: list[tuple[str, int]] = [(NONE, len(known))]
    head = model.codec.head
    if key in head.label_keys:
        names, counts = np.unique([one.label for one in known], return_counts=True)
        asked = list(zip(names.tolist(), counts.tolist(), strict=True))
    rows, labels, short, done = [], [], 0, 0
    shown = _names(like.signal)
    for number, (label, count) in enumerate(asked):
        wanted = {key: label} if label != NONE else None
        for signal in model.generate(count, steps=steps, labels=wanted, seed=seed + number):
            own = [name for name in _names(signal) if name not in shown]
            if [name for name in _names(signal) if name in shown] != shown:
                raise SignalError(
                    f"the model generates {', '.join(_names(signal))}; wanted {', '.join(shown)} as in --train"
                )
            one = prepared(signal, like.path, key if label == NONE and key in own else None, own)
            numbers = columns(one.signal)[:steps]
            short += len(numbers) < steps
            if not len(numbers):
                numbers = np.zeros((1, len(columns.middle)), np.float32)
            rows.append(np.pad(numbers, ((0, steps - len(numbers)), (0, 0)), mode="edge"))
            labels.append(label if label != NONE or one.rows is None else _commonest(one.rows))
        done += count
        progress("generating", done, len(known))
    return np.stack(rows), np.array(labels, object), short


def _names(signal: Any) -> list[str]:
    return [field.name for field in signal.fields] if isinstance(signal, Records) else list(signal.channels)


def _useful(
    real: Floats,
    known: Sequence[Window],
    made: Floats,
    labels: NDArray[np.object_],
    held_out: Floats,
    unseen: Sequence[Window],
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    truth = np.array([one.label for one in unseen], str)
    found: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    for name, side, of in (("real", real, np.array([w.label for w in known], str)), ("synthetic", made, labels)):
        predictions[name] = generation.predicted(side, np.asarray(of, str), held_out, seed=seed)
        found[name] = generation.right(predictions[name], truth)
    found["behind_points"] = 100 * (found["real"]["accuracy"] - found["synthetic"]["accuracy"])
    return found, predictions


def _alike(
    real: Floats, held_out: Floats, made: Floats, networks: bool, seed: int, notes: list[str], progress: Progress
) -> dict[str, Any]:
    """Generated against training windows and against held-out ones, and those two against each other."""
    lags = min(LAGS, real.shape[1] - 1)
    pairs = {"train": (real, made), "test": (held_out, made), "real": (real, held_out)}
    values: dict[str, Any] = {
        "autocorrelation": None,
        "discriminative_rocket": {n: generation.discriminative(a, b, seed=seed) for n, (a, b) in pairs.items()},
        "discriminative": None,
        "context_fid": None,
    }
    if lags:
        values["autocorrelation"] = {n: generation.autocorrelation_distance(a, b, lags) for n, (a, b) in pairs.items()}
    if networks and importlib.util.find_spec("torch") is None:
        notes.append(
            "no PyTorch: the recurrent discriminator and context-FID are left out; pip install 'genmote[workbench]'"
        )
    elif networks:
        from genmote.generator.scores.networks import Encoder, context_fid, discriminative

        encoder = Encoder(real, seed=seed, progress=progress)
        values["context_fid"] = {n: context_fid(encoder, a, b) for n, (a, b) in pairs.items()}
        values["discriminative"] = {
            n: discriminative(a, b, seed=seed, progress=progress) for n, (a, b) in pairs.items()
        }
    return values


def _nats(
    model: Model, known: Sequence[Window], unseen: Sequence[Window], seed: int, progress: Progress
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How unlikely the model finds windows that it was trained on, and others: nats a row; NaN where not asked."""
    rng = np.random.default_rng(seed)
    count = min(len(known), len(unseen), SCORED)
    found = []
    for done, side in enumerate((known, unseen)):
        nats = np.full(len(side), np.nan)
        for n, at in enumerate(rng.permutation(len(side))[:count]):
            nats[at] = float(np.mean(model.scores(side[at].signal), dtype=np.float64))
            progress("scoring", done * count + n + 1, 2 * count)
        found.append(nats)
    return found[0], found[1]


def _leaks(
    real: Floats,
    held_out: Floats,
    made: Floats,
    members: NDArray[np.bool_] | None,
    nats: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    seed: int,
) -> dict[str, Any]:
    chosen = np.ones(len(real), bool) if members is None or members.sum() < LEAST // 2 else members
    order = np.random.default_rng(seed).permutation(len(real))
    half = len(real) // 2
    likelihood = None
    if nats is not None:
        inside, outside = (side[np.isfinite(side)] for side in (nats[0][chosen], nats[1]))
        likelihood = leakage.membership(inside, outside, seed=seed)
    return {
        **leakage.neighbours(made, real, held_out, seed=seed),
        "membership_nearest": leakage.attack(real[chosen], held_out, made, seed=seed),
        # The same attack where real windows that are no members stand for generated ones: by how much the recordings
        # of the two sides differ by themselves.
        "membership_nearest_by_chance": leakage.attack(real[order[:half]], held_out, real[order[half:]], seed=seed),
        "membership_likelihood": likelihood,
    }


def _items(
    real: Floats,
    held_out: Floats,
    made: Floats,
    labels: NDArray[np.object_],
    unseen: Sequence[Window],
    predictions: dict[str, Any],
    nats: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
) -> list[dict[str, Any]]:
    near, far, back = (leakage.nearest(a, b) for a, b in ((made, real), (made, held_out), (held_out, made)))
    items: list[dict[str, Any]] = [
        {"what": "synthetic", "number": n, "label": labels[n], "to_train": float(near[n]), "to_test": float(far[n])}
        for n in range(len(made))
    ]
    for n, one in enumerate(unseen):
        item: dict[str, Any] = {"what": "test", "recording": one.recording.name, "start": one.start, "label": one.label}
        item |= {"to_synthetic": float(back[n]), "nats": None if nats is None else float(nats[1][n])}
        items.append(item | {f"by_{side}": str(found[n]) for side, found in predictions.items()})
    return items


def _panels(real: Floats, made: Floats, columns: Columns) -> list[Panel]:
    """A few windows of each, end to end."""
    panels = []
    for column in range(min(DRAWN, real.shape[2])):
        for name, side in (("real", real), ("generated", made)):
            chosen = side[np.linspace(0, len(side) - 1, SHOWN).astype(int), :, column].reshape(-1)
            title = f"{columns.names[column]}: {SHOWN} {name} windows"
            panels.append(Panel(title, np.arange(float(len(chosen))), chosen, "rows", "spreads off the mean"))
    return panels
