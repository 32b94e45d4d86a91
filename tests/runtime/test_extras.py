"""What takes memory beside the plan: weights make room for it, or it is refused and nothing has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genmote.errors import BudgetError, GrammarError, ModelFileError, OpsError
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.models.lora import read_lora
from genmote.models.make_model import make_model
from genmote.models.tokenizer import load_tokenizer
from genmote.runtime import footprint, streaming
from genmote.runtime.engine import Engine
from genmote.runtime.extras import step_bytes
from genmote.runtime.plan import plan
from genmote.runtime.streaming import Room
from tests.conftest import MakeAdapter, settled_bytes

native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)

PROMPT = [1, 5, 9, 2, 6, 30, 31, 7]


@pytest.fixture
def model(tmp_path: Path, own_home: Path) -> Path:
    make_model("tiny-llama-256", "q4_0", tmp_path / "m.gguf", seed=1)
    load_tokenizer(ModelFile.open(tmp_path / "m.gguf"))  # what a first load makes takes more than some budgets here
    return tmp_path / "m.gguf"


def loaded(model: Path, spare: int, **more: Any) -> Engine:
    """The model within what this process holds and `spare` bytes."""
    return Engine.load(model, memory=settled_bytes() + spare, context=64, threads=1, **more)


@pytest.mark.parametrize(("rank", "kind"), [(4, "F32"), (64, "F16")])
def test_adapters_take_what_is_counted(model: Path, adapter: MakeAdapter, rank: int, kind: str) -> None:
    file = ModelFile.open(adapter(model, rank, kind))
    config = read_config(ModelFile.open(model))
    updates = read_lora(file, config, native_ops.create(threads=1)).updates.values()
    held = sum(matrix.nbytes for update in updates for matrix in (update.down, update.up))
    assert held <= footprint.adapter_bytes(config, [file]) <= held + 64 * 2 * len(updates)
    assert footprint.adapter_bytes(config, [file, file]) == 2 * footprint.adapter_bytes(config, [file])
    with pytest.raises(ModelFileError, match="is not a LoRA adapter"):
        footprint.adapter_bytes(config, [ModelFile.open(model)])


def test_adapters_are_planned(model: Path, adapter: MakeAdapter) -> None:
    file, config = ModelFile.open(model), read_config(ModelFile.open(model))
    path = adapter(model, 64)
    count = footprint.adapter_bytes(config, [ModelFile.open(path)])
    free, made = (plan(file, context=64, adapter_bytes=size, interpreter=40 << 20) for size in (0, count))
    assert made.parts["adapters"] == count and free.parts["adapters"] == 0
    assert made.predicted_bytes - free.predicted_bytes == count + step_bytes(config, free)
    with loaded(model, 60_000_000, adapter=path) as engine, Engine.load(model, adapter=path) as plain:
        assert engine.plan is not None and engine.plan.parts["adapters"] == count
        assert engine.generate(PROMPT, max_tokens=6).tokens == plain.generate(PROMPT, max_tokens=6).tokens
    with pytest.raises(BudgetError, match="does not fit") as told:
        plan(file, memory=made.predicted_bytes // 2, context=64, adapter_bytes=count, interpreter=40 << 20)
    assert told.value.least_bytes is not None and told.value.least_bytes > (40 << 20) + count


def test_an_adapter_that_has_no_room_is_refused_and_the_old_one_stays(model: Path, adapter: MakeAdapter) -> None:
    small, large = (adapter(model, rank) for rank in (4, 4096))  # larger than what other tests leave free here
    with loaded(model, 12_000_000) as engine:
        engine.set_adapters(small)
        text = engine.generate(PROMPT, max_tokens=6).tokens
        with pytest.raises(BudgetError, match=r"adapters take \d+ MB more, and \d+ MB of memory leave \d+ MB") as told:
            engine.set_adapters(large)
        assert [path for path, _ in engine.adapters] == [small]
        assert engine.generate(PROMPT, max_tokens=6).tokens == text
        assert engine.extras is not None
        left = engine.extras.left
        with pytest.raises(ModelFileError, match="changed"), engine.extras.adapters(10):
            raise ModelFileError("changed")
        assert engine.extras.left == left, "what failed takes nothing"
        engine.set_adapters(None)
        assert engine.extras.left > left
        assert told.value.least_bytes is not None
    drift = 5_000_000  # this process has grown meanwhile
    with Engine.load(model, memory=told.value.least_bytes + drift, context=64, threads=1) as engine:
        engine.set_adapters(small)
        engine.set_adapters(large)  # what is told as the least does


def test_weights_make_room_for_adapters_and_logits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LEAST_RING": 1, "MOST_RING": 60_000, "LEAST_CHUNK": 4096, "MOST_CHUNK": 12_000}.items():
        monkeypatch.setattr(streaming, name, value)
    with Engine.load(model, memory=settled_bytes() + 500_000_000, context=64, threads=1) as engine:
        stream, made = engine.streaming, engine.plan
        assert stream is not None and made is not None and stream.streamed_bytes == 0
        whole, ring = stream.pinned_bytes, stream.ring_bytes
        beside = 10_000_000
        monkeypatch.setattr(streaming, "MARGIN", 1000)
        monkeypatch.setattr(streaming, "resident_bytes", lambda: beside + stream.pinned_bytes)
        room = Room(beside + whole + 5000, row_bytes=100, page_bytes=200, activation_bytes=800, chunk_rows=8)
        stream.keep_to(room)
        stream.begin(1, 8)
        assert stream.pinned_bytes == whole, "a plan that holds all weights holds as it is"
        stream.make_room(count=4000)
        assert stream.pinned_bytes == whole
        stream.make_room(count=9000)
        assert beside + stream.pinned_bytes + ring + 9000 <= room.budget_bytes, "with the ring that is now used"
        beside += 9000
        stream.shrink(ring)
        assert stream.grow(whole) > 0
        assert beside + stream.pinned_bytes <= room.budget_bytes, "what a governor gives back keeps to it as well"
        assert stream.pinned_bytes < whole
        beside -= 9000
        assert stream.grow(whole) and stream.pinned_bytes == whole
        stream.keep_to(Room(room.budget_bytes, 100, 200, 800, 8, logits_bytes=3000))
        stream.begin(0, 8)
        assert stream.pinned_bytes == whole
        stream.begin(4, 8)
        assert beside + stream.pinned_bytes + ring + 4 * 3000 + 800 <= room.budget_bytes


def test_fewer_logits_at_once_where_memory_is_short(model: Path) -> None:
    text = "a b c d e f g h " * 20
    with loaded(model, 100_000_000) as rich, loaded(model, 9_000_000) as poor:
        assert rich.extras is not None and poor.extras is not None
        one = poor.extras.room.logits_bytes
        assert one == 4 * rich.config.vocab_size
        assert rich.extras.rows_of_logits(10 * one) == 10 and poor.extras.rows_of_logits(1) == 1
        assert poor.extras.rows_of_logits(1 << 40) <= poor.extras.left // 2 // one
        wanted = rich.perplexity(text, context=32).value
        poor.extras.take("others", poor.extras.left)
        assert poor.extras.rows_of_logits(1 << 40) == 1
        assert poor.perplexity(text, context=32).value == wanted
        guesser = poor.guesser(poor.request(PROMPT, speculate=True))
        assert guesser is not None and guesser.max_draft == 1
        assert poor.guesser(poor.request(PROMPT)) is None
        more = rich.guesser(rich.request(PROMPT, speculate=True))
        assert more is not None and more.max_draft == 16
        texts = [each.generate(PROMPT * 3, max_tokens=12, speculate=True).tokens for each in (rich, poor)]
        assert texts[0] == texts[1]


def test_a_grammar_that_has_no_room_is_refused(model: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {"enum": ["a", "b"]}
    with loaded(model, 9_000_000) as poor, loaded(model, 100_000_000) as rich, Engine.load(model) as free:
        assert poor.extras is not None and rich.extras is not None
        poor.extras.take("others", poor.extras.left - 1_000_000)
        told = r"a grammar's tables take \d+ MB more, and \d+ MB of memory leave 1 MB: the least is \d+ MB"
        with pytest.raises(BudgetError, match=told) as refused:
            poor.generate(PROMPT, json_schema=schema)
        assert refused.value.least_bytes == poor.least_with_grammars(), "known before one is asked for"
        assert rich.least_with_grammars() is None and free.least_with_grammars() is None
        assert poor.generate(PROMPT, max_tokens=3).tokens, "and texts without one go on"
        left = rich.extras.left
        for _ in range(2):
            assert rich.generate(PROMPT, json_schema=schema).text == free.generate(PROMPT, json_schema=schema).text
        assert left - rich.extras.left > 8_000_000, "taken once"
        with pytest.raises(GrammarError):
            rich.generate(PROMPT, json_schema="{")
