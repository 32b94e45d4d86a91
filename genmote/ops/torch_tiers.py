"""Weights of the torch op set in tiers: device memory, then the host's RAM, then the file on the disk.

Some layers stay on the device as floats. The others lie in RAM (pinned, where the device is CUDA) or only in the file,
as the file stores them; while a layer computes, the next one is copied into the other half of a ring of two on a
stream of its own, and becomes floats there. The floats are those of a resident layer, so the results are the same
(the scheme of FlexGen, Sheng et al. 2023, arXiv 2303.06865, without its batching).

What is CUDA's alone is in `CudaLane`. Any other device is served by `Lane`, which copies in a background thread: on
the CPU that is a stand-in for an accelerator, to run and test the same path.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from genmote.errors import BudgetError
from genmote.ops.torch_quant import PIECE, dequantize_into

Tensor = torch.Tensor
Read = Callable[[int, Tensor], None]  # (layer, bytes) fills the bytes with the layer's parts, from the file
RING = 2
ALIGN = 64
_SCRATCH = 10  # bytes beside the result for each number while it is taken apart


@dataclass(frozen=True)
class Part:
    """One matrix of a layer: where its bytes begin in the layer's, its numbers in the layer's numbers."""

    type: str
    shape: tuple[int, int]
    offset: int
    nbytes: int
    first: int

    @property
    def numbers(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass
class Parts:
    """The matrices of one layer, in the order in which they were added."""

    parts: list[Part] = field(default_factory=list)
    nbytes: int = 0
    numbers: int = 0

    def add(self, type_name: str, shape: tuple[int, int], nbytes: int) -> Part:
        part = Part(type_name, shape, self.nbytes, nbytes, self.numbers)
        self.parts.append(part)
        self.nbytes += -(-nbytes // ALIGN) * ALIGN
        self.numbers += -(-part.numbers // ALIGN) * ALIGN
        return part


@dataclass(frozen=True)
class Placement:
    """Which layers lie where. `device_bytes` and `ram_bytes`: all that is there, the ring and its staging included."""

    device: tuple[int, ...]
    ram: tuple[int, ...]
    disk: tuple[int, ...]
    device_bytes: int
    ram_bytes: int
    ring_bytes: int


def place(
    layers: Sequence[Parts],
    fixed_bytes: int,
    number_bytes: int,
    device_bytes: int | None,
    host_bytes: int | None,
    *,
    pinned: bool = False,
) -> Placement:
    """As many layers on the device as fit beside what is always there (`fixed_bytes`) and the ring; of the others as
    many in RAM as fit. None is no limit. Streamed layers are spread evenly between the resident ones, so that each
    copy has some layers' time. `pinned`: PyTorch takes such memory in powers of two. Raises BudgetError where not even
    the ring fits."""

    def host(nbytes: int) -> int:
        return 1 << (nbytes - 1).bit_length() if pinned and nbytes else nbytes

    count, least = len(layers), 0
    for streamed in range(count + 1):
        away = _spread(count, streamed)
        ring = _ring_bytes([layers[index] for index in away], number_bytes)
        total = fixed_bytes + ring + sum(number_bytes * layers[i].numbers for i in range(count) if i not in away)
        if device_bytes is None or total <= device_bytes:
            break
        least = min(least or total, total)
    else:
        raise BudgetError(
            f"device memory of {device_bytes} bytes: this model's embeddings, its head and a ring of two layers take "
            f"{least} bytes there as floats; allow as much, or run it on the processor"
        )
    staging = RING * host(max((layers[index].nbytes for index in away), default=0))
    for kept in range(len(away), -1, -1):
        ram = [away[each] for each in _spread(len(away), kept)]
        held = sum(host(layers[index].nbytes) for index in ram) + (staging if kept < len(away) else 0)
        if host_bytes is None or held <= host_bytes:
            break  # with none kept, the staging is what there must be
    resident = tuple(index for index in range(count) if index not in away)
    disk = tuple(index for index in away if index not in ram)
    return Placement(resident, tuple(ram), disk, total, held, ring)


def _spread(count: int, some: int) -> list[int]:
    """`some` of `count` places, evenly."""
    return [(2 * index + 1) * count // (2 * some) for index in range(some)]


def _ring_bytes(streamed: Sequence[Parts], number_bytes: int) -> int:
    """Two slots, each for the largest layer's bytes and floats, and room to turn one into the other."""
    if not streamed:
        return 0
    largest = max(part.numbers for layer in streamed for part in layer.parts)
    scratch = _SCRATCH * min(PIECE, largest)
    return RING * (max(x.nbytes for x in streamed) + number_bytes * max(x.numbers for x in streamed)) + scratch


@dataclass
class Slot:
    """Half of the ring: a layer's bytes and floats on the device, and a way from the file to there."""

    raw: Tensor
    floats: Tensor
    staging: Tensor | None  # in the host's memory
    ready: torch.cuda.Event | None = None  # the copy is done
    unused: torch.cuda.Event | None = None  # what computes with the layer before is done


class Lane:
    """Copies to a device whose operations run in the caller's thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def slot(self, nbytes: int, numbers: int, dtype: torch.dtype, *, staged: bool) -> Slot:
        return Slot(
            torch.empty(nbytes, dtype=torch.uint8, device=self.device),
            torch.empty(numbers, dtype=dtype, device=self.device),
            self.host(nbytes) if staged else None,
        )

    def host(self, nbytes: int) -> Tensor:
        """Memory of the host from which copies are fast."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def settle(self, slot: Slot) -> None:
        """Wait until the slot's staging memory may be written."""

    def copy(self, slot: Slot, source: Tensor, parts: Sequence[Part]) -> None:
        """A layer's bytes from the host into the slot, and its floats there."""
        slot.raw[: source.numel()].copy_(source, non_blocking=True)
        for part in parts:
            raw = slot.raw[part.offset : part.offset + part.nbytes]
            dequantize_into(part.type, raw, slot.floats[part.first : part.first + part.numbers])

    def enter(self, slot: Slot) -> None:
        """What computes from now on sees the slot's floats."""

    def leave(self, slot: Slot) -> None:
        """What was given to compute so far is all that uses the slot's floats."""


class CudaLane(Lane):
    """Copies on a stream of their own, from pinned memory, ordered with the computing by events."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def slot(self, nbytes: int, numbers: int, dtype: torch.dtype, *, staged: bool) -> Slot:
        slot = super().slot(nbytes, numbers, dtype, staged=staged)
        slot.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        slot.unused = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return slot

    def host(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def settle(self, slot: Slot) -> None:
        assert slot.ready is not None
        slot.ready.synchronize()

    def copy(self, slot: Slot, source: Tensor, parts: Sequence[Part]) -> None:
        assert slot.ready is not None and slot.unused is not None
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(slot.unused)
            super().copy(slot, source, parts)
            slot.ready.record(self.stream)

    def enter(self, slot: Slot) -> None:
        assert slot.ready is not None
        torch.cuda.current_stream(self.device).wait_event(slot.ready)

    def leave(self, slot: Slot) -> None:
        assert slot.unused is not None
        slot.unused.record(torch.cuda.current_stream(self.device))


@dataclass
class Counts:
    """What streaming took so far. `waited_s`: for which the thread that computes stood still for a copy."""

    layers: int = 0
    copied_bytes: int = 0
    disk_bytes: int = 0
    demanded: int = 0  # layers that were not on their way when they were wanted
    waited_s: float = 0.0


class TieredMatrix:
    """A weight (out, in) of a streamed layer, as the torch op set takes one; its floats are there when asked for."""

    def __init__(self, tiers: Tiers, layer: int, part: Part, rounds: bool) -> None:
        self.shape, self.rounds = part.shape, rounds
        self._tiers, self._layer, self._part = tiers, layer, part

    @property
    def weight(self) -> Tensor:
        """(out, in), until another layer's weight is asked for."""
        first = self._part.first
        return self._tiers.floats(self._layer)[first : first + self._part.numbers].view(self.shape)


class Tiers:
    """The streamed layers of one model. Used from one thread at a time."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, layers: dict[int, Parts], ram: Sequence[int], read: Read
    ) -> None:
        """`layers`: the streamed ones, by number; `ram`: those of them that are kept in the host's memory."""
        self.layers, self.order, self.read = layers, sorted(layers), read
        self.counts = Counts()
        self.lane = CudaLane(device) if device.type == "cuda" else Lane(device)
        most, numbers = max(x.nbytes for x in layers.values()), max(x.numbers for x in layers.values())
        staged = len(ram) < len(layers)
        self._free = [self.lane.slot(most, numbers, dtype, staged=staged) for _ in range(RING)]
        self._coming: dict[int, Future[Slot]] = {}
        self._here: tuple[int, Slot] | None = None
        self._ram: dict[int, Tensor] = {}
        for index in ram:
            self._ram[index] = self.lane.host(layers[index].nbytes)
            read(index, self._ram[index])
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="genmote-tiers")

    def floats(self, layer: int) -> Tensor:
        """The layer's numbers on the device. The next layer's copy begins."""
        if self._here is None or self._here[0] != layer:
            self._enter(layer)
        assert self._here is not None
        return self._here[1].floats

    def _enter(self, layer: int) -> None:
        if self._here is not None:
            self.lane.leave(self._here[1])
            self._free.append(self._here[1])
            self._here = None
        if layer not in self._coming:
            self.counts.demanded += 1
            self._give_up()
            self._fetch(layer)
        began = time.perf_counter()
        coming = self._coming[layer]
        try:
            slot = coming.result()
        except BaseException:  # interrupted, the layer is still on its way; one that failed has given its slot back
            if coming.done() and coming.exception() is not None:
                del self._coming[layer]
            raise
        finally:
            self.counts.waited_s += time.perf_counter() - began
        self.lane.enter(slot)
        del self._coming[layer]
        self._here = (layer, slot)
        self.counts.layers += 1
        after = self.order[(self.order.index(layer) + 1) % len(self.order)]
        if after not in self._coming and after != layer and self._free:
            self._fetch(after)

    def _fetch(self, layer: int) -> None:
        self._coming[layer] = self._worker.submit(self._bring, layer, self._free.pop())

    def _give_up(self) -> None:
        """Take back the slots of layers that are not wanted after all."""
        for layer, future in list(self._coming.items()):
            with contextlib.suppress(Exception):  # one that failed has given its slot back
                self._free.append(future.result())
            del self._coming[layer]  # not before: interrupted, the rest is taken back the next time

    def _bring(self, layer: int, slot: Slot) -> Slot:
        """In the background: the layer's bytes, from RAM or the file, into the slot."""
        try:
            parts, source = self.layers[layer], self._ram.get(layer)
            if source is None:
                assert slot.staging is not None
                self.lane.settle(slot)
                source = slot.staging[: parts.nbytes]
                self.read(layer, source)
                self.counts.disk_bytes += parts.nbytes
            self.lane.copy(slot, source, parts.parts)
            self.counts.copied_bytes += parts.nbytes
        except BaseException:
            self._free.append(slot)
            raise
        return slot

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)
