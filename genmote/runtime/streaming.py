"""Weights that do not all fit into memory: some stay, the rest is read from the packed file again in every pass.

A pass uses its matrices in a fixed order, so what it will need is known. Threads of the reader fetch it into a small
ring while the kernels compute, past the page cache, and the next pass's first weights while this one ends
(`native/stream.h`). What stays is spread evenly over the pass: between two pieces that are read there is always
something to compute, and the disk never waits for room in the ring.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genmote.errors import ModelFileError
from genmote.ops import quant
from genmote.ops.packed import PANEL
from genmote.runtime.footprint import resident_bytes, trim

if TYPE_CHECKING:
    from genmote.models.gguf import TensorInfo
    from genmote.models.packed import Packed
    from genmote.models.weights import WeightSource
    from genmote.ops.layer import Layer, Linear
    from genmote.ops.native_ops import NativeOps
    from genmote.runtime.experts import ExpertCache

PAGE = 4096  # what reads are aligned to: a chunk takes whole pages
LAYER, HEAD, ROWS = 0, 1, 2  # what a chunk is for: `native/stream.h`
READ_THREADS = 4  # enough to keep an NVMe disk busy; an SD card does as well with one
MOST_RING, LEAST_RING = 32 << 20, 1 << 20
MOST_CHUNK, LEAST_CHUNK = 4 << 20, 96 << 10  # bytes that are read at once

_EXPERT = re.compile(r"\]$|\.ffn_\w+\.\d+\.weight$")
MARGIN = (
    1 << 20
)  # of the budget that is left alone, and a share of it: page tables and the kernel's own count too, and a
MARGIN_SHARE = 40  # group that stands at its limit is slowed down at every turn
PATIENCE = 16  # passes with room, after which weights are pinned again

Part = tuple[int, int, int]  # (matrix, first panel, end)


@dataclass(frozen=True)
class Chunk:
    """What is pinned or read at once."""

    use: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Room:
    """What a text may take of the memory while it grows; weights have what it does not take yet."""

    budget_bytes: int
    row_bytes: int  # keys and values of one row
    page_bytes: int  # more, for the pages that are begun
    activation_bytes: int  # of a pass of `chunk_rows`
    chunk_rows: int
    logits_bytes: int = 0  # of one row
    scratch_bytes: int = 0  # for a moment between two passes, where rows are evicted


class Streaming:
    """A matrix loader (`models.weights.MatrixLoader`) whose matrices are pinned or streamed.

    After the weights have been made with it, `arrange` says which. Experts are left to whoever loads them.
    """

    def __init__(self, packed: Packed) -> None:
        """Raises ModelFileError where the packed file is no longer the one that was checked."""
        from genmote.ops import _native

        self.packed = packed
        self.ops: NativeOps = packed.ops
        self.reader = _native.Reader(os.fspath(packed.file), READ_THREADS)
        if self.reader.stamp != packed.stamp:
            raise ModelFileError(f"{packed.path}: changed while it was opened; load the model again")
        self.stream = _native.Stream(self.reader)
        self.ring_bytes = 0
        self.total_bytes: int | None = None
        self._order: list[bool] = []
        self.experts: ExpertCache | None = None  # which give way first: each of them is used in few passes
        self._room: Room | None = None
        self._most: int | None = None  # bytes that may be pinned, where somebody asked for some back
        self._rows = self._roomy = 0  # the largest pass so far; passes since there was little room
        self._mine: dict[int, Any] = {}  # every matrix that the stream has, by the stream's number
        self._numbers: dict[int, int] = {}  # Python's id of a matrix → the stream's

    def __call__(self, name: str, info: TensorInfo) -> Any:
        place = self.packed.places.get(name)
        if place is None or place.info != info or _EXPERT.search(name):
            return self.packed(name, info)
        offset = self.packed.start + place.offset
        matrix = self.stream.matrix(quant.by_name(info.type).ggml_id, *info.shape[-2:], offset)
        self._mine[matrix.id] = matrix
        self._numbers[id(matrix)] = matrix.id
        return matrix

    def arrange(self, weights: WeightSource, total_bytes: int | None) -> None:
        """Hold as many of these weights as `total_bytes` allow, the ring for the rest included; None: all of them."""
        self.total_bytes, self._order = total_bytes, stepwise(weights)
        everything = sum(matrix.nbytes for matrix in self._mine.values())
        limit = everything if total_bytes is None else total_bytes
        self.ring_bytes = max(LEAST_RING, min(MOST_RING, limit // 12))
        chunks = list(self._chunks(weights, max(LEAST_CHUNK, min(MOST_CHUNK, self.ring_bytes // 6))))
        largest = max(self._bytes(chunk) + 2 * PAGE * len(chunk.parts) for chunk in chunks if chunk.use != ROWS)
        self.ring_bytes = max(self.ring_bytes, 3 * largest)
        order = [i for i, chunk in spread(chunks) if chunk.use != ROWS]
        order += [i for i, chunk in enumerate(chunks) if chunk.use == ROWS]
        self.stream.arrange([(chunk.use, list(chunk.parts)) for chunk in chunks], order, self.ring_bytes)
        most = 2 * everything + PAGE * len(order) if total_bytes is None else max(0, total_bytes - self.ring_bytes)
        self.pin(most if self._most is None else min(most, self._most))  # what was given back stays so

    def rearrange(self, weights: WeightSource) -> None:
        """The same for weights that have got or lost adapters, where that changes the order of use: as much of them
        stays in memory as does now."""
        if stepwise(weights) != self._order:
            most, self._most = self._most, self.pinned_bytes if self.streamed_bytes else self._most
            try:
                self.arrange(weights, self.total_bytes)
            finally:
                self._most = most

    def pin(self, bytes_: int) -> None:
        """Let pinned weights take so many bytes: more are read, or some are let go and streamed from now on."""
        self.stream.pin(self.ops.machine, bytes_)

    def shrink(self, count: int) -> int:
        """Give back about `count` bytes; how many it were. The text stays the same, only slower."""
        before = self.pinned_bytes
        self.pin(max(0, before - count))
        self._most = self.pinned_bytes
        return before - self._most

    def grow(self, count: int) -> int:
        """Take at most `count` bytes more, as far as the budget leaves them; how many it were."""
        before, room, resident = self.pinned_bytes, self._room, resident_bytes()
        if room is not None and resident:
            count = min(count, max(0, room.budget_bytes - MARGIN - resident))
        self.pin(before + count)
        self._most = self.pinned_bytes
        return self._most - before

    def keep_to(self, room: Room, unused_bytes: int = 0) -> None:
        """From now on let go of weights whose memory a pass needs. Pin `unused_bytes` more, which are planned for a
        text's keys and values, until it needs them."""
        self._room = room
        first = room.chunk_rows * room.row_bytes + room.page_bytes + room.budget_bytes // MARGIN_SHARE
        if unused_bytes > first:
            self.pin(self.pinned_bytes + unused_bytes - first)

    def begin(self, head: int, rows: int) -> None:
        """A pass of so many rows begins, which ends with the logits of `head` rows."""
        if self._room is not None:
            self._fit(self._room, rows, head)
        self.stream.begin(head > 0)

    def make_room(self, rows: int = 0, count: int = 0) -> None:
        """Let go of weights for rows that come at once, out of a file or another text, and for `count` bytes of what
        else comes to stay. Nobody may compute meanwhile."""
        room, resident = self._room, resident_bytes()
        if room is None or not resident:
            return
        count += rows * room.row_bytes + (room.page_bytes if rows else 0)
        spare = room.budget_bytes - MARGIN - resident - count
        if spare < 0:
            self._let_go(-spare)
            self._roomy = 0

    def _let_go(self, count: int) -> None:
        """Let go of weights of `count` bytes. The ring takes memory with the first byte that is streamed."""
        count -= 0 if self.experts is None else self.experts.shrink(count)
        if count <= 0:
            return
        ring = 0 if self.streamed_bytes else self.ring_bytes
        self.pin(max(0, self.pinned_bytes - count - ring))

    def _fit(self, room: Room, rows: int, head: int) -> None:
        """Let go of weights whose memory this pass needs; take some again after there has been room for a while."""
        steps = any(self._order)  # single steps give their scratch memory back, the fused block keeps it
        if steps and rows > PANEL:
            trim()
        resident, pinned, step = resident_bytes(), self.pinned_bytes, max(MARGIN, room.budget_bytes // 64)
        if not resident:  # the system does not tell
            return
        # Where nothing is streamed the plan holds as it is, and this is there for what it could not know.
        margin = MARGIN + room.budget_bytes // MARGIN_SHARE + room.page_bytes if self.streamed_bytes else 0
        need = rows * room.row_bytes + head * room.logits_bytes + room.scratch_bytes
        held = 0 if steps else self._rows
        if rows > held:
            need += room.activation_bytes * min(rows - held, room.chunk_rows) // room.chunk_rows
            self._rows = max(rows, self._rows)
        spare = room.budget_bytes - margin - resident - need
        coming = 0 if self.experts is None else self.experts.free_bytes
        if spare < 0:
            self._let_go(step - spare)
        elif spare - coming > 4 * step and self._roomy >= PATIENCE and (self._most is None or pinned < self._most):
            self.pin(min(pinned + spare - coming - 2 * step, self._most or 2**62))
            if self.experts is not None and not self.streamed_bytes:
                self.experts.grow(spare - coming - 2 * step - (self.pinned_bytes - pinned))
        else:
            self._roomy += 1
            return
        self._roomy = 0

    @property
    def pinned_bytes(self) -> int:
        return int(self.stream.pinned_bytes)

    @property
    def streamed_bytes(self) -> int:
        """Bytes that each pass with logits reads, rows of the embedding apart."""
        return int(self.stream.streamed_bytes)

    # -- cutting --------------------------------------------------------------------------------------------------

    def _chunks(self, weights: WeightSource, size: int) -> Iterator[Chunk]:
        """All chunks in the order of use: matrices cut to at most `size`, small neighbours joined up to it."""
        for use, stages in (
            (LAYER, [stage for layer in weights.layers for stage in layer_stages(layer)]),
            (HEAD, linear_stages(weights.head)),
        ):
            parts: list[Part] = []
            for stage in stages:
                streamed = [matrix for matrix in stage if id(matrix) in self._numbers]
                for cut in cuts(streamed, size) if streamed else ():
                    if parts and self._bytes(Chunk(use, (*parts, *cut))) > size:
                        yield Chunk(use, tuple(parts))
                        parts = []
                    parts += cut
            if parts:
                yield Chunk(use, tuple(parts))
        for table in (weights.embedding, weights.position_embedding):
            if id(table) in self._numbers and table is not weights.head.matrix:
                for cut in cuts([table], MOST_CHUNK):
                    yield Chunk(ROWS, tuple(cut))

    def _bytes(self, chunk: Chunk) -> int:
        return sum(
            self._mine[number].nbytes // panels(self._mine[number]) * (end - begin)
            for number, begin, end in chunk.parts
        )


def layer_stages(layer: Layer) -> list[tuple[Any, ...]]:
    """A block's matrices in the order in which a pass uses them; those of one tuple are used together, part by part."""
    stages = [stage for linear in (layer.q, layer.k, layer.v, layer.o) for stage in linear_stages(linear)]
    if layer.experts is not None:
        return [*stages, *linear_stages(layer.experts.router)]
    gate, up, down = layer.gate, layer.up, layer.down
    if gate is None or up is None or steps(layer):  # as `decoder.feed_forward` does
        return [*stages, *linear_stages(up), *linear_stages(gate), *linear_stages(down)]
    first = [(linear.down,) for linear in (up, gate) if linear.down is not None]
    return [*stages, *first, (gate.matrix, up.matrix), *linear_stages(down)]


def linear_stages(linear: Linear | None) -> list[tuple[Any, ...]]:
    if linear is None:
        return []
    return [(matrix,) for matrix in (linear.down, linear.matrix) if matrix is not None]


def steps(layer: Layer) -> bool:
    """Whether a block is computed in single steps (`decoder.block`), not by the op set's own form."""
    linears = (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
    return layer.experts is not None or any(linear is not None and linear.adapters for linear in linears)


def stepwise(weights: WeightSource) -> list[bool]:
    return [steps(layer) for layer in weights.layers]


def panels(matrix: Any) -> int:
    """Panels of 16 rows."""
    return -(-int(matrix.shape[0]) // PANEL)


def cuts(matrices: Sequence[Any], size: int) -> Iterator[list[Part]]:
    """The matrices of a stage, which have as many panels each, cut alike into pieces of about `size` bytes; by twos:
    two panels of a feed-forward make a group of activations."""
    count = panels(matrices[0])
    pieces = max(1, -(-sum(matrix.nbytes for matrix in matrices) // size))
    step = -(-count // pieces)
    step += step % 2
    for begin in range(0, count, step):
        yield [(matrix.id, begin, min(count, begin + step)) for matrix in matrices]


def spread(chunks: Sequence[Chunk]) -> list[tuple[int, Chunk]]:
    """The chunks in an order of which every beginning lies evenly over them: by the bits of their number, reversed (van
    der Corput 1935).

    >>> [i for i, _ in spread([Chunk(0, ())] * 5)]
    [0, 4, 2, 1, 3]
    """
    bits = max(1, (len(chunks) - 1).bit_length())
    return sorted(enumerate(chunks), key=lambda item: int(f"{item[0]:0{bits}b}"[::-1], 2))
