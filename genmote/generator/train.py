"""Train a generator: recordings in, one model file out.

It learns to say what comes next in stretches of the recordings, some of them with a gap to be filled in. A part of the
recordings is held out: when the model does no better on them, training stops, and the best model that was seen is kept.
What has been learnt is saved every half minute, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmote import home
from genmote.errors import SignalError, SpecError
from genmote.fetch import Progress, quiet
from genmote.generator import file as model_files
from genmote.generator.file import FORMS, Form
from genmote.generator.layout import Layout, Rows, slow
from genmote.generator.scale import Own, pieces
from genmote.generator.windows import Windows, held_out, recordings
from genmote.models import store
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.signals import coding
from genmote.signals.coding import Codec
from genmote.signals.header import MODALITY
from genmote.signals.kinds import Frames, Records, Series, Signal
from genmote.spec import setting

CODECS = {Series: "bins", Records: "fields", Frames: "grid"}
COUNTED = 4096  # stretches of which it is counted how often each token comes
JUDGED = 48  # stretches that it is judged by
LEAST_ROOM = 16  # tokens that a context must have behind the longest header
MOST_FORMS = 64  # kinds of recordings that the card tells
Size = Literal["tiny", "small", "medium", "large"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a generator is made."""

    codec: str | None = setting("the codec (default: bins, fields or grid, by the kind of signals)", default=None)
    bins: int | None = setting("bins of a channel's range or of a number's size (default: the codec's)", default=None)
    spacing: Literal["uniform", "quantile"] | None = setting("bins of one width, or with as many samples", default=None)
    scale: Own = setting(
        "by what each stretch is told: nothing, its mean size, or its mean and spread (for forecasts and gaps)",
        default="none",
    )
    labels: tuple[str, ...] = setting("labels that the model is told, and can be asked for", default=())
    size: Size = setting("how large the model is: 0.4, 1, 2.5 or 9 million weights", default="small")
    context: int = setting("tokens that it sees at once", default=512)
    minutes: float | None = setting("time that training may take (default: 10, or as --steps take)", default=None)
    steps: int = setting("steps of training (0: what fits into the time)", default=0)
    batch: int = setting("tokens of a step", default=2048)
    rate: float = setting("learning rate", default=2e-3)
    dropout: float = setting("part of what each half block adds that is left out while it learns", default=0.1)
    shift: float = setting("by which part of the bins series are moved up or down while it learns", default=0.05)
    decay: float = setting("weight decay", default=0.1)
    seed: int = setting("seed of everything drawn", default=0)
    type: Literal["Q8_0", "F16", "F32"] = setting("how weights are stored", default="Q8_0")
    base: str | None = setting("a generator to go on from (default: begin anew)", default=None, flag="--from")
    threads: int | None = setting("threads (default: one a core)", default=None)
    licence: str = setting("the recordings' licence, for the card", default="not stated")

    def faults(self) -> Iterable[str]:
        if not 64 <= self.context <= 8192:
            yield f"context={self.context}: use 64 to 8192"
        if self.minutes is not None and not 0 < self.minutes <= 10000:
            yield f"minutes={self.minutes}: use more than 0, such as 10"
        if self.steps < 0 or self.batch < 64:
            yield f"steps={self.steps}, batch={self.batch}: use 0 or more, and at least 64"
        if not 0 < self.rate < 1 or not 0 <= self.dropout < 1 or not 0 <= self.decay < 10:
            yield f"rate={self.rate}, dropout={self.dropout}, decay={self.decay}: use such as 0.002, 0.1, 0.1"
        if not 0 <= self.seed < 1 << 32:
            yield f"seed={self.seed}: use 0 to {(1 << 32) - 1}"
        if self.threads is not None and not 1 <= self.threads <= 1024:
            yield f"threads={self.threads}: use 1 to 1024"


def train(
    signals: Sequence[Signal],
    output: Path,
    training: Training | None = None,
    *,
    name: str | None = None,
    missing: Sequence[float] = (),
    notes: list[str] | None = None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Write the model file `output`, whole or not at all; returns its card. Needs the extra `workbench`. `missing`:
    numbers that stood for none in the recordings, which the model's jobs on the command line then take so, too.

    Raises SignalError for recordings that nothing can be learnt from, SpecError for settings that do not go together,
    OpsError without PyTorch."""
    with working(output) as work:
        told: list[str] = [] if notes is None else notes
        return _trained(signals, output, work, training or Training(), name or output.stem, missing, told, progress)


@contextlib.contextmanager
def working(output: Path) -> Iterator[Path]:
    """The folder beside a model file where a training keeps what it has learnt, for it alone while the block runs.
    SpecError, before anything is done, where another one has it or it cannot be written."""
    work = output.with_name(output.name + ".work")
    try:
        with home.held(work):
            yield work
    except OSError as fault:
        if fault.filename is None or work not in (path := Path(os.fsdecode(fault.filename)), path.parent):
            raise
        raise SpecError(
            f"{work} cannot be written ({fault.strerror}), where training keeps what it has learnt: move it away, or "
            "choose another --output"
        ) from None


def _trained(
    signals: Sequence[Signal],
    output: Path,
    work: Path,
    training: Training,
    title: str,
    missing: Sequence[float],
    told: list[str],
    progress: Progress,
) -> dict[str, Any]:
    kinds = {type(signal) for signal in signals}
    if len(kinds) != 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise SignalError(f"recordings of kinds {names}: wanted some, all of one kind; train a model for each")
    learnt, judged = held_out(signals, training.seed)
    layout, base = _layout(learnt, judged, training)
    found = recordings(layout, learnt, told)
    longest = max(found, key=lambda recording: len(recording.header))
    if (room := layout.context - len(longest.header) - 3) < LEAST_ROOM:
        raise SpecError(
            f"context={layout.context}: {longest.signal.name} has a header of {len(longest.header)} tokens, which "
            f"leaves {max(0, room)} for samples, wanted at least {LEAST_ROOM}; use a larger --context or fewer channels"
        )
    started = Windows(layout, found)
    judge = Windows(layout, recordings(layout, judged, []))
    if started.tokens < 256:
        raise SignalError(f"{started.tokens} tokens to learn from: wanted at least 256; give more or longer recordings")
    first = work / "first.gguf"
    if base is None:
        first_model(first, FORMS[training.size], layout, title, training.seed)
    else:
        go_on(first, base, layout, training.seed)
    from genmote.generator import learning  # PyTorch

    stretches = judge.fixed(JUDGED)
    run = learning.Learning(first, layout, started, stretches, training, work / "state.pt", told)
    figures = run.go(progress)
    card: dict[str, Any] = {
        "name": title,
        "kind": next(iter(kinds)).__name__,
        "recordings": len(signals),
        "samples": sum(len(signal) for signal in signals),
        "channels": list(layout.codec.head.channels),
        "modalities": list(layout.codec.head.modalities),
        "labels": list(dict.fromkeys(layout.codec.head.label_keys)),
        "sensor_steps": sensor_steps(signals),
        "forms": forms(signals, list(dict.fromkeys(layout.codec.head.label_keys))),
        "codec": layout.codec.name,
        "missing": [float(x) for x in missing],
        "licence": training.licence,
        "settings": _told(training, layout),
        "tokens": started.tokens,
        "chance_nats": chance(started.fixed(COUNTED), stretches, layout),
        **figures,
    }
    said = {"general.name": title, "general.license": training.licence}
    metadata = {**run.network.metadata, **said, **model_files.keys(layout, card)}
    run.network.write(output, metadata, training.type)
    shutil.rmtree(work, ignore_errors=True)
    return card


def _layout(learnt: Sequence[Signal], judged: Sequence[Signal], training: Training) -> tuple[Layout, ModelFile | None]:
    """The layout for such recordings, and the file to go on from. All recordings are looked at: names that are only in
    those held out must be known, too."""
    signals = [*learnt, *judged]
    base = None if training.base is None else ModelFile.open(store.resolve(training.base))
    chosen = training.codec or CODECS[type(signals[0])]
    settings: dict[str, Any] = {"labels": training.labels}
    clock, scale = slow(signals), training.scale
    if base is not None:
        layout = model_files.layout_of(base)
        _refuse(base.path.name, layout, training)
        if _knows(layout.codec, signals, training.labels):
            return replace(layout, labelled=bool(layout.codec.head.label_keys)), base
        if layout.codec.name != "bins":
            raise SpecError(
                f"{base.path.name}: its codec {layout.codec.name} does not know all of these recordings' channels or "
                "labels, and only a model of bins can learn new ones; begin anew without --from"
            )
        settings |= {"bins": layout.codec.settings.bins, "spacing": layout.codec.settings.spacing}  # type: ignore[attr-defined]
        chosen, clock, scale = "bins", clock or layout.clock, layout.scale
    for key in ("bins", "spacing"):
        if (value := getattr(training, key)) is not None:
            settings.setdefault(key, value)
    if scale != "none" and chosen != "bins" and isinstance(signals[0], Series):
        raise SpecError(f"scale={scale}: goes with --codec bins alone, not {chosen}; leave either out")
    fitted = signals if scale == "none" else pieces(signals, training.context, scale)
    codec = coding.fit(chosen, fitted, **settings)
    return Layout(codec, clock, training.context, scale, bool(codec.head.label_keys)), base


def _refuse(name: str, layout: Layout, training: Training) -> None:
    """SpecError for a setting that the base has decided otherwise."""
    codec: Any = layout.codec
    has = {"codec": codec.name, "scale": layout.scale}
    if codec.name == "bins":
        has |= {"bins": codec.settings.bins, "spacing": codec.settings.spacing}
    for key, own in has.items():
        asked = getattr(training, key)
        if asked not in (None, own) and not (key == "scale" and asked == "none"):
            raise SpecError(f"{key}={asked}: {name} has {key} {own}, and what goes on from it keeps it; leave it out")


def _knows(codec: Codec, signals: Sequence[Signal], labels: Sequence[str]) -> bool:
    said = set(zip(codec.head.label_keys, codec.head.label_values, strict=True))
    wanted = {(key, s.labels[key]) for s in signals for key in labels if key in s.labels}
    modalities = {s.labels.get(MODALITY, type(s).__name__.lower()) for s in signals}
    channels = {pair for s in signals if isinstance(s, Series) for pair in zip(s.channels, s.units, strict=True)}
    known = set(zip(codec.head.channels, codec.head.units, strict=True))
    same = all(isinstance(signal, codec.KIND) for signal in signals)
    return same and wanted <= said and modalities <= set(codec.head.modalities) and channels <= known


def forms(signals: Sequence[Signal], labels: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What the recordings are of, at which rate, of which channels, and with which labels: the most samples first."""
    found: Counter[tuple[str, float, tuple[str, ...], tuple[str, ...]]] = Counter()
    said: dict[Any, dict[str, set[str]]] = {}
    for signal in signals:
        if isinstance(signal, Series):
            form = (signal.labels.get(MODALITY, "series"), signal.rate_hz, signal.channels, signal.units)
            found[form] += signal.values.size
            for key in labels:
                if key in signal.labels:
                    said.setdefault(form, {}).setdefault(key, set()).add(signal.labels[key])
    return [
        {
            "modality": form[0],
            "rate_hz": form[1],
            "channels": list(form[2]),
            "units": list(form[3]),
            "labels": {key: sorted(values) for key, values in said.get(form, {}).items()},
        }
        for form, _ in found.most_common(MOST_FORMS)
    ]


def sensor_steps(signals: Sequence[Signal]) -> dict[str, list[float]]:
    """Of each channel that always came as whole numbers the finest step, and a value that it counts from: what the
    sensor can tell apart."""
    found: dict[str, list[float]] = {}
    other: set[str] = set()
    for series in signals:
        if isinstance(series, Series) and series.grid is not None:
            for name, step, zero in zip(series.channels, series.grid.step, series.grid.zero, strict=True):
                found[name] = min(found.get(name, [math.inf, 0.0]), [float(step), float(zero)])
        elif isinstance(series, Series):
            other |= set(series.channels)
    return {name: one for name, one in found.items() if name not in other}


def chance(learnt: Sequence[Rows], judged: Sequence[Rows], layout: Layout) -> float:
    """Nats a token of the held-out stretches by how often each token comes: what knowing nothing of order gives."""
    head = layout.codec.head.size

    def said(stretches: Sequence[Rows]) -> NDArray[np.int32]:
        tokens = np.concatenate([rows.tokens for rows in stretches])
        return tokens[tokens >= head]

    counts = np.full(layout.vocabulary, 0.1)
    counts += np.bincount(said(learnt), minlength=layout.vocabulary)
    shares = np.log(counts / counts.sum())
    return round(-float(shares[said(judged)].mean()), 4)


def _told(training: Training, layout: Layout) -> dict[str, Any]:
    """The settings as they were used: what goes on from a base has that one's size, and may have its context."""
    found = {k: str(v) if isinstance(v, Path) else v for k, v in vars(training).items() if v is not None}
    if training.base is not None:
        del found["size"]
    return {**found, "context": layout.context, "scale": layout.scale}


def first_model(path: Path, form: Form, layout: Layout, name: str, seed: int) -> None:
    """A model that has learnt nothing, with the seed's weights."""
    draw = np.random.default_rng([seed, 1])
    width, vocabulary = form.width, layout.vocabulary
    deep = 1 / math.sqrt(2 * form.layers)

    def matrix(key: str, out: int, cols: int, factor: float = 1.0) -> tuple[str, str, tuple[int, int], Any]:
        values = draw.standard_normal((out, cols)).astype(np.float32) * np.float32(factor / math.sqrt(cols))
        return key, "F32", (out, cols), values

    def ones(key: str, count: int) -> tuple[str, str, tuple[int], Any]:
        return key, "F32", (count,), np.ones(count, np.float32)

    tensors: list[Any] = [
        ("token_embd.weight", "F32", (vocabulary, width), _table(draw, layout, width, 0.3)),
        ("output.weight", "F32", (vocabulary, width), _table(draw, layout, width, 0.02)),
        ones("output_norm.weight", width),
    ]
    for n in range(form.layers):
        block = f"blk.{n}."
        tensors += [ones(block + "attn_norm.weight", width), ones(block + "ffn_norm.weight", width)]
        tensors += [ones(block + f"attn_{part}_norm.weight", 32) for part in "qk"]
        tensors.append(matrix(block + "attn_q.weight", width, width))
        tensors += [matrix(block + f"attn_{part}.weight", 32, width) for part in "kv"]
        tensors.append(matrix(block + "attn_output.weight", width, width, deep))
        tensors += [matrix(block + f"ffn_{part}.weight", form.ffn_width, width) for part in ("gate", "up")]
        tensors.append(matrix(block + "ffn_down.weight", width, form.ffn_width, deep))
    metadata = {**form.metadata(layout.context, name), **model_files.keys(layout, {})}
    write_gguf(path, metadata, tensors)


def go_on(path: Path, base: ModelFile, layout: Layout, seed: int) -> None:
    """A model that begins as `base`, with its rows for all tokens that it knows: numbers, and the same names."""
    before = model_files.layout_of(base)
    draw = np.random.default_rng([seed, 3])
    width = base.tensors["token_embd.weight"].shape[1]
    pairs = _same_tokens(before, layout)
    tensors: list[Any] = []
    for info in base.tensors.values():
        values = base.tensor(info.name)
        if info.name in ("token_embd.weight", "output.weight"):
            table = _table(draw, layout, width, float(values.std()))
            table[[new for _, new in pairs]] = values[[old for old, _ in pairs]]
            values = table
        tensors.append((info.name, "F32", values.shape, values))
    metadata = {k: v for k, v in base.typed_metadata().items() if not k.startswith("genmote.")}
    metadata[f"{base.architecture}.context_length"] = np.uint32(layout.context)
    metadata.pop("general.file_type", None)
    write_gguf(path, {**metadata, **model_files.keys(layout, {})}, tensors)


def _same_tokens(before: Layout, after: Layout) -> list[tuple[int, int]]:
    """Tokens of two layouts that mean the same."""

    def named(layout: Layout) -> dict[Any, int]:
        head = layout.codec.head
        names: list[Any] = ["start", "end", "unknown"]
        names += [("modality", name) for name in head.modalities]
        names += [("rate", float(rate)) for rate in head.rates_hz]
        names += [("channel", *pair) for pair in zip(head.channels, head.units, strict=True)]
        names += [("label", *pair) for pair in zip(head.label_keys, head.label_values, strict=True)]
        names += [("code", n) for n in range(layout.codec.size)]
        names += [("own", n) for n in range(layout.vocabulary - layout.codec.vocabulary)]
        return {name: n for n, name in enumerate(names)}

    old, new = named(before), named(after)
    return [(old[name], place) for name, place in new.items() if name in old]


def _table(draw: np.random.Generator, layout: Layout, width: int, size: float) -> NDArray[np.float32]:
    """Rows (V, width) of numbers of a size; those of neighbouring numbers nearly alike."""
    table = draw.standard_normal((layout.vocabulary, width)).astype(np.float32)
    for start, stop in layout.ranges():
        count = stop - start
        wave = np.arange(min(16, count))
        basis = np.cos(np.pi * (np.arange(count)[:, None] + 0.5) / count * wave) / (1 + wave)
        smooth = basis @ draw.standard_normal((len(wave), width))
        table[start:stop] = smooth / max(1e-6, float(smooth.std()))
    return table * np.float32(size)
