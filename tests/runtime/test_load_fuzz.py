"""Model files that lie, from the file to a token: a mutant of a sound model generates and embeds, or ends in one line.

`tests/models/test_gguf_fuzz.py` breaks the container; here the container is whole and what it says is wrong: metadata
of other types and sizes, tensors with odd names, shapes and contents, and bytes anywhere.
"""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import Engine
from genmote.errors import GenmoteError
from genmote.models.gguf import MetaArray, ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.ops import quant

SECONDS = 5.0  # a sound file takes 20 ms; a loaded machine is allowed a lot

Metadata = dict[str, Any]
Tensors = dict[str, tuple[str, tuple[int, ...], np.ndarray]]

ODD: list[Any] = [
    0,
    -1,
    1,
    3,
    2**24 + 1,
    2**31 - 1,
    np.uint32(2**32 - 1),
    np.uint64(2**63),
    0.5,
    2.0,
    float("nan"),
    float("inf"),
    -1e30,
    True,
    "",
    "llama",
    "ünknown\n{{",
    np.empty(0, np.int32),
    ["a"],
    [-1, 2**30],
    np.zeros(2, np.float32),
    np.full(3, np.nan),
]
# What a llama file of this shape does not say, but might.
UNSAID = [
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.attention.sliding_window",
    "llama.attention.scale",
    "llama.expert_count",
    "llama.expert_used_count",
    "llama.logit_scale",
    "llama.vocab_size",
    "general.alignment",
    "tokenizer.chat_template",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.scores",
]
NAMES = ["x[1", "x]", "x[0]", "x[-1]", "x[1][0]", "[0]", "x[9999999999999999999]", "x" * 64, "blk.0.", "../x", "ü\n"]
SHAPES: list[tuple[int, ...]] = [(64, 64), (1, 64, 64), (2, 32, 64), (64,), (64, 64, 1), (1,), (1, 1, 1, 64)]
# Mutants that no sample leaves out.
ALWAYS = [
    "3-D x",
    "first 'x[1' (64, 64)",
    "first 'x]' (64, 64)",
    "head_count = ",
    "epsilon = nan",
    "context_length = 0",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Metadata, Tensors, bytes]:
    """A small sound model: its metadata, its tensors and the file."""
    path = tmp_path_factory.mktemp("sound") / "sound.gguf"
    make_model("tiny-llama", "Q4_0", path, seed=3)
    model = ModelFile.open(path)
    metadata = {
        key: value if not isinstance(value, MetaArray) else list(value) for key, value in model.metadata.items()
    }
    tensors = {name: (info.type, info.shape, model.raw(name).copy()) for name, info in model.tensors.items()}
    return metadata, tensors, path.read_bytes()


@pytest.fixture(params=["native", "numpy"])
def ops(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    return str(request.param)


def survive(path: Path, home: Path, ops: str) -> bool:
    """Load, generate a token, embed one; True when the file was refused, which leaves nothing behind."""
    start = time.perf_counter()
    packed = home / "cache" / "packed"
    loaded = refused = False
    try:
        with Engine.load(path, ops=ops, threads=1) as engine:
            loaded = True
            result = engine.generate([1], max_tokens=1)
            assert len(result.tokens) <= 1
            engine.embed([1])
    except GenmoteError as error:
        assert error.exit_status == 2, error
        assert str(error).isprintable()
        assert 0 < len(str(error)) < 2000
        refused = True
    assert time.perf_counter() - start < SECONDS
    left = list(packed.iterdir()) if packed.is_dir() else []
    assert loaded or not left
    for file in left:
        os.unlink(file)
    return refused


def write(path: Path, metadata: Metadata, tensors: Tensors) -> None:
    write_gguf(path, metadata, [(name, *rest) for name, rest in tensors.items()])


def wrong_metadata(metadata: Metadata) -> Iterator[tuple[str, Metadata]]:
    for key in [*metadata, *UNSAID]:
        for value in ODD:
            if key == "general.alignment" and not (isinstance(value, int) and value in (1,)):
                continue  # the writer itself needs it
            yield f"{key} = {value!r}", {**metadata, key: value}
        yield f"no {key}", {name: value for name, value in metadata.items() if name != key}


def matrix(shape: tuple[int, ...], type_name: str = "F32") -> tuple[str, tuple[int, ...], np.ndarray]:
    values = np.ones(shape, np.float32)
    return type_name, shape, quant.quantize(type_name, values).reshape(-1)


def wrong_tensors(tensors: Tensors) -> Iterator[tuple[str, Tensors]]:
    for name in NAMES:
        for shape in SHAPES:
            yield f"and {name!r} {shape}", {**tensors, name: matrix(shape)}
            yield f"first {name!r} {shape}", {name: matrix(shape), **tensors}
    for type_name in ("F32", "Q4_0", "Q8_0"):
        three = {"x": matrix((2, 32, 64), type_name), "x[0]": matrix((32, 64), type_name)}
        yield f"3-D x beside x[0] {type_name}", {**tensors, **three}
        yield f"x[0] before 3-D x {type_name}", {**dict(reversed(three.items())), **tensors}
    for name, (type_name, shape, raw) in tensors.items():
        rest = {key: value for key, value in tensors.items() if key != name}
        yield f"no {name}", rest
        for other in NAMES[:6]:
            yield f"{name} called {other!r}", {**rest, other: tensors[name]}
            yield f"{name}{other}", {**rest, name + other: tensors[name]}
        flat = int(np.prod(shape))
        for wrong in {(1, *shape), (*shape, 1), (flat,), (1, flat), shape[::-1]} - {shape}:
            if wrong[-1] % quant.by_name(type_name).block_size == 0:
                yield f"{name} {wrong}", {**rest, name: (type_name, wrong, raw)}
        for other_type in ("F16", "Q8_0", "Q5_1", "I8", "I32", "F64"):
            if shape[-1] % quant.by_name(other_type).block_size == 0:
                nbytes = quant.nbytes(other_type, shape)
                yield f"{name} as {other_type}", {**rest, name: (other_type, shape, np.resize(raw, nbytes))}
        for fill in (0x00, 0x7F, 0xFF):  # zeros; the largest and NaN
            yield f"{name} full of {fill:#x}", {**rest, name: (type_name, shape, np.full_like(raw, fill))}


def wrong_bytes(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    draw = random.Random(seed)
    end = content.index(b"blk.0.attn_norm") + 2000
    for number in range(count):
        mutant = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(end if draw.random() < 0.8 else len(mutant))
            if draw.random() < 0.5:
                mutant[at] ^= 1 << draw.randrange(8)
            else:
                mutant[at : at + 4] = draw.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"[0]\0", b"\1\0\0\0"])
        yield f"bytes {seed}/{number}", bytes(mutant)


def hold(mutants: Iterator[tuple[str, Any]], every: int, path: Path, home: Path, ops: str) -> tuple[int, int]:
    """Survive each `every`th mutant and those of ALWAYS; how many there were, and how many were refused."""
    count = refused = 0
    for number, (what, mutant) in enumerate(mutants):
        if number % every != every // 2 and not any(words in what for words in ALWAYS):
            continue
        if isinstance(mutant, bytes):
            path.write_bytes(mutant)
        else:
            write(path, *mutant)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of weights that are not numbers
                refused += survive(path, home, ops)
        except BaseException as error:
            error.add_note(what)
            raise
        count += 1
    return count, refused


def run(sound: tuple[Metadata, Tensors, bytes], every: int, tmp_path: Path, home: Path, ops: str) -> tuple[int, int]:
    metadata, tensors, content = sound
    kinds: list[Iterator[tuple[str, Any]]] = [
        ((what, (wrong, tensors)) for what, wrong in wrong_metadata(metadata)),
        ((what, (metadata, wrong)) for what, wrong in wrong_tensors(tensors)),
        wrong_bytes(content, 1500, 1),
    ]
    found = [hold(kind, every, tmp_path / "mutant.gguf", home, ops) for kind in kinds]
    return sum(count for count, _ in found), sum(refused for _, refused in found)


def test_the_sound_file_is_taken(
    sound: tuple[Metadata, Tensors, bytes], tmp_path: Path, own_home: Path, ops: str
) -> None:
    (tmp_path / "sound.gguf").write_bytes(sound[2])
    assert not survive(tmp_path / "sound.gguf", own_home, ops)
    write(tmp_path / "again.gguf", *sound[:2])
    assert not survive(tmp_path / "again.gguf", own_home, ops)


def test_some_hundred_mutants(sound: tuple[Metadata, Tensors, bytes], tmp_path: Path, own_home: Path, ops: str) -> None:
    count, refused = run(sound, 13, tmp_path, own_home, ops)
    assert count > 250 and refused > count // 3


@pytest.mark.slow
def test_thousands_of_mutants(sound: tuple[Metadata, Tensors, bytes], tmp_path: Path, own_home: Path, ops: str) -> None:
    count, refused = run(sound, 1, tmp_path, own_home, ops)
    assert count > 3000 and refused > count // 3
