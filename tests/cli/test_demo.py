"""The tour, on made-up recordings with the echo model, and as `make demo` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genmote import records
from genmote.recipes import peer, tour
from tests.cli.conftest import Genmote
from tests.recipes.conftest import recorded  # noqa: F401  (a fixture)

PEER = peer.Peer("llama.cpp (made up)", 300.0, 100.0, 500.0, 50.0, 200_000_000, ("a", "b"))


@pytest.fixture
def demo(
    genmote: Genmote,
    talking_echo: dict[str, Any],
    recorded: None,  # noqa: F811
    own_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """Runs the demo into a folder of its own, on a quiet machine."""
    monkeypatch.setattr(tour.Company, "cores", lambda self: 0.0)
    monkeypatch.setattr(tour, "budget", lambda engine: tour.Budget(1000, 2000))
    return lambda *words: genmote("demo", "--folder", str(tmp_path / "runs"), "-n", "8", *words)


@pytest.fixture
def with_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A peer is installed; gives what it was asked."""
    asked: dict[str, Any] = {}

    def run(*work: Any) -> peer.Peer:
        asked.update(zip(("model", "prompts", "tokens", "threads", "context"), work, strict=True))
        return PEER

    monkeypatch.setattr(peer, "here", lambda: True)
    monkeypatch.setattr(peer, "run", run)
    (tmp_path / "m.gguf").write_bytes(bytes(1000))
    from genmote.runtime.engine import Engine

    load = Engine.load

    def with_a_file(model: str, **options: Any) -> Engine:
        engine = load(model, **options)
        engine.model_path = tmp_path / "m.gguf"
        return engine

    monkeypatch.setattr(Engine, "load", with_a_file)
    return asked


def as_native(monkeypatch: pytest.MonkeyPatch, peak_rss_bytes: int) -> None:
    real = tour.figures

    def native(*given: Any) -> dict[str, Any]:
        return real(*given) | {"ops": "native", "peak_rss_bytes": peak_rss_bytes}

    monkeypatch.setattr(tour, "figures", native)


def test_the_tour_in_words(demo: Callable[..., Any], tmp_path: Path) -> None:
    ran = demo("--no-peer")
    assert ran.status == 0 and all(len(line) <= 110 for line in ran.out.splitlines())
    for told in ("75.0 beats a minute", "20 repetitions", "heartpy 1.2.7 (MIT)", "llama.cpp was not asked", "tokens/s"):
        assert told in ran.out
    assert (tmp_path / "runs" / "heart.svg").read_text().startswith("<svg")
    assert (tmp_path / "runs" / "watch.svg").exists()


def test_the_tour_as_one_object(demo: Callable[..., Any], tmp_path: Path) -> None:
    told = demo("--no-peer", "--json").json
    heart, watch = told["recordings"]
    assert heart["measured"]["mean_bpm"] == pytest.approx(75, abs=0.1) and watch["measured"]["repetitions"] == 20
    assert heart["answer"] and told["genmote"]["decode_tokens"] == 16 and told["genmote"]["peak_rss_bytes"] > 0
    assert told["peer"] is None and told["memory"]["held"] is None, "the budget is the native kernels'"
    (record,) = records.read(tmp_path / "runs" / "records.jsonl")
    assert record.what == "demo" and record.values["heart_mean_bpm"] == heart["measured"]["mean_bpm"]


def test_the_peer_does_the_same_work(demo: Callable[..., Any], with_peer: dict[str, Any]) -> None:
    ran = demo("--threads", "1")
    assert ran.status == 0 and "llama.cpp (made up)." in ran.out and "ratio" in ran.out
    assert [len(prompt) for prompt in with_peer["prompts"]] and with_peer["tokens"] == [8, 8]
    assert with_peer["context"] == tour.CONTEXT and with_peer["threads"] == 1


def test_a_peer_that_fails_is_told_and_the_tour_goes_on(
    demo: Callable[..., Any], with_peer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from genmote.errors import GenmoteError

    def fail(*work: Any) -> peer.Peer:
        raise GenmoteError("llama.cpp took longer than 300 s")

    monkeypatch.setattr(peer, "run", fail)
    ran = demo()
    assert ran.status == 0 and "no comparison: llama.cpp took longer than 300 s" in ran.out


def test_without_the_peer_it_says_how_to_get_it(demo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "here", lambda: False)
    assert "to see llama.cpp beside it: pip install xllamacpp" in demo().out


def test_a_held_budget(demo: Callable[..., Any], with_peer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    as_native(monkeypatch, 60_000_000)
    assert "Memory budget 60.0 MB: held, the peak was 60.0 MB" in demo().out
    assert demo("--json").json["memory"]["held"] is True


def test_a_run_above_its_budget_fails_loudly(
    demo: Callable[..., Any], with_peer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_native(monkeypatch, 61_000_000)
    ran = demo()
    assert ran.status == 1 and "EXCEEDED, the peak was 61.0 MB" in ran.out
    assert ran.err.endswith(
        "peak memory 61.0 MB is above the budget of 60.0 MB: please report it with what `genmote doctor` prints\n"
    )
    ran = demo("--json")
    assert ran.status == 1 and ran.json["memory"]["held"] is False


def test_a_busy_machine_is_told(
    demo: Callable[..., Any], with_peer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ratio" in demo().out and "busy meanwhile" not in demo().out
    monkeypatch.setattr(tour.Company, "cores", lambda self: 1.26)
    told = demo().out
    assert "Other programs kept 1.3 cores busy meanwhile: the speeds mean little" in told and "  ratio" not in told
    assert "genmote  llama.cpp\n" in told


def test_an_answer_with_a_number_of_its_own_is_told(demo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tour, "invented", lambda finding, answer: ["42"])
    assert "Check     42 was neither measured nor given: a model this small errs" in demo("--no-peer").out


def test_a_base_model_is_told_before_anything_is_asked(demo: Callable[..., Any], talking_echo: dict[str, Any]) -> None:
    talking_echo["template"] = None
    ran = demo("--no-peer")
    assert ran.status == 2 and "this model has no chat template: use smollm2-135m" in ran.err
    assert "Question" not in ran.out


def test_a_folder_that_cannot_be_written(demo: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = demo("--folder", str(tmp_path / "file" / "in"))
    assert ran.status == 2 and "heart.svg cannot be written (Not a directory): choose another --folder" in ran.err


def test_the_demo_as_make_runs_it(smollm2: Path, tmp_path: Path) -> None:
    """Real recordings, the real model, within the budget: the answers are right."""
    from genmote.signals import recordings

    if None in (recordings.find("heart"), recordings.find("watch")):
        pytest.skip("the recordings are not here: `make demo` fetches them")
    words = ["demo", "--json", "--folder", str(tmp_path), "--no-peer"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-m", "genmote.cli", *words], capture_output=True, text=True, env=environment, check=False
    )
    told = json.loads(ran.stdout)
    assert "63 beats per minute" in told["recordings"][0]["answer"]
    assert "20 repetitions" in told["recordings"][1]["answer"]
    assert not any(one["numbers_not_measured"] for one in told["recordings"])
    if told["genmote"]["ops"] == "native":
        assert ran.returncode == 0, ran.stderr
        assert told["memory"]["held"] and told["genmote"]["peak_rss_bytes"] <= told["memory"]["budget_bytes"]


def test_a_first_load_says_that_it_re_laid_the_weights(
    demo: Callable[..., Any], own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("genmote.ops._native")
    from genmote import ops
    from genmote.models import packed
    from genmote.models.gguf import ModelFile
    from genmote.models.make_model import make_model
    from genmote.runtime.engine import Engine

    make_model("tiny-llama", "q4_0", tmp_path / "tiny.gguf", 0)
    fake = Engine.load

    def load(cls: type, model: str, **options: Any) -> Engine:
        packed.loader(ModelFile.open(tmp_path / "tiny.gguf"), ops.load("native"), progress=options["progress"])
        return fake(model, **options)

    monkeypatch.setattr(Engine, "load", classmethod(load))
    assert "This first load re-laid the weights" in demo("--no-peer").out
    assert "re-laid" not in demo("--no-peer").out
