"""Safetensors files: what the library writes is read, and whatever a header claims ends in one clear line."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genmote.errors import ModelFileError
from genmote.models.safetensors import INDEX, SINGLE, Stored, open_folder, parse_json
from tests.models.peers import write_json

SECONDS = 2.0  # a sound file of this size takes a millisecond; a loaded machine is allowed a lot
LIES = [0, 1, 7, 255, 2**16, 2**31, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1]


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def opened(tmp_path: Path, content: bytes) -> dict[str, Stored]:
    (tmp_path / SINGLE).write_bytes(content)
    return open_folder(tmp_path)


def whole(tensor: Stored) -> np.ndarray:
    cols = tensor.shape[-1]
    return np.concatenate(list(tensor.pieces(cols, None, 100))).reshape(tensor.shape)


# -- what the library writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_numbers_are_the_library_s(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    tensors = {"a": torch.randn(7, 33, dtype=getattr(torch, dtype)), "b.c": torch.randn(5, dtype=getattr(torch, dtype))}
    library.save_file({**tensors, "ids": torch.arange(3)}, tmp_path / SINGLE, metadata={"format": "pt"})
    found = open_folder(tmp_path)
    assert set(found) == {"a", "b.c", "ids"} and found["ids"].dtype == "I64"
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert np.array_equal(whole(found[name]), tensor.float().numpy())


def test_rows_in_another_order(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    library.save_file({"x": x}, tmp_path / SINGLE)
    order = np.array([9, 0, 3, 3])
    pieces = list(open_folder(tmp_path)["x"].pieces(4, order, 8))
    assert len(pieces) == 2 and np.array_equal(np.concatenate(pieces), x[order])


def test_shards(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    for shard in "ab":
        library.save_file({shard: np.full(3, ord(shard), np.float32)}, tmp_path / f"{shard}.safetensors")
    write_json(tmp_path / INDEX, {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})
    assert {name: whole(tensor)[0] for name, tensor in open_folder(tmp_path).items()} == {"a": 97, "b": 98}


# -- faults ---------------------------------------------------------------------------------------------------------

F32 = entry("F32", [2], 0, 8)
WRONG: dict[str, tuple[bytes, str]] = {
    "short": (b"abc", "has 3 bytes, wanted a length of 8 bytes and a header"),
    "length": (struct.pack("<Q", 2**63) + b"{}", f"says that its header has {2**63} bytes, wanted at most 2"),
    "no json": (struct.pack("<Q", 2) + b"{]", "has a header that is no JSON"),
    "no utf-8": (struct.pack("<Q", 2) + b"\xff\xfe", "has a header that is no JSON"),
    "deep": (struct.pack("<Q", 200000) + b"[" * 200000, "has a header that is no JSON"),
    "a list": (struct.pack("<Q", 2) + b"[]", "has a header that is no JSON object"),
    "twice": (struct.pack("<Q", 15) + b'{"x":{},"x":{}}', "'x' is there twice"),
    "no entry": (header(x=5), "tensor x: wanted dtype, shape and data_offsets"),
    "half an entry": (header(x={"dtype": "F32"}), "tensor x: wanted dtype, shape and data_offsets"),
    "dtype": (header(x=entry("F31", [2], 0, 8)) + bytes(8), "tensor x has dtype 'F31'; known are F64, I64"),
    "shape": (header(x=entry("F32", [-2], 0, 8)) + bytes(8), r"tensor x has shape \[-2\], wanted whole numbers"),
    "bool": (header(x=entry("F32", [True, 2], 0, 8)) + bytes(8), r"tensor x has shape \[True, 2\]"),
    "dimensions": (header(x=entry("F32", [1] * 8 + [2], 0, 8)) + bytes(8), r"tensor x has shape \[1, 1"),
    "offsets": (header(x=entry("F32", [2], 8, 0)) + bytes(8), r"tensor x has data_offsets \[8, 0\]"),
    "one offset": (header(x={**F32, "data_offsets": [8]}) + bytes(8), r"tensor x has data_offsets \[8\]"),
    "beyond": (header(x=F32) + bytes(7), "tensor x ends at byte"),
    "far beyond": (header(x=entry("F32", [2**61], 0, 2**63 - 1)), "tensor x ends at byte"),
    "size": (header(x=entry("F32", [3], 0, 8)) + bytes(8), r"tensor x: F32 of shape \[3\] does not take 8 bytes"),
    "overlap": (header(x=F32, y=entry("F32", [2], 4, 12)) + bytes(12), "tensors x and y overlap"),
    "gap": (header(x=F32, y=entry("F32", [1], 12, 16)) + bytes(16), "has 4 bytes of no tensor before y"),
    "tail": (header(x=F32) + bytes(9), "goes on for 1 bytes after its last tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    with pytest.raises(ModelFileError, match=message) as caught:
        opened(tmp_path, content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert str(caught.value).startswith(f"{tmp_path / SINGLE}: ")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_must_be_finite(tmp_path: Path, bad: float) -> None:
    tensors = opened(tmp_path, header(x=F32) + np.array([1, bad], np.float32).tobytes())
    with pytest.raises(ModelFileError, match=f"tensor x holds {bad}: weights must be finite numbers"):
        whole(tensors["x"])


def test_numbers_beyond_float32(tmp_path: Path) -> None:
    tensors = opened(tmp_path, header(x=entry("F64", [1], 0, 8)) + np.array([1e300]).tobytes())
    with pytest.raises(ModelFileError, match="tensor x holds inf"):
        whole(tensors["x"])


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="has no model.safetensors and no model.safetensors.index.json; wanted a"):
        open_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match="its weights are PyTorch pickles, which can run programs"):
        open_folder(tmp_path)


def test_wrong_indexes_are_named(tmp_path: Path) -> None:
    one = header(x=F32) + bytes(8)
    (tmp_path / "a.safetensors").write_bytes(one)
    (tmp_path / "b.safetensors").write_bytes(one)
    for weight_map, message in (
        ({}, "has no weight_map from tensors to files"),
        ({"x": 5}, "names 5, wanted a .safetensors file beside it"),
        ({"x": "../a.safetensors"}, "names '../a.safetensors', wanted a .safetensors file beside it"),
        ({"x": "c.safetensors"}, "lacks c.safetensors, which model.safetensors.index.json names"),
        ({"y": "a.safetensors"}, "a.safetensors: lacks tensor 'y', which"),
        ({"x": "a.safetensors", "b": "b.safetensors"}, "b.safetensors: lacks tensor 'b'"),
    ):
        write_json(tmp_path / INDEX, {"weight_map": weight_map})
        with pytest.raises(ModelFileError, match=message):
            open_folder(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(header(x=F32, z=entry("F32", [1], 8, 12)) + bytes(12))
    write_json(tmp_path / INDEX, {"weight_map": {"x": "a.safetensors", "z": "b.safetensors"}})
    with pytest.raises(ModelFileError, match="b.safetensors: tensor x is in a.safetensors too"):
        open_folder(tmp_path)


def test_wrong_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content, message in (
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[1]", "holds a list, wanted a JSON object"),
        (b"[" * 200000, "is nested too deep"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=message):
            parse_json(path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        parse_json(tmp_path)


# -- damaged headers ------------------------------------------------------------------------------------------------

SOUND = header(**{"a.weight": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [4], 24, 32)}) + bytes(32)


def survive(tmp_path: Path, content: bytes) -> bool:
    """Open and read all of a mutant; True when it was refused. Any other error, and too much time or memory, fails."""
    start = time.perf_counter()
    tracemalloc.start()
    try:
        for tensor in opened(tmp_path, content).values():
            if tensor.dtype in ("F32", "BF16", "F16", "F64") and 0 not in tensor.shape and tensor.shape:
                whole(tensor)
        return False
    except ModelFileError as error:
        assert len(str(error)) < 4096 and str(error).isprintable()
        return True
    finally:
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        assert time.perf_counter() - start < SECONDS


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    assert not survive(tmp_path, SOUND)
    assert all(survive(tmp_path, SOUND[:end]) for end in range(1, len(SOUND)))


def test_every_byte_of_the_header_may_be_wrong(tmp_path: Path) -> None:
    end = len(SOUND) - 32
    refused = 0
    for position in range(end):
        for new in {0, 0x22, 0x39, 0xFF} - {SOUND[position]}:
            refused += survive(tmp_path, SOUND[:position] + bytes([new]) + SOUND[position + 1 :])
    assert refused > 2 * end


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["F32", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "x", "", None, 5]),
    shape=st.lists(st.sampled_from([*LIES, -1, 2, 3, 1.5, None, "2"]), max_size=9) | st.none() | st.integers(),
    offsets=st.lists(st.sampled_from([*LIES, -1, 8, 24, 32, 1.0, None]), max_size=3) | st.none(),
    name=st.sampled_from(["a", "b", "", "\n", "\u202e", "__metadata__"]),
)
def test_an_entry_may_say_anything(tmp_path: Path, dtype: Any, shape: Any, offsets: Any, name: str) -> None:
    lie = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    survive(tmp_path, header(**{"a": entry("F32", [2, 3], 0, 24), name: lie}) + bytes(32))
