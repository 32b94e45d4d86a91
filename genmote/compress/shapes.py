"""Smaller shapes that a search may choose beside tensor types: fewer feed-forward channels or key-value heads in a
block, two thin matrices for one.

What each costs (`shape_costs.py`) has the unit of `sensitivity.py`, nats of KL divergence a token, so that one
allocation chooses among all. A block's feed-forward part, where channels may go, and its attention, where heads may,
are one item of it, with all ways to store its matrices at each width; any other matrix is an item by itself. What is
taken for granted, until the search's rounds have measured it:

- the cost of a smaller shape and those of the types in it add up;
- a type costs a matrix of which a share is left that share of what it costs the whole one;
- it costs two factors, each, what it costs their matrix. With b = U s^1/2 and a = s^1/2 V^T an error that is as large
  beside a factor as a type's is beside the matrix costs at most that, as (sum s)^2 <= rank * sum s^2;
- a matrix that pruning writes anew, and then gets its old type again, loses what the next smaller type would cost it,
  times 4 for each bit between the two, downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from genmote.compress.allocate import Option, together, undominated
from genmote.compress.cut import OUTPUTS, Keys, channel_keys, factor_names, head_keys, sizes, with_keys
from genmote.errors import SpecError
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile, TensorInfo
from genmote.ops import quant

KEEP = "keep"
KINDS = ("channels", "heads", "ranks")
UNIT = 32  # widths and ranks are multiples of it: the types' smallest block
MOST = 12  # smaller sizes that are tried of each part
LEAST = 4  # of a block's channels, and of the highest rank, a quarter stays at least

Costs = dict[int, float]  # of each size that something may have, from large to small: nats a token


@dataclass(frozen=True)
class Shapes:
    """What smaller shapes cost: of blocks, by the channels or key-value heads that they keep, all of them first, and of
    matrices, by rank."""

    channels: dict[int, Costs]
    heads: dict[int, Costs]
    ranks: dict[str, Costs]

    def scaled(self, scales: Mapping[str, float]) -> Shapes:
        """With each kind's costs times its scale."""
        return Shapes(
            _times(self.channels, scales.get("channels", 1.0)),
            _times(self.heads, scales.get("heads", 1.0)),
            _times(self.ranks, scales.get("ranks", 1.0)),
        )


Of = TypeVar("Of", int, str)


def _times(costs: Mapping[Of, Costs], scale: float) -> dict[Of, Costs]:
    return {key: {n: scale * cost for n, cost in each.items()} for key, each in costs.items()}


@dataclass(frozen=True)
class Settled:
    """What an allocation says: the type of each tensor that the result has, and the shapes that get smaller."""

    types: dict[str, Option]
    channels: dict[int, int]
    heads: dict[int, int]
    ranks: dict[str, int]
    costs: dict[str, float]  # of each kind of shape: the nats that are expected

    @property
    def rewrites(self) -> bool:
        """Whether a step writes all `OUTPUTS` anew."""
        return bool(self.channels or self.heads)

    def shapes(self) -> dict[str, dict[str, int]]:
        """Plain values: of each kind, what becomes smaller and how large it then is."""
        blocks = {"channels": self.channels, "heads": self.heads}
        found = {kind: {f"blk.{index}": n for index, n in each.items()} for kind, each in blocks.items()}
        return {kind: each for kind, each in (found | {"ranks": self.ranks}).items() if each}


def known(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds, in the order of `KINDS`; SpecError for one that there is not."""
    given = set(kinds)
    for kind in sorted(given - set(KINDS)):
        raise SpecError(f"shapes: {kind!r} is none; name some of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in given)


def ladder(whole: int, unit: int = UNIT) -> list[int]:
    """Sizes that something of size `whole` may get, from large to small: multiples of `unit`, times the least power of
    two with which there are at most `MOST`, down to one part in `LEAST`.

    >>> ladder(1536)
    [1408, 1280, 1152, 1024, 896, 768, 640, 512, 384]
    """
    least = -(-whole // LEAST)
    while (whole - least) // unit > MOST:
        unit *= 2
    return [n for n in range((whole - 1) // unit * unit, 0, -unit) if n >= least]


def items(source: ModelFile, shapes: Shapes, types: Mapping[str, Sequence[Option]]) -> dict[str, list[Option]]:
    """What to allocate among: `types` (of each matrix, as `sensitivity.measure` gives them) with all the shapes."""
    return _Items(source, shapes, types).all()


class _Items:
    def __init__(self, source: ModelFile, shapes: Shapes, types: Mapping[str, Sequence[Option]]) -> None:
        self.source, self.shapes, self.types = source, shapes, types
        self.anew = OUTPUTS if shapes.channels or shapes.heads else ()

    def all(self) -> dict[str, list[Option]]:
        config = read_config(self.source)
        found: dict[str, list[Option]] = {}
        within: set[str] = set()
        for kind in ("channels", "heads"):
            for index, costs in getattr(self.shapes, kind).items():
                whole, options = max(costs), []
                for count, cost in costs.items():
                    rows, cols = sizes(config, kind, index, count)
                    parts = {}
                    for name in (f"{stem}.weight" for stem in (*rows, *cols)):
                        if name in self.source.tensors:
                            out, width = two(self.source.tensors[name])
                            stem = name.removesuffix(".weight")
                            parts[name] = self.ways(name, (rows.get(stem, out), cols.get(stem, width)))
                    options += together(KEEP if count == whole else f"{kind}={count}", cost, parts)
                    within |= parts.keys()
                found[f"blk.{index}.{kind}"] = undominated(options)
        others = dict.fromkeys([*self.types, *(name for name in self.source.tensors if name.endswith(self.anew))])
        for name in others:
            if name not in within:
                info = self.source.tensors[name]  # of experts together, three sizes
                found[name] = self.ways(name, two(info)) if len(info.shape) == 2 else list(self.types[name])
        return found

    def ways(self, name: str, shape: tuple[int, int]) -> list[Option]:
        """How a matrix may be had whose shape is `shape`: in one, or in two."""
        out, cols = shape
        found = self._stored(name, shape, shape, name.endswith(self.anew))
        for rank, cost in self.shapes.ranks.get(name, {}).items():
            if rank * (out + cols) < out * cols:
                a, b = factor_names(name)
                parts = {
                    a: self._stored(name, shape, (rank, cols), True),
                    b: self._stored(name, shape, (out, rank), True),
                }
                found += together(f"rank={rank}", cost, parts)
        return undominated(found)

    def _stored(self, name: str, of: tuple[int, int], shape: tuple[int, int], anew: bool) -> list[Option]:
        """The types in which a matrix of shape `of`, or a factor of it of `shape`, may be stored."""
        info = self.source.tensors[name]
        share = math.prod(of) / math.prod(info.shape)
        each = self.types.get(name) or [Option(KEEP, info.nbytes, 0.0)]
        found = []
        for option in each:
            what, cost = option.what, option.damage
            kind = info.type if what == KEEP else what
            if what == KEEP and anew:
                what, cost = info.type, _again(info.type, each)
            if shape[-1] % quant.by_name(kind).block_size == 0:
                found.append(Option(what, quant.nbytes(kind, shape), cost * share))
        return found


def _again(stored: str, options: Sequence[Option]) -> float:
    """What it costs to store a matrix that was written anew as it was stored: what the type next to it costs, a quarter
    for each bit more."""
    others = [(quant.by_name(option.what).bits_per_weight, option.damage) for option in options if option.what != KEEP]
    if not others:
        return 0.0
    bits, cost = max(others)
    return cost * float(4 ** (bits - quant.by_name(stored).bits_per_weight))


def two(info: TensorInfo) -> tuple[int, int]:
    """The shape of what is known to be a matrix, (out, in)."""
    out, cols = info.shape
    return out, cols


def walk(chosen: Iterable[tuple[str, Option]]) -> Iterator[tuple[str, Option]]:
    """Options with their parts, and the parts' parts."""
    for name, option in chosen:
        yield name, option
        yield from walk(option.parts)


def settled(chosen: Mapping[str, Option]) -> Settled:
    """What the options that were chosen come to."""
    found = Settled({}, {}, {}, {}, {})
    for name, option in walk(chosen.items()):
        kind, _, number = option.what.partition("=")
        if not option.parts:
            found.types[name] = option
        elif kind == "rank":
            found.ranks[name] = int(number)
        elif kind != KEEP:
            getattr(found, kind)[int(name.split(".")[1])] = int(number)
        if number:
            kind = "ranks" if kind == "rank" else kind
            own = option.damage - sum(part.damage for _, part in option.parts)
            found.costs[kind] = found.costs.get(kind, 0.0) + own
    return found


def restored(source: ModelFile, chosen: Mapping[str, Option]) -> ModelFile:
    """The header of `source` as if its matrices had these shapes and types."""
    what, config, tensors = settled(chosen), read_config(source), dict(source.tensors)
    keys: Keys = {}
    if what.channels:
        keys |= channel_keys([what.channels.get(i, width) for i, width in enumerate(config.ffn_widths)])
    if what.heads:
        keys |= head_keys(config, [what.heads.get(i, heads) for i, heads in enumerate(config.kv_heads)])

    for kind, counts in (("channels", what.channels), ("heads", what.heads)):
        for index, count in counts.items():
            rows, cols = sizes(config, kind, index, count)
            for name, info in list(tensors.items()):
                stem = name.rpartition(".")[0]
                if stem in rows:
                    tensors[name] = replace(info, shape=(rows[stem], *info.shape[1:]))
                elif stem in cols and len(info.shape) == 2:
                    tensors[name] = replace(info, shape=(info.shape[0], cols[stem]))
    for name, rank in what.ranks.items():
        out, width = two(tensors[name])
        for factor, shape in zip(factor_names(name), ((rank, width), (out, rank)), strict=True):
            tensors[factor] = replace(tensors[name], name=factor, shape=shape)
        del tensors[name]
    for name, option in what.types.items():
        kind = tensors[name].type if option.what == KEEP else option.what
        tensors[name] = replace(tensors[name], type=kind, nbytes=quant.nbytes(kind, tensors[name].shape))
    return source.as_if(with_keys(source, keys), tensors)
