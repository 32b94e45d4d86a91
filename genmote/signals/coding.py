"""Codecs: signals as tokens, for a model to learn, and back, with a stated error.

A codec is a module of `codecs/`, found by its name: one frozen dataclass, a `Codec`, whose fields are its settings,
its header's names, and what was fitted. A whole sequence is ``header(signal)``, ``encode(signal)`` and END. What
cannot be said exactly is bounded by `error`; what lies outside of what was fitted is cut to it, or spelt out, and told
in `notes`, a line each time. Tokens that make no sense (a model may say anything) are never an error: as much as can be
is decoded, and `notes` tells what was left out.

>>> from genmote.signals.kinds import Series
>>> pulse = Series("p", np.arange(8, dtype=np.float32)[:, None], 100.0, ("light",), ("counts",))
>>> codec = fit("bins", [pulse], bins=8)
>>> codec.encode(pulse) - codec.head.size
array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)
>>> codec.decode(codec.encode(pulse), about(pulse)).values[:, 0]
array([0., 1., 2., 3., 4., 5., 6., 7.], dtype=float32)
>>> codec.error()["light"].absolute
0.875
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from genmote import registry, spec
from genmote.errors import SignalError
from genmote.signals.header import END, About, Header, Tokens, about
from genmote.signals.kinds import Signal
from genmote.signals.state import built, flat

__all__ = ["About", "Bound", "Codec", "about", "codec", "fit", "from_state", "names"]
CODECS = "genmote.signals.codecs"
Codes = NDArray[np.int64]  # tokens without the header's: from 0 to the codec's size
VERSION = 1


@dataclass(frozen=True)
class Bound:
    """|decoded - value| is at most ``absolute + relative * |value|``, in the channel's unit."""

    absolute: float = 0.0
    relative: float = 0.0


@dataclass(frozen=True, eq=False)
class Codec:
    """The base of all codecs. A member has `KIND`, what it takes, and `SETTINGS`, a dataclass with `labels`; its first
    field is its `settings`, the others what was fitted. It writes `fitted`, `codes`, `signal`, `size` and `error`."""

    KIND: ClassVar[type]
    SETTINGS: ClassVar[type]

    head: Header

    @classmethod
    def fitted(cls, signals: Sequence[Any], settings: Any, head: Header) -> Codec:
        """A codec for such signals."""
        raise NotImplementedError

    def codes(self, signal: Any, notes: list[str]) -> Codes:
        """The signal's codes (n,), each from 0 to `size`."""
        raise NotImplementedError

    def signal(self, codes: Codes, about: About, notes: list[str]) -> Signal:
        """The signal of codes (n,), each from 0 to `size` or -1 for a token that is none; whatever they say."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many codes there are."""
        raise NotImplementedError

    def error(self) -> dict[str, Bound]:
        """How far off a decoded value may be: by channel or field, for values within what was fitted."""
        raise NotImplementedError

    def ordered(self) -> list[tuple[int, int]]:
        """Codes [start, stop) that stand for numbers in ascending order: what a model learns of one holds for its
        neighbours."""
        return []

    @property
    def row(self) -> int:
        """The code that a row or frame begins with."""
        return 0

    def follows(self, row: Sequence[int]) -> list[tuple[int, int]]:
        """Codes [start, stop) one of which may come next where `row` are the codes since the last row or frame began,
        that included: what a model that is drawn from must keep to."""
        return [(0, self.size)]

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are: the header's, then the codec's own."""
        return self.head.size + self.size

    def header(self, signal: Signal) -> Tokens:
        """What a sequence begins with."""
        _check(self, signal)
        return self.head.tokens(signal)

    def encode(self, signal: Signal, notes: list[str] | None = None) -> Tokens:
        """The signal's tokens (n,), without header and END."""
        _check(self, signal)
        return (self.codes(signal, [] if notes is None else notes) + self.head.size).astype(np.int32)

    def decode(self, tokens: Tokens, about: About | None = None, notes: list[str] | None = None) -> Signal:
        """The signal of its tokens, with or without header and END. `about` is what its header says unless given."""
        told: list[str] = [] if notes is None else notes
        ids = np.asarray(tokens, np.int64).reshape(-1)
        ends = np.flatnonzero(ids == END)
        ids = ids[: ends[0]] if len(ends) else ids
        own = np.flatnonzero((ids >= self.head.size) | (ids < 0))
        first = own[0] if len(own) else len(ids)
        if about is None:
            about = self.head.about(ids[:first].astype(np.int32))
        codes = ids[first:] - self.head.size
        fits = (codes >= 0) & (codes < self.size)
        if not fits.all():
            told.append(f"{about.name}: {(~fits).sum()} of {len(codes)} tokens have no place behind a header")
        return self.signal(np.where(fits, codes, -1), about, told)

    def state(self) -> dict[str, Any]:
        """All that `from_state` needs, as plain values."""
        return {"name": self.name, "version": VERSION, **flat(self)}


def names() -> list[str]:
    """The codecs that there are."""
    return registry.names(CODECS)


def codec(name: str) -> type[Codec]:
    """The codec of that name; SignalError where there is none."""
    module = registry.load(CODECS, name, what="codec", error=SignalError)
    return next(
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, Codec) and x.__module__ == module.__name__
    )


def fit(name: str, signals: Sequence[Signal], **settings: Any) -> Codec:
    """The codec of that name for such signals, all of which must fit into memory. SpecError for settings that nothing
    supports, SignalError for signals that the codec does not take."""
    member = codec(name)
    made: Any = spec.build(member.SETTINGS, settings, where=f"codec {name}")
    if not signals:
        raise SignalError(f"codec {name}: no signal to be fitted on; give at least one")
    for signal in signals:
        _check(member, signal)
    return member.fitted(signals, made, Header.fit(signals, made.labels))


def from_state(state: Mapping[str, Any]) -> Codec:
    """The codec that gave this state; SignalError for what is none."""
    version = state.get("version")
    if not isinstance(version, int | np.integer) or version != VERSION:
        raise SignalError(f"a codec of version {version!r}: this genmote reads {VERSION}; use a newer one")
    name = state.get("name")
    if not isinstance(name, str):
        raise SignalError(f"a codec with name={name!r}: wanted one of {', '.join(names())}")
    return built(codec(name), state)


def _check(member: Codec | type[Codec], signal: Signal) -> None:
    if not isinstance(signal, member.KIND):
        cls = member if isinstance(member, type) else type(member)
        raise SignalError(
            f"{signal.name}: is {type(signal).__name__}, codec {cls.__module__.rpartition('.')[2]} takes "
            f"{member.KIND.__name__}; give such, or choose another codec"
        )
