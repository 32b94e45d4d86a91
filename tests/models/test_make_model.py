"""Made-up models: whole, reproducible, of the right size, and loadable by another engine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SpecError
from genmote.models import make_vocabulary
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.models.make_model import Shape, load_shape, make_model, shape_names, tensor_list
from genmote.models.rope import llama3_factors
from genmote.ops import quant
from genmote.spec import build

TINY = [name for name in shape_names() if name.startswith("tiny-")]


@pytest.mark.parametrize("shape", TINY)
def test_a_tiny_model_is_whole(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "m.gguf"
    make_model(shape, "q4_0", path, seed=3)
    model = ModelFile.open(path)
    form = load_shape(shape)
    assert model.metadata["genmote.shape"] == shape
    assert model.metadata["genmote.seed"] == 3
    assert len(model.metadata["tokenizer.ggml.tokens"]) == form.vocab_size
    config = read_config(model)
    assert (config.architecture, config.width, config.n_layers) == (form.architecture, form.width, form.layers)
    assert (config.n_experts, config.vocab_size) == (form.experts, form.vocab_size)
    for name, info in model.tensors.items():
        numbers = model.tensor(name)
        assert np.isfinite(numbers).all()
        if len(info.shape) > 1 and numbers.size > 4096:
            # The size of what goes through a matrix stays: numbers of about 1/sqrt(inputs), smaller towards the stream.
            branch = ("attn_output.w", "attn_output_b", "ffn_down.w", "ffn_down_b", "ffn_down_exps")
            residual = (2 * form.layers) ** -0.5 if any(part in name for part in branch) else 1
            assert numbers.std() == pytest.approx(residual * info.shape[-1] ** -0.5, rel=0.1)
            assert abs(numbers.mean()) < 0.1 * numbers.std()
        if "norm.weight" in name:
            assert numbers.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", quant.codec_names())
def test_every_type_can_be_made(tmp_path: Path, kind: str) -> None:
    make_model("tiny-llama-256", kind, tmp_path / "m.gguf")
    model = ModelFile.open(tmp_path / "m.gguf")
    assert model.tensors["blk.0.ffn_up.weight"].type == kind
    few = quant.TYPES[kind].bits_per_weight < quant.TYPES["Q6_K"].bits_per_weight
    assert model.tensors["output.weight"].type == ("Q6_K" if few else kind)
    assert model.tensors["token_embd.weight"].type == kind
    assert model.tensors["blk.0.attn_norm.weight"].type == "F32"


def test_a_type_that_does_not_fit_gives_way(tmp_path: Path) -> None:
    make_model("tiny-llama", "q4_k", tmp_path / "m.gguf", embedding_type="f16")
    model = ModelFile.open(tmp_path / "m.gguf")
    assert model.tensors["blk.0.ffn_up.weight"].type == "Q5_0"
    assert model.tensors["token_embd.weight"].type == "F16"


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_model("tiny-olmoe", "q8_0", tmp_path / name, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    first, other = ModelFile.open(tmp_path / "a"), ModelFile.open(tmp_path / "c")
    for name in first.tensors:
        assert not np.array_equal(first.raw(name), other.raw(name))
    rows = first.tensor("token_embd.weight")
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert not np.array_equal(first.raw("blk.0.attn_q.weight"), first.raw("blk.1.attn_q.weight"))


def test_large_shapes_are_the_published_models() -> None:
    """Parameters of each large shape, against the published counts."""

    def parameters(name: str) -> int:
        return sum(int(np.prod(dims)) for _, dims, _, _ in tensor_list(load_shape(name)))

    assert parameters("smollm2-135m") == 134_515_008
    assert parameters("llama-3.2-1b") == 1_235_814_400
    assert parameters("llama-7b") == 6_738_415_616
    assert parameters("olmoe-1b-7b") == 6_919_161_856
    assert parameters("opt-1.3b") == 1_315_758_080 - 2 * 2048  # without two rows of positions that nothing uses


def test_smollm2_s_shape_is_the_real_file_s(tmp_path: Path, smollm2: Path) -> None:
    real = ModelFile.open(smollm2)
    make_model("smollm2-135m", "q4_1", tmp_path / "m.gguf")
    made = ModelFile.open(tmp_path / "m.gguf")
    assert {name: (info.type, info.shape) for name, info in made.tensors.items()} == {
        name: (info.type, info.shape) for name, info in real.tensors.items()
    }
    same = [key for key in real.metadata if key.startswith("llama.")] + ["general.file_type", "tokenizer.ggml.pre"]
    assert {key: made.metadata[key] for key in same} == {key: real.metadata[key] for key in same}
    for name in ("blk.3.ffn_up.weight", "blk.3.attn_q.weight", "blk.3.attn_v.weight"):
        assert 1 / 9 < made.tensor(name).std() / real.tensor(name).std() < 9


def test_making_a_model_needs_little_memory(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from genmote.models.make_model import make_model\n"
        "make_model('tiny-llama', 'q4_0', sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "make_model('smollm2-135m', 'q8_0', sys.argv[1])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    path = tmp_path / "m.gguf"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 140e6
    assert float(run.stdout) < 60


def test_llama3_factors_are_the_definition() -> None:
    form = load_shape("llama-3.2-1b")
    factor, low, high, context = form.rope_llama3
    want = []
    for i in range(form.key_width // 2):
        wavelength = 2 * np.pi * form.rope_base ** (2 * i / form.key_width)
        if wavelength < context / high:
            want.append(1.0)
        elif wavelength > context / low:
            want.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            want.append(1 / ((1 - smooth) / factor + smooth))
    assert llama3_factors(form.key_width, form.rope_base, *form.rope_llama3) == pytest.approx(np.array(want), rel=1e-6)
    assert 1 in want
    assert factor in want


def test_vocabularies_are_legal() -> None:
    bpe = make_vocabulary.byte_level(70_000, "gpt-2")
    tokens = bpe["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == 70_000
    known = set(tokens[: 3 + 256])
    for merge in bpe["tokenizer.ggml.merges"]:
        left, right = merge.split(" ")
        assert {left, right} <= known
        known.add(left + right)
    assert known == set(tokens)
    spm = make_vocabulary.sentence_piece(32_000, ("<unk>", "<s>", "</s>"))
    tokens = spm["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == len(spm["tokenizer.ggml.scores"]) == 32_000
    assert np.bincount(spm["tokenizer.ggml.token_type"], minlength=7).tolist() == [0, 31_741, 1, 2, 0, 0, 256]


def test_errors_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no model shape is called 'tiny-lama', did you mean tiny-llama"):
        make_model("tiny-lama", "q4_0", tmp_path / "m")
    with pytest.raises(SpecError, match="tensor type 'q9' is unknown"):
        make_model("tiny-llama", "q9", tmp_path / "m")
    with pytest.raises(SpecError, match="type=I32: weights cannot be stored so; use one of F32"):
        make_model("tiny-llama", "i32", tmp_path / "m")
    with pytest.raises(SpecError, match="vocab_size=100: a byte-level vocabulary takes at least 259"):
        make_vocabulary.byte_level(100, "gpt-2")
    with pytest.raises(SpecError, match="vocab_size=300: a SentencePiece vocabulary takes at least 354"):
        make_vocabulary.sentence_piece(300, ("<unk>", "<s>", "</s>"))
    with pytest.raises(SpecError, match=r"seed=-1: wanted 0 to 2\*\*64 - 1"):
        make_model("tiny-llama", "q4_0", tmp_path / "m", -1)
    assert not list(tmp_path.iterdir())


def test_numbers_for_each_layer_are_as_many_as_layers() -> None:
    values = {field.name: getattr(load_shape("tiny-deci"), field.name) for field in fields(Shape)}
    for name in ("layer_heads", "layer_kv_heads", "layer_ffn_widths", "layer_ranks"):
        with pytest.raises(SpecError, match=f"{name} has 2 numbers for 3 layers"):
            build(Shape, values | {name: (1, 2)})


def test_the_verb_makes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genmote.cli import main

    make_model("tiny-qwen3", "q8_0", tmp_path / "a.gguf", 7, embedding_type="f16")
    words = ["make-model", "tiny-qwen3", str(tmp_path / "b.gguf"), "--type", "q8_0", "--embedding-type", "f16"]
    assert main([*words, "--seed", "7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert told["size_bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert main(["make-model", "tiny", str(tmp_path / "c.gguf")]) == 2
    assert "no model shape is called 'tiny'" in capsys.readouterr().err
    assert main(["make-model", "tiny-opt", str(tmp_path / "absent" / "c.gguf")]) == 2
    assert "is no folder; make it first" in capsys.readouterr().err


def test_the_verb_takes_options_or_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from genmote.cli import main

    monkeypatch.chdir(tmp_path)
    make_model("tiny-llama", "q8_0", tmp_path / "wanted.gguf", 0)
    for words, name in (
        (["--shape", "tiny-llama", "--type", "q8_0"], "tiny-llama-q8_0.gguf"),
        (["--shape", "tiny-llama", "--type", "q8_0", "-o", "a.gguf"], "a.gguf"),
        (["tiny-llama", "--type", "q8_0", "b.gguf"], "b.gguf"),
        (["--shape", "tiny-llama", "c.gguf", "--type", "q8_0"], "c.gguf"),
        (["tiny-llama", "--output", "d.gguf", "--type", "q8_0"], "d.gguf"),
    ):
        assert main(["make-model", *words]) == 0, words
        assert Path(name).read_bytes() == Path("wanted.gguf").read_bytes()
    capsys.readouterr()
    for words, said in (
        (["tiny-llama", "a", "b"], "'b' is one name too many: wanted a shape and a file"),
        (["--shape", "tiny-llama", "-o", "e.gguf", "f"], "'f' is one name too many: wanted no more names"),
        ([], "no shape: give --shape NAME, such as llama-3.2-1b"),
    ):
        assert main(["make-model", *words]) == 2
        assert said in capsys.readouterr().err


def test_progress_reaches_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    make_model("tiny-llama", "q8_0", tmp_path / "m.gguf", progress=lambda *told: seen.append(told))
    model = ModelFile.open(tmp_path / "m.gguf")
    assert {what for what, _, _ in seen} == {"writing m.gguf"}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2] == sum(info.nbytes for info in model.tensors.values())


def test_the_formats_page_tells_of_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert not [field.name for field in fields(Shape) if f"`{field.name}`" not in text]
    assert not [kind for kind in quant.TYPES if f"`{kind}`" not in text]


OURS_ALONE = ("tiny-opt", "tiny-low-rank")  # what no other engine reads from GGUF
LLAMA_CPP = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 128, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.verbosity, params.port = -1, 0
ask = {"prompt": sys.argv[2], "n_predict": 10, "max_tokens": 10, "temperature": 0}
answer = xllamacpp.Server(params).handle_completions(ask)
answer = answer if isinstance(answer, dict) else json.loads(answer)
print("TEXT" + json.dumps(answer["choices"][0]["text"]))
"""


def told_by_llama_cpp(path: Path, prompt: str) -> str:
    """Ten tokens of greedy text."""
    run = subprocess.run([sys.executable, "-c", LLAMA_CPP, str(path), prompt], capture_output=True, text=True)
    told = [line for line in run.stdout.splitlines() if line.startswith("TEXT")]
    assert told, run.stderr[-2000:]
    text: str = json.loads(told[0].removeprefix("TEXT"))
    return text


@pytest.mark.parametrize("shape", [name for name in TINY if name not in OURS_ALONE])
def test_llama_cpp_says_the_same(tmp_path: Path, shape: str) -> None:
    """Greedy text of a random float32 model, here and in llama.cpp: names, keys, tokenizer and arithmetic agree."""
    pytest.importorskip("xllamacpp")
    from genmote import Engine

    path, prompt = tmp_path / "m.gguf", "the rain in Spain stays"
    make_model(shape, "f32", path)
    with Engine.load(path, ops="numpy") as engine:
        assert engine.generate(prompt, max_tokens=10).text == told_by_llama_cpp(path, prompt)
