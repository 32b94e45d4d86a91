"""Examples: what becomes of each form, what is learnt of it, and what is refused or told."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import Engine
from genmote.errors import ExamplesError
from genmote.models.chat import ChatTemplate
from genmote.models.contents import chat_tokens
from genmote.tune import examples
from genmote.tune.batches import chosen, learnt_tokens, passes
from genmote.tune.examples import Examples, held_out, read


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    with Engine.load(tiny, ops="numpy") as engine:
        yield engine


def one(path: Path, model: Any, context: int = 200) -> tuple[list[int], list[bool]]:
    """The only example of a file."""
    found = read(path, model, context, [])
    assert len(found) == 1
    tokens, learnt = found[0]
    return tokens.tolist(), learnt.tolist()


def test_a_prompt_is_what_generate_reads_and_the_completion_is_learnt(lines: Any, model: Any) -> None:
    tokens, learnt = one(lines({"prompt": "Turn on the light", "completion": " now", "id": 7}), model)
    asked = model.rows("Turn on the light").ids
    answer = model.tokenizer.encode(" now", bos=False, start=False, special=False)
    assert tokens == [*asked, *answer, model.tokenizer.eos_id]
    assert learnt == [False] * len(asked) + [True] * (len(answer) + 1)


def test_a_conversation_is_what_chat_reads_and_the_assistant_s_turns_are_learnt(lines: Any, model: Any) -> None:
    talk = [
        {"role": "user", "content": "light on"},
        {"role": "assistant", "content": "done <|im_end|> really"},
        {"role": "user", "content": "and off"},
        {"role": "assistant", "content": "off"},
    ]
    tokens, learnt = one(lines({"messages": talk}), model)
    for index in (1, 3):  # before each turn stands the very prompt that `chat` would give
        asked = model.chat_prompt(talk[:index])
        assert tokens[: len(asked)] == asked and not learnt[len(asked) - 1] and learnt[len(asked)]
    said = [token for token, mark in zip(tokens, learnt, strict=True) if mark]
    text = model.tokenizer.decode(said, special=True)
    end = model.tokenizer.decode([next(iter(model.tokenizer.eog_ids & set(said)))], special=True)
    assert text == f"done <|im_end|> really{end}off{end}"
    assert chat_tokens(model.chat_template, model.tokenizer, talk, add_generation_prompt=False) == tokens


def test_a_text_is_learnt_whole_and_ends(lines: Any, model: Any) -> None:
    tokens, learnt = one(lines({"text": "all of it"}), model)
    assert tokens == [*model.rows("all of it").ids, model.tokenizer.eos_id]
    assert learnt == [False] + [True] * (len(tokens) - 1)


def test_token_ids_may_stand_for_any_text(lines: Any, model: Any) -> None:
    eos = model.tokenizer.eos_id
    assert one(lines({"prompt": [5, 6], "completion": [7]}), model) == ([5, 6, 7, eos], [False, False, True, True])
    assert one(lines({"text": [9, 8, 7]}), model) == ([9, 8, 7], [False, True, True])


def test_a_plain_text_is_cut_into_windows_that_lose_no_token(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("some words that go on and on " * 9, encoding="utf-8")
    found = read(path, model, 16, [])
    whole = model.rows(path.read_text()).ids
    told = [token for index in range(len(found)) for token in found[index][0][1:].tolist()]
    assert told == whole[1:] and max(map(found.rows, range(len(found)))) == 16
    assert learnt_tokens(found, range(len(found))) == len(whole) - 1


def test_json_that_is_read_as_a_text_is_told(lines: Any, model: Any) -> None:
    told: list[str] = []
    read(lines({"text": "all of it"}, name="mine.json"), model, 64, told)
    assert told == ["mine.json looks like JSON, and is read as one text: examples have a name that ends in .jsonl"]


def test_long_examples_are_cut_and_those_with_nothing_left_are_told(lines: Any, model: Any) -> None:
    long, short = {"prompt": "a b c d e f g h i j k l", "completion": "z"}, {"prompt": "a", "completion": "b " * 40}
    told: list[str] = []
    found = read(lines(long, short), model, 8, told)
    assert len(found) == 1 and found.rows(0) == 8
    assert told == [
        "2 of 2 examples are longer than 8 tokens: cut at their end (--context)",
        "1 of 2 examples have nothing to learn (within 8 tokens): left out",
    ]
    with pytest.raises(
        ExamplesError, match="none of 1 examples has anything to learn within 8 tokens: raise --context"
    ):
        read(lines(long), model, 8, [])


def test_what_repeats_or_contradicts_is_told(lines: Any, model: Any) -> None:
    same, other = {"prompt": "light", "completion": "on"}, {"prompt": "light", "completion": "off"}
    told: list[str] = []
    read(lines(same, same, other, {"text": "light"}, {"text": "lamp"}), model, 64, told)
    assert told == [
        "1 of 5 examples are there more than once",
        "1 prompts have more than one answer: the model learns to say each sometimes",
    ]


def test_one_answer_to_all_is_told(lines: Any, model: Any) -> None:
    told: list[str] = []
    read(lines({"prompt": "light", "completion": "on"}, {"prompt": "lamp", "completion": "on"}), model, 64, told)
    assert told == ["all examples have the same answer: what is learnt from them is that answer alone"]
    for few in ({"prompt": "lamp", "completion": "off"}, {"prompt": "light", "completion": "on"}, {"text": "on"}):
        told.clear()
        read(lines({"prompt": "light", "completion": "on"}, few), model, 64, told)
        assert not any("same answer" in line for line in told)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ('"text"', 'line 2: "text" is no example'),
        ('{"question": "a"}', "line 2: keys 'question'"),
        ("{}", "line 2: keys are missing"),
        ('{"text": 5}', "line 2: text: wanted a text, or a list of token ids from 0 to 319"),
        ('{"text": [1, 320]}', "line 2: text: wanted a text, or a list of token ids"),
        ('{"prompt": "a", "completion": null}', "line 2: completion: wanted a text"),
        ('{"messages": []}', "line 2: messages: wanted a list of messages"),
        ('{"messages": [{"content": "a"}]}', "line 2: messages: wanted a role and content in each"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "none is the assistant's"),
        ("[" * 100_000, "line 2: not JSON that can be read"),
    ],
)
def test_a_faulty_line_is_named(line: str, said: str, tmp_path: Path, model: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ExamplesError) as fault:
        read(path, model, 64, [])
    assert said in str(fault.value) and "\n" not in str(fault.value)


def test_many_faulty_lines_are_counted(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("{}\n" * 9, encoding="utf-8")
    with pytest.raises(ExamplesError, match=r"line 1: .*line 3: .*and 6 lines more"):
        read(path, model, 64, [])


def test_what_is_no_utf_8_or_empty_or_not_there(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "ok"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(ExamplesError, match=r"line 2: byte 0xe9 is not UTF-8"):
        read(path, model, 64, [])
    for name in ("empty.jsonl", "empty.txt"):
        (tmp_path / name).write_text("\n \n" if name.endswith("l") else "")
        with pytest.raises(ExamplesError, match="no examples to learn from"):
            read(tmp_path / name, model, 64, [])
    with pytest.raises(ExamplesError, match="cannot be read"):
        read(tmp_path / "absent.jsonl", model, 64, [])
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "a byte order mark"}).encode())
    assert len(read(tmp_path / "marked.jsonl", model, 64, [])) == 1


def test_messages_need_a_chat_template_that_goes_on(lines: Any, model: Any) -> None:
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2}
    kept = model.chat_template
    try:
        model.chat_template = None
        with pytest.raises(ExamplesError, match="has no chat template"):
            read(lines(talk), model, 64, [])
        # A template that leaves out the earlier answer once a later one is there (as some do with what was thought).
        source = "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.role }}:{{ m.content }};{% endif %}"
        model.chat_template = ChatTemplate(source + "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}")
        with pytest.raises(ExamplesError, match="message 1: the chat template writes it otherwise in a longer"):
            read(lines(talk), model, 64, [])
    finally:
        model.chat_template = kept


def test_examples_are_tight_while_they_are_read(lines: Any, model: Any) -> None:
    """A training's budget has no room for lists of Python's numbers, which take 50 bytes a token."""
    draw = np.random.default_rng(3)
    path = lines(*({"text": draw.integers(300, size=250).tolist()} for _ in range(200)))
    tracemalloc.start()
    try:
        found = read(path, model, 256, [])
        assert tracemalloc.get_traced_memory()[1] < 30 * len(found.tokens)
    finally:
        tracemalloc.stop()


def made_up(lengths: list[int]) -> Examples:
    rng = np.random.default_rng(0)
    return Examples.of([(rng.integers(0, 99, n), [False] + [True] * (n - 1)) for n in lengths], np.uint16)


def test_equal_examples_are_held_out_together() -> None:
    rng = np.random.default_rng(1)
    distinct = [(rng.integers(0, 99, 6), [True] * 6) for _ in range(40)]
    every = Examples.of(distinct * 3, np.uint16)
    learn, judge = held_out(every, 0.25, 100, seed=3)
    assert len(judge) == 10 and len(learn) == 90
    judged = {judge[index][0].tobytes() for index in range(len(judge))}
    assert len(judged) == 10 and not judged & {learn[index][0].tobytes() for index in range(len(learn))}
    assert len(held_out(every, 0.25, 4, seed=3)[1]) == 4
    alone = every.take([0, 0])
    learn, judge = held_out(alone, 0.1, 100, seed=3)
    assert len(learn) == 2 and not len(judge)
    assert every.identity() == every.take(range(120)).identity() != every.take(range(119)).identity()


def test_each_time_round_every_example_comes_once() -> None:
    order = [index for step in range(15) for index in chosen(10, 4, step, seed=9)]
    for start in range(0, 60, 10):
        assert sorted(order[start : start + 10]) == list(range(10))
    assert order[:10] != order[10:20]
    assert chosen(3, 8, 0, 1) == chosen(3, 8, 0, 1) and len(chosen(3, 8, 0, 1)) == 8


def test_passes_hold_all_rows_and_no_more_than_asked_for() -> None:
    every = made_up([5, 9, 3, 30, 4, 4])
    found = list(passes(every, range(6), 12, 0.5))
    assert [batch.lengths for batch in found] == [(4, 8), (2,), (29,), (3, 3)]
    assert sum(float(batch.weights.sum()) for batch in found) == 0.5 * learnt_tokens(every, range(6))
    tokens, _ = every[1]
    assert found[0].tokens[4:].tolist() == tokens[:-1].tolist() and found[0].targets[4:].tolist() == tokens[1:].tolist()
    assert all(batch.tokens.dtype == batch.targets.dtype == np.int32 for batch in found)


def test_the_module_s_forms_are_those_that_are_told() -> None:
    assert all(word in str(examples.__doc__) for word in ("prompt", "completion", "messages", "text"))
    assert all(word in examples.FORMS for word in ("prompt", "completion", "messages", "text"))
