"""What is advised where a plan does not do is a plan that does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genmote.device import profile
from genmote.errors import BudgetError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.runtime import advice
from genmote.runtime.advice import Deadline
from genmote.runtime.plan import plan
from genmote.runtime.roofline import Machine

BASE = 40 << 20
BOARD = Machine(4e9, 2e9, 30e9, 15e9, 40e6, 4, "a board")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelFile:
    path = tmp_path_factory.mktemp("advice") / "m.gguf"
    make_model("tiny-llama-256", "q8_0", path, seed=1)
    return ModelFile.open(path)


def asked(**more):
    return {"context": 128, "prompt_tokens": 64, "interpreter": BASE} | more


def test_a_deadline_tells_what_is_missed(model):
    made = plan(model, machine=BOARD, **asked())
    speed = made.expected
    assert Deadline().met(made)
    assert Deadline(speed.first_token_s * 1.01, speed.full_decode_tokens_per_s * 0.99).met(made)
    told = Deadline(speed.first_token_s / 2, speed.decode_tokens_per_s * 2).missed(made)
    assert len(told) == 2
    assert (
        "after a prompt of 64 tokens the answer is expected to begin in" in told[0]
        and "tokens/s are expected with the context of 128 tokens full, wanted" in told[1]
    )
    brief = plan(model, machine=BOARD, **asked(context=256))  # 64 tokens of prompt, 64 of an answer
    between = (brief.expected.text_decode_tokens_per_s + brief.expected.full_decode_tokens_per_s) / 2
    assert Deadline(pace=between, whole_context=False).met(brief) and not Deadline(pace=between).met(brief)
    told = Deadline(pace=1e9, whole_context=False).missed(brief)
    assert "are expected when 128 tokens of prompt and answer are held, wanted" in told[0]
    with pytest.raises(SpecError, match="a deadline needs a machine whose speed is known: name a device"):
        Deadline(1.0).met(plan(model, **asked()))


def test_the_least_threads_that_meet_it(model):
    speeds = [plan(model, machine=BOARD, threads=n, **asked()).expected.first_token_s for n in (1, 2, 3, 4)]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] > speeds[-1]
    for count, latency in enumerate(speeds, 1):
        found = advice.choose(model, Deadline(latency * 1.001), machine=BOARD, **asked())
        assert found.plan.threads <= count and Deadline(latency * 1.001).met(found.plan)
    assert advice.choose(model, Deadline(speeds[-1] * 1e-3), machine=BOARD, **asked()) is None


def test_fewer_bits_only_where_threads_do_not_do(model):
    own = plan(model, machine=BOARD, **asked()).expected.full_decode_tokens_per_s
    small = plan(model, machine=BOARD, stored_as="Q2_K", **asked()).expected.full_decode_tokens_per_s
    assert small > own * 1.1
    wanted = (own + small) / 2
    found = advice.choose(model, Deadline(pace=wanted), machine=BOARD, **asked())
    assert found.settings["stored_as"] is not None and "the model stored as" in found.what
    assert Deadline(pace=wanted).met(found.plan)
    assert advice.choose(model, Deadline(pace=own * 0.9), machine=BOARD, **asked()).settings["stored_as"] is None


def test_keys_and_values_in_fewer_bits_only_with_auto(model):
    """A long context makes them what a token waits for."""
    settings = asked(context=256, prompt_tokens=256)
    own = plan(model, machine=BOARD, **settings).expected.full_decode_tokens_per_s
    less = plan(model, machine=BOARD, kv="int4", **settings).expected.full_decode_tokens_per_s
    assert less > own
    deadline = Deadline(pace=(own + less) / 2)
    assert "--kv" in advice.choose(model, deadline, machine=BOARD, kv="auto", **settings).what
    strict = advice.choose(model, deadline, machine=BOARD, **settings)
    assert strict is None or strict.plan.kv == "f16"


def test_with_auto_rows_go_where_fewer_bits_do_not_do(model, monkeypatch):
    from genmote.cli.plan import planned

    monkeypatch.setattr("genmote.runtime.plan.LEAST_KV_TOKENS", 32)
    board = replace(BOARD, float_ops_s=1e15)  # choosing which rows go takes no time, and memory is what one waits for
    settings = asked(context=256, prompt_tokens=256, kv="auto", threads=2)
    few = plan(model, machine=board, **settings | {"kv": "int4", "kv_tokens": 64})
    all_rows = plan(model, machine=board, **settings | {"kv": "int4"})
    pace = few.expected.decode_tokens_per_s
    assert all_rows.expected.decode_tokens_per_s < pace
    assert "--kv-tokens 64" in advice.choose(model, Deadline(pace=pace * 0.999), machine=board, **settings).what
    monkeypatch.setattr(advice, "choose", lambda *args, **settings: None)
    found, chosen = planned(model, board, settings, Deadline(pace=1e-3))
    assert chosen is None and Deadline(pace=1e-3).met(found), "what was asked for meets it: nothing is refused"


def test_changes_that_fit_do_fit(model):
    whole = plan(model, **asked()).predicted_bytes
    with pytest.raises(BudgetError) as refused:
        plan(model, memory=whole // 2, **asked())
    tight = refused.value.least_bytes - 1
    found = advice.fitting(model, machine=BOARD, **asked(memory=tight))
    assert found, "fewer bits of keys and values do at least"
    for option in found:
        assert option.plan.predicted_bytes <= tight
        again = plan(model, machine=BOARD, **asked(memory=tight) | option.settings)
        assert again == option.plan
    assert len({tuple(sorted(option.settings)) for option in found}) == len(found)


def test_boards_are_the_smallest_that_do(model):
    profiles = {name: profile.load(name) for name in profile.names()}
    found = advice.boards(model, profiles, **asked())
    assert len(found) == 3
    memory = [profiles[name].usable_bytes for name, _ in found]
    assert memory == sorted(memory)
    assert memory[0] == min(p.usable_bytes for p in profiles.values() if p.refused is None)
    pace = 1.01 * found[0][1].expected.full_decode_tokens_per_s
    faster = advice.boards(model, profiles, deadline=Deadline(pace=pace), **asked())
    assert all(made.expected.full_decode_tokens_per_s >= pace for _, made in faster)
    assert found[0][0] not in [name for name, _ in faster]


def test_the_longest_prompt_in_time(model):
    settings = asked(context=256, prompt_tokens=200)
    whole = plan(model, machine=BOARD, **settings).expected.first_token_s
    deadline = Deadline(whole / 2)
    best = advice.longest_prompt(model, deadline, machine=BOARD, **settings)
    assert 1 <= best < 200
    assert deadline.met(plan(model, machine=BOARD, **settings | {"prompt_tokens": best}))
    assert not deadline.met(plan(model, machine=BOARD, **settings | {"prompt_tokens": best + 1}))
    short = plan(model, machine=BOARD, **settings | {"prompt_tokens": 3}).expected.first_token_s
    assert advice.longest_prompt(model, Deadline(short), machine=BOARD, **settings) >= 3, "few tokens are a prompt too"
    assert advice.longest_prompt(model, Deadline(1e-9), machine=BOARD, **settings) is None


@pytest.fixture(scope="module")
def long_texts(model, tmp_path_factory) -> ModelFile:
    """The same model, for 8,192 tokens."""
    metadata = model.typed_metadata() | {"llama.context_length": np.uint32(8192)}
    tensors = [(name, info.type, info.shape, model.raw(name)) for name, info in model.tensors.items()]
    path = tmp_path_factory.mktemp("advice") / "long.gguf"
    write_gguf(path, metadata, tensors)
    return ModelFile.open(path)


def test_a_context_that_a_change_brings_is_told(long_texts):
    """Where none is named, fewer bits or rows of keys and values make room for longer texts."""
    file = long_texts
    settings = asked(context=None, memory=plan(file, context=4500, interpreter=BASE).predicted_bytes)
    own = plan(file, machine=BOARD, **settings)
    found = {tuple(option.settings): option for option in advice.fitting(file, machine=BOARD, **settings)}
    assert own.context == 4096 and {("kv",), ("kv_tokens",), ("context",)} <= set(found)
    for changed, option in found.items():
        told = f", texts of {option.plan.context} tokens" in option.what
        assert told == (option.plan.context != 4096 and "context" not in changed), option.what
    assert found[("kv",)].plan.context > 4096


def test_where_rows_are_evicted_a_simpler_way_and_none_are_tried(long_texts):
    settings = asked(context=4096, kv="int4", kv_tokens=64, memory=plan(long_texts, context=256, interpreter=BASE))
    settings["memory"] = settings["memory"].predicted_bytes + 100_000
    found = {option.what: option for option in advice.fitting(long_texts, machine=BOARD, **settings)}
    assert found["--evict window"].plan.evict == "window" and found["--evict window"].plan.kv_tokens == 64
    whole = next(option for what, option in found.items() if what.endswith(" and no eviction"))
    assert whole.plan.evict is None and whole.plan.context < 4096
    told = {what for what in found if "--kv-tokens" in what}
    assert not told, "that was given"


def test_what_writes_faster_does_and_keeps_the_context(long_texts, monkeypatch):
    """Where weights are read from storage."""
    monkeypatch.setattr("genmote.runtime.plan.LEAST_RING", 10_000)
    settings = asked(
        context=8192, memory=plan(long_texts, context=8192, threads=2, interpreter=BASE).predicted_bytes - 300_000
    )
    own = plan(long_texts, machine=BOARD, **settings)
    assert own.streamed_bytes
    found = advice.faster(long_texts, own, machine=BOARD, **settings)
    assert {"kv", "kv_tokens"} <= {name for option in found for name in option.settings}
    for option in found:
        assert option.plan == plan(long_texts, machine=BOARD, **settings | option.settings)
        assert option.plan.context == 8192
        before, after = own.expected, option.plan.expected
        gains = [
            getattr(after, each) / getattr(before, each) for each in ("decode_tokens_per_s", "full_decode_tokens_per_s")
        ]
        assert max(gains) >= 1.25
    auto = advice.faster(long_texts, own, machine=BOARD, **settings | {"kv": "auto"})
    assert [option.what for option in auto] == [option.what for option in found], "f16 stays, so the same is faster"
