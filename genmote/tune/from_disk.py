"""Weights that are read from the disk as they are needed: one layer of them is in memory at a time.

The packed weights are a mapped file. Pages of a layer that has been passed are let go of, and the system is asked to
read the next layer's into its cache while one is computed, so that the disk works beside the kernels. Both ways through
the model read all layers.
"""

from __future__ import annotations

import mmap
from typing import Any

from genmote.errors import OpsError
from genmote.models import packed
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.packed import Packed
from genmote.models.weights import GgufWeights


class FromDisk:
    """What `Backward.before_layer` calls."""

    def __init__(self, found: Packed) -> None:
        self._map = _mapping(found.data)
        self._held: set[int] = set()
        spans: dict[int, tuple[int, int]] = {}
        for name, place in found.places.items():
            if name.startswith("blk."):
                layer, start = int(name.split(".")[1]), found.start + place.offset
                first, last = spans.get(layer, (start, start))
                spans[layer] = min(first, start), max(last, start + place.nbytes)
        # Whole pages: a page that two layers share counts for both.
        page = mmap.PAGESIZE
        self._spans = {
            layer: (start // page * page, end - start // page * page) for layer, (start, end) in spans.items()
        }

    def __call__(self, index: int, following: int | None) -> None:
        """Layer `index` is computed now, and `following` after it."""
        for layer in self._held - {index, following}:
            self._map.madvise(mmap.MADV_DONTNEED, *self._spans[layer])
        if following is not None and following not in self._held:
            self._map.madvise(mmap.MADV_WILLNEED, *self._spans[following])
        self._held = {index} if following is None else {index, following}


def decoder(model: ModelFile, ops: Any) -> tuple[Decoder, FromDisk]:
    """A model whose weights are read as they are needed, and what tells it of each layer. OpsError for an op set that
    does not take packed weights, and where no packed file can be made."""
    found = packed.loader(model, ops)
    if not isinstance(found, Packed) or not hasattr(mmap, "MADV_DONTNEED"):
        raise OpsError(
            "weights from the disk need the native op set, and a cache folder that takes the packed weights: give more "
            "--memory, or run genmote pack"
        )
    weights = GgufWeights(model, ops, found)
    return Decoder(weights.config, weights, ops), FromDisk(found)


def _mapping(data: Any) -> mmap.mmap:
    """The mapped file that an array is a view of."""
    while not isinstance(data, mmap.mmap):
        data = data.obj if isinstance(data, memoryview) else data.base
    return data
