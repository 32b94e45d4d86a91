"""Experts on demand: a mixture's experts stay on disk, a cache keeps those that pay, and a guess reads ahead.

Memory is one arena of equal slots; a slot holds an expert's gate, up and down matrices as the packed file has them.
What a layer's router chooses and is not there is read first, past the page cache; what the next layer will probably
choose is read behind that, while attention and the experts that are there compute. No bit depends on any of it.

- **Guess**: the next layer's own router on this layer's hidden state, which the residual stream hardly changes from
  layer to layer (Eliseev and Mazur 2023, arXiv 2312.17238): once when this layer's experts begin, once more before the
  next layer's attention. An embedding says little about the first layer's choice, so history has a voice in each
  guess: what followed the choice of the layer before, and how often an expert was chosen.
- **Replacement**: of each expert a long and a short decayed frequency of use are known; mixed they tell its chance of
  being chosen by the next token, and the one with the smallest goes, of whatever layer. To let go of what was not used
  for longest would be to let go of the layers that come next.

On-demand experts with a cache and fewer bits: Yi et al. 2023, EdgeMoE (arXiv 2308.14352).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError, SpecError
from genmote.models.config import read_config
from genmote.models.weights import is_expert
from genmote.ops.layer import Layer

if TYPE_CHECKING:
    from genmote.models.decoder import Decoder
    from genmote.models.packed import Packed
    from genmote.models.weights import GgufWeights, MatrixLoader

Float32 = NDArray[np.float32]
Matrices = tuple[Any, Any, Any]  # gate (F, D), up (F, D), down (D, F)

BLOCK = 4096  # what unbuffered reads are aligned to
LONG, SHORT = 0.99, 0.5  # what a token leaves of an expert's decayed frequencies of use
RECENT = 0.2  # of the short one in what an expert is worth (least squares over the trained mixture's next choices)
FOLLOW = 0.9  # what a token leaves of what followed a choice
VOICE = 0.2  # of history in a guess; the router has the rest
STEEP = 4  # how fast an expert's chance of being chosen grows with its guessed share (fitted to the trained mixture)
# Chances with which an expert is read ahead: where the disk keeps up and where it does not, so that a wrong guess makes
# others wait; and of one more while the disk is idle.
SURE, SURER, DOUBTFUL = 0.5, 0.8, 0.15
CROWDED = 0.05  # share of experts that came late by which a disk does not keep up
DEMAND, AHEAD = 0, 4  # priorities of reads
PARTS = ("gate", "up", "down")


@dataclass
class ExpertCounts:
    """What a mixture's experts cost, for each expert that a layer needed for the rows of one pass."""

    cached: int = 0  # in memory since an earlier use
    prefetched: int = 0  # read ahead, and there when it was needed
    late: int = 0  # read ahead, and waited for
    missed: int = 0  # read when it was needed
    demand_bytes: int = 0  # read for `missed`
    prefetch_bytes: int = 0
    wasted_bytes: int = 0  # read ahead and let go of unused
    passes: int = 0  # forward passes; with one row each, tokens

    @property
    def needed(self) -> int:
        return self.cached + self.prefetched + self.late + self.missed

    @property
    def hit_rate(self) -> float:
        """The share that nobody waited for."""
        return (self.cached + self.prefetched) / max(1, self.needed)

    @property
    def bytes_read(self) -> int:
        return self.demand_bytes + self.prefetch_bytes

    def __str__(self) -> str:
        return (
            f"experts: {self.needed} needed in {self.passes} passes, {self.cached} were in memory, "
            f"{self.prefetched} came ahead in time, {self.late} ahead but late, {self.missed} were read when needed; "
            f"{self.bytes_read / max(1, self.passes) / 1e6:.1f} MB read a pass"
        )

    def since(self, before: ExpertCounts) -> ExpertCounts:
        """The difference to an earlier copy."""
        return ExpertCounts(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))

    def copy(self) -> ExpertCounts:
        return replace(self)

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON and records."""
        each = max(1, self.passes)
        return asdict(self) | {
            "hit_rate": round(self.hit_rate, 4),
            "bytes_per_pass": self.bytes_read // each,
            "needed": self.needed,
        }


@dataclass(frozen=True)
class Stored:
    """Where an expert lies: `runs` (offset, nbytes) of the file, and each matrix's type, shape and place in them."""

    runs: tuple[tuple[int, int], ...]
    parts: tuple[tuple[str, tuple[int, int], int, int], ...]  # type, shape, run, offset in the run

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.runs)

    @property
    def room(self) -> int:
        """Bytes of memory that reading it takes: whole blocks."""
        return sum(_room(*run) for run in self.runs)


def slot_bytes(stored: Sequence[Sequence[Stored]]) -> int:
    """Memory for any one of the experts: whole pages, which go back to the system on their own."""
    page = max(BLOCK, mmap.PAGESIZE)  # 16384 on a Raspberry Pi 5
    return -(-max(each.room for layer in stored for each in layer) // page) * page


class Reading(Protocol):
    """The native `Reader`, as far as experts need it."""

    def submit(self, offset: int, nbytes: int, to: Any, at: int, priority: int) -> int: ...
    def wait(self, ticket: int) -> None: ...
    def done(self, ticket: int) -> bool: ...
    def cancel(self, ticket: int) -> None: ...
    def withdraw(self, ticket: int) -> bool: ...
    def hasten(self, ticket: int, priority: int) -> None: ...
    def check(self) -> None: ...


# (layer, rows' normed input as that layer's router sees it (N, D)) -> the router's softmax (N, E), as it is guessed.
Guess = Callable[[int, Float32], Float32]


class ExpertCache:
    """The experts of all layers in a bounded number of slots.

    `keep` False lets go of each expert after its use, `predict` False reads nothing ahead: what a plain loader does, to
    measure against. `guess` takes the place of the routers in predictions (a replayed trace). Not for several threads.
    """

    def __init__(
        self,
        stored: Sequence[Sequence[Stored]],
        reader: Reading,
        matrix: Callable[[str, tuple[int, int], Any], Any],
        slots: int,
        *,
        used: int,
        keep: bool = True,
        predict: bool = True,
        guess: Guess | None = None,
    ) -> None:
        """`stored[layer][expert]`; `matrix(type, shape, bytes)` makes the op set's matrix over a slot's bytes."""
        if slots < 1:
            raise SpecError(f"{slots} slots for experts: wanted 1 or more")
        self.stored, self.reader, self.matrix = stored, reader, matrix
        self.used, self.keep, self.predict, self.guess = used, keep, predict, guess
        shape = len(stored), len(stored[0])
        self.slots = min(slots, shape[0] * shape[1])
        self.slot_bytes = slot_bytes(stored)
        self.map = mmap.mmap(-1, self.slots * self.slot_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = np.frombuffer(self.map, np.uint8)
        self.counts = ExpertCounts()
        self.where = np.full(shape, -1, np.int32)  # slot of an expert
        self.used_long, self.used_short = np.zeros(shape), np.zeros(shape)  # decayed shares of tokens that chose it
        self.worth = np.zeros(shape)  # its chance of being chosen by the next token, by these
        self.follow = np.full((*shape, shape[1]), 1 / shape[1], np.float32)  # [layer, chosen before it, chosen]
        self.owner = np.zeros((self.slots, 2), np.int32)  # layer and expert in a slot
        self.busy = np.zeros(self.slots, bool)  # in use by the kernels, being read, or expected by the next layer
        self.free = list(range(self.slots))[::-1]
        self.away: set[int] = set()  # slots whose memory was given back
        self.tickets: dict[int, list[int]] = {}  # slot -> reads under way
        self.unused: set[int] = set()  # slots read ahead, not needed yet
        self.lateness = 0.0  # decayed share of the experts needed that were read ahead and came late
        self.matrices: dict[int, Matrices] = {}  # slot ->
        self.expected: list[int] = []  # slots that are kept for the layer to come
        self.last: tuple[int, NDArray[np.int64]] | None = None  # the layer before, and what it chose
        self.layers: list[LayerExperts] = []

    @property
    def nbytes(self) -> int:
        """Memory that the slots may take."""
        return (self.slots - len(self.away)) * self.slot_bytes

    @property
    def free_bytes(self) -> int:
        """Memory of slots that hold no expert; those that never did do not take it yet."""
        return len(self.free) * self.slot_bytes

    @classmethod
    def of(cls, packed: Packed, memory: int, **settings: Any) -> ExpertCache:
        """A cache of at most `memory` bytes (one expert at least) over a model's packed file; settings as above.

        SpecError for a model without experts, ModelFileError where the file cannot be opened or is another by now.
        """
        from genmote.ops import _native

        stored = stored_experts(packed)
        slots = max(1, memory // slot_bytes(stored))
        reader = _native.Reader(str(packed.path))
        if reader.stamp != packed.stamp:
            raise ModelFileError(f"{packed.path}: changed while it was opened; load the model again")
        used = read_config(packed.model).n_experts_used
        return cls(stored, reader, packed.ops.packed_matrix, slots, used=used, **settings)

    def attach(self, weights: GgufWeights) -> None:
        """Make the layers' experts come from here: weights that were loaded `without_experts`."""
        for index, layer in enumerate(weights.layers):
            assert layer.experts is not None
            router = weights.model.tensor(f"blk.{index}.ffn_gate_inp.weight")  # (E, D)
            self.layers.append(LayerExperts(self, index, layer, router))
            layer.experts = replace(layer.experts, source=self.layers[index])

    def shrink(self, count: int) -> int:
        """Give back about `count` bytes between two passes; how many it were. One layer's chosen experts stay possible.
        The text stays the same, only slower."""
        least = min(self.used, self.slots)
        going = min(-(-count // self.slot_bytes), self.slots - len(self.away) - least)
        gone = 0
        # The last ones, whole pages of which go back to the system.
        for slot in [slot for slot in range(self.slots)[::-1] if slot not in self.away][: max(0, going)]:
            if slot in self.free:
                self.free.remove(slot)
            else:
                self._abandon(slot)
                self.free.pop()
            self.away.add(slot)
            at = slot * self.slot_bytes
            self.map.madvise(mmap.MADV_DONTNEED, at, self.slot_bytes)
            gone += self.slot_bytes
        return gone

    def grow(self, count: int) -> int:
        """Take at most `count` bytes more, of those given back; how many it were."""
        coming = sorted(self.away)[: max(0, count) // self.slot_bytes]
        self.away -= set(coming)
        self.free += coming
        return len(coming) * self.slot_bytes

    # -- what a layer asks --------------------------------------------------------------------------------------------

    def take(self, layer: int, chosen: NDArray[np.int64]) -> Iterator[list[tuple[int, Matrices]]]:
        """`ExpertSource.take` without the reading ahead: that is the caller's, once this gave its first list."""
        if layer == 0:
            self.reader.check()
            self.counts.passes += 1
        self._settle(set(self.tickets))
        needed = sorted(set(chosen.ravel().tolist()))  # np.unique would import numpy.ma: 2 MB of a small budget
        here, coming, absent = self._look(layer, needed)
        self.lateness += (len(coming) / len(needed) - self.lateness) / 32
        self._learn(layer, chosen)
        self._withdraw(layer)
        try:
            coming += self._demand(layer, absent)
            yield here
            self._release(layer, here)
            while coming or absent:
                coming += self._demand(layer, absent)
                if not coming:  # every slot is held for the layers to come
                    self._make_room()
                    continue
                ready = [e for e in coming if self._done(int(self.where[layer, e]))] or coming[:1]
                coming = [e for e in coming if e not in ready]
                arrived = [(e, self._arrived(layer, e)) for e in ready]
                yield arrived
                self._release(layer, arrived)
        finally:  # also after a failed read, or when the kernels fail
            slots = self.where[layer][self.where[layer] >= 0]
            self.busy[[slot for slot in slots.tolist() if slot not in self.tickets]] = False

    def _look(self, layer: int, needed: list[int]) -> tuple[list[tuple[int, Matrices]], list[int], list[int]]:
        """What is needed and here, what is being read, and what is neither; counted."""
        here: list[tuple[int, Matrices]] = []
        coming: list[int] = []
        absent: list[int] = []
        for expert in needed:
            slot = int(self.where[layer, expert])
            if slot < 0:
                absent.append(expert)
                self.counts.missed += 1
                self.counts.demand_bytes += self.stored[layer][expert].nbytes
                continue
            self.busy[slot] = True
            if slot not in self.tickets:
                here.append((expert, self.matrices[slot]))
                if slot in self.unused:
                    self.counts.prefetched += 1
                else:
                    self.counts.cached += 1
            else:
                for ticket in self.tickets[slot]:
                    self.reader.hasten(ticket, DEMAND)
                coming.append(expert)
                self.counts.late += 1
            self.unused.discard(slot)
        return here, coming, absent

    def _demand(self, layer: int, absent: list[int]) -> list[int]:
        """Begin to read as many of the absent experts as there are slots for; they leave the list."""
        slots = self._slots(len(absent))
        begun = [absent.pop(0) for _ in slots]
        for expert, slot in zip(begun, slots, strict=True):
            self._read(layer, expert, slot, DEMAND)
        return begun

    def ahead(self, layer: int, shares: Float32) -> None:
        """Read what this layer will probably choose, by the guessed shares (N, E) of its router."""
        self._settle(self.unused & set(self.tickets))
        chance = self._chance(layer, shares)
        likely = np.argsort(-chance, kind="stable")
        crowded = min(1.0, self.lateness / CROWDED)
        enough = SURE + (SURER - SURE) * crowded
        sure = likely[chance[likely] >= enough][: max(self.used, self.slots // 2)]
        slots = self.where[layer, sure]
        self.expected = [slot for slot in slots.tolist() if slot >= 0 and not self.busy[slot]]
        self.busy[self.expected] = True
        wanted = sure[slots < 0].tolist()
        if not wanted and not self.tickets and crowded < 0.5:  # a doubtful one, while the disk has nothing better to do
            wanted = [e for e in likely[: 2 * self.used].tolist() if self.where[layer, e] < 0 and chance[e] > DOUBTFUL]
            del wanted[1:]
        for expert in wanted:
            got = self._slots(1, below=chance[expert])
            if not got:
                break
            self._read(layer, expert, got[0], AHEAD)
            self.unused.add(got[0])
            self.counts.prefetch_bytes += self.stored[layer][expert].nbytes

    def _chance(self, layer: int, shares: Float32) -> NDArray[np.float64]:
        """Each expert's chance (E,) of being chosen by one of the rows, by its distance from where the choice ends."""
        weight = (1 - VOICE) * shares + VOICE * self._history(layer) + 1e-9  # (N, E)
        if self.used == weight.shape[1]:
            return np.ones(self.used)
        ordered = -np.partition(-weight, (self.used - 1, self.used), axis=1)
        end = np.sqrt(ordered[:, self.used - 1] * ordered[:, self.used])[:, None]
        chance: NDArray[np.float64] = 1 / (1 + ((end / weight) ** STEEP).min(0))
        return chance

    def _withdraw(self, layer: int) -> None:
        """Do not read what a wrong guess asked for, where that has not begun."""
        for slot in self.unused & set(self.tickets):
            # The first read of a slot begins first.
            if self.owner[slot, 0] == layer and self.reader.withdraw(self.tickets[slot][0]):
                self.counts.prefetch_bytes -= self.stored[layer][self.owner[slot, 1]].nbytes
                self.unused.discard(slot)
                del self.tickets[slot][0]
                self._abandon(slot)

    # -- history ------------------------------------------------------------------------------------------------------

    def _learn(self, layer: int, chosen: NDArray[np.int64]) -> None:
        """Bring the frequencies of use up to date with a layer's choice (N, used)."""
        rows = len(chosen)
        age = np.arange(rows - 1, -1, -1)
        for memory, used in ((LONG, self.used_long), (SHORT, self.used_short)):
            used[layer] *= memory**rows
            np.add.at(used[layer], chosen, ((1 - memory) * memory**age)[:, None])
        self.worth[layer] = (1 - RECENT) * self.used_long[layer] + RECENT * self.used_short[layer]
        if self.last is not None and self.last[0] == layer - 1 and len(self.last[1]) == rows:
            row = self.last[1][-1]  # the latest row stands for a prompt's many
            followed = self.follow[layer, row] * FOLLOW
            followed[:, chosen[-1]] += (1 - FOLLOW) / self.used
            self.follow[layer, row] = followed
        self.last = layer, chosen

    def _history(self, layer: int) -> NDArray[np.float64]:
        """Shares (E,) of a layer's next choice, by what followed the last one and by frequency."""
        history: NDArray[np.float64] = self.worth[layer] / self.used
        if self.last is not None and self.last[0] == layer - 1:
            history = (history + self.follow[layer, self.last[1][-1]].mean(0)) / 2
        return history

    # -- slots --------------------------------------------------------------------------------------------------------

    def _slots(self, count: int, below: float | None = None) -> list[int]:
        """At most `count` slots to read into, their experts gone; `below`: only those less frequent than this."""
        found = [self.free.pop() for _ in range(min(count, len(self.free)))]
        if len(found) == count:
            return found
        worth = np.where(self.busy, np.inf, self.worth[self.owner[:, 0], self.owner[:, 1]])
        worth[found] = np.inf
        worth[[*self.free, *self.away]] = np.inf
        for slot in np.argsort(worth, kind="stable")[: count - len(found)].tolist():
            if worth[slot] == np.inf or (below is not None and worth[slot] >= below):
                break
            self._drop(slot)
            found.append(slot)
        return found

    def _make_room(self) -> None:
        """Give up what is held for the layer to come, or one read ahead."""
        if self.expected:
            self._settle(set())
        else:
            self._abandon(next(iter(self.unused & set(self.tickets))))

    def _drop(self, slot: int) -> None:
        layer, expert = self.owner[slot]
        self.where[layer, expert] = -1
        self.matrices.pop(slot, None)
        if slot in self.unused:
            self.unused.discard(slot)
            self.counts.wasted_bytes += self.stored[layer][expert].nbytes

    def _read(self, layer: int, expert: int, slot: int, priority: int) -> None:
        at = slot * self.slot_bytes
        self.where[layer, expert] = slot
        self.owner[slot] = layer, expert
        self.busy[slot] = True
        tickets = self.tickets[slot] = []
        try:
            for offset, nbytes in self.stored[layer][expert].runs:
                tickets.append(self.reader.submit(offset, nbytes, self.memory, at, priority))
                at += _room(offset, nbytes)
        except BaseException:
            self._abandon(slot)
            raise

    def _done(self, slot: int) -> bool:
        return all(self.reader.done(ticket) for ticket in self.tickets[slot])

    def _arrived(self, layer: int, expert: int) -> Matrices:
        """Wait for an expert that is being read, and give its matrices."""
        slot = int(self.where[layer, expert])
        try:
            while self.tickets[slot]:
                self.reader.wait(self.tickets[slot][0])
                del self.tickets[slot][0]
        except BaseException as error:
            if isinstance(error, ModelFileError):
                del self.tickets[slot][0]  # a failed read's ticket is spent
            self._abandon(slot)
            raise
        del self.tickets[slot]
        stored, starts, at = self.stored[layer][expert], [], slot * self.slot_bytes
        for offset, nbytes in stored.runs:
            starts.append(at + offset % BLOCK)
            at += _room(offset, nbytes)
        gate, up, down = (
            self.matrix(type, shape, self.memory[starts[run] + inside :]) for type, shape, run, inside in stored.parts
        )
        self.matrices[slot] = gate, up, down
        return gate, up, down

    def _abandon(self, slot: int) -> None:
        """Forget a slot whose reading failed."""
        for ticket in self.tickets.pop(slot, ()):
            self.reader.cancel(ticket)
        self._drop(slot)
        self.busy[slot] = False
        self.free.append(slot)

    def _release(self, layer: int, experts: list[tuple[int, Matrices]]) -> None:
        for expert, _ in experts:
            slot = int(self.where[layer, expert])
            self.busy[slot] = False
            if not self.keep:
                self._drop(slot)
                self.free.append(slot)

    def _settle(self, slots: set[int]) -> None:
        """Let go of what was expected, and take in what of these slots' reads is done."""
        self.busy[self.expected] = False
        self.expected = []
        for slot in slots:
            if self._done(slot):
                self._arrived(*self.owner[slot].tolist())
                self.busy[slot] = False


class LayerExperts:
    """One layer's `ExpertSource`."""

    def __init__(self, cache: ExpertCache, index: int, layer: Layer, router: Float32) -> None:
        self.cache, self.index, self.norm, self.router = cache, index, layer.ffn_norm, router

    def expect(self, x: Float32) -> None:
        if self.cache.predict:
            size = np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(self.norm.eps))
            self._ahead(x / size * self.norm.gain)

    def take(self, x: Float32, chosen: NDArray[np.int64]) -> Iterator[list[tuple[int, Matrices]]]:
        lists = self.cache.take(self.index, chosen)
        first = next(lists)
        following = self.cache.layers[self.index + 1 : self.index + 2]
        if self.cache.predict and following:
            # x is the hidden state under this layer's norm; the next layer's has another gain
            following[0]._ahead(x * following[0]._gain_ratio(self.norm.gain))
        if first:
            yield first
        yield from lists

    def _gain_ratio(self, gain: Float32) -> Float32:
        return np.divide(self.norm.gain, gain, out=np.zeros_like(gain), where=gain != 0)

    def shares(self, h: Float32) -> Float32:
        """The router's softmax (N, E) on its normed input, for a guess: not to the bit what the op set computes."""
        scores = h @ self.router.T
        powers: Float32 = np.exp(scores - scores.max(axis=1, keepdims=True))
        powers /= powers.sum(axis=1, keepdims=True)
        return powers

    def _ahead(self, h: Float32) -> None:
        guess = self.cache.guess
        self.cache.ahead(self.index, self.shares(h) if guess is None else guess(self.index, h))


def open_experts(packed: Packed, memory: int, **settings: Any) -> tuple[Decoder, ExpertCache]:
    """A decoder whose experts are loaded on demand into `memory` bytes, and their cache; the rest is the packed file's,
    mapped. Settings and errors as for `ExpertCache.of`. What `Engine.load(memory=…)` does for a whole engine."""
    from genmote.models.decoder import Decoder
    from genmote.models.weights import GgufWeights

    cache = ExpertCache.of(packed, memory, **settings)
    weights = GgufWeights(packed.model, packed.ops, without_experts(packed))
    cache.attach(weights)
    return Decoder(weights.config, weights, packed.ops), cache


def stored_experts(packed: Packed) -> list[list[Stored]]:
    """Where each expert of each layer lies in a model's packed file. SpecError for a model without experts."""
    config = read_config(packed.model)
    if not config.n_experts:
        raise SpecError(f"{packed.model.path.name} has no experts to load on demand; leave the setting out")
    return [[_stored(packed, layer, expert) for expert in range(config.n_experts)] for layer in range(config.n_layers)]


def _stored(packed: Packed, layer: int, expert: int) -> Stored:
    runs: list[list[int]] = []
    parts = []
    for part in PARTS:
        place = packed.places.get(f"blk.{layer}.ffn_{part}_exps.weight[{expert}]")
        place = place or packed.places[f"blk.{layer}.ffn_{part}.{expert}.weight"]
        offset = packed.start + place.offset
        # Neighbours but for the filling between them are one read.
        if runs and 0 <= offset - sum(runs[-1]) < BLOCK:
            runs[-1][1] = offset + place.nbytes - runs[-1][0]
        else:
            runs.append([offset, place.nbytes])
        shape = place.info.shape[-2], place.info.shape[-1]
        parts.append((place.info.type, shape, len(runs) - 1, offset - runs[-1][0]))
    return Stored(tuple((offset, nbytes) for offset, nbytes in runs), tuple(parts))


def without_experts(loader: MatrixLoader) -> MatrixLoader:
    """The loader, but for the experts' matrices, which are None."""

    def load(name: str, info: Any) -> Any:
        return None if is_expert(name) else loader(name, info)

    return load


def _room(offset: int, nbytes: int) -> int:
    return -(-(offset + nbytes) // BLOCK) * BLOCK - offset // BLOCK * BLOCK
