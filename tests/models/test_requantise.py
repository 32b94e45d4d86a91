"""Requantised models: which tensors change, how far their numbers move, and that nothing half is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genmote.errors import ModelFileError, SpecError
from genmote.models.gguf import MetaArray, ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.models.requantise import Pieces, convert_type
from genmote.ops import quant


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "f32.gguf"
    make_model("tiny-llama-256", "f32", path)
    return path


@pytest.mark.parametrize("kind", quant.codec_names())
def test_matrices_change_and_nothing_else(made: Path, tmp_path: Path, kind: str) -> None:
    convert_type(made, tmp_path / "b.gguf", kind.lower())
    before, after = ModelFile.open(made), ModelFile.open(tmp_path / "b.gguf")
    assert list(before.tensors) == list(after.tensors)
    for name, info in after.tensors.items():
        want = before.tensor(name)
        if info.type == "F32":
            assert len(info.shape) == 1 or kind == "F32"
            assert np.array_equal(after.tensor(name), want)
        else:
            assert info.type == kind or name == "output.weight"
            assert np.array_equal(after.raw(name), quant.quantize(info.type, want))
    for key, value in before.typed_metadata().items():
        other = after.typed_metadata()[key]
        if isinstance(value, MetaArray):
            assert (other.element_type, list(other)) == (value.element_type, list(value))
        elif key != "general.file_type":
            assert (type(other), other) == (type(value), value)


def test_pieces_do_not_show(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_type(made, tmp_path / "a.gguf", "q4_k")
    monkeypatch.setattr("genmote.models.requantise._PIECE", 700)
    convert_type(made, tmp_path / "b.gguf", "q4_k")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    model = ModelFile.open(made)
    pieces = list(Pieces(model, model.tensors["blk.0.ffn_down.weight"], "Q8_0"))
    assert len(pieces) == 256  # rows of 512 numbers, one at a time


def test_routers_and_tables_stay(tmp_path: Path) -> None:
    for shape, kept in (("tiny-mixtral", "blk.0.ffn_gate_inp.weight"), ("tiny-opt", "position_embd.weight")):
        make_model(shape, "f32", tmp_path / "a.gguf")
        convert_type(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_0")
        model = ModelFile.open(tmp_path / "b.gguf")
        assert model.tensors[kept].type == "F32"
        experts = [info.type for name, info in model.tensors.items() if name.endswith("_exps.weight")]
        assert set(experts) == ({"Q4_0"} if shape == "tiny-mixtral" else set())


@pytest.mark.parametrize(
    ("embedding", "kind", "token_type", "output_type"),
    [(None, "q4_0", "Q4_0", "Q6_K"), (None, "q8_0", "Q8_0", "Q8_0"), ("q5_0", "q4_0", "Q5_0", "Q5_0")],
)
def test_the_embedding_s_type(
    made: Path, tmp_path: Path, embedding: str | None, kind: str, token_type: str, output_type: str
) -> None:
    convert_type(made, tmp_path / "b.gguf", kind, embedding_type=embedding)
    tensors = ModelFile.open(tmp_path / "b.gguf").tensors
    assert (tensors["token_embd.weight"].type, tensors["output.weight"].type) == (token_type, output_type)


def test_a_tied_embedding_makes_the_logits(tmp_path: Path) -> None:
    make_model("tiny-llama", "f16", tmp_path / "a.gguf")
    convert_type(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_0")
    # 64 numbers a row do not fit Q6_K: the nearest type that they fit.
    assert ModelFile.open(tmp_path / "b.gguf").tensors["token_embd.weight"].type == "Q8_0"


def test_faults_leave_nothing(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="tensor type 'q9' is unknown"):
        convert_type(made, tmp_path / "b.gguf", "q9")
    with pytest.raises(SpecError, match="type=I8: weights cannot be stored so"):
        convert_type(made, tmp_path / "b.gguf", "q4_0", embedding_type="i8")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match="the version takes 4 bytes"):
        convert_type(tmp_path / "bad.gguf", tmp_path / "b.gguf", "q4_0")
    x = np.full((1, 32), np.nan, np.float32)
    write_gguf(tmp_path / "nan.gguf", {}, [("w.weight", "F32", x.shape, x)])
    with pytest.raises(SpecError, match=r"tensor w.weight: cannot store nan as Q4_0: weights must be finite"):
        convert_type(tmp_path / "nan.gguf", tmp_path / "b.gguf", "q4_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.gguf", "nan.gguf"]


def test_a_model_may_be_converted_onto_itself(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(made.read_bytes())
    convert_type(path, path, "q8_0")
    assert ModelFile.open(path).tensors["blk.0.ffn_up.weight"].type == "Q8_0"
