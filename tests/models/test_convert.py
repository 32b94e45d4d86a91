"""Hugging Face folders become model files: the same numbers in every form of a folder, and every fault is named.

That the result computes what transformers does is tested in test_families.py, tokens in test_convert_tokenizer.py.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genmote import registry
from genmote.errors import ModelFileError, ModelNameError, OpsError, SpecError
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.convert import CHECKPOINTS, convert, open_source
from genmote.models.gguf import MetaArray, ModelFile
from genmote.models.make_model import make_model
from genmote.models.requantise import convert_type
from genmote.runtime.engine import Engine
from tests.models.peers import BASE, CASES, GEMMA, edit_json, logits_of, random_peer, save

library = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.filterwarnings("ignore")
Folder = Callable[[str], Path]
TOKENIZER_CONFIG = {
    "bos_token": {"content": "<s>"},
    "eos_token": "</s>",
    "add_bos_token": True,
    "added_tokens_decoder": {"395": {"content": "<a>", "special": True}},
    "chat_template": [{"name": "default", "template": "x"}],
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A saved peer of each case, made once."""
    made: dict[str, Path] = {}

    def folder(case: str) -> Path:
        if case not in made:
            made[case] = save(random_peer(case), tmp_path_factory.mktemp("sound") / case)
        return made[case]

    return folder


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = library.load_file(folder / "model.safetensors")
    return found


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    library.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")


def assert_same_model(got: Path, want: Path) -> None:
    a, b = ModelFile.open(got), ModelFile.open(want)
    assert list(a.tensors) == list(b.tensors)
    for name, info in a.tensors.items():
        assert info.type == b.tensors[name].type and np.array_equal(a.raw(name), b.raw(name)), name
    assert plain(a) == plain(b)


def plain(model: ModelFile) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, MetaArray) else value
        for key, value in model.typed_metadata().items()
        if key != "general.name"
    }


# -- forms of a folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_shards_do_not_show(sound: Folder, tmp_path: Path, case: str) -> None:
    peer = random_peer(case)
    save(peer, tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    convert(tmp_path / "shards", tmp_path / "a.gguf")
    convert(sound(case), tmp_path / "b.gguf")
    assert_same_model(tmp_path / "a.gguf", tmp_path / "b.gguf")


@pytest.mark.parametrize("case", ["mixtral", "qwen3moe", "olmoe"])
def test_experts_in_one_tensor(sound: Folder, tmp_path: Path, case: str) -> None:
    """transformers computes with all experts in one tensor, and folders may be saved so."""
    together = {name: value.numpy() for name, value in random_peer(case).state_dict().items()}
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in together)
    folder = copied(sound(case), tmp_path / "together")
    rewrite(folder, together)
    convert(folder, tmp_path / "a.gguf")
    convert(sound(case), tmp_path / "b.gguf")
    assert_same_model(tmp_path / "a.gguf", tmp_path / "b.gguf")


@pytest.mark.parametrize("prefix", ["", "model.language_model."])
def test_where_the_text_model_lies(sound: Folder, tmp_path: Path, prefix: str) -> None:
    folder = copied(sound("llama-tied"), tmp_path / "moved")
    rewrite(folder, {prefix + name.removeprefix("model."): x for name, x in tensors_of(folder).items()})
    convert(folder, tmp_path / "a.gguf")
    convert(sound("llama-tied"), tmp_path / "b.gguf")
    assert_same_model(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_older_spellings(sound: Folder, tmp_path: Path) -> None:
    """Rotary positions had keys of their own, and counts of experts another name."""
    folder = copied(sound("llama-llama3"), tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    settings = config["rope_parameters"]
    settings["type"] = settings.pop("rope_type")
    edit_json(
        folder / "config.json",
        rope_parameters=None,
        rope_scaling={key: value for key, value in settings.items() if key != "rope_theta"},
        rope_theta=settings["rope_theta"],
        head_dim=None,
    )
    convert(folder, tmp_path / "a.gguf")
    convert(sound("llama-llama3"), tmp_path / "b.gguf")
    a, b = ModelFile.open(tmp_path / "a.gguf"), ModelFile.open(tmp_path / "b.gguf")
    assert np.array_equal(a.tensor("rope_freqs.weight"), b.tensor("rope_freqs.weight"))
    lengths = {"llama.attention.key_length", "llama.attention.value_length"}  # which the older config did not have
    assert {key: value for key, value in plain(b).items() if key not in lengths} == plain(a)

    folder = copied(sound("qwen3moe"), tmp_path / "experts")
    edit_json(folder / "config.json", num_local_experts=None, num_experts=4)
    convert(folder, tmp_path / "c.gguf")
    convert(sound("qwen3moe"), tmp_path / "d.gguf")
    assert_same_model(tmp_path / "c.gguf", tmp_path / "d.gguf")

    folder = copied(sound("gemma3"), tmp_path / "gemma")
    edit_json(folder / "config.json", rope_parameters=None, rope_theta=1e6, rope_local_base_freq=10000.0)
    edit_json(folder / "config.json", layer_types=None, _sliding_window_pattern=None, sliding_window_pattern=6)
    convert(folder, tmp_path / "e.gguf")
    convert(sound("gemma3"), tmp_path / "f.gguf")
    assert_same_model(tmp_path / "e.gguf", tmp_path / "f.gguf")


def test_a_gemma_that_sees(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    text = {**BASE, **GEMMA, "attn_implementation": "eager"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    torch.manual_seed(1)
    peer = transformers.Gemma3ForConditionalGeneration(config).eval()
    folder = save(peer, tmp_path / "sees")
    made = convert(folder, tmp_path / "a.gguf")
    assert made.architecture == "gemma3"
    assert made.notes[0] == "only its text model is converted; pictures cannot be given to it"
    assert "tensors are left out, such as" in made.notes[1]
    tokens = np.random.default_rng(3).integers(0, 200, 30)
    wanted = logits_of(peer, tokens)
    with Engine.load(tmp_path / "a.gguf", ops="numpy") as engine:
        got = engine.session().prefill(tokens.tolist())
    np.testing.assert_allclose(got, wanted[-1], atol=0.01 * wanted.std())


def test_every_family_of_folders_is_compared(sound: Folder) -> None:
    """Each file in checkpoints/ is the model_type of a case; gemma3 (which sees) has a test of its own."""
    types = {json.loads((sound(case) / "config.json").read_text())["model_type"] for case in CASES}
    assert {name.replace("_", "-") for name in types} | {"gemma3"} == set(registry.names(CHECKPOINTS))


# -- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("float64", "F32")]
)
def test_a_folder_keeps_its_own_type(tmp_path: Path, dtype: str, stored: str) -> None:
    torch = pytest.importorskip("torch")
    peer = random_peer("llama").to(getattr(torch, dtype))
    convert(save(peer, tmp_path / "folder"), tmp_path / "a.gguf")
    model = ModelFile.open(tmp_path / "a.gguf")
    assert model.metadata["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32}[stored]
    for name, info in model.tensors.items():
        assert info.type == (stored if len(info.shape) > 1 else "F32")
        if name == "blk.1.ffn_down.weight":
            wanted = peer.state_dict()["model.layers.1.mlp.down_proj.weight"].float().numpy()
            assert np.array_equal(model.tensor(name), wanted)


@pytest.mark.parametrize("case", ["llama", "mixtral", "gemma3", "opt"])
def test_types_are_those_of_requantising(sound: Folder, tmp_path: Path, case: str) -> None:
    convert(sound(case), tmp_path / "f32.gguf")
    for kind, embedding in (("q8_0", None), ("q4_0", None), ("bf16", "q8_0")):
        convert(sound(case), tmp_path / "a.gguf", kind, embedding_type=embedding)
        convert_type(tmp_path / "f32.gguf", tmp_path / "b.gguf", kind, embedding_type=embedding)
        assert_same_model(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_pieces_do_not_show(sound: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in ("llama-biased", "mixtral", "opt"):
        convert(sound(case), tmp_path / "a.gguf")
        with monkeypatch.context() as patch:
            patch.setattr("genmote.models.convert._PIECE", 100)
            convert(sound(case), tmp_path / "b.gguf")
        assert_same_model(tmp_path / "b.gguf", tmp_path / "a.gguf")


def test_memory_is_a_piece_s(sound: Folder, tmp_path: Path) -> None:
    """A table of 128 MB is converted in a fraction of it."""
    folder = copied(sound("llama-tied"), tmp_path / "large")
    tensors = tensors_of(folder)
    rows = 1 << 20
    rewrite(folder, {**tensors, "model.embed_tokens.weight": np.ones((rows, 32), np.float32)})
    edit_json(folder / "config.json", vocab_size=rows)
    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("genmote.models.convert.tokenizer", lambda folder, rows: ({}, []))
            convert(folder, tmp_path / "a.gguf", "f16")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6
    assert ModelFile.open(tmp_path / "a.gguf").tensors["token_embd.weight"].shape == (rows, 32)


# -- other sources ----------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_requantised(tmp_path: Path) -> None:
    make_model("tiny-llama", "f16", tmp_path / "a.gguf")
    made = convert(tmp_path / "a.gguf", tmp_path / "b.gguf", "q8_0")
    convert_type(tmp_path / "a.gguf", tmp_path / "c.gguf", "q8_0")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()
    assert (made.architecture, made.type, made.notes) == ("llama", "Q8_0", ())
    with pytest.raises(SpecError, match=r"a.gguf is a GGUF file already: give the type .* \(--type\)"):
        convert(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_open_source(sound: Folder, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    convert(sound("llama"), file)
    with open_source(file) as path:
        assert path == file
    with open_source(sound("llama"), folder=tmp_path) as path:
        assert_same_model(path, file)
        assert path.parent.parent == tmp_path
    assert not path.exists() and list(tmp_path.iterdir()) == [file]


# -- what is told -----------------------------------------------------------------------------------------------------


def test_compress_takes_a_folder(sound: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genmote.cli import main

    assert main(["compress", str(sound("llama")), "-o", str(tmp_path / "out.gguf"), "--method", "rtn"]) == 0
    convert(sound("llama"), tmp_path / "whole.gguf")
    assert main(["compress", str(tmp_path / "whole.gguf"), "-o", str(tmp_path / "same.gguf"), "--method", "rtn"]) == 0
    made, same = ModelFile.open(tmp_path / "out.gguf"), ModelFile.open(tmp_path / "same.gguf")
    assert all(np.array_equal(made.raw(name), same.raw(name)) for name in same.tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "same.gguf", "whole.gguf"]
    assert main(["compress", str(sound("llama")), "-o", str(tmp_path / "none" / "out.gguf")]) == 2
    assert "none is no folder: make it first" in capsys.readouterr().err


def test_the_card_and_the_makers_advice(sound: Folder, tmp_path: Path) -> None:
    folder = copied(sound("llama"), tmp_path / "My-Model")
    (folder / "README.md").write_text("---\nlanguage:\n- en\nlicense: apache-2.0\n---\n# My model\n", encoding="utf-8")
    edit_json(folder / "generation_config.json", temperature=0.5, top_k=40, top_p="x")
    convert(folder, tmp_path / "a.gguf")
    metadata = ModelFile.open(tmp_path / "a.gguf").typed_metadata()
    assert (metadata["general.name"], metadata["general.license"]) == ("My-Model", "apache-2.0")
    assert metadata["general.sampling.temp"] == np.float32(0.5) and metadata["general.sampling.top_k"] == np.int32(40)
    assert "general.sampling.top_p" not in metadata


def test_left_out_tensors_and_windows_are_told(sound: Folder, tmp_path: Path) -> None:
    folder = copied(sound("llama-tied"), tmp_path / "tied")
    tensors = tensors_of(folder)
    inverse = np.ones(4, np.float32)
    more = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": inverse,
    }
    rewrite(folder, {**tensors, **more})
    made = convert(folder, tmp_path / "a.gguf")
    assert made.notes == ("2 tensors are left out, such as lm_head.weight",)
    for case, changes in (("mistral", {}), ("mixtral", {}), ("qwen2", {"use_sliding_window": True})):
        folder = copied(sound(case), tmp_path / case)
        edit_json(folder / "config.json", sliding_window=32, **changes)
        made = convert(folder, tmp_path / "a.gguf")
        assert made.notes == ("its sliding window of 32 tokens is left out: a longer text attends to all of itself",)


# -- faults ---------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "family": ("llama", {"model_type": "lama"}, "no model family of a folder is called 'lama', did you mean llama"),
    "no family": ("llama", {"model_type": None}, "model_type is missing; the folder holds no whole model"),
    "family number": ("llama", {"model_type": 5}, "model_type = 5: wanted text"),
    "width": ("llama", {"hidden_size": None}, "hidden_size is missing"),
    "layers": ("llama", {"num_hidden_layers": 1e9}, "num_hidden_layers = 1000000000.0: wanted a whole number from 1"),
    "more layers": ("llama", {"num_hidden_layers": 3}, "has no tensor model.layers.2.input_layernorm.weight, which"),
    "fewer layers": ("llama", {"num_hidden_layers": 1}, "has 9 tensors that a llama model does not use"),
    "heads": ("llama", {"num_key_value_heads": 3}, "4 heads of 8 over 3 key/value heads: they must divide"),
    "odd heads": ("llama", {"head_dim": 7}, "and a head's width must be even"),
    "shape": ("llama", {"intermediate_size": 40}, r"mlp.gate_proj.weight has shape \(48, 32\), config.json asks for"),
    "rows": ("llama", {"vocab_size": 401}, r"model.embed_tokens.weight has shape \(400, 32\), config.json asks for"),
    "eps": ("llama", {"rms_norm_eps": "x"}, "rms_norm_eps = 'x': wanted a number from 0 to 1"),
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu': llama models have silu"),
    "tied": ("llama-tied", {"tie_word_embeddings": False}, "has no tensor lm_head.weight or language_model.lm_head"),
    "tied number": ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings = 1: wanted true or false"),
    "quantised": ("llama", {"quantization_config": {"quant_method": "awq"}}, r"its weights are quantised \('awq'\)"),
    "quantised how": ("llama", {"quantization_config": 4}, "quantization_config is 4, wanted an object"),
    "rope": ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic' is not supported: there are"),
    "partial rope": (
        "llama",
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor = 0.5: heads that turn in part are not supported",
    ),
    "yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
        "truncate = False: bounds that are not rounded are not supported",
    ),
    "experts": (
        "qwen3moe",
        {"norm_topk_prob": False},
        "norm_topk_prob = False: experts whose weights do not sum to one are not supported",
    ),
    "some experts": ("qwen3moe", {"mlp_only_layers": [0]}, "blocks without experts are not supported"),
    "sparse experts": ("qwen3moe", {"decoder_sparse_step": 2}, "blocks without experts are not supported"),
    "many experts": ("qwen3moe", {"num_local_experts": 5}, r"has shape \(4, 32\), config.json asks for \(5, 32\)"),
    "summed experts": ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob = True: experts whose weights are scaled"),
    "clipped": ("olmoe", {"clip_qkv": 8.0}, "clip_qkv = 8.0: queries, keys and values that are clipped"),
    "gemma's scale": ("gemma3", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar = 100: wanted 16 in a model"),
    "gemma's layers": ("gemma3", {"layer_types": ["full_attention"] * 7}, "wanted every 6th block to see the whole"),
    "gemma's pattern": ("gemma3", {"_sliding_window_pattern": 4}, "wanted every 6th block to see the whole text"),
    "gemma's scores": ("gemma3", {"attn_logit_softcapping": 50.0}, "scores that are capped are not supported"),
    "gemma's future": ("gemma3", {"use_bidirectional_attention": True}, "text that sees what comes after it"),
    "gemma's locals": (
        "gemma3",
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear"}}},
        "rope_type 'linear' of local layers is not supported",
    ),
    "opt's norms": ("opt", {"do_layer_norm_before": False}, r"OPT's other forms \(OPT-350M\) are not supported"),
    "opt's last norm": ("opt", {"_remove_final_layer_norm": True}, "OPT without a last norm is not supported"),
    "opt's embedding": ("opt", {"word_embed_proj_dim": 16}, "embeddings of another width are not supported"),
    "opt's positions": ("opt", {"max_position_embeddings": 1 << 29}, r"embed_positions.weight has shape \(66, 32\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configs_are_named(sound: Folder, tmp_path: Path, case: str) -> None:
    name, changes, message = WRONG[case]
    folder = copied(sound(name), tmp_path / "wrong")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelFileError, match=message) as caught:
        convert(folder, tmp_path / "a.gguf")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not (tmp_path / "a.gguf").exists()


def test_wrong_tensors_are_named(sound: Folder, tmp_path: Path) -> None:
    folder = copied(sound("llama"), tmp_path / "wrong")
    tensors = tensors_of(folder)
    name = "model.layers.1.self_attn.q_proj.weight"

    def told(changed: dict[str, Any], kind: type[Exception], message: str, type: str | None = None) -> None:
        rewrite(folder, {name: x for name, x in {**tensors, **changed}.items() if x is not None})
        with pytest.raises(kind, match=message):
            convert(folder, tmp_path / "a.gguf", type)
        assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*"))

    told({name: None}, ModelFileError, f"has no tensor {name}, which a llama model needs")
    told({name: tensors[name][:, :5]}, ModelFileError, rf"tensor {name} has shape \(32, 5\), config.json asks for")
    told({name: tensors[name].astype(np.int8)}, ModelFileError, f"tensor {name} is stored as I8, wanted F64, F32")
    told({name: tensors[name] * np.nan}, ModelFileError, f"tensor {name} holds nan: weights must be finite")
    told({name: tensors[name] * 1e6}, SpecError, f"tensor {name}: .* is beyond the range of F16", "f16")
    told({"model.layers.1.self_attn.q_norm.weight": np.ones(8)}, ModelFileError, "has 1 tensors that a llama model")
    told({"model.embed_tokens.weight": None}, ModelFileError, "has no tensor embed_tokens.weight; it holds no language")


def test_missing_files_are_named(sound: Folder, tmp_path: Path) -> None:
    folder = copied(sound("llama"), tmp_path / "wrong")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match="has no tokenizer"):
        convert(folder, tmp_path / "a.gguf")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="has no model.safetensors"):
        convert(folder, tmp_path / "a.gguf")
    (folder / "config.json").unlink()
    with pytest.raises(ModelFileError, match="has no config.json; give a Hugging Face model folder"):
        convert(folder, tmp_path / "a.gguf")
    with pytest.raises(ModelNameError, match="absent is not there: check the path"):
        convert(tmp_path / "absent", tmp_path / "a.gguf")


def test_texts_that_are_no_unicode_are_named(sound: Folder, tmp_path: Path) -> None:
    folder = copied(sound("llama"), tmp_path / "wrong")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x\\ud800"}')
    with pytest.raises(ModelFileError, match=r"'x\\ud800' in it is no Unicode text"):
        convert(folder, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_names_of_tensors_may_hold_anything(sound: Folder, tmp_path: Path) -> None:
    folder = copied(sound("llama"), tmp_path / "wrong")
    rewrite(folder, {**tensors_of(folder), "a\nb\u202e": np.ones(1)})
    with pytest.raises(ModelFileError, match=r"does not use \(a\\nb\\u202e\); the model is not what") as caught:
        convert(folder, tmp_path / "a.gguf")
    assert str(caught.value).isprintable()


def test_types_must_be_known(sound: Folder, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="tensor type 'q9' is unknown"):
        convert(sound("llama"), tmp_path / "a.gguf", "q9")


def test_values_of_a_config_are_checked() -> None:
    config = Hparams(Path("config.json"), {"a": float("nan"), "b": "\u202e", "c": True})
    for look, message in (
        (lambda: config.number("a"), "a = nan: wanted a number from 0 to 1e"),
        (lambda: config.integer("b"), "u202e': wanted a whole number"),
        (lambda: config.integer("c"), "c = True: wanted a whole number"),
        (lambda: config.inner("c"), "c is True, wanted an object"),
    ):
        with pytest.raises(ModelFileError, match=message):
            look()


JUNK = st.sampled_from(
    [None, True, -1, 0, 5, 2**70, 0.5, "", "x", "\ud800", "\u202e", [], [[]], [1], {}, {"x": 1}, {"id": []}]
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values of a JSON document, of long lists and objects only the first and the last."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    inner = inner if len(inner) < 40 else [*inner[:2], inner[-1]]
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]),
    pick=st.integers(0, 1 << 20),
    junk=JUNK,
)
def test_a_folder_s_json_may_hold_anything(sound: Folder, tmp_path: Path, name: str, pick: int, junk: Any) -> None:
    folder = tmp_path / "folder"
    if not folder.exists():
        copied(sound("llama-llama3"), folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    text = (folder / name).read_text()
    value = {"": json.loads(text)}
    paths = places(value[""], ("",))
    *way, last = paths[pick % len(paths)]
    inner: Any = value
    for key in way:
        inner = inner[key]
    inner[last] = junk
    try:
        (folder / name).write_text(json.dumps(value[""]))
        convert(folder, tmp_path / "a.gguf")
    except ModelFileError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
    finally:
        (folder / name).write_text(text)


# -- with the kernels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llama", "mixtral", "qwen3moe", "gemma3", "opt"])
def test_the_kernels_compute_what_transformers_does(sound: Folder, tmp_path: Path, case: str) -> None:
    """float32 weights, keys and values in float16: within a hundredth of the logits' spread."""
    pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)
    convert(sound(case), tmp_path / "a.gguf")
    tokens = np.random.default_rng(3).integers(0, BASE["vocab_size"], 40)
    wanted = logits_of(random_peer(case), tokens)[-1]
    with Engine.load(tmp_path / "a.gguf", ops="native") as engine:
        got = engine.session().prefill(tokens.tolist())
    np.testing.assert_allclose(got, wanted, atol=0.01 * wanted.std())


# -- the real model, there and back ----------------------------------------------------------------------------------


def to_folder(path: Path, folder: Path) -> None:
    """A llama model file as a Hugging Face folder: float32 numbers, rows and names as they were before."""
    from tests.models.test_tokenizer import byte_level_oracle

    model = ModelFile.open(path)
    keys, tokens = model.metadata, model.metadata["tokenizer.ggml.tokens"].strings()
    heads = {"attn_q": keys["llama.attention.head_count"], "attn_k": keys["llama.attention.head_count_kv"]}
    places = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
        "attn_output": "self_attn.o_proj",
        **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }
    tensors = {}
    for name in model.tensors:
        x = model.tensor(name)
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            if part in heads:
                x = x.reshape(heads[part], -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
            tensors[f"model.layers.{layer}.{places[part]}.weight"] = x
        else:
            tensors[{"token_embd.weight": "model.embed_tokens.weight"}.get(name, "model.norm.weight")] = x
    folder.mkdir()
    rewrite(folder, tensors)
    config = {
        "model_type": "llama",
        "hidden_size": keys["llama.embedding_length"],
        "intermediate_size": keys["llama.feed_forward_length"],
        "num_hidden_layers": keys["llama.block_count"],
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "max_position_embeddings": keys["llama.context_length"],
        "vocab_size": len(tokens),
        "rms_norm_eps": 1e-5,
        "rope_theta": keys["llama.rope.freq_base"],
        "tie_word_embeddings": True,
    }
    marks = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {f"{theirs}_token": tokens[keys[f"tokenizer.ggml.{ours}_token_id"]] for theirs, ours in marks.items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(byte_level_oracle(path, digits=True).to_str(), encoding="utf-8")
    named |= {"add_prefix_space": False, "chat_template": keys["tokenizer.chat_template"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")


@pytest.mark.slow
def test_the_real_model_there_and_back(smollm2: Path, tmp_path: Path) -> None:
    """What Q4_1 and Q8_0 stored, in float32, is stored by the same bytes again: every tensor, so every text too."""
    to_folder(smollm2, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.gguf", "q4_1", embedding_type="q8_0")
    source, back = ModelFile.open(smollm2), ModelFile.open(tmp_path / "back.gguf")
    assert set(source.tensors) == set(back.tensors)
    for name, info in source.tensors.items():
        assert info.type == back.tensors[name].type and np.array_equal(source.raw(name), back.raw(name)), name
    theirs, ours = plain(source), plain(back)
    lacking = {"organization", "finetune", "basename", "size_label", "license", "languages"}
    assert theirs.keys() - ours.keys() == {f"general.{key}" for key in lacking}
    assert ours.keys() - theirs.keys() == {"tokenizer.ggml.add_eos_token"}
    same = theirs.keys() & ours.keys()
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    texts = []
    for path in (smollm2, tmp_path / "back.gguf"):
        with Engine.load(path) as engine:
            texts.append(engine.generate("The capital of France is", max_tokens=32).text)
    assert texts[0] == texts[1] and "Paris" in texts[0]
