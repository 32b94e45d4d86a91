"""The tour, on made-up recordings with the echo model, and as `make demo` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    """Runs the demo into a folder of its own, on a quiet machine, outside any jail."""
    monkeypatch.setattr(tour.Company, "cores", lambda self: 0.0)
    monkeypatch.setattr(tour, "budget", lambda engine: tour.Budget(1000, 2000))
    return lambda *words: genmote("demo", "--no-jail", "--folder", str(tmp_path / "runs"), "-n", "8", *words)


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
    assert "genmote  llama.cpp" not in told


def test_an_answer_with_a_number_of_its_own_is_told(demo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tour, "invented", lambda question, answer: ["42"])
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
    if told["jail"] is not None:
        assert told["device"] == "pi-zero-2w" and not told["jail"]["oom_killed"]
        assert told["plan"]["predicted_bytes"] == pytest.approx(told["genmote"]["peak_rss_bytes"], rel=0.15)
    if told["genmote"]["ops"] == "native":
        assert ran.returncode == 0, ran.stderr
        assert told["memory"]["held"] and told["genmote"]["peak_rss_bytes"] <= told["memory"]["budget_bytes"]


@pytest.fixture
def boarded(demo: Callable[..., Any], genmote: Genmote, tmp_path: Path, own_home: Path) -> Callable[..., Any]:
    """The demo as it runs by default: the model answers in the jail of a board."""
    from genmote.models.gguf import ModelFile
    from genmote.models.gguf_write import write_gguf
    from genmote.models.make_model import make_model

    make_model("tiny-llama-256", "q4_0", tmp_path / "short.gguf", 0)
    short = ModelFile.open(tmp_path / "short.gguf")
    metadata = short.typed_metadata() | {"llama.context_length": np.uint32(tour.CONTEXT)}
    tensors = [(info.name, info.type, info.shape, short.raw(info.name)) for info in short.tensors.values()]
    write_gguf(tmp_path / "tiny.gguf", metadata, tensors)
    words = ["demo", "--model", str(tmp_path / "tiny.gguf"), "--no-peer", "--folder", str(tmp_path / "runs"), "-n", "8"]
    return lambda *more: genmote(*words, *more)


def told_by(engine_run: Callable[..., Any]) -> Callable[..., Any]:
    """What the jail would return, with the model answering in this process."""
    from genmote.device.cgroup import Limits, Usage
    from genmote.device.energy import Energy
    from genmote.device.jail import Dropped, Report

    def in_jail(asked: Any, device: Any, model: Path, told: Callable[[str], None]) -> Any:
        from contextlib import nullcontext

        told("not limited here: disk")
        usage = Usage(peak_bytes=90_000_000, read_bytes=12_000_000)
        limits = Limits(device.usable_bytes)
        energy = Energy(2.5, "modelled", "a board")
        report = Report(0, 1.0, limits, usage, [1], ["disk"], Dropped(), "kernel", 80_000_000, False, energy)
        return engine_run(asked, lambda *a, **k: None, lambda: nullcontext(lambda *a: None)), report

    return in_jail


def test_the_model_answers_in_the_jail_of_a_board(
    boarded: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genmote.recipes import answers

    monkeypatch.setattr(answers, "in_jail", told_by(answers.run))
    ran = boarded()
    assert ran.status == 0, ran.err
    assert "in the jail of a Raspberry Pi Zero 2 W: 335.5 MB of memory, 4 cores, disk 22 MB/s" in ran.out
    assert "with a full context, measured" in ran.out and "Not as on the board: not limited here: disk." in ran.out
    assert "The jail counted 90.0 MB of 335.5 MB at most, cached files included, and 12.0 MB from the disk." in ran.out
    values = boarded("--json", "--device", "pi-3b-plus").json
    assert values["device"] == "pi-3b-plus" and values["jail"]["read_bytes"] == 12_000_000
    assert values["plan"]["predicted_bytes"] > 0 and values["no_jail"] is None
    record = list(records.read(tmp_path / "runs" / "records.jsonl"))[-1]
    assert record.values["device"] == "pi-3b-plus" and record.values["jail_peak_bytes"] == 90_000_000


def test_where_no_jail_can_be_made_it_says_why_and_goes_on(
    boarded: Callable[..., Any], talking_echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from genmote.errors import UserError
    from genmote.recipes import answers

    def refuse(*given: Any) -> Any:
        raise UserError("no control group may be made here: run it as root")

    monkeypatch.setattr(answers, "in_jail", refuse)
    ran = boarded()
    assert ran.status == 0, ran.err
    assert "No jail can be made here (no control group may be made here: run it as root)." in ran.out
    pytest.importorskip("genmote.ops._native")
    assert "It goes on outside within 335.5 MB that it keeps to itself." in ran.out
    assert talking_echo["memory"] == 320 << 20
    assert "Not in the jail of a Raspberry Pi Zero 2 W: no control group may be made here" in ran.out
    assert boarded("--json").json["no_jail"] == "no control group may be made here: run it as root"


def test_a_board_that_is_too_small_or_unknown(boarded: Callable[..., Any]) -> None:
    ran = boarded("--device", "esp32-s3")
    assert ran.status == 2 and "a microcontroller" in ran.err
    assert boarded("--device", "pi-zero-2").status == 2


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
