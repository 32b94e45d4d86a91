"""A planned run in a process of its own."""

from __future__ import annotations

import json
import subprocess

import pytest

from genmote.device import jail
from genmote.errors import GenmoteError, NoJailError, UserError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.runtime import trial
from genmote.runtime.footprint import INTERPRETER_BYTES
from genmote.runtime.plan import plan


@pytest.fixture
def model(tmp_path, own_home):
    make_model("tiny-llama", "q4_0", tmp_path / "m.gguf", seed=1)
    return tmp_path / "m.gguf"


def test_the_child_fills_the_context_and_tells_what_it_took(model):
    words = trial.command({"model": str(model), "context": 64, "tokens": 4, "kv": None})
    found = trial.figures(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    assert (found["prompt_tokens"], found["decode_tokens"]) == (60, 4)
    assert 10 << 20 < found["peak_rss_bytes"] < 200 << 20
    assert found["decode_tokens_per_s"] > 0 and "kv" not in json.loads(words[-1])


def test_what_was_planned_is_run(model):
    made = plan(ModelFile.open(model), context=64, threads=1, interpreter=INTERPRETER_BYTES)
    found = trial.measured(model, made, tokens=4)
    assert found["prompt_tokens"] == 60 and found["how"].startswith("measured")
    assert made.predicted_bytes == pytest.approx(found["peak_rss_bytes"], rel=0.15)


def test_a_failure_is_told(model):
    words = trial.command({"model": str(model.parent / "absent.gguf"), "context": 64, "tokens": 4})
    with pytest.raises(GenmoteError, match="the trial failed: .*absent.gguf is not there"):
        trial.figures(subprocess.run(words, stdout=subprocess.PIPE, check=False).stdout)
    words = trial.command({"model": str(model), "context": 4, "tokens": 4})
    with pytest.raises(GenmoteError, match="a context of 4 tokens leaves no prompt beside 4 tokens of text"):
        trial.figures(subprocess.run(words, stdout=subprocess.PIPE, check=False).stdout)
    with pytest.raises(GenmoteError, match="the trial ended without figures"):
        trial.figures(b"")


def test_where_no_group_can_be_made_it_runs_without_and_any_other_refusal_is_passed_on(model, monkeypatch):
    made = plan(ModelFile.open(model), memory=200 << 20, context=64, threads=1, interpreter=INTERPRETER_BYTES)

    def refused(fault):
        def run(*_, **__):
            raise fault

        monkeypatch.setattr(jail, "run", run)

    refused(NoJailError("no cgroup file system is mounted"))
    found = trial.measured(model, made, tokens=2)
    assert found["how"] == "measured without a control group (no cgroup file system is mounted)"
    assert found["decode_tokens"] == 2 and "group_peak_bytes" not in found
    refused(UserError("the limit of memory cannot be set to 1 (/root/cgroup): in a control group"))
    with pytest.raises(UserError, match="the limit of memory cannot be set"):
        trial.measured(model, made, tokens=2)


def test_what_a_load_reads_is_cold(model, monkeypatch):
    made = plan(ModelFile.open(model), context=64, threads=1, interpreter=INTERPRETER_BYTES)
    model.with_suffix(".packed").write_bytes(b"carried here")
    seen = []

    def run(*_, drop, **__):
        seen.extend(drop)
        raise NoJailError("none here")

    monkeypatch.setattr(jail, "run", run)
    trial.measured(model, made, tokens=2)
    assert seen[:2] == [model, model.with_suffix(".packed")]


def test_what_a_first_load_makes_is_made_outside_of_the_group(model, monkeypatch, own_home):
    native = pytest.importorskip("genmote.ops._native", reason="no native kernels here")
    assert native and not own_home.exists()
    made = plan(ModelFile.open(model), memory=200 << 20, context=64, threads=1, interpreter=INTERPRETER_BYTES)
    seen = []

    def run(words, limits, *, drop, **_):
        seen.extend([path.suffix for path in drop if path.is_file()])
        raise NoJailError("none here")

    monkeypatch.setattr(jail, "run", run)
    trial.measured(model, made, tokens=2)
    assert {".gguf", ".packed", ".tokens"} <= set(seen)
