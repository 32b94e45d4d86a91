"""What `describe`, `ask` and `classify` share: the model, the signals, and what is told beside an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Bar, check_place, note, save
from genmote.errors import SpecError, UserError
from genmote.signals.said import Said
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.describe.model import Describer, Evidence
    from genmote.describe.quality import Quality
    from genmote.signals.kinds import Signal


@dataclass(frozen=True, kw_only=True)
class DescribeFlags(Said):
    """The model, and which signals it is asked about."""

    model: str | None = setting(
        "the .toml of a model that genmote describe-train made, or one of genmote (default: the one of genmote that "
        "was trained on such channels)",
        default=None,
        short="-m",
    )
    also: tuple[Path, ...] = setting("further recordings, which the question may compare with", default=(), many=True)
    reader: str | None = setting("the reader of the recordings (default: found by name and first bytes)", default=None)
    channels: tuple[str, ...] = setting("only these channels", default=(), many=True)
    modality: str | None = setting("what the recordings are of (genmote signal modalities)", default=None)
    start: float = setting("seconds from the beginning of a recording to begin at", default=0.0)
    seconds: float | None = setting("seconds of a recording to look at (default: all)", default=None)
    check: bool = setting("look first whether there is a signal, and the sensor that is asked for", default=True)
    ops: str | None = setting("op set: native, numpy or torch (default: the fastest here)", default=None)
    threads: int | None = setting("threads (default: one a physical core)", default=None)
    memory: str | None = setting(
        "keep to so much memory in all, such as 150MB: weights beyond it are read by need", default=None
    )

    def faults(self) -> Iterable[str]:
        yield from Said.faults(self)
        if not 0 <= self.start < float("inf"):
            yield f"start={self.start}: use 0 or more seconds"
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            yield f"seconds={self.seconds}: use more than 0, or leave it out"


@dataclass(frozen=True, kw_only=True)
class EvidenceFlags:
    """What moved the answer."""

    evidence: int = setting(
        "hide so many stretches of each signal in turn, to tell which moved the answer most (0: do not; with --plot 8)",
        default=0,
    )
    plot: Path | None = setting("a picture (.svg) of the signal with those stretches", default=None)

    @property
    def stretches(self) -> int:
        return self.evidence or (8 if self.plot is not None else 0)

    def check_plot(self) -> None:
        if not 0 <= self.evidence <= 48:
            raise SpecError(f"evidence={self.evidence}: use 0 to 48 stretches")
        if self.plot is not None:
            check_place(self.plot, "--plot")


def load(flags: DescribeFlags, signal: Signal | None = None) -> Describer:
    """The model that is named, or that is meant for the signal."""
    from genmote.describe import file
    from genmote.describe.model import Describer

    name = flags.model
    if name is None:
        assert signal is not None  # with --follow a model is named
        name = file.meant_for(signal)
        note(f"model: {name}")
    with Bar() as bar:
        return Describer.load(name, threads=flags.threads, ops=flags.ops, memory=flags.memory, progress=bar)


def signals(flags: DescribeFlags, file: Path, notes: list[str]) -> list[Signal]:
    """The recordings, as the flags cut them; of each file the first signal. UserError where nothing is left."""
    return [one(flags, path, notes) for path in (file, *flags.also)]


def one(flags: DescribeFlags, path: Path, notes: list[str]) -> Signal:
    signal = picked(first(flags, path, notes), flags.channels)
    if flags.modality is not None:
        from genmote.signals import modality

        name = modality.named(flags.modality)
        modality.fits(name, signal)
        signal = replace(signal, labels={**signal.labels, "modality": name})
    return cut(signal, flags.start, flags.seconds, path)


def first(flags: DescribeFlags, path: Path, notes: list[str]) -> Signal:
    """The first signal in a file, as far as it is looked at: what comes after that is not read."""
    from genmote.errors import SignalError
    from genmote.signals import reading
    from genmote.signals.kinds import Series

    stop_s = float("inf") if flags.seconds is None else flags.start + flags.seconds
    parts: list[Signal] = []
    for piece in reading.pieces(path, reader=flags.reader, said=flags, notes=notes):
        if parts and not piece.continues:
            notes.append(f"{path}: has more than one signal, the first is looked at: {parts[0].name}")
            break
        parts.append(piece)
        if isinstance(piece, Series) and piece.rate_hz > 0 and sum(map(len, parts)) >= stop_s * piece.rate_hz:
            break
    if not parts:
        raise SignalError(f"{path}: holds no signal")
    return reading.joined(parts)


def picked(signal: Signal, channels: Sequence[str]) -> Signal:
    """The channels, or fields, of these names alone, in their order."""
    from genmote.registry import listed
    from genmote.signals.kinds import Frames, Records, Series

    if not channels or isinstance(signal, Frames):
        return signal
    known = signal.channels if isinstance(signal, Series) else tuple(field.name for field in signal.fields)
    for name in channels:
        if name not in known:
            raise UserError(f"{signal.name} has no channel {name!r}: it has {listed(known)}; choose among them")
    at = [known.index(name) for name in channels]
    if isinstance(signal, Records):
        return replace(signal, fields=tuple(signal.fields[n] for n in at), columns=tuple(signal.columns[n] for n in at))
    units = tuple(signal.units[n] for n in at)
    return replace(signal, values=signal.values[:, at], channels=tuple(channels), units=units, grid=None)


def cut(signal: Signal, start_s: float, seconds: float | None, path: Path) -> Signal:
    """The part of a signal from `start_s` on that lasts `seconds`."""
    import numpy as np

    from genmote.signals.kinds import Series

    if start_s == 0 and seconds is None:
        return signal
    stop_s = float("inf") if seconds is None else start_s + seconds
    if isinstance(signal, Series) and signal.rate_hz > 0:
        first, last = (min(len(signal), round(min(x, 1e12) * signal.rate_hz)) for x in (start_s, stop_s))
    elif signal.times_s is not None and len(signal):
        times = signal.times_s - signal.times_s[0]
        first, last = (int(np.searchsorted(times, x, side="left")) for x in (start_s, stop_s))
    else:
        raise UserError(f"{path}: its rows have no times, which --start and --seconds count by; leave these out")
    if last <= first:
        raise UserError(f"{path}: has no sample from second {start_s:g} on; use a smaller --start")
    return signal.part(first, last)


def checked(
    flags: DescribeFlags,
    describer: Describer,
    found: Sequence[Signal],
    question: str,
    *,
    shape: bool | None = None,
    taught: bool = False,
) -> Quality:
    """What rules say of the signals and the question; `shape`: whether the question needs one (None: by its words);
    `taught`: the answer is one of labels that the model was taught. These, and what it says of health, are of signals
    like those that it was trained on."""
    from genmote.describe import quality

    if not flags.check:
        return quality.Quality()
    trained = describer.parts.channels if taught or describer.parts.health else ()
    return quality.check(found, question, shape=shape, trained=trained)


def notice(describer: Describer, found: Sequence[Signal]) -> str | None:
    """What is to be said of health, where the model or the signal is of it."""
    from genmote.describe import health

    return health.NOTICE if describer.parts.health or health.of_health(found) else None


def notes_of(quality: Quality, notes: Sequence[str], told: str | None) -> None:
    """What stands beside the answer, on standard error."""
    from genmote.describe import quality as rules

    for line in notes:
        note(line)
    if quality.unusable and not quality.why:
        note(f"of these no shape can be told: {rules.note(quality)}")
    if told is not None:
        note(told)


def evidence_values(found: Sequence[Evidence]) -> list[dict[str, Any]]:
    return [
        {"signal": one.signal + 1, "from_s": one.start_s, "to_s": one.stop_s, "nats": round(one.nats, 4)}
        for one in found
    ]


def evidence_text(found: Sequence[Evidence], most: int = 3) -> str:
    """The stretches that moved the answer most, in a line."""
    from genmote.describe.prompt import span

    told = [f"{span(one.start_s)} to {span(one.stop_s)} ({one.nats:+.2f} nats)" for one in found[:most]]
    return "moved the answer most: " + ", ".join(told)


def plot(path: Path, found: Sequence[Signal], spans: Sequence[Evidence], title: str) -> None:
    """A picture of the first signal, with the stretches that spoke for the answer shaded."""
    from genmote.describe.picture import svg

    save(path, svg(found[0], [one for one in spans if one.signal == 0 and one.nats > 0], title), "--plot")
