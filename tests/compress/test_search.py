"""The search: goals met, better than one type for all, corrected by what is measured, resumable, honest where it
cannot."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from genmote.compress import Calibration, Recipe, compress
from genmote.compress import goal as goals
from genmote.compress import search as searching
from genmote.compress.allocate import Option, allocate
from genmote.compress.block import Block
from genmote.compress.check import Check, corrected
from genmote.compress.goal import Goal, choose, speed
from genmote.compress.recipe import step_name
from genmote.compress.search import Found, search, smallest, written
from genmote.compress.shapes import restored
from genmote.compress.steps._base import LayerStep
from genmote.compress.steps.rtn import Rtn
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.runtime import plan as planning
from genmote.runtime.roofline import Machine

SMALL = Calibration(windows=6, length=64)
SLOW = Machine(1e8, 1e8, 1e12, 1e12, 1e8, 1, "a slow board")


def nothing(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "llama.gguf"
    make_model("tiny-llama", "F32", path, 1)
    return path


def found(model: Path, out: Path, goal: Goal, **more: object) -> Found:
    return search(model, out, goal, recipe=Recipe((Rtn(),), SMALL), **more)  # type: ignore[arg-type]


def test_a_target_is_met_and_better_than_one_type_for_all(model: Path, tmp_path: Path) -> None:
    q5 = compress(model, tmp_path / "q5.gguf", Recipe((Rtn(type="Q5_0", head_type="Q5_0"),)))
    ours = found(model, tmp_path / "ours.gguf", Goal(bytes=q5.size_bytes))
    assert ours.missed is None
    assert ours.made.size_bytes == (tmp_path / "ours.gguf").stat().st_size <= q5.size_bytes
    source = ModelFile.open(model)
    text = written(source, SMALL, 8, nothing)
    check = Check(source, source, text, 64, tmp_path, nothing)
    mine, theirs = check.whole(ours.made.path), check.whole(q5.path)
    assert mine.kl is not None and theirs.kl is not None
    assert mine.kl < theirs.kl
    first = ours.rounds[0]
    assert first.bound <= first.expected
    assert 0.3 < first.measured / first.expected < 3
    assert set(first.scales) >= {"attn_q", "ffn_down", "head"}
    assert min(one.measured for one in ours.rounds) == pytest.approx(
        next(one.measured for one in ours.rounds if one.recipe == ours.recipe)
    )
    assert sum(ours.types.values()) < ours.made.size_bytes
    assert not (tmp_path / "ours.gguf.work").exists()


def test_its_recipe_makes_the_same_file_again(model: Path, tmp_path: Path) -> None:
    ours = found(model, tmp_path / "ours.gguf", Goal(bytes=200_000), rounds=1)
    again = compress(model, tmp_path / "again.gguf", Recipe.of(ours.recipe.values()))
    assert again.path.read_bytes() == ours.made.path.read_bytes()


@pytest.mark.parametrize(("shape", "tied"), [("tiny-llama", True), ("tiny-mixtral", False)])
def test_what_types_make_at_least_leaves_an_embedding_that_is_no_head(shape: str, tied: bool, tmp_path: Path) -> None:
    make_model(shape, "F16", tmp_path / "model.gguf", 1)
    made = compress(tmp_path / "model.gguf", tmp_path / "q4.gguf", Recipe((Rtn(type="Q4_0", head_type="Q4_0"),)))
    source = ModelFile.open(tmp_path / "model.gguf")
    assert ("output.weight" not in source.tensors) == tied
    assert smallest(source, ["Q4_0"]) == pytest.approx(made.size_bytes, rel=0.02)


def test_a_target_out_of_reach_gives_the_smallest_file(model: Path, tmp_path: Path) -> None:
    ours = found(model, tmp_path / "ours.gguf", Goal(bytes=1000), rounds=1)
    assert ours.missed is not None
    assert re.search(r"no choice of types takes less than 0\.0[0-9]+ MB, wanted 0\.001", ours.missed)
    smallest = compress(model, tmp_path / "q4.gguf", Recipe((Rtn(type="Q4_0", head_type="Q4_0"),)))
    assert ours.made.size_bytes <= smallest.size_bytes + 10_000  # with a longer recipe in it
    assert ours.rounds[0].measured > 0


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_file_that_comes_out_larger_than_expected_is_chosen_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """With 20 kB forgotten of what is beside the matrices."""
    monkeypatch.setattr(goals, "BESIDE", goals.BESIDE - 20_000)
    sizes = []

    def watched(*args: object, **more: object) -> object:
        made = compress(*args, **more)  # type: ignore[arg-type]
        sizes.append(made.size_bytes)
        return made

    monkeypatch.setattr(searching, "compress", watched)
    ours = found(model, tmp_path / "ours.gguf", Goal(bytes=150_000), rounds=rounds)
    assert ours.missed is None and ours.made.size_bytes <= 150_000
    assert sizes[0] > 150_000 and all(140_000 < size <= 150_000 for size in sizes[1:])
    assert [one.size_bytes for one in ours.rounds] == sizes[1:]  # what it forgot is known in the second round


def test_a_goal_is_missed_by_what_the_file_takes(model: Path, tmp_path: Path) -> None:
    """To the byte: not by what it was expected to take."""
    least = found(model, tmp_path / "ours.gguf", Goal(bytes=1000), rounds=1).made.size_bytes
    assert found(model, tmp_path / "ours.gguf", Goal(bytes=least), rounds=1).missed is None
    missed = found(model, tmp_path / "ours.gguf", Goal(bytes=least - 1), rounds=1)
    assert missed.missed == f"no choice of types takes less than {least / 1e6:g} MB, wanted {(least - 1) / 1e6:g} MB"
    assert missed.made.size_bytes == least
    both = found(model, tmp_path / "ours.gguf", Goal(bytes=1000, pace=1e12, machine=SLOW, memory=10**9), rounds=1)
    assert both.missed is not None and re.fullmatch(
        r"no choice of types takes less than .* MB, wanted 0\.001 MB; .* tokens/s are expected of the smallest .*",
        both.missed,
    )


def test_an_interrupted_search_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "compress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found(model, tmp_path / "ours.gguf", Goal(bytes=200_000), rounds=1, work=work)
    assert not (tmp_path / "ours.gguf").exists()
    kept = {path: path.stat().st_mtime_ns for path in work.rglob("damage-*.json")}
    assert kept
    monkeypatch.setattr(searching, "compress", compress)
    found(model, tmp_path / "ours.gguf", Goal(bytes=200_000), rounds=1, work=work)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("damage-*.json")} == kept


def test_what_is_not_its_own_stays_in_the_work_folder(model: Path, tmp_path: Path) -> None:
    notes = tmp_path / "ours.gguf.work" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    found(model, tmp_path / "ours.gguf", Goal(bytes=200_000), rounds=1)
    assert [path.name for path in notes.parent.iterdir()] == ["notes.txt"] and notes.read_text() == "mine"


def test_windows_longer_than_the_context_are_as_long_as_it(model: Path, tmp_path: Path) -> None:
    recipe = Recipe((Rtn(),), Calibration(windows=2, length=4096))
    ours = search(model, tmp_path / "ours.gguf", Goal(bytes=200_000), recipe=recipe, rounds=1)
    assert ours.missed is None and ours.rounds[0].measured > 0


def test_types_that_a_recipe_names_are_not_dropped(model: Path, tmp_path: Path) -> None:
    recipe = Recipe((Rtn(types=("*attn_v*=Q8_0",)),), SMALL)
    with pytest.raises(SpecError, match="types: a search chooses them; leave them out"):
        search(model, tmp_path / "ours.gguf", Goal(bytes=200_000), recipe=recipe)


def options(source: ModelFile) -> dict[str, list[Option]]:
    """As if measured."""
    matrices = [i for i in source.tensors.values() if len(i.shape) > 1]
    return {
        info.name: [Option("keep", info.nbytes, 0.0), Option("Q8_0", info.nbytes * 34 // 128, 0.1)] for info in matrices
    }


def test_a_pace_is_met_with_no_fewer_bytes_than_it_takes(model: Path) -> None:
    source = ModelFile.open(model)
    each = options(source)
    whole = allocate(each, 10**9)
    goal = Goal(pace=1e-9, machine=SLOW, memory=10**9)
    slow = speed(source, whole.chosen, goal)
    fast = speed(source, allocate(each, sum(min(o.bytes for o in x) for x in each.values())).chosen, goal)
    assert slow is not None and fast is not None and fast > 1.5 * slow
    between = (slow + fast) / 2
    chosen, missed = choose(source, each, Goal(pace=between, machine=SLOW, memory=10**9))
    reached = speed(source, chosen.chosen, goal)
    assert missed is None and reached is not None and reached >= between
    larger = allocate(each, chosen.bytes + 2 * max(o.bytes for x in each.values() for o in x))
    assert (speed(source, larger.chosen, goal) or 0) < between  # one more matrix kept would be too slow
    chosen, missed = choose(source, each, Goal(pace=100 * fast, machine=SLOW, memory=10**9))
    assert missed is not None and f"wanted {100 * fast:g}" in missed
    assert all(option.what == "Q8_0" for option in chosen.chosen.values())
    chosen, missed = choose(source, each, Goal(pace=1e-9, machine=SLOW, memory=1000))
    assert missed == f"the smallest choice of types does not fit the memory of {SLOW.source}"


def test_the_speed_is_that_of_a_file_with_these_types(model: Path, tmp_path: Path) -> None:
    source = ModelFile.open(model)
    chosen = allocate(options(source), sum(min(o.bytes for o in x) for x in options(source).values())).chosen
    made = compress(model, tmp_path / "q8.gguf", Recipe((Rtn(type="Q8_0", head_type="Q8_0"),)))
    header = restored(source, chosen)
    real = ModelFile.open(made.path)
    ours, theirs = (planning.plan(x, memory=10**9, machine=SLOW, interpreter=1) for x in (header, real))
    assert ours.expected == theirs.expected
    assert source.tensors["blk.0.attn_q.weight"].type == "F32"  # the source is as it was


def test_damages_are_corrected_by_kind_and_by_quarter() -> None:
    scales = {"attn_q": 2.0, "quarter 1": 1.0, "quarter 4": 3.0, "head": 0.5}
    option = Option("Q4_0", 10, 1.0)
    assert corrected("blk.0.attn_q.weight", option, scales, 8).damage == pytest.approx(1.0)  # 2 * 1 / mean(1, 3)
    assert corrected("blk.7.attn_q.weight", option, scales, 8).damage == pytest.approx(3.0)
    assert corrected("token_embd.weight", option, scales, 8).damage == pytest.approx(0.5)
    assert corrected("blk.0.attn_v.weight", option, scales, 8) == option  # nothing of its kind was measured
    assert corrected("blk.0.attn_q.weight", option, {"attn_q": 1e6}, 8).damage == 8.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a search needs a goal"),
        ({"bytes": 0}, "target=0: wanted bytes above 0"),
        ({"pace": 20.0}, "pace=20: wanted tokens a second, above 0, and the machine that they are for"),
        ({"pace": -1.0, "machine": SLOW}, "pace=-1"),
    ],
)
def test_goals_that_are_none(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Goal(**settings)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Louder(LayerStep):
    """A step to be done before: one kind of matrix becomes larger."""

    calibrates: ClassVar[bool] = False

    def compress_layer(self, block: Block) -> None:
        for name, site in block.sites.items():
            if "attn_v" in name:
                site.replace(site.weight * 3)


def test_steps_may_come_before_and_their_result_is_what_types_are_chosen_for(model: Path, tmp_path: Path) -> None:
    recipe = Recipe((Louder(), Rtn(type="Q8_0")), SMALL)
    ours = search(model, tmp_path / "ours.gguf", Goal(bytes=150_000), recipe=recipe, rounds=1)
    assert [type(step) for step in ours.recipe.steps] == [Louder, Rtn]
    before, after = ModelFile.open(model), ModelFile.open(ours.made.path)
    name = "blk.0.attn_v.weight"
    assert np.allclose(after.tensor(name), 3 * before.tensor(name), atol=0.2 * np.abs(before.tensor(name)).max())
    assert ours.rounds[0].measured < 0.5  # to the model with louder values, not to the original
    source = ModelFile.open(model)
    check = Check(source, source, written(source, SMALL, 8, nothing), 64, tmp_path, nothing)
    assert (check.whole(ours.made.path).kl or 0) > ours.rounds[0].measured


def test_without_a_recipe_gptq_stores_the_types(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Calibration.__init__, "__defaults__", (4, 64, 0, None, None))
    ours = search(model, tmp_path / "ours.gguf", Goal(bytes=150_000), rounds=1)
    assert step_name(ours.recipe.steps[0]) == "gptq"
    assert ours.made.size_bytes <= 150_000


def test_everything_may_be_kept(tmp_path: Path) -> None:
    """A goal that the model meets as it is: nothing is stored anew, whatever type it had."""
    for stored in ("F16", "F32", "Q4_0"):
        make_model("tiny-llama", stored, tmp_path / f"{stored}.gguf", 1)
        ours = search(tmp_path / f"{stored}.gguf", tmp_path / "o.gguf", Goal(bytes=10**9), recipe=Recipe((), SMALL))
        a, b = ModelFile.open(tmp_path / f"{stored}.gguf"), ModelFile.open(tmp_path / "o.gguf")
        assert all((a.raw(name) == b.raw(name)).all() for name in a.tensors)
        assert ours.rounds[0].measured == pytest.approx(0, abs=1e-6)


def test_what_is_measured_on_is_not_what_was_learned_from(model: Path, tmp_path: Path) -> None:
    """Not where that is windows of ids or a text, either."""
    np.save(tmp_path / "ids.npy", np.tile(np.arange(100, 164), (6, 1)))
    (tmp_path / "text.txt").write_text("the cat and the other cat " * 100)
    file = ModelFile.open(model)
    wanted = written(file, SMALL, 2, nothing)
    for given in ({"tokens": tmp_path / "ids.npy"}, {"text": tmp_path / "text.txt"}):
        assert written(file, replace(SMALL, **given), 2, nothing) == wanted  # type: ignore[arg-type]


def test_nothing_to_choose_is_told(model: Path, tmp_path: Path) -> None:
    make_model("tiny-llama", "Q4_0", tmp_path / "q4.gguf", 1)
    with pytest.raises(SpecError, match="no matrix can be stored in fewer bits with Q8_0"):
        found(tmp_path / "q4.gguf", tmp_path / "x.gguf", Goal(bytes=1000), types=("Q8_0",))


def test_the_result_is_plain_values(model: Path, tmp_path: Path) -> None:
    ours = found(model, tmp_path / "ours.gguf", Goal(bytes=200_000), rounds=1)
    told = json.loads(json.dumps(ours.values()))
    assert told["goal"] == "at most 0.2 MB"
    assert told["rounds"][0]["measured"] == ours.rounds[0].measured
    assert told["missed"] is None
