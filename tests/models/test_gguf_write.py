"""The model file writer: what is written comes back, streamed, and a failed write leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genmote.errors import ModelFileError, SpecError
from genmote.models.gguf import MetaArray, ModelFile
from genmote.models.gguf_write import write_gguf


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, MetaArray | np.ndarray) else value


KEYS = st.text(min_size=1, max_size=20).filter(lambda key: key not in ("general.alignment", "split.count"))
F32 = st.floats(width=32, allow_nan=False)
VALUES = st.one_of(
    st.text(max_size=50),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    F32,
    st.lists(st.text(max_size=9), min_size=1, max_size=9),
    st.lists(st.booleans(), min_size=1, max_size=9),
    st.lists(F32, min_size=1, max_size=9),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(KEYS, VALUES, max_size=8), sizes=st.lists(st.integers(1, 70), max_size=5))
def test_everything_comes_back(tmp_path: Path, metadata: dict[str, Any], sizes: list[int]) -> None:
    path, again = tmp_path / "a.gguf", tmp_path / "b.gguf"
    numbers = [np.arange(size, dtype=np.float32) for size in sizes]
    write_gguf(path, metadata, [(f"t{i}", "F32", x.shape, x) for i, x in enumerate(numbers)])
    model = ModelFile.open(path)
    assert {key: plain(value) for key, value in model.metadata.items()} == metadata
    assert path.stat().st_size % 32 == 0 or not sizes
    for i, x in enumerate(numbers):
        assert model.tensors[f"t{i}"].offset % 32 == 0
        assert np.array_equal(model.tensor(f"t{i}"), x)
    # With the types that were read, the same file is written again, byte for byte.
    write_gguf(
        again, model.typed_metadata(), [(t.name, t.type, t.shape, model.raw(t.name)) for t in model.tensors.values()]
    )
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (7, np.uint32),
        (-7, np.int32),
        (2**32, np.uint64),
        (-(2**31) - 1, np.int64),
        (0.5, np.float32),
        (np.float64(0.5), np.float64),
        (np.uint8(3), np.uint8),
    ],
)
def test_types_of_single_numbers(tmp_path: Path, value: Any, stored: type) -> None:
    write_gguf(tmp_path / "a.gguf", {"k": value}, [])
    back = ModelFile.open(tmp_path / "a.gguf").typed_metadata()["k"]
    assert type(back) is stored
    assert back == value


def test_types_of_arrays(tmp_path: Path) -> None:
    arrays = {
        "ints": ([1, -2], "int32"),
        "wide": ([2**40], "int64"),
        "floats": ([0.5], "float32"),
        "bools": ([True, False], "bool"),
        "big": (np.array([1, 2], ">u2"), "uint16"),
        "empty": (np.empty(0, np.float32), "float32"),
    }
    write_gguf(tmp_path / "a.gguf", {key: value for key, (value, _) in arrays.items()}, [])
    metadata = ModelFile.open(tmp_path / "a.gguf").metadata
    for key, (value, kind) in arrays.items():
        assert (metadata[key].element_type, list(metadata[key])) == (kind, list(value))


def test_data_may_be_a_buffer_pieces_or_a_function(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)

    def pieces() -> Iterator[np.ndarray]:
        yield from x

    given_data: list[Any] = [
        x,
        x.tobytes(),
        pieces(),
        pieces,
        lambda: x,
        np.asfortranarray(x),
        [x[:2], x[2:].tobytes()],
    ]
    write_gguf(tmp_path / "a.gguf", {}, [(f"t{i}", "f32", x.shape, data) for i, data in enumerate(given_data)])
    model = ModelFile.open(tmp_path / "a.gguf")
    for i in range(len(given_data)):
        assert np.array_equal(model.tensor(f"t{i}"), x)


def test_alignment_is_the_one_asked_for(tmp_path: Path) -> None:
    x = np.ones(3, np.float32)
    write_gguf(tmp_path / "a.gguf", {"general.alignment": 4096}, [("a", "F32", (3,), x), ("b", "F32", (3,), x)])
    model = ModelFile.open(tmp_path / "a.gguf")
    assert model.alignment == 4096
    assert [info.offset % 4096 for info in model.tensors.values()] == [0, 0]


def test_writing_streams(tmp_path: Path) -> None:
    import tracemalloc

    rows, cols = 64, 1 << 18

    def pieces() -> Iterator[np.ndarray]:
        for _ in range(rows):
            yield np.zeros(cols, np.float32)

    tracemalloc.start()
    write_gguf(tmp_path / "a.gguf", {}, [("w", "F32", (rows, cols), pieces)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20 < rows * cols * 4


X = np.ones(4, np.float32)
FAULTS: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    "short": ({}, [("w", "F32", (5,), X)], "tensor w takes 20 bytes; got 16"),
    "long": ({}, [("w", "F32", (3,), X)], "tensor w takes 12 bytes; got at least 16"),
    "pieces": ({}, [("w", "F32", (3,), [X, X])], "tensor w takes 12 bytes; got at least 16"),
    "twice": ({}, [("w", "F32", (4,), X)] * 2, "tensor w is given twice"),
    "no name": ({}, [("", "F32", (4,), X)], r"tensor '' has shape \(4,\); wanted a name and 1 to 4 dimensions above 0"),
    "no shape": ({}, [("w", "F32", (), X)], r"tensor 'w' has shape \(\); wanted"),
    "zero": ({}, [("w", "F32", (4, 0), X)], r"tensor 'w' has shape \(4, 0\); wanted"),
    "type": ({}, [("w", "Q9", (4,), X)], "tensor type 'Q9' is unknown"),
    "block": ({}, [("w", "Q4_0", (4,), X)], "rows of 4 numbers do not fit Q4_0"),
    "object": ({"k": object()}, [], "k: <object object at .*> has no GGUF type"),
    "none": ({"k": None}, [], "k: None has no GGUF type; give a str, bool, int, float"),
    "huge": ({"k": 2**70}, [], "k: 1180591620717411303424 has no GGUF type"),
    "mixed": ({"k": ["a", 1]}, [], r"k: \['a', 1\] has no GGUF type"),
    "empty": ({"k": []}, [], "k: an empty list has no type; give an empty NumPy array"),
    "matrix": ({"k": np.ones((2, 2))}, [], r"k: an array of shape \(2, 2\) has no place"),
    "alignment": ({"general.alignment": 24}, [], "general.alignment=24: wanted a power of two"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_write_says_why_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    metadata, tensors, message = FAULTS[name]
    (tmp_path / "a.gguf").write_bytes(b"what was there")
    with pytest.raises(SpecError, match=message):
        write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    assert (tmp_path / "a.gguf").read_bytes() == b"what was there"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def stop() -> Iterator[np.ndarray]:
        yield X
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "a.gguf", {}, [("w", "F32", (8,), stop)])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="a.gguf: cannot be written, .*absent is no folder; make it first"):
        write_gguf(tmp_path / "absent" / "a.gguf", {}, [])


def test_a_place_that_cannot_take_a_file(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.open", full)
    with pytest.raises(ModelFileError, match=r"a.gguf: cannot be written \(No space left on device\); free space or"):
        write_gguf(tmp_path / "a.gguf", {}, [])
