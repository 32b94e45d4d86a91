"""Damaged model files: thousands of mutants of a sound one each open or end in one ModelFileError, soon and small."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genmote.errors import ModelFileError
from genmote.models.gguf import MetaArray, ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.ops import quant

# What a lying field says: counts and lengths at the edges of their range.
LIES = [0, 1, 2, 7, 0x7F, 0xFF, 0x100, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1]
SECONDS = 2.0  # a sound file of this size takes a millisecond; a loaded machine is allowed a lot


class Quiet(bytes):
    """Bytes that a failing test does not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """A small file with every kind of value, several tensor types, strings short and long."""
    path = tmp_path_factory.mktemp("sound") / "sound.gguf"
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "x.float": 0.5,
        "x.bool": True,
        "x.wide": np.uint64(2**40),
        "tokens": ["a", "", "ü", "long " * 60, *(f"token{i}" for i in range(40))],
        "scores": np.linspace(0, 1, 44, dtype=np.float32),
        "types": np.arange(44, dtype=np.int32),
        "flags": [True, False],
    }
    x = np.random.default_rng(0).standard_normal((1, 256), np.float32)
    kinds = ("F32", "F16", "Q8_0", "Q4_1", "Q4_K", "Q6_K", "GM3_32", "IQ4_NL")
    write_gguf(path, metadata, [(f"blk.0.{kind}", kind, x.shape, quant.quantize(kind, x)) for kind in kinds])
    ModelFile.open(path)
    return Quiet(path.read_bytes())


def header_size(content: bytes) -> int:
    """Where the last tensor's name ends: what lies before decides how the rest is read."""
    return content.index(b"blk.0.IQ4_NL") + 40


def survive(path: Path, content: bytes) -> bool:
    """Open and read all of a mutant; True when it was refused. Any other error, and too much time or memory, fails."""
    path.write_bytes(content)
    start = time.perf_counter()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    refused = False
    try:
        model = ModelFile.open(path)
    except ModelFileError as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error)) < 4096 and str(error).isprintable()
        refused = True
    # The window over a vocabulary costs 8 bytes a byte, for at most 64 KiB at once; the rest is a few small objects.
    assert tracemalloc.get_traced_memory()[1] - before < (1 << 18) + 12 * min(len(content), 1 << 16)
    if not refused:
        read_all(model)
    assert time.perf_counter() - start < SECONDS
    return refused


def read_all(model: ModelFile) -> None:
    for value in model.metadata.values():
        if isinstance(value, MetaArray):
            try:
                assert len(list(value)) == len(value)
            except ModelFileError as error:
                assert "UTF-8" in str(error)  # the one thing about an array that opening does not check
    for info in model.tensors.values():
        assert model.raw(info.name).size == info.nbytes
        if quant.TYPES[info.type].codec:
            assert model.tensor(info.name).shape == info.shape


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_every_truncation_is_refused(sound: Quiet, tmp_path: Path) -> None:
    ends = [*range(header_size(sound)), *range(header_size(sound), len(sound) - 32, 97)]
    for end in ends:
        assert survive(tmp_path / "cut.gguf", sound[:end]), end


@pytest.mark.usefixtures("traced")
def test_every_byte_of_the_header_may_be_wrong(sound: Quiet, tmp_path: Path) -> None:
    refused = 0
    for position in range(header_size(sound)):
        old = sound[position]
        for new in {old ^ 1 if position % 2 else 0xFF} - {old}:
            refused += survive(tmp_path / "byte.gguf", sound[:position] + bytes([new]) + sound[position + 1 :])
    assert refused > 500


@pytest.mark.usefixtures("traced")
def test_every_field_of_the_header_may_lie(sound: Quiet, tmp_path: Path) -> None:
    for position in range(0, header_size(sound) - 8, 4):
        for lie in LIES[position // 4 % 5 :: 5]:
            survive(tmp_path / "lie.gguf", sound[:position] + struct.pack("<Q", lie) + sound[position + 8 :])


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "lie", "cut", "insert", "repeat", "drop"]),
        st.floats(0, 1),
        st.integers(0, 2**64 - 1) | st.sampled_from(LIES),
    ),
    min_size=1,
    max_size=6,
)


def mutate(content: bytes, header: int, edits: list[tuple[str, float, int]]) -> bytes:
    for kind, place, value in edits:
        # The header is where it hurts: three edits out of four go there.
        share, end = (place * 4 / 3, header) if place < 0.75 else (place, len(content))
        at = min(int(share * end), max(len(content) - 1, 0))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ (1 << value % 8)]) + content[at + 1 :]
        elif kind == "lie":
            content = content[:at] + struct.pack("<Q", value) + content[at + 8 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + struct.pack("<Q", value)[: 1 + value % 8] + content[at:]
        elif kind == "repeat":
            content = content[: at + value % 64] + content[at:]
        else:
            content = content[:at] + content[at + value % 64 :]
    return content


@pytest.mark.usefixtures("traced")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EDITS)
def test_mutants(sound: Quiet, tmp_path: Path, edits: list[tuple[str, float, int]]) -> None:
    survive(tmp_path / "mutant.gguf", mutate(sound, header_size(sound), edits))


@pytest.mark.usefixtures("traced")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_noise_after_the_magic(tmp_path: Path, noise: bytes) -> None:
    survive(tmp_path / "noise.gguf", b"GGUF" + struct.pack("<I", 3) + noise)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
@settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EDITS)
def test_many_mutants(sound: Quiet, tmp_path: Path, edits: list[tuple[str, float, int]]) -> None:
    survive(tmp_path / "mutant.gguf", mutate(sound, header_size(sound), edits))


def test_many_empty_strings_are_walked_in_time(tmp_path: Path) -> None:
    """The worst case of the walk: nothing but zero lengths, so that no guess holds."""
    count = 300_000
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, count)
    (tmp_path / "zeros.gguf").write_bytes(head + bytes(8 * count))
    start = time.perf_counter()
    model = ModelFile.open(tmp_path / "zeros.gguf")
    assert time.perf_counter() - start < SECONDS
    assert len(model.metadata["k"]) == count
