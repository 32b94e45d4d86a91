"""A model's weights in the tiers of an accelerator: which tensors of its file go where (`ops/torch_tiers.py`)."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile, TensorInfo
    from genmote.ops.torch_tiers import Part, Placement, Tiers

_BLOCK = re.compile(r"blk\.(\d+)\.")


class TieredLoader:
    """A matrix loader (`models.weights.MatrixLoader`) of the torch op set that keeps within `device_bytes` of the
    device's memory and `host_bytes` of the host's (None: no limit). Raises BudgetError where they are too small."""

    def __init__(self, model: ModelFile, ops: Any, device_bytes: int | None, host_bytes: int | None) -> None:
        from genmote.ops.torch_tiers import Parts, Tiers, place

        self.model, self.ops = model, ops
        blocks: dict[int, Parts] = {}
        self._parts: dict[str, Part] = {}
        self._where: dict[int, list[tuple[Part, int]]] = {}  # layer → its parts, and where they begin in the file
        fixed = 0  # numbers that are always on the device
        for info in model.tensors.values():
            block = _BLOCK.match(info.name)
            if block is None or len(info.shape) < 2:
                fixed += math.prod(info.shape)
                continue
            parts, where = blocks.setdefault(int(block[1]), Parts()), self._where.setdefault(int(block[1]), [])
            for name, shape, offset, nbytes in matrices(info):
                self._parts[name] = parts.add(info.type, shape, nbytes)
                where.append((self._parts[name], offset))
        count = max(blocks, default=-1) + 1
        layers = [blocks.get(index, Parts()) for index in range(count)]
        number_bytes = ops.dtype.itemsize
        pinned = ops.device.type == "cuda"
        self.placement: Placement = place(
            layers, fixed * number_bytes, number_bytes, device_bytes, host_bytes, pinned=pinned
        )
        streamed = {index: layers[index] for index in (*self.placement.ram, *self.placement.disk)}
        self.tiers: Tiers | None = None
        if streamed:
            self.tiers = Tiers(ops.device, ops.dtype, streamed, self.placement.ram, self._read)

    def __call__(self, name: str, info: TensorInfo) -> Any:
        from genmote.ops.numpy_ops import PLAIN
        from genmote.ops.torch_tiers import TieredMatrix

        block = _BLOCK.match(name)
        layer = -1 if block is None else int(block[1])
        if self.tiers is not None and layer in self.tiers.layers:
            return TieredMatrix(self.tiers, layer, self._parts[name], info.type not in PLAIN)
        _, shape, offset, nbytes = next(found for found in matrices(info) if found[0] == name)
        raw = np.empty(nbytes, np.uint8)
        self.model.read_into(offset, raw)
        return self.ops.matrix(info.type, shape, raw)

    def _read(self, layer: int, into: Any) -> None:
        """All of a layer's bytes into a tensor in the host's memory."""
        view: NDArray[np.uint8] = into.numpy()
        for part, offset in self._where[layer]:
            self.model.read_into(offset, view[part.offset : part.offset + part.nbytes])


def matrices(info: TensorInfo) -> list[tuple[str, tuple[int, int], int, int]]:
    """A tensor's matrices as (name, shape, offset, bytes): itself, or one for each expert of a 3-D tensor."""
    rows, cols = info.shape[-2:]
    if len(info.shape) == 2:
        return [(info.name, (rows, cols), info.offset, info.nbytes)]
    each = info.nbytes // info.shape[0]
    return [(f"{info.name}[{i}]", (rows, cols), info.offset + i * each, each) for i in range(info.shape[0])]
