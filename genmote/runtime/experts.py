"""Experts on demand: a mixture's experts stay on disk, a cache keeps those that pay, and a guess reads ahead.

Memory is one arena of equal slots; a slot holds an expert's gate, up and down matrices as the packed file has them.
What a layer's router chooses and is not there is read first, past the page cache; what the next layer will probably
choose is read behind that, while attention and the experts that are there compute. No bit depends on any of it.

- **Guess**: the next layer's own router on this layer's hidden state, which the residual stream hardly changes from
  layer to layer (Eliseev and Mazur 2023, arXiv 2312.17238): once when this layer's experts begin, once more before the
  next layer's attention. An embedding says little about the first layer's choice, so history has a voice in each
  guess: what followed the choice of the layer before, and how often an expert was chosen.
- **Replacement**: each expert has a decayed frequency of use, and the least frequent one goes, of whatever layer. That
  is its chance of being wanted by the next token. To go by recency would be to let go of the layers that come next.

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
from genmote.ops.layer import Layer

if TYPE_CHECKING:
    from genmote.models.config import Config
    from genmote.models.decoder import Decoder
    from genmote.models.packed import Packed
    from genmote.models.weights import MatrixLoader

Float32 = NDArray[np.float32]
Matrices = tuple[Any, Any, Any]  # gate (F, D), up (F, D), down (D, F)

BLOCK = 4096  # what unbuffered reads are aligned to
MEMORY = 0.98  # of an expert's frequency that a token leaves
FOLLOW_MEMORY = 0.9  # of what followed a choice, likewise
VOICE = 0.2  # of history in a guess; the router has the rest
LIKELY = 0.5  # a guessed expert takes the place of one that is less frequent than this
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
        self.slot_bytes = max(each.room for layer in stored for each in layer)
        self.map = mmap.mmap(-1, self.slots * self.slot_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = np.frombuffer(self.map, np.uint8)
        self.counts = ExpertCounts()
        self.where = np.full(shape, -1, np.int32)  # slot of an expert
        self.frequency = np.zeros(shape, np.float32)  # decayed share of tokens that chose it
        self.follow = np.full((*shape, shape[1]), 1 / shape[1], np.float32)  # [layer, chosen before it, chosen]
        self.owner = np.zeros((self.slots, 2), np.int32)  # layer and expert in a slot
        self.busy = np.zeros(self.slots, bool)  # in use by the kernels, being read, or expected by the next layer
        self.free = list(range(self.slots))[::-1]
        self.tickets: dict[int, list[int]] = {}  # slot -> reads under way
        self.unused: set[int] = set()  # slots read ahead, not needed yet
        self.matrices: dict[int, Matrices] = {}  # slot ->
        self.expected: list[int] = []  # slots that are kept for the layer to come
        self.last: tuple[int, NDArray[np.int64]] | None = None  # the layer before, and what it chose
        self.layers: list[LayerExperts] = []

    @property
    def nbytes(self) -> int:
        return self.slots * self.slot_bytes

    def attach(self, layers: Sequence[Layer], routers: Sequence[Float32]) -> None:
        """Make these layers' experts come from here; `routers[i]` (E, D) is layer i's, in float32."""
        self.layers = [LayerExperts(self, index, layer, routers[index]) for index, layer in enumerate(layers)]
        for layer, source in zip(layers, self.layers, strict=True):
            assert layer.experts is not None
            layer.experts = replace(layer.experts, source=source)

    # -- what a layer asks --------------------------------------------------------------------------------------------

    def take(self, layer: int, chosen: NDArray[np.int64]) -> Iterator[list[tuple[int, Matrices]]]:
        """`ExpertSource.take` without the reading ahead: that is the caller's, once this gave its first list."""
        if layer == 0:
            self.reader.check()
            self.counts.passes += 1
        self._settle(set(self.tickets))
        here, coming, absent = self._look(layer, np.unique(chosen).tolist())
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
        weight = (1 - VOICE) * shares + VOICE * self._history(layer)
        rows, experts = weight.shape
        likely = np.argsort(-weight.sum(0), kind="stable")
        if rows == 1:
            # Half as many again while the disk has nothing better to do.
            likely = likely[: self.used if self.tickets else self.used + (self.used + 1) // 2]
        else:  # what at least one row probably chooses, the most wanted first
            chosen = np.zeros(experts, bool)
            chosen[np.argpartition(-weight, self.used - 1, axis=1)[:, : self.used]] = True
            likely = likely[chosen[likely]][: self.slots // 2]
        slots = self.where[layer, likely]
        self.expected = [slot for slot in slots.tolist() if slot >= 0 and not self.busy[slot]]
        self.busy[self.expected] = True
        for expert in likely[slots < 0].tolist():
            got = self._slots(1, below=LIKELY)
            if not got:
                break
            self._read(layer, expert, got[0], AHEAD)
            self.unused.add(got[0])
            self.counts.prefetch_bytes += self.stored[layer][expert].nbytes

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
        kept = MEMORY**rows
        self.frequency[layer] *= kept
        np.add.at(self.frequency[layer], chosen.reshape(-1), (1 - kept) / rows)
        if self.last is not None and self.last[0] == layer - 1 and len(self.last[1]) == rows:
            row = self.last[1][-1]  # the latest row stands for a prompt's many
            followed = self.follow[layer, row] * FOLLOW_MEMORY
            followed[:, chosen[-1]] += (1 - FOLLOW_MEMORY) / self.used
            self.follow[layer, row] = followed
        self.last = layer, chosen

    def _history(self, layer: int) -> Float32:
        """Shares (E,) of a layer's next choice, by what followed the last one and by frequency."""
        history: Float32 = self.frequency[layer] / self.used
        if self.last is not None and self.last[0] == layer - 1:
            history = (history + self.follow[layer, self.last[1][-1]].mean(0)) / 2
        return history

    # -- slots --------------------------------------------------------------------------------------------------------

    def _slots(self, count: int, below: float | None = None) -> list[int]:
        """At most `count` slots to read into, their experts gone; `below`: only those less frequent than this."""
        found = [self.free.pop() for _ in range(min(count, len(self.free)))]
        if len(found) == count:
            return found
        worth = np.where(self.busy, np.inf, self.frequency[self.owner[:, 0], self.owner[:, 1]])
        worth[found] = np.inf
        worth[self.free] = np.inf
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

    def _ahead(self, h: Float32) -> None:
        if self.cache.guess is not None:
            shares = self.cache.guess(self.index, h)
        else:
            scores = h @ self.router.T
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
        self.cache.ahead(self.index, shares)


def open_experts(
    packed: Packed, slots: int, *, loader: MatrixLoader | None = None, **settings: Any
) -> tuple[Decoder, ExpertCache]:
    """A decoder whose experts are loaded on demand out of a model's packed file; settings as for `ExpertCache`.

    `loader` gives the other matrices (default: the packed file, mapped). SpecError for a model without experts.
    """
    from genmote.models.decoder import Decoder
    from genmote.models.weights import GgufWeights
    from genmote.ops import _native

    weights = GgufWeights(packed.model, packed.ops, without_experts(loader or packed))
    config = weights.config
    places = read_places(packed, config)
    reader = _native.Reader(str(packed.path))
    cache = ExpertCache(places, reader, packed.ops.packed_matrix, slots, used=config.n_experts_used, **settings)
    routers = [packed.model.tensor(f"blk.{index}.ffn_gate_inp.weight") for index in range(config.n_layers)]
    cache.attach(weights.layers, routers)
    return Decoder(config, weights, packed.ops), cache


def read_places(packed: Packed, config: Config) -> list[list[Stored]]:
    """Where each expert of each layer lies in a model's packed file. SpecError for a model without experts."""
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


def is_expert(name: str) -> bool:
    """Whether a matrix of this name is one of a mixture's experts.

    >>> is_expert("blk.0.ffn_up_exps.weight[3]"), is_expert("blk.0.ffn_up.3.weight"), is_expert("blk.0.ffn_up.weight")
    (True, True, False)
    """
    return "_exps.weight" in name or (name.startswith("blk.") and name.count(".") == 4 and ".ffn_" in name)


def _room(offset: int, nbytes: int) -> int:
    return -(-(offset + nbytes) // BLOCK) * BLOCK - offset // BLOCK * BLOCK
