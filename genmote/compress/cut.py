"""Take channels, heads or whole blocks out of a model file: what stays is copied as it is, and the metadata follows.

The result is a smaller dense model, for any engine that takes widths by layer (docs/formats.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.models.config import Config, read_config
from genmote.models.gguf import ModelFile, TensorInfo
from genmote.models.gguf_write import Tensor, write_gguf
from genmote.ops import quant

BLOCKS = "genmote.compress.blocks"  # the number that each block had before any was taken out
OUTPUTS = ("attn_output.weight", "ffn_down.weight")  # what adds to the states: written anew after a cut
Kept = NDArray[np.int64]  # numbers of what stays, rising
Keys = dict[str, int | list[int]]  # of the metadata, without the architecture: of all layers, or of each


def whole_linears(file: ModelFile, what: str) -> None:
    """SpecError where linears of blocks are of low rank already."""
    low = next((name for name in file.tensors if name.startswith("blk.") and name.endswith("_a.weight")), None)
    if low is not None:
        raise SpecError(f"{what}: {low} is one of two low-rank factors; put {what} before low-rank")


def factor_names(name: str) -> tuple[str, str]:
    """Of the two tensors that stand for one of low rank.

    >>> factor_names("blk.0.attn_q.weight")
    ('blk.0.attn_q_a.weight', 'blk.0.attn_q_b.weight')
    """
    stem = name.removesuffix(".weight")
    return f"{stem}_a.weight", f"{stem}_b.weight"


def sizes(config: Config, kind: str, index: int, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """Of which tensors of block `index` (without .weight) how many rows are left, and how many columns, where it keeps
    `count` of its "channels", or of its key-value "heads"."""
    block = f"blk.{index}"
    if kind == "channels":
        return {f"{block}.ffn_gate": count, f"{block}.ffn_up": count}, {f"{block}.ffn_down": count}
    spec = config.layers[index]
    keys = count * spec.head_dim
    queries = keys * (spec.n_heads // spec.n_kv_heads)
    return {f"{block}.attn_q": queries, f"{block}.attn_k": keys, f"{block}.attn_v": keys}, {
        f"{block}.attn_output": queries
    }


def channel_keys(widths: list[int]) -> Keys:
    """What the metadata says of feed-forward parts of these widths."""
    return {"feed_forward_length": widths}


def head_keys(config: Config, kv_heads: list[int]) -> Keys:
    """What the metadata says of blocks with so many key-value heads."""
    heads = [n * (spec.n_heads // spec.n_kv_heads) for n, spec in zip(kv_heads, config.layers, strict=True)]
    counts: Keys = {"attention.head_count": heads, "attention.head_count_kv": kv_heads}
    return {**counts, "attention.key_length": config.head_dim, "attention.value_length": config.head_dim}


def with_keys(source: ModelFile, keys: Keys) -> dict[str, Any]:
    """The metadata of `source` with these keys of its architecture."""
    metadata = source.typed_metadata()
    for key, value in keys.items():
        # One number where all layers are alike: what every engine reads.
        one = value if isinstance(value, int) else value[0] if len(set(value)) == 1 else None
        metadata[f"{source.architecture}.{key}"] = np.uint32(one) if one is not None else np.array(value, np.int32)
    return metadata


def cut_channels(source: ModelFile, target: Path, kept: Sequence[Kept]) -> None:
    """Write `target` with the feed-forward channels `kept[i]` of block i."""
    rows = {f"blk.{i}.{name}": k for i, k in enumerate(kept) for name in ("ffn_gate.weight", "ffn_up.weight")}
    rows |= {f"blk.{i}.{name}": k for i, k in enumerate(kept) for name in ("ffn_gate.bias", "ffn_up.bias")}
    cols = {f"blk.{i}.ffn_down.weight": k for i, k in enumerate(kept)}
    _write(source, target, channel_keys([len(k) for k in kept]), rows, cols)


def cut_groups(source: ModelFile, target: Path, kept: Sequence[Kept]) -> None:
    """Write `target` with the key-value heads `kept[i]` of block i and the query heads that go with them."""
    config = read_config(source)
    rows: dict[str, Kept] = {}
    cols: dict[str, Kept] = {}
    for i, groups in enumerate(kept):
        spec = config.layers[i]
        keys = spread(groups, spec.head_dim)
        queries = spread(groups, spec.head_dim * (spec.n_heads // spec.n_kv_heads))
        for part, at in (("q", queries), ("k", keys), ("v", keys)):
            rows |= {f"blk.{i}.attn_{part}.{kind}": at for kind in ("weight", "bias")}
        cols[f"blk.{i}.attn_output.weight"] = queries
    _write(source, target, head_keys(config, [len(k) for k in kept]), rows, cols)


def cut_blocks(source: ModelFile, target: Path, kept: Kept) -> None:
    """Write `target` with the blocks `kept`, renumbered."""
    config = read_config(source)
    architecture, metadata = source.architecture, source.typed_metadata()
    for key, value in list(metadata.items()):
        listed = not isinstance(value, str) and hasattr(value, "__len__")
        if key.startswith(f"{architecture}.") and listed and len(value) == config.n_layers:
            metadata[key] = np.asarray(value)[kept]
    before = metadata.get(BLOCKS, np.arange(config.n_layers))
    metadata[BLOCKS] = np.asarray(before)[kept].astype(np.int32)
    metadata[f"{architecture}.block_count"] = np.uint32(len(kept))
    if any(spec.window for spec in config.layers):
        # Which layers are local, and scores' scale, may be told by the number of layers: said outright from now on.
        local = [bool(config.layers[i].window) for i in kept]
        metadata[f"{architecture}.attention.sliding_window_pattern"] = np.array(local)
        if config.layers[0].scale != config.head_dim**-0.5:
            metadata[f"{architecture}.attention.scale"] = np.float32(config.layers[0].scale)
    new = {int(old): number for number, old in enumerate(kept)}
    tensors: list[Tensor] = []
    for info in source.tensors.values():
        name = info.name
        if name.startswith("blk."):
            _, number, rest = name.split(".", 2)
            if int(number) not in new:
                continue
            name = f"blk.{new[int(number)]}.{rest}"
        tensors.append((name, info.type, info.shape, source.raw(info.name)))
    write_gguf(target, metadata, tensors)


def original_blocks(file: ModelFile, original: ModelFile) -> list[int]:
    """Which of the original's blocks each block was; SpecError where that cannot be told."""
    count, of = read_config(file).n_layers, read_config(original).n_layers
    listed = file.metadata.get(BLOCKS)
    if listed is None and count == of:
        return list(range(count))
    found = [] if listed is None else [int(number) for number in listed]
    if len(found) != count or max(found) >= of:
        raise SpecError(f"{file.path.name} has {count} blocks and the original {of}: which they were is not told")
    return found


def spread(groups: Kept, size: int) -> Kept:
    """The numbers of the members of groups of `size` neighbours.

    >>> spread(np.array([0, 2]), 3).tolist()
    [0, 1, 2, 6, 7, 8]
    """
    members: Kept = (groups[:, None] * size + np.arange(size)).reshape(-1)
    return members


def _write(
    source: ModelFile,
    target: Path,
    keys: Keys,
    rows: Mapping[str, Kept],
    cols: Mapping[str, Kept],
) -> None:
    tensors: list[Tensor] = []
    for info in source.tensors.values():
        if info.name in rows:
            tensors.append(_rows(source, info, rows[info.name]))
        elif info.name in cols:
            tensors.append(_cols(source, info, cols[info.name]))
        else:
            tensors.append((info.name, info.type, info.shape, source.raw(info.name)))
    write_gguf(target, with_keys(source, keys), tensors)


def _rows(source: ModelFile, info: TensorInfo, kept: Kept) -> Tensor:
    """Rows of a matrix, or numbers of a vector, in the type in which they are stored."""
    raw = source.raw(info.name).reshape(info.shape[0], -1)[kept]
    return info.name, info.type, (len(kept), *info.shape[1:]), raw


def _cols(source: ModelFile, info: TensorInfo, kept: Kept) -> Tensor:
    """Columns of a matrix; those of a quantised one are plain numbers from now on."""
    if len(kept) == info.shape[1]:
        return info.name, info.type, info.shape, source.raw(info.name)
    numbers = source.tensor(info.name)[:, kept]
    kind = info.type if quant.by_name(info.type).block_size == 1 else "F32"
    return info.name, kind, numbers.shape, quant.quantize(kind, numbers)
