"""The engine on model files: tiny ones of several families over the op sets that run here, and SmolLM2 where it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import ContextError, GenmoteError, ModelFileError, ModelNameError, OpsError, SpecError
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.ops.protocol import Span
from genmote.runtime.engine import Engine
from genmote.runtime.sample import log_softmax
from genmote.runtime.scheduler import Scheduler

OPS = ["numpy", *(["native"] if importlib.util.find_spec("genmote.ops._native") else [])]
MODELS = [("tiny-llama", "Q4_0"), ("tiny-gemma3", "Q8_0"), ("tiny-qwen3moe", "Q4_1")]
PROMPTS = ["a b c", "the quick brown fox jumps over the lazy dog", "x", "0 1 0 1 0 1 0 1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A tiny model's file, made once."""
    folder = tmp_path_factory.mktemp("models")

    def make(shape: str, kind: str) -> Path:
        path = folder / f"{shape}-{kind}.gguf"
        if not path.exists():
            make_model(shape, kind, path, seed=1)
        return path

    return make


@pytest.fixture(scope="module", params=[(o, *m) for o in OPS for m in MODELS], ids=lambda p: "-".join(p))
def engine(request: pytest.FixtureRequest, tiny: Callable[[str, str], Path]) -> Iterator[Engine]:
    ops, shape, kind = request.param
    with Engine.load(tiny(shape, kind), ops=ops, threads=2) as engine:
        yield engine


def test_loading_tells_what_it_did(engine: Engine) -> None:
    assert engine.load_ms > 0
    assert engine.context == engine.config.context_length
    assert engine.model_path is not None and engine.model_path.suffix == ".gguf"
    assert len(engine.identity()) == 64


def test_in_a_batch_as_alone(engine: Engine) -> None:
    """Bit for bit: the logits of the first token, and then the drawn tokens, greedy and not."""
    options = [
        {"max_tokens": 12 + i, "temperature": 1.5 * (i % 2), "seed": i, "ignore_eos": True, "logprobs": True}
        for i in range(len(PROMPTS))
    ]
    alone = [engine.generate(p, session=engine.session(), **o) for p, o in zip(PROMPTS, options, strict=True)]
    with Scheduler(engine, max_sessions=3) as scheduler:
        handles = [scheduler.submit(engine.request(p, **o)) for p, o in zip(PROMPTS, options, strict=True)]
        for handle, wanted in zip(handles, alone, strict=True):
            result = handle.result(60)
            assert result.tokens == wanted.tokens
            assert result.logprobs == wanted.logprobs


@pytest.mark.parametrize("temperature", [0.0, 0.2])  # at 0.8 these models repeat nothing, so that nothing is guessed
def test_speculation_gives_the_same_text(engine: Engine, temperature: float) -> None:
    drafted = accepted = 0
    for prompt in PROMPTS:
        options = {"max_tokens": 20, "temperature": temperature, "seed": 3}
        plain = engine.generate(prompt, session=engine.session(), **options)
        guessed = engine.generate(prompt, session=engine.session(), **options, speculate=True)
        assert (guessed.tokens, guessed.text) == (plain.tokens, plain.text)
        drafted, accepted = drafted + guessed.drafted, accepted + guessed.accepted
    assert drafted > accepted > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_model_s_file_changes_no_text(tiny: Callable[[str, str], Path], temperature: float) -> None:
    plain = Engine.load(tiny("tiny-llama", "Q8_0"), ops="numpy")
    for kind in ("Q8_0", "Q4_0"):
        with Engine.load(tiny("tiny-llama", "Q8_0"), ops="numpy", draft=tiny("tiny-llama", kind), context=64) as engine:
            assert engine.draft is not None and engine.draft.context == 64
            for prompt in PROMPTS:
                options = {"max_tokens": 20, "temperature": temperature, "seed": 3, "ignore_eos": True}
                wanted = plain.generate(prompt, session=plain.session(), **options)
                guessed = engine.generate(prompt, session=engine.session(), **options)
                assert guessed.tokens == wanted.tokens
                assert guessed.drafted > 0
                if temperature == 0.0 and kind == "Q8_0":
                    assert guessed.accepted == guessed.drafted
                    assert guessed.steps < wanted.steps / 3


def test_a_draft_model_of_another_family_is_refused(tiny: Callable[[str, str], Path]) -> None:
    with pytest.raises(SpecError, match="the draft model has other tokens"):
        Engine.load(tiny("tiny-llama", "Q8_0"), ops="numpy", draft=tiny("tiny-gemma3", "Q8_0"))


def test_chunks_of_a_prompt_change_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = list(np.random.default_rng(0).integers(5, 300, 90))
    whole = engine.session().prefill(tokens)
    monkeypatch.setattr(engine, "chunk", 13)
    np.testing.assert_array_equal(engine.session().prefill(tokens), whole)


def test_saved_and_restored_it_goes_on(engine: Engine, tmp_path: Path) -> None:
    session = engine.session()
    wanted = engine.generate(PROMPTS[1], max_tokens=10, ignore_eos=True, session=session)
    session.truncate(wanted.prompt_tokens)
    session.save(tmp_path / "prefix")
    other = engine.session()
    other.restore(tmp_path / "prefix")
    again = engine.generate(PROMPTS[1], max_tokens=10, ignore_eos=True, session=other)
    assert again.tokens == wanted.tokens
    assert again.cached_tokens == wanted.prompt_tokens - 1


def test_embeddings_as_input_are_the_tokens(engine: Engine) -> None:
    tokens = engine.tokenizer.encode(PROMPTS[1])
    vectors = np.asarray(engine.decoder.ops.numpy(engine.decoder.embed(tokens[2:6])))
    mixed = engine.generate([tokens[:2], vectors, tokens[6:]], max_tokens=10, ignore_eos=True)
    assert mixed.tokens == engine.generate(tokens, max_tokens=10, ignore_eos=True, session=engine.session()).tokens


def test_perplexity_is_its_definition(engine: Engine) -> None:
    tokens = [int(t) for t in np.random.default_rng(1).integers(5, 300, 200)]
    context, losses = 48, []
    for start in range(0, len(tokens) - context + 1, context):
        window = tokens[start : start + context]
        if engine.begin_token is not None:
            window[0] = engine.begin_token
        logits = engine.decoder.forward(window, [Span(engine.decoder.cache(context), 0, context)], logits="all")
        assert logits is not None
        rows = log_softmax(logits)
        losses += [-rows[i, window[i + 1]] for i in range(context // 2, context - 1)]
    found = engine.perplexity(tokens, context=context)
    assert found.value == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-5)
    assert found.tokens == len(losses)


def test_a_schema_holds_for_any_model(engine: Engine) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    result = engine.generate("x", json_schema=schema, max_tokens=60, temperature=1.0, seed=5)
    assert result.text.replace(" ", "") in ('{"n":1}', '{"n":2}')


# -- adapters ---------------------------------------------------------------------------------------------------------


def write_adapter(path: Path, engine: Engine, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    width, rank = engine.config.width, 4
    out = engine.config.heads[0] * engine.config.head_dim
    tensors = []
    for i in range(engine.config.n_layers):
        for name, shape in (
            (f"blk.{i}.attn_q.weight.lora_a", (rank, width)),
            (f"blk.{i}.attn_q.weight.lora_b", (out, rank)),
        ):
            values = rng.standard_normal(shape).astype(np.float32)
            tensors.append((name, "F32", shape, values.view(np.uint8).reshape(-1)))
    metadata = {
        "general.architecture": engine.config.architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(8.0),
    }
    write_gguf(path, metadata, tensors)
    return path


@pytest.mark.skipif("native" not in OPS, reason="the native kernels are not built")
def test_another_familys_adapter_is_refused_before_weights_are_laid_anew(
    tiny: Callable[[str, str], Path], tmp_path: Path, own_home: Path
) -> None:
    path = tiny("tiny-gemma3", "Q8_0")
    with Engine.load(tiny("tiny-llama", "Q4_0"), ops="numpy") as other:
        adapter = write_adapter(tmp_path / "other.gguf", other, 1)
    with pytest.raises(ModelFileError, match="is an adapter for llama: this model is gemma3"):
        Engine.load(path, ops="native", adapter=adapter)
    assert not list((own_home / "cache").glob("packed/*"))
    Engine.load(path, ops="native").close()
    assert list((own_home / "cache").glob("packed/*")), "what a model that loads leaves there"


def test_adapters_are_swapped_while_running(engine: Engine, tmp_path: Path) -> None:
    one, two = (write_adapter(tmp_path / f"{i}.gguf", engine, i) for i in (1, 2))
    options = {"max_tokens": 8, "ignore_eos": True, "logprobs": True}

    def said() -> list[float] | None:
        return engine.generate(PROMPTS[1], **options).logprobs

    plain, identity = said(), engine.identity()
    try:
        engine.set_adapters(one)
        first = said()
        assert first != plain and engine.identity() != identity
        session = engine.session()
        session.prefill([5, 6, 7])
        session.save(tmp_path / "prefix")
        engine.set_adapters([(one, 0.5), (two, 2.0)])
        assert said() not in (plain, first)
        with pytest.raises(SpecError, match="saved with another model or other adapters"):
            engine.session().restore(tmp_path / "prefix")
        engine.set_adapters([(one, 1.0), (two, 0.0)])
        assert said() == first
    finally:
        engine.set_adapters(None)
    assert said() == plain and engine.identity() == identity
    assert engine.model_path is not None
    with Engine.load(engine.model_path, adapter=one, ops=engine.ops_name, threads=2) as loaded:
        assert loaded.generate(PROMPTS[1], **options).logprobs == first


def test_an_adapter_that_does_not_fit_leaves_the_engine_as_it_was(engine: Engine, tmp_path: Path) -> None:
    before = engine.generate(PROMPTS[0], max_tokens=4).tokens
    assert engine.model_path is not None
    with pytest.raises(ModelFileError, match="is not a LoRA adapter"):
        engine.set_adapters(engine.model_path)
    assert engine.generate(PROMPTS[0], max_tokens=4).tokens == before and engine.adapters == ()


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_loaded_is_told(tiny: Callable[[str, str], Path], tmp_path: Path) -> None:
    path = tiny("tiny-llama", "Q4_0")
    with pytest.raises(OpsError, match="op set 'abacus'"):
        Engine.load(path, ops="abacus")
    with pytest.raises(SpecError, match="threads=0"):
        Engine.load(path, threads=0)
    with pytest.raises(SpecError, match="context=100000: this model takes 1 to 256 tokens"):
        Engine.load(path, ops="numpy", context=100000)
    with pytest.raises(ModelNameError):
        Engine.load(tmp_path / "absent.gguf", ops="numpy")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelFileError):
        Engine.load(tmp_path / "cut.gguf", ops="numpy")
    with Engine.load(path, ops="numpy", context=8) as engine, pytest.raises(ContextError, match="the context is 8"):
        engine.generate(list(range(5, 14)))


@pytest.mark.skipif("native" not in OPS, reason="the native kernels are not built")
def test_an_unknown_instruction_set_is_told(tiny: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny("tiny-llama", "Q4_0")
    with pytest.raises(OpsError, match="instruction set 'abacus'"):
        Engine.load(path, ops="native", isa="abacus")
    monkeypatch.setenv("GENMOTE_ISA", "abacus")
    with pytest.raises(OpsError, match="instruction set 'abacus'"):
        Engine.load(path, ops="native")


# -- the real one -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif("native" not in OPS, reason="slow without the native kernels")
def test_smollm2(smollm2: Path) -> None:
    with Engine.load(smollm2, ops="native") as engine:
        result = engine.generate("The capital of France is", max_tokens=8)
        assert result.text.startswith(" Paris")
        quote = "The cat sat on the mat. " * 8
        plain = engine.generate(quote, max_tokens=60, ignore_eos=True, session=engine.session())
        guessed = engine.generate(quote, max_tokens=60, ignore_eos=True, session=engine.session(), speculate=True)
        assert guessed.tokens == plain.tokens
        assert guessed.steps < plain.steps / 2
        alone = [engine.generate(p, max_tokens=12, session=engine.session()).tokens for p in PROMPTS]
        with Scheduler(engine, max_sessions=4) as scheduler:
            handles = [scheduler.submit(engine.request(p, max_tokens=12)) for p in PROMPTS]
            assert [handle.result(60).tokens for handle in handles] == alone
        if engine.chat_template is not None:
            answer = engine.chat([{"role": "user", "content": "Say hello."}], max_tokens=30)
            assert answer.finish_reason in ("stop", "length") and "ello" in answer.text
        with pytest.raises(GenmoteError):
            engine.generate("x" * 100_000)
