"""What the tune set feeds its contestants: parts that share nothing and have the same answers; what its rows say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench import Bench
from benchmarks.process import ContestantError, Ran
from benchmarks.run import available
from benchmarks.signals.sets import NAMED
from benchmarks.tune import deft, deft_sets, forward, intents, methods, motions
from genmote import registry
from genmote.models.make_model import make_model
from genmote.tune.memory import MODULE_BYTES, PRODUCT_BYTES
from genmote.tune.settings import ROOM


def test_the_set_has_its_measures() -> None:
    assert {"deft", "forward"} <= set(available("tune"))


@pytest.mark.slow
@pytest.mark.parametrize("task", forward.TASKS)
def test_the_parts_share_nothing_and_have_the_same_answers(task: str, tmp_path: Path) -> None:
    try:
        files = forward.TASKS[task].write(tmp_path)
    except ContestantError as why:
        pytest.skip(str(why))
    parts = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in files.items()}
    counts = {name: len(part) for name, part in parts.items()}
    assert (
        counts
        == {
            "agent commands": {"learn": 372, "development": 119, "test": 237},
            "motion labels": {"learn": 439, "development": 200, "test": 182},
        }[task]
    )
    every = {each["completion"] for each in parts["learn"]}
    assert all({each["completion"] for each in part} == every for part in parts.values())
    if task == "agent commands":  # of motions, two people may sit alike
        pairs = [(each["prompt"], each["completion"]) for part in parts.values() for each in part]
        assert len(set(pairs)) == len(pairs)


def test_a_window_is_told_by_its_lowest_and_highest_samples() -> None:
    window = np.zeros((motions.ROWS, 3))
    window[:, 0], window[3, 1], window[-1, 2] = -9.81, 19.9, -50.0
    assert motions.told(window) == "x22222222 y59555555 z55555505"


def test_the_gap_is_of_the_means_over_all_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(forward, "accuracy", lambda model, test: 0.1)
    monkeypatch.setattr(forward, "FILE", str(tmp_path / "m.gguf"))
    (tmp_path / "m.gguf").write_bytes(b"a model")
    right = {("forward", 0): 0.5, ("forward", 1): 0.7, ("backward", 0): 0.8, ("backward", 1): 1.0}
    asked = []

    def trained(
        model: str, files: dict[str, Path], judge: str, method: str, steps: int, rate: float, seed: int
    ) -> dict[str, float]:
        asked.append((judge, steps))
        return {"accuracy": right[method, seed]}

    monkeypatch.setattr(forward, "trained", trained)
    task = forward.Task("% right", lambda into: {"test": into}, 9, {"backward": 1e-3, "forward": 0.1})
    monkeypatch.setitem(forward.TASKS, "made up", task)
    row = forward.learnt(Bench(quick=True, seeds=2), "made up")
    assert asked == [("test", 9)] * 4 and row.seeds == 2 and row.met
    assert row.value == pytest.approx(100 * (0.6 - 0.1) / (0.9 - 0.1))
    assert row.ours_samples == [50, 70] and row.peer_samples == [80, 100] and row.details["base"] == 0.1


def test_where_the_data_are_not_here_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMED, str(tmp_path))
    with pytest.raises(ContestantError, match="home_llm_piles_en"):
        intents.write(tmp_path)
    with pytest.raises(ContestantError, match="hyperimu_har"):
        motions.write(tmp_path)


def test_each_method_of_the_workbench_is_given_the_task_s_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def run(command: list[str], **options: object) -> Ran:
        given.append(command[command.index("tune") + 1 :])
        assert Path(given[-1][1]).is_file() and Path(given[-1][given[-1].index("--held-out") + 1]).is_file()
        made = {
            "planned_bytes": 110,
            "held_out_before": 4.0,
            "held_out_after": 2.0,
            "held_out_written": 3.0,
            "card": {"settings": {}},
        }
        return Ran(json.dumps(made), 1.0, 100, None, None)

    make_model("tiny-llama-256", "Q8_0", tmp_path / "m.gguf", seed=3)
    monkeypatch.setattr(methods, "FILE", str(tmp_path / "m.gguf"))
    monkeypatch.setattr(methods.process, "run", run)
    try:
        intents.write(tmp_path)
    except ContestantError as why:
        pytest.skip(str(why))
    rows = list(methods.measure(Bench(quick=True)))
    assert len(rows) == 2 * len(given) == 2 * len(registry.names(ROOM))
    assert rows[0].value == pytest.approx(10) and rows[1].value == pytest.approx(0.75)


def test_a_step_takes_the_memory_of_a_plain_pass_and_the_trainer_s_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = tmp_path / "m.gguf", tmp_path / "text.txt"
    make_model("tiny-llama-256", "Q8_0", model, seed=3)
    text.write_text("All day long the light was on and the door was open. " * 400, encoding="utf-8")
    monkeypatch.setattr(forward, "FILE", str(model))
    monkeypatch.setattr(forward, "corpus", lambda: text)
    (row,) = forward.peak(Bench(quick=True))
    assert row.ours is not None and row.peer is not None, row.note
    assert row.ours - row.peer < (MODULE_BYTES + PRODUCT_BYTES) / 1e6


@pytest.mark.parametrize("task", deft_sets.TASKS)
def test_the_tasks_of_choosing_share_no_prompt(task: str) -> None:
    try:
        learn, development, test = deft_sets.split(task)
    except ContestantError as why:
        pytest.skip(str(why))
    assert len(learn) == deft_sets.TASKS[task][2] and len(development) == len(test) == deft_sets.TESTED
    sides = [{prompt for prompt, _ in side} for side in (learn, development, test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert {answer for _, answer in test} & {answer for _, answer in learn}
    assert deft_sets.split(task) == (learn, development, test)


def test_rows_of_choosing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"all": [0.9], "random": [0.6, 0.7, 0.7, 0.7, 0.8], "auto": [0.85, 0.9, 0.8]}

    def ran(bench: Bench, room: Path, way: str, seed: int, total: int) -> dict[str, object]:
        assert total == 2 and len((room / "test.jsonl").read_text().splitlines()) == 1
        return {"right": found[way][seed], "cpu_s": 100 if way == "all" else 30 + seed}

    monkeypatch.setattr(deft, "split", lambda task: ([("a", "b"), ("c", "d")], [("e", "f")], [("g", "h")]))
    monkeypatch.setattr(deft, "_run", ran)
    monkeypatch.setattr(deft, "about", lambda name: {})
    monkeypatch.setattr(deft, "WORK", tmp_path)
    quality, chance, time = deft.measure(Bench(quick=True, parts=("logs",)))
    assert quality.value == pytest.approx(100 * 0.85 / 0.9) and quality.met is False
    assert chance.value == pytest.approx(0.15 / 0.005**0.5) and chance.met is True
    assert time.value == 31 and time.met is True and not list(tmp_path.iterdir())


def test_a_part_that_is_not_there_is_told() -> None:
    with pytest.raises(SystemExit, match="deft has no part 'x'; there are agent, room, logs"):
        list(deft.measure(Bench(quick=True, parts=("x",))))
