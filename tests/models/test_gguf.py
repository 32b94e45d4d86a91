"""The model file reader: what a sound file says, and that every way a file can lie is one clear error."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import ModelFileError, ModelNameError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.gguf_values import Source, walk_strings
from genmote.models.gguf_write import write_gguf
from genmote.ops import quant

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, type_id: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", type_id) + value


def info(name: str, dims: tuple[int, ...], type_id: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def gguf(keys: list[bytes] = [], infos: list[bytes] = [], data: int = 0, **head: Any) -> bytes:  # noqa: B006
    """A file byte by byte, with lies where asked: ``magic``, ``version``, ``tensors``, ``keys_said``."""
    count = (head.get("tensors", len(infos)), head.get("keys_said", len(keys)))
    start = head.get("magic", b"GGUF") + struct.pack("<IQQ", head.get("version", 3), *count)
    body = start + b"".join(keys) + b"".join(infos)
    return body + (bytes(-len(body) % 32) + bytes(data) if infos else b"")


@pytest.fixture
def put(tmp_path: Path) -> Any:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


ARCHITECTURE = key("general.architecture", STRING, text("llama"))


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_made_by_hand(put: Any, version: int) -> None:
    keys = [
        ARCHITECTURE,
        key("a.u8", U8, b"\xff"),
        key("a.bool", BOOL, b"\x01"),
        key("a.f32", F32, struct.pack("<f", 0.5)),
        key("a.u64", U64, struct.pack("<Q", 2**64 - 1)),
        key("a.words", ARRAY, struct.pack("<IQ", STRING, 3) + text("x") + text("") + text("yé")),
        key("a.flags", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\x00\x01"),
        key("a.none", ARRAY, struct.pack("<IQ", STRING, 0)),
    ]
    infos = [info("w", (4, 2), 0, 0), info("v", (3,), 26, 32)]
    model = ModelFile.open(put(gguf(keys, infos, 32 + 12, version=version)))
    assert model.version == version
    assert model.architecture == "llama"
    assert [model.metadata[f"a.{name}"] for name in ("u8", "bool", "f32", "u64")] == [255, True, 0.5, 2**64 - 1]
    words = model.metadata["a.words"]
    assert (words.element_type, len(words), words.strings(), words[2], words[-1]) == (
        "string", 3, ["x", "", "yé"], "yé", "yé",
    )  # fmt: skip
    assert bytes(model.path.read_bytes()[slice(words.raw_span()[0], sum(words.raw_span()))]) == (
        text("x") + text("") + text("yé")
    )
    assert list(model.metadata["a.flags"]) == [False, True]
    assert list(model.metadata["a.none"]) == []
    assert repr(model.metadata["a.none"]) == "MetaArray(0 x string)"
    # GGUF counts dimensions from the fastest: (4, 2) there is two rows of four here.
    tensor = model.tensors["w"]
    assert (tensor.type, tensor.shape, tensor.nbytes, tensor.offset % 32) == ("F32", (2, 4), 32, 0)
    assert model.tensors["v"].type == "I32"
    assert model.raw("w").size == 32
    assert not model.raw("w").flags.writeable
    with pytest.raises(IndexError):
        words[3]


STRINGS = key("k", ARRAY, struct.pack("<IQ", STRING, 1) + text("x"))
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty; fetch it again"),
    "three bytes": (b"GGU", "starts with the bytes 47 47 55, wanted 47 47 55 46 \\(GGUF\\); it is not a GGUF file"),
    "other magic": (gguf(magic=b"GGML"), "starts with the bytes 47 47 4d 4c"),
    "no version": (
        b"GGUF",
        "the version takes 4 bytes at offset 4, but the file ends at 4; it is truncated or damaged",
    ),
    "version 1": (gguf(version=1), "is GGUF version 1, too old: convert the model again"),
    "version 0": (gguf(version=0), "is GGUF version 0, too old"),
    "version 4": (gguf(version=4), "is GGUF version 4, too new or damaged: versions 2 and 3 are read"),
    "big endian": (gguf(version=3 << 24), "is a big-endian GGUF file, which is not supported"),
    "tensor count": (
        gguf([ARCHITECTURE], tensors=2**63),
        "the number of tensors says 9223372036854775808, more than fits",
    ),
    "key count": (gguf([ARCHITECTURE], keys_said=9), "the number of metadata keys says 9, more than fits"),
    "key missing": (gguf([ARCHITECTURE], keys_said=2), "metadata key"),
    "key empty": (gguf([key("", U8, b"\x00")]), "metadata key 0 is empty"),
    "key twice": (gguf([ARCHITECTURE] * 2), r"metadata key 1 is repeated \('general.architecture'\)"),
    "key not text": (gguf([text(b"\xff\xfe") + struct.pack("<IB", U8, 1)]), "metadata key 0 at offset 32 is not UTF-8"),
    "key length": (
        gguf([struct.pack("<Q", 2**64 - 1) + bytes(9)]),
        "the length of metadata key 0 says 18446744073709551615, more than fits into the 9 bytes left",
    ),
    "value type": (gguf([key("k", 13, bytes(8))]), "k has unknown type 13; the file is damaged or too new"),
    "value cut": (gguf([key("k" * 9, U64, bytes(4))]), "kkkkkkkkk takes 8 bytes at offset 45, but the file ends at 49"),
    "bool of 2": (gguf([key("k", BOOL, b"\x02")]), "k is a bool of value 2, wanted 0 or 1"),
    "value not text": (gguf([key("k", STRING, text(b"a\xc3"))]), r"k at offset 45 is not UTF-8 text \(byte 1\)"),
    "array type": (gguf([key("k", ARRAY, struct.pack("<IQ", 99, 1))]), "k is an array of unknown type 99"),
    "nested": (gguf([key("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "k is an array of arrays, which no model needs"),
    "array count": (
        gguf([key("k", ARRAY, struct.pack("<IQ", U32, 2**62) + bytes(64))]),
        "the length of k says 4611686018427387904, more than fits into the 64 bytes left",
    ),
    "string count": (
        gguf([key("k", ARRAY, struct.pack("<IQ", STRING, 9) + text("x"))]),
        "the length of k says 9, more",
    ),
    "string cut": (
        gguf([key("k", ARRAY, struct.pack("<IQ", STRING, 2) + text("xyz") + struct.pack("<Q", 99) + b"abc")]),
        "string 1 of k reaches beyond the file's end at",
    ),
    "string missing": (
        gguf([key("k", ARRAY, struct.pack("<IQ", STRING, 2) + text("x" * 9))]),
        "string 1 of k reaches beyond the file's end at",
    ),
    "string overflow": (
        gguf([key("k", ARRAY, struct.pack("<IQ", STRING, 2) + struct.pack("<QQ", 2**64 - 8, 0))]),
        "string 0 of k reaches beyond the file's end at",
    ),
    "split": (
        gguf([key("split.count", 2, b"\x03\x00"), key("split.no", 2, b"\x01\x00")]),
        "is part 2 of a model split into 3 files; join them with `llama-gguf-split --merge`",
    ),
    "split without number": (gguf([key("split.count", 2, b"\x03\x00")]), "is a part of a model split into 3 files"),
    "alignment": (
        gguf([key("general.alignment", U32, struct.pack("<I", 24))]),
        "general.alignment is 24, wanted a power",
    ),
    "alignment 0": (gguf([key("general.alignment", U32, bytes(4))]), "general.alignment is 0, wanted a power of two"),
    "alignment text": (gguf([key("general.alignment", STRING, text("32"))]), "general.alignment is 32, wanted a power"),
    "name empty": (gguf([], [info("", (4,), 0, 0)], 32), "tensor 0 has a name of 0 characters"),
    "name long": (gguf([], [info("n" * 2000, (4,), 0, 0)], 32), "tensor 0 has a name of 2000 characters"),
    "name twice": (gguf([], [info("w", (4,), 0, 0), info("w", (4,), 0, 32)], 64), "tensor w is there twice"),
    "no dims": (gguf([], [info("w", (), 0, 0)], 32), "tensor w has 0 dimensions, wanted 1 to 4"),
    "five dims": (gguf([], [info("w", (1,) * 5, 0, 0)], 32), "tensor w has 5 dimensions, wanted 1 to 4"),
    "dim 0": (gguf([], [info("w", (4, 0), 0, 0)], 32), r"tensor w has dimensions \[4, 0\], wanted none of them 0"),
    "dims overflow": (gguf([], [info("w", (2**32, 2**32), 0, 0)], 32), "more than the file can hold"),
    "tensor type": (gguf([], [info("w", (256,), 16, 0)], 999), r"tensor w: tensor type IQ2_XXS \(id 16\) is not supp"),
    "tensor type id": (gguf([], [info("w", (32,), 77, 0)], 999), "tensor w: tensor type id 77 is not supported"),
    "block": (gguf([], [info("w", (40,), 2, 0)], 99), "tensor w: rows of 40 numbers do not fit Q4_0"),
    "offset": (gguf([], [info("w", (4,), 0, 8)], 99), "tensor w lies at offset 8, no multiple of 32"),
    "beyond": (gguf([], [info("w", (4,), 0, 2**63)], 99), "tensor w takes 16 bytes at offset 9223372036854775872, but"),
    "data cut": (
        gguf([], [info("w", (4,), 0, 0)], 15),
        "tensor w takes 16 bytes at offset 64, but the file ends at 79",
    ),
    "overlap": (
        gguf([], [info("w", (16,), 0, 0), info("v", (4,), 0, 32)], 64),
        "tensors w and v overlap; the file is damaged",
    ),
    "info missing": (gguf([STRINGS] * 1, [], tensors=1) + bytes(40), "tensor 0 has a name of 0 characters"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_one_clear_error(put: Any, name: str) -> None:
    content, message = LIES[name]
    path = put(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        ModelFile.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_count_far_beyond_any_model_is_refused(put: Any) -> None:
    many = b"".join(key(f"{i:05d}", U8, b"\x00") for i in range(3))
    padding = bytes(40 << 16)  # enough that the count alone could be true
    with pytest.raises(ModelFileError, match="the number of metadata keys says 65537, wanted at most 65536"):
        ModelFile.open(put(gguf([many, padding], keys_said=65537)))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNameError, match="no such file; give the path of a GGUF file"):
        ModelFile.open(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="is not a file; give the path of a GGUF file"):
        ModelFile.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="is not a file"):
        ModelFile.open(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelFileError, match="cannot be opened"):
        ModelFile.open(tmp_path / "file" / "below")


def test_a_file_that_cannot_be_mapped(put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no memory")

    path = put(gguf([ARCHITECTURE]))
    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(ModelFileError, match="cannot be mapped into memory"):
        ModelFile.open(path)


def test_questions_a_file_cannot_answer(put: Any) -> None:
    keys = [
        key("n", ARRAY, struct.pack("<IQ", U32, 1) + bytes(4)),
        key("s", ARRAY, struct.pack("<IQ", STRING, 2) + text("ok") + text(b"\xff")),
    ]
    model = ModelFile.open(put(gguf(keys)))
    with pytest.raises(ModelFileError, match="has no general.architecture; it is not a model"):
        _ = model.architecture
    with pytest.raises(ModelFileError, match="has no tensor 'w'; it is not a whole model"):
        model.raw("w")
    with pytest.raises(ModelFileError, match="n holds uint32, wanted strings"):
        model.metadata["n"].strings()
    with pytest.raises(ModelFileError, match="s holds strings, wanted numbers"):
        model.metadata["s"].numpy()
    with pytest.raises(ModelFileError, match="string 1 of s at offset .* is not UTF-8"):
        _ = model.metadata["s"][1]
    assert bytes(model.metadata["s"].raw()[-1:]) == b"\xff"
    with pytest.raises(TypeError):
        model.metadata["n"] = 1  # type: ignore[index]


def test_sha256_is_the_file_s(put: Any) -> None:
    import hashlib

    content = gguf([ARCHITECTURE])
    path = put(content)
    model = ModelFile.open(path)
    other = ModelFile.open(path)
    gone = ModelFile.open(path)
    assert model.sha256() == hashlib.sha256(content).hexdigest()
    replaced = path.with_suffix(".new")
    replaced.write_bytes(content)
    replaced.rename(path)
    with pytest.raises(ModelFileError, match="has changed since it was opened; open it again"):
        other.sha256()
    path.unlink()
    with pytest.raises(ModelFileError, match="cannot be read any more"):
        gone.sha256()
    assert model.sha256() == hashlib.sha256(content).hexdigest()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=12), st.binary(min_size=250, max_size=300), st.just(b""), st.just(bytes(9)))
        | st.text(min_size=1, max_size=8).map(str.encode),
        max_size=400,
    ),
    st.integers(0, 60),
)
def test_walking_strings_is_walking_one_by_one(strings: list[bytes], before: int) -> None:
    body = b"".join(text(string) for string in strings)
    data = np.frombuffer(bytes(before) + body + b"tail", np.uint8)
    starts = np.empty(len(strings), np.int64)
    end = walk_strings(Source(Path("f"), data), before, len(strings), "k", starts)
    assert end == before + len(body)
    want, position = [], before
    for string in strings:
        want.append(position)
        position += 8 + len(string)
    assert starts.tolist() == want


def test_walking_goes_on_across_windows() -> None:
    rng = np.random.default_rng(0)
    strings = [bytes(rng.integers(1, 256, rng.integers(1, 20), dtype=np.uint8)) for _ in range(20000)]
    strings[7000:7003] = [b"", b"x" * 70000, b"\x00" * 30]
    body = b"".join(text(string) for string in strings)
    source = Source(Path("f"), np.frombuffer(body, np.uint8))
    assert walk_strings(source, 0, len(strings), "k") == len(body)
    with pytest.raises(ModelFileError, match="string 20000 of k reaches beyond"):
        walk_strings(source, 0, len(strings) + 1, "k")
    with pytest.raises(ModelFileError, match="string 19999 of k reaches beyond"):
        walk_strings(Source(Path("f"), source.data[:-1]), 0, len(strings), "k")


def test_other_readers_agree(tmp_path: Path) -> None:
    """The `gguf` package reads what we write as we read it, for every tensor type that is not our own."""
    reference = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    tensors = []
    for name in (name for name in quant.codec_names() if quant.TYPES[name].ggml_id < quant.OWN):
        x = rng.standard_normal((3, 256), np.float32)
        tensors.append((f"t.{name}", name, x.shape, quant.quantize(name, x)))
    tensors.append(("ids", "I32", (2, 2, 5), np.arange(20, dtype=np.int32)))
    metadata = {"general.architecture": "llama", "llama.block_count": 2, "x.eps": 0.25, "x.on": True}
    metadata |= {"x.names": ["a", "bé"], "x.sizes": np.array([1, 2], np.uint16)}
    path = tmp_path / "a.gguf"
    write_gguf(path, metadata, tensors)
    ours, theirs = ModelFile.open(path), reference.GGUFReader(path)
    for key_name, value in metadata.items():
        assert theirs.fields[key_name].contents() == (value.tolist() if isinstance(value, np.ndarray) else value)
    assert len(theirs.tensors) == len(tensors)
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name) == (mine.offset, mine.nbytes, mine.type)
        assert tuple(reversed(tensor.shape.tolist())) == mine.shape
        if mine.type != "I32":
            want = reference.quants.dequantize(tensor.data, tensor.tensor_type).reshape(mine.shape)
            assert np.array_equal(ours.tensor(tensor.name), want)


def test_other_readers_refuse_our_own_types(tmp_path: Path) -> None:
    """Their ids are no other engine's: a reader says so instead of taking the bytes for something else."""
    reference = pytest.importorskip("gguf")
    for name in (name for name in quant.codec_names() if quant.TYPES[name].ggml_id >= quant.OWN):
        x = np.ones((3, 256), np.float32)
        write_gguf(tmp_path / "a.gguf", {}, [("t", name, x.shape, quant.quantize(name, x))])
        assert ModelFile.open(tmp_path / "a.gguf").tensors["t"].type == name
        with pytest.raises(ValueError, match=rf"{quant.TYPES[name].ggml_id}\)? is not a valid GGMLQuantizationType"):
            reference.GGUFReader(tmp_path / "a.gguf")


def test_reading_needs_the_file_s_size_at_most(tmp_path: Path) -> None:
    """A large vocabulary opens without becoming Python objects."""
    import tracemalloc

    path = tmp_path / "v.gguf"
    write_gguf(path, {"tokens": [f"token number {i}" for i in range(100_000)], "last": 1}, [])
    ModelFile.open(path)
    tracemalloc.start()
    model = ModelFile.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert model.metadata["last"] == 1
    assert peak < 1 << 20
    assert model.metadata["tokens"][99_999] == "token number 99999"


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_real_models_open_quickly_and_small(find_model: Callable[[str], Path], name: str) -> None:
    path = find_model(name)
    code = (
        "import resource, sys, time\n"
        "from genmote.models.gguf import ModelFile\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "best = 9.0\n"
        "for _ in range(3):\n"
        "    start = time.perf_counter(); ModelFile.open(sys.argv[1]); best = min(best, time.perf_counter() - start)\n"
        "print(best, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, run.stdout.split())
    assert seconds < 0.15
    assert mebibytes < 16


@pytest.mark.slow
def test_real_model_reads_as_the_reference_reads_it(gemma3: Path) -> None:
    reference = pytest.importorskip("gguf")
    model, theirs = ModelFile.open(gemma3), reference.GGUFReader(gemma3)
    seen = set()
    for tensor in theirs.tensors:
        kind = tensor.tensor_type.name
        if kind not in seen and tensor.n_bytes < 1 << 22:
            seen.add(kind)
            want = reference.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(model.tensor(tensor.name), want.reshape(model.tensors[tensor.name].shape))
    assert {"F32", "Q5_0", "Q4_K", "Q6_K", "Q8_0"} <= seen


def test_integers_are_no_weights(put: Any) -> None:
    model = ModelFile.open(put(gguf([], [info("w", (4,), 26, 0)], 16)))
    assert model.raw("w").view("<i4").tolist() == [0, 0, 0, 0]
    with pytest.raises(SpecError, match="I32 tensors are carried along"):
        model.tensor("w")
