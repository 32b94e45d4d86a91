"""Read safetensors files, one or many to a model, through memory maps; no PyTorch, and nothing in them is believed.

Layout (https://github.com/huggingface/safetensors#format): a 64-bit length, that many bytes of JSON (name → dtype,
shape, data_offsets), then the numbers, each tensor behind the other without gaps. Whatever a header says is checked
against the file's size before anything is allocated, and ends in `ModelFileError` if it cannot be true.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError
from genmote.models.gguf import map_file
from genmote.models.gguf_values import Source
from genmote.ops import quant

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Beyond any header ever written (a model of 100 000 tensors takes 12 MB); JSON takes many times its length in memory.
_LONGEST_HEADER = 1 << 24
_MOST_DIMENSIONS = 8
_BY_BYTES = {
    8: "F64 I64 U64 C64",
    4: "F32 I32 U32",
    2: "F16 BF16 I16 U16",
    1: "I8 U8 BOOL F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
}
_ITEM_BYTES = {dtype: size for size, dtypes in _BY_BYTES.items() for dtype in dtypes.split()}
WEIGHTS = ("F64", "F32", "BF16", "F16")  # dtypes that hold weights


@dataclass(frozen=True)
class Stored:
    """A tensor's place: `offset` and `nbytes` in the file of `source`."""

    source: Source
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def pieces(self, cols: int, order: NDArray[np.int64] | None, most: int) -> Iterator[NDArray[np.float32]]:
        """The numbers as rows of `cols`, some rows at a time, at most `most` numbers (or one row).

        `order`: which rows, in which order; None: all as they lie. `ModelFileError` for NaN and infinity.
        """
        size = _ITEM_BYTES[self.dtype]
        raw = self.source.data[self.offset : self.offset + self.nbytes].reshape(-1, cols * size)
        count = len(raw) if order is None else len(order)
        step = max(1, most // cols)
        for start in range(0, count, step):
            rows = raw[start : start + step] if order is None else raw[order[start : start + step]]
            yield self._numbers(rows.reshape(-1), (len(rows), cols))
            if order is None:
                self.source.release(self.offset + start * cols * size, rows.size)
        self.source.release(self.offset, self.nbytes)

    def _numbers(self, raw: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            if self.dtype == "F64":
                wide: NDArray[Any] = np.frombuffer(raw.tobytes(), "<f8").reshape(shape)
                numbers = wide.astype(np.float32)
            else:
                numbers = quant.dequantize(self.dtype, raw, shape)
        if not np.isfinite(numbers).all():
            bad = numbers[~np.isfinite(numbers)][0]
            raise self.source.fail(
                f"tensor {self.name} holds {bad}: weights must be finite numbers; the file is damaged, fetch it again"
            )
        return numbers


def open_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder by name: of ``model.safetensors``, or of the files that its index lists."""
    if (folder / SINGLE).is_file():
        return read_header(map_file(folder / SINGLE, "safetensors"))
    if not (folder / INDEX).is_file():
        raise ModelFileError(f"{folder}: has no {SINGLE} and no {INDEX}{_others(folder)}")
    tensors: dict[str, Stored] = {}
    for shard, names in shards(folder / INDEX).items():
        if not (folder / shard).is_file():
            raise ModelFileError(f"{folder}: lacks {shard}, which {INDEX} names; fetch the whole model")
        found = read_header(map_file(folder / shard, "safetensors"))
        source = next(iter(found.values())).source if found else None
        for name in names - set(found):
            raise ModelFileError(
                f"{folder / shard}: lacks tensor {name!r:.200}, which {INDEX} promises; fetch it again"
            )
        for name in found.keys() & tensors.keys():
            assert source is not None
            raise source.fail(f"tensor {name} is in {tensors[name].source.path.name} too; the model is damaged")
        tensors |= found
    return tensors


def _others(folder: Path) -> str:
    """What to do about weights that come in another form."""
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return (
            "; its weights are PyTorch pickles, which can run programs and are not read: take a revision of the model "
            "with safetensors, or load it with transformers and save_pretrained() it"
        )
    return "; wanted a Hugging Face model folder with its weights as safetensors"


def shards(index: Path) -> dict[str, set[str]]:
    """File → names of the tensors that the index says are in it."""
    weight_map = parse_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index}: has no weight_map from tensors to files; fetch it again")
    found: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelFileError(f"{index}: names {shard!r:.200}, wanted a .safetensors file beside it")
        found.setdefault(shard, set()).add(name)
    return dict(sorted(found.items()))


def read_header(source: Source) -> dict[str, Stored]:
    """The tensors of one file, their places checked: inside the file, one behind the other."""
    if source.size < 8:
        raise source.fail(f"has {source.size} bytes, wanted a length of 8 bytes and a header; it is truncated")
    length = struct.unpack_from("<Q", source.view)[0]
    if length > min(source.size - 8, _LONGEST_HEADER):
        raise source.fail(
            f"says that its header has {length} bytes, wanted at most {min(source.size - 8, _LONGEST_HEADER)}; "
            "it is truncated, damaged or no safetensors file"
        )
    header = _json(source, bytes(source.view[8 : 8 + length]))
    start = 8 + length
    found = [_place(source, name, entry, start) for name, entry in header.items() if name != "__metadata__"]
    ordered = sorted(found, key=lambda tensor: (tensor.offset, tensor.nbytes))
    for before, after in itertools.pairwise(ordered):
        if after.offset < before.offset + before.nbytes:
            raise source.fail(f"tensors {before.name} and {after.name} overlap; the file is damaged")
    end = start
    for tensor in ordered:
        if tensor.offset != end:
            raise source.fail(f"has {tensor.offset - end} bytes of no tensor before {tensor.name}; it is damaged")
        end += tensor.nbytes
    if end != source.size:
        raise source.fail(f"goes on for {source.size - end} bytes after its last tensor; it is damaged")
    return {tensor.name: tensor for tensor in found}


def _place(source: Source, name: str, entry: Any, start: int) -> Stored:
    """One tensor's place; the numbers of the file begin at `start`."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise source.fail(f"tensor {name:.200}: wanted dtype, shape and data_offsets in the header; it is damaged")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise source.fail(f"tensor {name:.200} has dtype {dtype!r:.40}; known are {', '.join(_ITEM_BYTES)}")
    if not _counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise source.fail(f"tensor {name:.200} has shape {shape!r:.80}, wanted whole numbers; the header is damaged")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise source.fail(f"tensor {name:.200} has data_offsets {offsets!r:.80}, wanted begin and end; it is damaged")
    nbytes = offsets[1] - offsets[0]
    if start + offsets[1] > source.size:
        raise source.fail(
            f"tensor {name:.200} ends at byte {start + offsets[1]}, but the file at {source.size}; "
            "it is truncated or damaged: fetch it again"
        )
    if math.prod(shape) * _ITEM_BYTES[dtype] != nbytes:
        raise source.fail(f"tensor {name:.200}: {dtype} of shape {shape} does not take {nbytes} bytes; it is damaged")
    return Stored(source, name, dtype, tuple(shape), start + offsets[0], nbytes)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _json(source: Source, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise source.fail(f"has a header that is no JSON ({error!s:.200}); it is damaged or no safetensors") from None
    if not isinstance(value, dict):
        raise source.fail("has a header that is no JSON object; it is damaged or no safetensors file")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.80} is there twice")
        found[name] = value
    return found


def parse_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `ModelFileError` for anything else."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ModelFileError(f"{path}: is nested too deep; it is damaged") from None
    except ValueError as error:
        raise ModelFileError(f"{path}: is no JSON ({error!s:.200}); fetch it again") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: holds a {type(value).__name__}, wanted a JSON object; fetch it again")
    return value
