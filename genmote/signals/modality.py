"""What a signal is of: `modalities/NAME.toml` is the modality NAME: its kind, units, readers, codec and a sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.registry import near
from genmote.signals import recordings, synthetic
from genmote.signals.kinds import Signal
from genmote.spec import from_toml, setting

FOLDER = Path(__file__).parent / "modalities"
Kind = Literal["series", "records", "frames"]
Domain = Literal[
    "mobile networks", "autonomous vehicles", "metaverse", "robotics", "health care", "cybersecurity", "home"
]


@dataclass(frozen=True, kw_only=True)
class Modality:
    """`channels` and `units`: of a series or a frame, the usual ones; of records, the fields."""

    title: str = setting("what it is, in words")
    kind: Kind = setting("series, records or frames")
    channels: tuple[str, ...] = setting("what is measured, or the fields of a row")
    units: tuple[str, ...] = setting("what each is counted in; an empty text where it has no unit")
    domains: tuple[Domain, ...] = setting("where it is used")
    readers: tuple[str, ...] = setting("readers of files that it usually comes in", default=())
    codec: str = setting("codec that makes tokens of it")
    recording: str | None = setting("a real recording of it (genmote/signals/samples)", default=None)
    recorded: tuple[str, ...] = setting("the recording's channels that are of it, where not all are", default=())
    synthetic: str | None = setting("else what draws one (genmote/signals/synthetic.py)", default=None)

    def faults(self) -> Iterable[str]:
        if len(self.channels) != len(self.units) or not self.channels:
            yield "channels and units differ in number, wanted a unit for each of at least one channel"
        if (self.recording is None) == (self.synthetic is None):
            yield "wanted either a recording or a synthetic sample"
        if self.recorded and self.recording is None:
            yield "recorded names channels of a recording, and there is none"

    def sample(self, seed: int = 0, *, progress: Progress = quiet) -> Sequence[Signal]:
        """A sample of it: the real recording, fetched if it is not here, or a drawn one, whose name says that it is
        synthetic. Raises PullError where fetching fails."""
        if self.recording is not None:
            found = recordings.read(self.recording, progress=progress)
            return [recordings.picked(one, self.recorded) for one in found] if self.recorded else found
        assert self.synthetic is not None
        return [synthetic.draw(self.synthetic, seed)]


def names() -> list[str]:
    """The modalities that are known."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def named(name: str) -> str:
    """A modality's name as it is written here; SignalError where there is none."""
    wanted = name.lower().replace("_", "-")
    if wanted not in names():
        raise SignalError(f"no modality is called {name!r}{near(wanted, names())}; known: {', '.join(names())}")
    return wanted


def fits(name: str, signal: Signal) -> None:
    """SignalError where the modality of that name is not there, or of another kind than the signal."""
    kind = type(signal).__name__.lower()
    if load(name).kind != kind:
        known = ", ".join(one for one in names() if load(one).kind == kind)
        raise SignalError(f"modality {name} is of {load(name).kind}, {signal.name} is {kind}; known of these: {known}")


@lru_cache
def load(name: str) -> Modality:
    """The modality of that name; SignalError where there is none."""
    return from_toml(Modality, FOLDER / f"{named(name)}.toml")
