"""The engine on the echo model: every way a text ends, speculation, stop strings, streams left early, bad input."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import ContextError, ModelNameError, OpsError, SpecError, TemplateError
from genmote.models.chat import ChatTemplate
from genmote.runtime import loading, measures
from genmote.runtime.engine import Engine
from genmote.runtime.fake import EchoDecoder, EchoTokenizer, fake_engine
from genmote.runtime.generation import Request
from genmote.runtime.sample import Sampling
from genmote.runtime.scheduler import Scheduler
from genmote.runtime.speculate import PromptLookup, check_tokens


def test_a_text_and_its_account() -> None:
    result = fake_engine().generate("ab ab", max_tokens=7)
    assert result.text == " ab ab "
    assert bytes(result.tokens).decode() == result.text
    assert (result.finish_reason, result.prompt_tokens, result.cached_tokens) == ("length", 6, 0)
    assert result.decode_tokens == 7 and result.steps == 6
    assert result.prefill_s > 0 and result.first_token_ms > 0 and result.decode_s > 0
    assert result.prefill_tokens_per_s == pytest.approx(6 / result.prefill_s)
    assert result.decode_tokens_per_s == pytest.approx(6 / result.decode_s)


def test_pieces_make_the_result() -> None:
    engine = fake_engine(sure=2.0)
    stream = engine.stream("ab ab", max_tokens=30, temperature=1.0, seed=4)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == stream.result.text
    assert [piece.token for piece in pieces] == stream.result.tokens
    assert [piece.finish_reason for piece in pieces] == [None] * 29 + ["length"]
    assert engine.generate("ab ab", max_tokens=30, temperature=1.0, seed=4).text == stream.result.text
    assert engine.generate("ab ab", max_tokens=30, temperature=1.0, seed=5).text != stream.result.text


def test_progress_tells_how_much_of_a_prompt_was_read() -> None:
    engine = fake_engine()
    told: list[tuple[int, int]] = []
    prompt = "ab " * 400
    list(engine.stream(prompt, max_tokens=1, progress=lambda *step: told.append(step)))
    assert told == [(0, 1201), (512, 1201), (1024, 1201), (1201, 1201)]
    told.clear()
    engine.generate(prompt + "x", max_tokens=1, progress=lambda *step: told.append(step))
    assert told == [(0, 1), (1, 1)]  # what a session holds is not read again


def test_it_ends_at_an_end_token_and_may_be_told_to_go_on() -> None:
    engine = fake_engine()
    prompt = [*b"x", 257, *b"x"]  # the echo says the end token next
    stopped = engine.generate(prompt, max_tokens=5)
    assert (stopped.text, stopped.tokens, stopped.finish_reason) == ("", [], "stop")
    going = engine.generate(prompt, max_tokens=5, ignore_eos=True)
    assert (going.text, going.tokens, going.finish_reason) == ("xxx"[:2], [257, 120, 257, 120, 257], "length")


def test_a_stop_string_ends_it_across_tokens() -> None:
    engine = fake_engine()
    result = engine.generate("one two one", max_tokens=50, stop=["ne o", "zzz"])
    assert (result.text, result.finish_reason) == (" o", "stop_string")
    held = engine.generate("one two one", max_tokens=3, stop="one!")
    assert (held.text, held.finish_reason) == (" on", "length")  # what was held back comes at the end


def test_it_ends_where_the_context_does() -> None:
    engine = fake_engine(context=10)
    result = engine.generate("ab ab", max_tokens=50)
    assert result.finish_reason == "context"
    assert len(result.tokens) == 5  # six rows of prompt, four tokens fed, and the one that follows
    full = engine.generate("ab ab ab ", max_tokens=50)
    assert (len(full.tokens), full.finish_reason) == (1, "context")
    assert engine.generate("ab ab", max_tokens=50, speculate=True).tokens == result.tokens


@settings(max_examples=60, deadline=None)
@given(
    st.text("ab ", min_size=1, max_size=30),
    st.sampled_from([0.0, 0.6, 1.5]),
    st.integers(0, 1000),
    st.sampled_from([1.0, 4.0, 20.0]),
    st.sampled_from([(), ("ba",), (" a", "bb")]),
    st.sampled_from([1.0, 1.4]),
    st.integers(12, 60),
)
def test_speculation_gives_the_same_text(
    prompt: str, temperature: float, seed: int, sure: float, stop: tuple[str, ...], penalty: float, context: int
) -> None:
    options: dict[str, Any] = {
        "max_tokens": 40,
        "temperature": temperature,
        "seed": seed,
        "stop": stop,
        "repetition_penalty": penalty,
    }
    prompt = prompt[: context - 2]
    plain = fake_engine(context, sure=sure).generate(prompt, **options)
    engine = fake_engine(context, sure=sure)
    guessed = engine.generate(prompt, **options, speculate=True)
    assert (guessed.text, guessed.tokens, guessed.finish_reason) == (plain.text, plain.tokens, plain.finish_reason)
    assert guessed.steps <= plain.steps
    again = engine.generate(prompt, **options)  # what was rejected has left no trace in the cache
    assert again.tokens == plain.tokens


def test_speculation_saves_steps_on_a_text_that_repeats() -> None:
    plain = fake_engine().generate("to be or not to be ", max_tokens=100)
    guessed = fake_engine().generate("to be or not to be ", max_tokens=100, speculate=True)
    assert guessed.steps * 4 < plain.steps
    assert guessed.accepted >= plain.steps - guessed.steps


def drafted(context: int = 4096, *, small: int = 4096, **settings: Any) -> Engine:
    """An engine whose draft model is another echo model."""
    engine = fake_engine(context)
    engine.draft = fake_engine(small, **settings)
    return engine


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("sure", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("small", [8, 30, 4096])
def test_a_draft_model_changes_no_text_however_bad_it_is(temperature: float, sure: float, small: int) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": temperature, "seed": 5}
    plain = fake_engine().generate("to be or", **options)
    engine = drafted(small=small, sure=sure)
    guessed = engine.generate("to be or", **options)  # unasked, as there is a draft model
    assert (guessed.tokens, guessed.text) == (plain.tokens, plain.text)
    assert guessed.steps <= plain.steps
    assert engine.generate("to be or", **options, speculate=False).drafted == 0


def test_a_draft_model_that_is_right_saves_steps_and_sees_no_more_than_it_can() -> None:
    plain = fake_engine().generate("a text that says nothing twice", max_tokens=100)
    guessed = drafted().generate("a text that says nothing twice", max_tokens=100)
    assert guessed.accepted == guessed.drafted == plain.steps - guessed.steps > 80
    short = drafted(small=60).generate("a text that says nothing twice", max_tokens=100)
    assert 20 < short.accepted < 40  # its context ends before the text does


def test_a_draft_model_does_not_guess_from_another_model_s_embeddings() -> None:
    engine = drafted()
    rows = np.full((3, 4), 97.0, np.float32)
    assert engine.generate([rows], max_tokens=20).drafted == 0


def test_a_batch_with_a_draft_model_gives_the_same_texts() -> None:
    prompts = ["to be", "or not", "to bee or not to bee"]
    plain = [fake_engine().generate(prompt, max_tokens=40).tokens for prompt in prompts]
    with Scheduler(drafted()) as scheduler:
        handles = [scheduler.submit(scheduler.engine.request(prompt, max_tokens=40)) for prompt in prompts]
        results = [handle.result(60) for handle in handles]
    assert [result.tokens for result in results] == plain
    assert all(result.accepted > 20 for result in results)


def test_a_draft_model_with_other_tokens_is_refused() -> None:
    class Shouting(EchoTokenizer):
        def token_bytes(self, token: int) -> bytes:
            return super().token_bytes(token).upper()

    check_tokens(EchoTokenizer(), EchoTokenizer())
    with pytest.raises(
        SpecError, match=r"has other tokens \(258\) than the model it drafts for \(258\): use a smaller"
    ):
        check_tokens(Shouting(), EchoTokenizer())


def test_guesses_adapt() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    assert lookup.draft(100) == [4, 5, 6, 7]
    lookup.judge(4, 4)
    assert len(lookup.draft(100)) == 8
    lookup.judge(8, 0)
    assert len(lookup.draft(100)) == 2
    lookup.judge(2, 0)
    assert [lookup.draft(100) for _ in range(4)] == [[]] * 4  # pauses, then tries again
    assert lookup.draft(100) == [4, 5]
    assert lookup.draft(0) == []
    assert (lookup.count.drafted, lookup.count.accepted, lookup.count.steps_saved) == (14, 4, 4)
    lookup.extend([-7, 2, 3])  # embeddings are never guessed
    lookup.extend([50, 51, -7, 60, 50, 51])
    lookup._pause = 0
    assert lookup.draft(100) == []


def test_half_characters_wait_for_their_other_half() -> None:
    engine = fake_engine()
    pieces = list(engine.stream("é é", max_tokens=4))
    assert [piece.text for piece in pieces] == [" ", "", "é", " "]
    cut = engine.generate("é é", max_tokens=2)
    assert cut.text == " �"


def test_logprobs() -> None:
    engine = fake_engine(sure=1.0)
    result = engine.generate("ab ab", max_tokens=5, logprobs=True, top_logprobs=3)
    assert result.logprobs is not None and result.top_logprobs is not None
    assert len(result.logprobs) == len(result.top_logprobs) == 5
    for token, logprob, top in zip(result.tokens, result.logprobs, result.top_logprobs, strict=True):
        assert top[0] == (token, pytest.approx(logprob))  # greedy
        assert len(top) == 3
    score = engine.score("ab ab", result.tokens)
    np.testing.assert_allclose(score.logprobs, result.logprobs, rtol=1e-5)
    assert engine.generate("ab", max_tokens=2).logprobs is None


def test_the_next_prompt_reuses_the_last_text() -> None:
    engine = fake_engine()
    first = engine.generate("ab ab", max_tokens=8)
    second = engine.generate("ab ab" + first.text + "x", max_tokens=1)
    assert second.cached_tokens == 6 + 7
    session = engine.session()
    assert engine.generate("ab ab", max_tokens=2, session=session).cached_tokens == 0
    assert engine.generate("ab ab", max_tokens=2, session=session).cached_tokens == 5


@pytest.mark.parametrize("leave", ["close", "drop", "interrupt"])
def test_a_stream_left_early_leaves_the_engine_as_good_as_before(leave: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine(sure=3.0)
    wanted = fake_engine(sure=3.0).generate("ab ab", max_tokens=9).tokens
    stream = engine.stream("ab ab", max_tokens=1000, speculate=True)
    next(stream)
    if leave == "close":
        stream.close()
        assert stream.result.decode_tokens >= 1
    elif leave == "drop":
        del stream
    else:
        real = engine.decoder.forward

        def interrupted(*args: Any, **kwargs: Any) -> None:
            real(*args, **kwargs)
            raise KeyboardInterrupt

        monkeypatch.setattr(engine.decoder, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for _ in stream:
                pass
        monkeypatch.undo()
        assert stream.result.finish_reason == "cancelled"
    assert engine.generate("ab ab", max_tokens=9).tokens == wanted


def test_two_streams_at_once_do_not_mix() -> None:
    engine = fake_engine(sure=3.0)
    alone = [fake_engine(sure=3.0).generate(p, max_tokens=12).tokens for p in ("abc", "abd")]
    a, b = engine.stream("abc", max_tokens=12), engine.stream("abd", max_tokens=12)
    for _ in zip(a, b, strict=True):
        pass
    assert [a.result.tokens, b.result.tokens] == alone


def test_overhead_of_a_token_is_small() -> None:
    """Everything around the model's own work; the bound leaves room for a busy machine."""

    class Instant(EchoDecoder):
        said = np.zeros((1, 50_000), np.float32)

        def forward(self, inputs: Any, spans: Any, *, logits: Any = "last") -> Any:
            for span in spans:
                span.cache.truncate(span.cache.length + span.count)
            return self.said

    decoder: Any = Instant(vocab_size=50_000)
    tokenizer: Any = EchoTokenizer()
    tokenizer.vocab_size = 50_000
    engine = Engine(decoder, tokenizer)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert engine.generate("a", max_tokens=500, ignore_eos=True).decode_tokens == 500
        times.append((time.perf_counter() - start) / 500)
    assert min(times) < 100e-6


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 0}, "max_tokens=0: use a whole number of at least 1"),
        ({"max_tokens": -5}, "max_tokens=-5"),
        ({"max_tokens": 1.5}, "max_tokens=1.5"),
        ({"max_tokens": 0, "top_logprobs": -1}, "max_tokens=0: .*; top_logprobs=-1: use a whole number from 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"stop": [""]}, "a stop string is text"),
        ({"stop": 3}, "stop=3: use text, a list of texts, or None"),
        ({"sampling": 3}, "sampling=3, grammar=None: use a Sampling and a Grammar, or None"),
        ({"grammar": "root"}, "sampling=None, grammar='root': use a Sampling and a Grammar"),
        ({"heat": 1}, "unknown heat; settings of sampling are .*temperature"),
        ({"sampling": Sampling(), "top_k": 1}, "give sampling or its fields, not both"),
        ({"regex": "a", "json_schema": {}}, "json_schema, regex and grammar are each a constraint"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        fake_engine().generate("a", **options)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "the prompt is empty, and this model has no begin token to start from"),
        ([258], r"token 258: this model's tokens are whole numbers from 0 to 257"),
        ([-1], "token -1: this model's tokens"),
        ([1.5], "token 1.5: this model's tokens"),
        (b"bytes", "a prompt of type bytes: give text, token ids, embeddings"),
        (None, "a prompt of type NoneType"),
        (["a", 3], "got int for a list of token ids: give text, token ids or embeddings"),
        (np.zeros((2, 4), np.complex64), "embeddings of type complex64: give real numbers, such as float32"),
        (np.full((2, 4), 1e300), "embeddings with NaN or infinity"),
        (np.zeros((2, 4), object), "embeddings of type object: give real numbers"),
    ],
)
def test_wrong_prompts_are_told(prompt: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        fake_engine().generate(prompt)


def test_no_stop_string_is_none() -> None:
    assert fake_engine().generate("ab ab", max_tokens=5, stop=None).text == " ab a"


@pytest.mark.parametrize("messages", [None, 3, "Hello", {"role": "user"}])
def test_wrong_messages_are_told(messages: Any) -> None:
    decoder: Any = EchoDecoder()
    tokenizer: Any = EchoTokenizer()
    with pytest.raises(SpecError, match=r'messages=.*: use a list, such as \[{"role": "user"'):
        Engine(decoder, tokenizer, chat_template=ChatTemplate("x")).chat(messages)


def test_an_empty_text_needs_a_begin_token() -> None:
    assert fake_engine().generate("", max_tokens=2).prompt_tokens == 1
    engine = Engine(EchoDecoder(), EchoTokenizer(add_bos=False))  # type: ignore[arg-type]
    assert engine.begin_token is None
    with pytest.raises(SpecError, match="the prompt is empty"):
        engine.generate("")


def test_a_prompt_beyond_the_context_is_told() -> None:
    small = Engine(EchoDecoder(context=64), EchoTokenizer(), context=4)  # type: ignore[arg-type]
    said = r"6 tokens, the context is 4: shorten it, or load with a larger context \(this model takes up to 64 tokens\)"
    with pytest.raises(ContextError, match=said):
        small.generate("abcde")
    engine = fake_engine(context=4)
    with pytest.raises(ContextError, match="the prompt has 6 tokens, the context is 4: shorten it$"):
        engine.generate("abcde")
    with pytest.raises(ContextError, match="got 8 tokens, the context is 4: score a shorter text"):
        engine.score("abc", "defg")


@pytest.mark.parametrize("context", [0, -1, 5000, 2.5, True])
def test_a_wrong_context_is_told(context: Any) -> None:
    with pytest.raises(SpecError, match=r"context=.*: this model takes 1 to 4096 tokens"):
        Engine(EchoDecoder(), EchoTokenizer(), context=context)  # type: ignore[arg-type]


def test_chat_needs_a_template() -> None:
    with pytest.raises(TemplateError, match="this model has no chat template .* use generate"):
        fake_engine().chat([{"role": "user", "content": "hi"}])


def test_chat_begins_the_text_once() -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    engine = fake_engine()
    engine.chat_template = ChatTemplate(source)
    messages = [{"role": "user", "content": "ab ab"}]
    assert engine.chat_prompt(messages) == [256, *b"ab ab"]
    assert engine.chat(messages, max_tokens=3).text == " ab"
    assert "".join(p.text for p in engine.stream_chat(messages, max_tokens=3)) == " ab"
    engine.chat_template = ChatTemplate(source, bos="\x02")
    engine.tokenizer.bos_id = 2  # a template that writes the begin token itself
    assert engine.chat_prompt(messages) == [2, *b"ab ab"]


class Spaced(EchoTokenizer):
    """Writes a space before every text and an end token after it, as some vocabularies do."""

    add_eos = True

    def encode(self, text: str, *, bos: bool | None = None, special: bool = True, start: bool = True) -> list[int]:
        ids = super().encode(" " + text if start else text, bos=bos, special=special)
        return ids if bos is False else [*ids, 257]


def test_only_a_text_at_the_beginning_begins_one() -> None:
    engine = Engine(EchoDecoder(), Spaced(), identity="echo")  # type: ignore[arg-type]
    assert engine.rows("ab").ids == [256, *b" ab"]  # and no end: the text goes on
    assert engine.rows(["ab", "cd"]).ids == [256, *b" abcd"]
    assert engine.rows([[1, 2], "cd"]).ids == [1, 2, *b"cd"]
    assert engine.score("ab", "cd").tokens == list(b"cd")
    whole = measures.text_vector(engine, [256, *b" ab", 257], "last")
    np.testing.assert_array_equal(engine.embed("ab", "last"), whole)  # a text for its own sake has its end


def test_a_result_before_the_beginning_is_told() -> None:
    with pytest.raises(SpecError, match="the stream has not begun: take a piece first"):
        _ = fake_engine().stream("a").result


def test_op_sets_are_chosen_and_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GENMOTE_OPS", raising=False)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    assert loading.choose_ops(None, None, 1).name == "numpy"
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "NumPy computes instead (slow)" in lines[0]
    monkeypatch.setenv("GENMOTE_ISA", "avx2")
    loading.choose_ops(None, None, 1)
    assert "GENMOTE_ISA has no effect without the native kernels" in capfd.readouterr().err
    assert loading.choose_ops("numpy", None, 1).name == "numpy"
    monkeypatch.setenv("GENMOTE_OPS", "numpy")
    assert loading.choose_ops(None, None, 1).name == "numpy"
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("GENMOTE_OPS", "abacus")
    with pytest.raises(OpsError, match="op set 'abacus': there are"):
        loading.choose_ops(None, None, 1)
    with pytest.raises(OpsError, match=r"isa='avx2': only the native op set has instruction sets, this is numpy"):
        loading.choose_ops("numpy", "avx2", 1)


def test_adapters_that_cannot_be_are_told() -> None:
    engine = fake_engine()
    with pytest.raises(ModelNameError, match="no adapter file is there"):
        engine.set_adapters("absent.gguf")
    with pytest.raises(SpecError, match=r"adapter 'x.gguf': give a path, or pairs \(path, scale\)"):
        engine.set_adapters(["x.gguf"])  # type: ignore[list-item]


def test_other_adapters_make_the_cache_worthless() -> None:
    engine = fake_engine()
    session = engine.session()
    engine.generate("ab ab", max_tokens=2, session=session)
    engine.set_adapters(None)
    assert engine.generate("ab ab", max_tokens=2, session=session).cached_tokens == 0
    assert engine.generate("ab ab", max_tokens=2).cached_tokens == 0


def test_requests_are_values() -> None:
    engine = fake_engine()
    assert engine.request("a", temperature=0.5, stop="x") == Request("a", sampling=Sampling(0.5), stop=("x",))
    assert engine.peak_rss_bytes > 1 << 20
    assert engine.ops_name == "fake"
