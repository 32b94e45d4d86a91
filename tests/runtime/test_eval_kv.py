"""`eval kv`: what is measured is what a session with that cache does."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genmote import Engine
from genmote.errors import SpecError
from genmote.models.make_model import make_model
from genmote.runtime import eval_kv, eval_picture
from genmote.runtime.eval_kv import Case, Measured
from genmote.runtime.fake import fake_engine
from tests.cli.conftest import Genmote, genmote

__all__ = ["genmote"]
TEXT = "the quick brown fox jumps over the lazy dog and runs away. " * 60


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "tiny.gguf"
    make_model("tiny-llama", "q8_0", path)
    return path


def test_perplexity_is_the_engines_own(tiny: Path) -> None:
    with Engine.load(tiny, context=256) as engine:
        wanted = [Case(), Case("window", 0.25), Case("keynorm+pyramid", 0.5)]
        told: list[tuple[str, int, int]] = []
        rows = list(eval_kv.evaluate(engine, TEXT, wanted, windows=2, progress=lambda *step: told.append(step)))
        assert [done for _, done, _ in told] == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12, 13, 14, 15]
        assert told[-1] == ("measuring caches, texts", 15, 15)
        assert (engine.kv, engine.eviction) == ("f16", None)
        tokens = eval_kv.spread_windows(engine.tokenizer.encode(TEXT, special=False), 256, 2)
        assert rows[0].perplexity == engine.perplexity(tokens, context=256).value and rows[0].ratio == 1
    with Engine.load(tiny, context=256, evict="window", kv_tokens=0.25) as engine:
        assert rows[1].perplexity == engine.perplexity(tokens, context=256).value
        assert rows[1].ratio == rows[1].perplexity / rows[0].perplexity != 1
        kept = engine.session()
        kept.prefill(tokens[:200])
        assert rows[1].rows == 64 and abs(rows[1].kv_bytes - kept.nbytes) < 0.5 * kept.nbytes < 0.5 * rows[0].kv_bytes
    assert all(row.needle is None and row.copy is None for row in rows)  # random weights find nothing
    assert all(row.decode_tokens_per_s > 0 and row.prefill_tokens_per_s > 0 for row in rows)


def test_windows_are_spread_over_the_text() -> None:
    tokens = list(range(107))
    assert eval_kv.spread_windows(tokens, 10, 2) == [*range(10), *range(50, 60)]
    assert eval_kv.spread_windows(tokens, 10, 50) == list(range(100))


def test_a_haystack_holds_its_facts_and_fits() -> None:
    engine = fake_engine(context=1500)
    hay, questions = eval_kv.haystack(engine, [46] * 3000, seed=0)
    assert len(hay) + max(len(q) + len(a) for q, a in questions) <= 1500
    text = engine.tokenizer.decode(hay)
    places = [text.index(engine.tokenizer.decode([*q, *a])) for q, a in questions]
    assert len(questions) == eval_kv.NEEDLES and places == sorted(places)


def test_what_is_said_after_a_question_is_counted() -> None:
    """The echo model says what followed a letter last time: right for a word without repeated letters."""
    engine = fake_engine(context=600)
    hay = list(b"? bat")
    assert eval_kv.found(engine, hay, [([63], list(b" bat"))]) == 1
    assert eval_kv.found(engine, hay, [([63], list(b" bat")), ([63], list(b" cow"))]) == 0.5


def test_copying_is_counted_after_the_first_lines() -> None:
    engine = fake_engine()
    listed = [(7 * i) % 251 for i in range(200)]
    assert eval_kv.copied_right(engine, listed, listed) == 1
    assert eval_kv.copied_right(engine, listed, listed[::-1]) < 0.1
    listed, again = eval_kv.copy_text(engine, seed=0)
    assert len(listed) + len(again) <= engine.context < len(listed) + len(again) + 40 and listed[1:] == again


@pytest.mark.parametrize(
    ("context", "text", "said"),
    [(128, TEXT, "context=128: use at least 256"), (256, "short", "the text has .* tokens, one window takes 256")],
)
def test_what_cannot_be_evaluated_is_told(tiny: Path, context: int, text: str, said: str) -> None:
    with Engine.load(tiny, context=context) as engine, pytest.raises(SpecError, match=said):
        list(eval_kv.evaluate(engine, text, [Case()], windows=1))


def test_a_case_that_cannot_be_is_told_before_anything_is_measured() -> None:
    engine = fake_engine(context=256)
    with pytest.raises(
        SpecError, match="budget 0.04 of a context of 256 is 10 rows a layer: wanted at least 32, which is 0.125"
    ):
        next(eval_kv.evaluate(engine, "ab " * 200, [Case(), Case("window", 0.04)], windows=1))


def test_the_full_cache_comes_first() -> None:
    made = eval_kv.cases(["window"], [0.5], ["int8", "f16"])
    assert made == [Case(), Case(kv="int8"), Case("window", 0.5, "int8"), Case("window", 0.5, "f16")]
    assert str(made[2]) == "window 0.5 int8"


def row(policy: str, budget: float, ratio: float, needle: float | None = 1.0) -> Measured:
    return Measured(policy, budget, "f16", 100, 9.0 * ratio, ratio, needle, None, 50.0, 5.0 + ratio, 1000)


def test_the_picture_has_a_panel_for_each_measure_that_counts() -> None:
    rows = [row("full", 1, 1), row("window", 0.25, 1.4), row("window", 0.5, 99.0), row("h2o & more", 0.25, 1.1)]
    root = ElementTree.fromstring(eval_picture.svg("a <title>", "below", rows))
    texts = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
    assert sum("panel" in element.attrib.get("class", "") for element in root.iter()) == 3  # copying is left out
    assert "h2o & more" in texts and "a <title>" in texts and "25%" in texts
    lines = [element.attrib["points"].split() for element in root.iter() if element.tag.endswith("polyline")]
    assert [len(points) for points in lines] == [2, 1] * 3


def test_the_verb(tiny: Path, genmote: Genmote, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    words = ["eval", "kv", str(tiny), "--text", str(text), "--context", "256", "--windows", "1"]
    more = ["--policies", "window, tova+pyramid", "--budgets", "0.25,0.5", "--svg", str(tmp_path / "kv.svg")]
    told: Any = genmote(*words, *more, "--json").json
    assert [(r["policy"], r["budget"]) for r in told["rows"]] == [
        ("full", 1.0),
        *((policy, budget) for policy in ("window", "tova+pyramid") for budget in (0.25, 0.5)),
    ]
    assert ElementTree.parse(tmp_path / "kv.svg")
    ran = genmote(*words, "--quick")
    assert ran.status == 0 and len(ran.out.splitlines()) == 4 and "expected+retrieval  64 (25%)" in ran.out
    assert not ran.out.endswith(".svg")
    for budget in ("2", "x", "0"):
        told = (
            f"budgets={budget!r}: wanted shares of the context's rows, above 0 and below 1, such as --budgets 0.25,0.5"
        )
        assert told in genmote(*words, "--budgets", f"0.5, {budget}").err
    ran = genmote(*words, "--budgets", "0.01")
    told = "budget 0.01 of a context of 256 is 2 rows a layer: wanted at least 32, which is 0.125 of it"
    assert ran.status == 2 and ran.err == f"genmote eval kv: {told}\n", "told before anything is announced"
    ran = genmote(*words, "--quick", "--svg", str(tmp_path / "kv.svg"))
    assert ran.status == 0 and ran.out.endswith(f"\n\npicture: {tmp_path / 'kv.svg'}\n")
    assert "no eviction policy is called 'wind'" in genmote(*words, "--policies", "wind").err


def test_what_is_going_to_be_done_is_told_before(tiny: Path, genmote: Genmote, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox " * 18)
    words = ["eval", "kv", str(tiny), "--text", str(text), "--context", "256"]
    ran = genmote(*words, "--policies", "window", "--budgets", "0.2,0.25,0.5")
    assert ran.status == 0
    assert re.search(r"^the text has \d+ tokens: perplexity is measured over \d texts? of 256, not 3;", ran.err, re.M)
    assert re.search(r"^4 settings, each with \d texts of 256 tokens; --quick measures 3, Ctrl-C prints", ran.err, re.M)


@pytest.mark.parametrize("json", [False, True])
def test_what_was_measured_before_an_interruption_is_kept(
    tiny: Path, genmote: Genmote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json: bool
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    whole, calls = eval_kv.speed, []

    def speed(engine: Engine, tokens: Sequence[int]) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(engine, tokens)

    monkeypatch.setattr(eval_kv, "speed", speed)
    words = [
        "eval",
        "kv",
        str(tiny),
        "--text",
        str(text),
        "--context",
        "256",
        "--windows",
        "1",
        "--policies",
        "window",
        "--budgets",
        "0.25,0.5,0.75",
    ]
    ran = genmote(*words, *(["--json"] if json else []))
    assert ran.status == 130
    assert ran.err.splitlines()[-1] == "genmote eval kv: interrupted: 2 of 4 settings were measured"
    if json:
        assert ran.json["interrupted"] and [row["policy"] for row in ran.json["rows"]] == ["full", "window"]
    else:
        assert [line.split()[0] for line in ran.out.splitlines()] == ["policy", "full", "window"]
    calls[:] = [1, 1]  # interrupted in the first: there is nothing to show
    ran = genmote(*words)
    assert (ran.status, ran.out) == (130, "") and ran.err.endswith("genmote eval kv: interrupted\n")
