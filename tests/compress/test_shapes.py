"""Shapes beside types: one allocation against brute force, headers as files have them, searches from end to end."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote import Engine
from genmote.compress import Calibration, Recipe, calibration, compress
from genmote.compress import search as searching
from genmote.compress.allocate import Option, allocate, least_bytes, together
from genmote.compress.check import corrected
from genmote.compress.goal import Goal, choose, speed
from genmote.compress.recipe import step_name
from genmote.compress.search import Found, search
from genmote.compress.shape_costs import measure, steps
from genmote.compress.shapes import Shapes, items, known, ladder, restored, settled
from genmote.compress.steps._base import Sight
from genmote.compress.steps.low_rank import LowRank
from genmote.compress.steps.rtn import Rtn
from genmote.errors import SpecError
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.ops import quant
from genmote.runtime import plan as planning
from genmote.runtime.roofline import Machine

SMALL = Calibration(windows=6, length=64)
TYPES = ("F16", "Q8_0", "Q4_0")
ALL = ("channels", "heads", "ranks")
SLOW = Machine(1e8, 1e8, 1e12, 1e12, 1e8, 1, "a slow board")
DOWN, GATE, UP, OUTPUT = (f"blk.0.{x}.weight" for x in ("ffn_down", "ffn_gate", "ffn_up", "attn_output"))


def nothing(*_: object) -> None:
    pass


def found(model: Path, out: Path, goal: Goal, shapes: tuple[str, ...] = ALL, **more: object) -> Found:
    recipe = Recipe((Rtn(),), SMALL)
    return search(model, out, goal, **{"recipe": recipe, "types": TYPES, "shapes": shapes, **more})  # type: ignore[arg-type]


def made_up(source: ModelFile) -> tuple[Shapes, dict[str, list[Option]]]:
    """Costs of one block's shapes and of three of its matrices' types, as if measured."""
    rng = np.random.default_rng(0)
    types = {
        name: [
            Option("keep", source.tensors[name].nbytes, 0.0),
            Option("Q8_0", quant.nbytes("Q8_0", source.tensors[name].shape), float(rng.uniform(0.05, 0.1))),
            Option("Q4_0", quant.nbytes("Q4_0", source.tensors[name].shape), float(rng.uniform(0.5, 1.0))),
        ]
        for name in (GATE, DOWN, OUTPUT)
    }
    shapes = Shapes({0: {160: 0.0, 128: 0.2, 64: 0.9}}, {0: {2: 0.0, 1: 0.7}}, {GATE: {32: 0.02}})
    return shapes, types


def by_hand(source: ModelFile) -> Iterator[tuple[int, float]]:
    """Bytes and cost of every choice that `made_up` leaves, one after another, from what the page promises alone."""
    shapes, types = made_up(source)
    cost = {name: {option.what: option.damage for option in each} for name, each in types.items()}
    again = {name: cost[name]["Q8_0"] * 4 ** (8.5 - 32) for name in (DOWN, OUTPUT)}  # stored as F32 once more

    def one(name: str, kind: str, shape: tuple[int, int], times: float = 1.0) -> tuple[int, float]:
        whole = source.tensors[name].shape
        lost = (again.get(name, 0.0) if kind == "F32" else cost[name][kind]) * times
        return quant.nbytes(kind, shape), lost * math.prod(shape) / math.prod(whole)

    kinds = ("F32", "Q8_0", "Q4_0")
    other = [
        info for name, info in source.tensors.items() if name in ("blk.1.ffn_down.weight", "blk.1.attn_output.weight")
    ]
    beside = sum(info.nbytes for info in other)
    for width, heads, down, output in itertools.product((160, 128, 64), (2, 1), kinds, kinds):
        parts = [one(DOWN, down, (64, width)), one(OUTPUT, output, (64, 32 * heads))]
        parts += [(4 * width * 64, 0.0)]  # ffn_up
        parts += [(4 * 32 * heads * 64, 0.0), (2 * 4 * 16 * heads * 64, 0.0)]  # attn_q; attn_k and attn_v
        gates = [one(GATE, kind, (width, 64)) for kind in ("Q8_0", "Q4_0")] + [(4 * width * 64, 0.0)]
        share = width / 160
        for a, b in itertools.product(kinds, kinds) if 32 * (width + 64) < width * 64 else ():
            near = {"F32": cost[GATE]["Q8_0"] * 4 ** (8.5 - 32), **{kind: cost[GATE][kind] for kind in kinds[1:]}}
            size = quant.nbytes(a, (32, 64)) + quant.nbytes(b, (width, 32))
            gates.append((size, shapes.ranks[GATE][32] + share * (near[a] + near[b])))
        for gate in gates:
            size = beside + gate[0] + sum(part[0] for part in parts)
            yield size, gate[1] + sum(part[1] for part in parts) + shapes.channels[0][width] + shapes.heads[0][heads]


def test_no_choice_of_shapes_and_types_is_better(llama: Path) -> None:
    source = ModelFile.open(llama)
    options = items(source, *made_up(source))
    every = list(by_hand(source))
    sizes = [size for size, _ in every]
    assert least_bytes(options) == min(sizes)
    seen = set()
    for budget in np.linspace(min(sizes), max(sizes), 40).astype(int).tolist():
        best = allocate(options, budget)
        assert best.exact and best.bytes <= budget
        assert best.damage == pytest.approx(min(cost for size, cost in every if size <= budget), rel=1e-9, abs=1e-12)
        seen |= settled(best.chosen).shapes().keys()
    assert seen == set(ALL)  # so that each was worth it somewhere


def test_options_together_are_those_that_no_other_beats() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        parts = {
            f"p{n}": [Option(f"T{i}", int(rng.integers(1, 20)), float(rng.exponential())) for i in range(4)]
            for n in range(3)
        }
        ours = together("x", 0.5, parts)
        every = [
            (sum(o.bytes for o in each), 0.5 + sum(o.damage for o in each))
            for each in itertools.product(*parts.values())
        ]
        for option in ours:
            assert option.what == "x" and option.bytes == sum(part.bytes for _, part in option.parts)
            assert option.damage == pytest.approx(0.5 + sum(part.damage for _, part in option.parts))
        for size, cost in every:
            assert min(o.damage for o in ours if o.bytes <= size) <= cost + 1e-12
        assert len({o.bytes for o in ours}) == len(ours)


def test_sizes_that_are_tried() -> None:
    assert ladder(160) == [128, 96, 64]
    assert ladder(100) == [96, 64, 32]
    assert ladder(32) == []
    for whole in (512, 1536, 2048, 8192, 14336):
        tried = ladder(whole)
        assert 6 <= len(tried) <= 12 and all(n % 32 == 0 and whole / 4 <= n < whole for n in tried)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-opt"])
def test_a_header_is_that_of_the_file_that_the_steps_make(tmp_path: Path, name: str) -> None:
    """And so the speed that is expected of a choice is that of its file."""
    make_model(name, "F32", tmp_path / "model.gguf", 1)
    source = ModelFile.open(tmp_path / "model.gguf")
    windows = calibration.windows(source.path, source.sha256(), SMALL, nothing)
    sight = Sight(windows, source.path, source.path, tmp_path, nothing)
    matrices = [info for info in source.tensors.values() if len(info.shape) > 1 and "position" not in info.name]
    types = {
        info.name: [Option("keep", info.nbytes, 0.0), Option("Q8_0", quant.nbytes("Q8_0", info.shape), 0.01)]
        for info in matrices
    }
    shapes = measure(source, ALL, sight).scaled({"heads": 0.05, "ranks": 1e-4})  # so that some of each go
    options = items(source, shapes, types)
    chosen = allocate(options, (least_bytes(options) * 3 + sum(max(o.bytes for o in x) for x in options.values())) // 4)
    what = settled(chosen.chosen)
    assert what.shapes().keys() == set(ALL)
    rules = tuple(f"{tensor}={option.what}" for tensor, option in what.types.items() if option.what != "keep")
    recipe = Recipe((*steps(what).values(), Rtn(type="keep", types=rules)), SMALL)
    real = ModelFile.open(compress(source.path, tmp_path / "out.gguf", recipe).path)
    header = restored(source, chosen.chosen)
    assert {n: (i.type, i.shape, i.nbytes) for n, i in header.tensors.items() if len(i.shape) > 1} == {
        n: (i.type, i.shape, i.nbytes) for n, i in real.tensors.items() if len(i.shape) > 1
    }
    assert replace(read_config(header), ropes=()) == replace(read_config(real), ropes=())
    ours, theirs = (planning.plan(x, memory=10**9, machine=SLOW, interpreter=1) for x in (header, real))
    assert ours.expected == theirs.expected
    assert sum(option.bytes for option in what.types.values()) == chosen.bytes


def test_a_pace_that_types_cannot_reach_is_reached_with_shapes(llama: Path) -> None:
    source = ModelFile.open(llama)
    types = {
        info.name: [Option("keep", info.nbytes, 0.0), Option("Q8_0", quant.nbytes("Q8_0", info.shape), 0.1)]
        for info in source.tensors.values()
        if len(info.shape) > 1
    }
    shapes = Shapes({n: {160: 0.0, 128: 0.1, 96: 0.3, 64: 0.9} for n in range(2)}, {}, {})
    goal = Goal(pace=1.0, machine=SLOW, memory=10**9)
    fastest = speed(source, allocate(types, least_bytes(types)).chosen, goal)
    assert fastest is not None
    goal = replace(goal, pace=1.1 * fastest)
    assert choose(source, types, goal)[1] is not None
    joint = items(source, shapes, types)
    chosen, missed = choose(source, joint, goal, "types and channels")
    assert missed is None and settled(chosen.chosen).channels
    assert (speed(source, chosen.chosen, goal) or 0) >= 1.1 * fastest
    _, missed = choose(source, joint, replace(goal, pace=100 * fastest), "types and channels")
    assert missed is not None and "of the smallest choice of types and channels, wanted" in missed


def test_a_size_that_types_cannot_reach_is_reached_with_shapes(llama: Path, tmp_path: Path) -> None:
    goal = Goal(bytes=60_000)
    before = found(llama, tmp_path / "types.gguf", goal, (), rounds=1)
    assert before.missed is not None and before.made.size_bytes > 60_000
    ours = found(llama, tmp_path / "ours.gguf", goal)
    assert ours.missed is None and ours.made.size_bytes == (tmp_path / "ours.gguf").stat().st_size <= 60_000
    assert ours.alone is not None and "no choice of types takes less than 0.07" in ours.alone
    assert {one.of for one in ours.rounds} == {"types, channels, heads and ranks"}
    best = min(ours.rounds, key=lambda one: one.measured)
    assert best.recipe == ours.recipe and "channels" in best.shapes and best.scales["channels"] > 0
    widths = read_config(ModelFile.open(ours.made.path)).ffn_widths
    assert list(widths) == [best.shapes["channels"].get(f"blk.{n}", 160) for n in range(2)]
    for op_set in ("numpy", "native"):
        with Engine.load(ours.made.path, ops=op_set) as engine:
            assert engine.generate("a", max_tokens=4, ignore_eos=True).tokens
    again = compress(llama, tmp_path / "again.gguf", Recipe.of(ours.recipe.values()))
    assert again.path.read_bytes() == ours.made.path.read_bytes()
    told = json.loads(json.dumps(ours.values()))
    assert told["types_alone"] == ours.alone and told["rounds"][0]["shapes"] == ours.rounds[0].shapes
    assert not (tmp_path / "ours.gguf.work").exists()


def test_types_alone_are_tried_first_and_kept_where_they_are_better(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels that are thought to be free, and are not."""
    monkeypatch.setattr(searching, "bounded", lambda scale: scale)
    from genmote.compress import shape_costs

    def free(*arguments: object) -> Shapes:
        return measure(*arguments).scaled({"channels": 1e-9})  # type: ignore[arg-type]

    monkeypatch.setattr(shape_costs, "measure", free)
    types = found(llama, tmp_path / "types.gguf", Goal(bytes=90_000), ())
    ours = found(llama, tmp_path / "ours.gguf", Goal(bytes=90_000), ("channels",), rounds=1)
    first, second = ours.rounds
    assert (first.of, second.of) == ("types", "types and channels")
    assert not first.shapes and set(second.shapes) == {"channels"}
    assert first.measured < second.measured and ours.recipe == first.recipe
    assert ours.rounds[0].measured == types.rounds[0].measured


def test_a_choice_with_no_smaller_shape_is_not_done_twice(llama: Path, tmp_path: Path) -> None:
    ours = found(llama, tmp_path / "ours.gguf", Goal(bytes=90_000), ("heads",))
    assert len({one.recipe for one in ours.rounds}) == len(ours.rounds)
    assert ours.rounds[0].of == "types"
    steps = [step_name(step) for step in ours.recipe.steps]
    assert steps[-1] == "rtn"


def test_an_interrupted_search_goes_on(llama: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"

    def stop(what: str, done: int, total: int) -> None:
        if what == "measuring ranks" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found(llama, tmp_path / "ours.gguf", Goal(bytes=60_000), work=work, progress=stop)
    kept = {path: path.stat().st_mtime_ns for path in work.rglob("removal-*.npz")}
    assert len(kept) == 4  # of two blocks, channels and heads
    found(llama, tmp_path / "ours.gguf", Goal(bytes=60_000), work=work, rounds=1)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in work.rglob("removal-*.npz")}.items()


def test_costs_are_scaled_by_what_was_measured() -> None:
    shapes = Shapes({0: {160: 0.0, 96: 0.2}}, {0: {2: 0.0, 1: 0.4}}, {"blk.0.attn_q.weight": {32: 1.0}})
    scaled = shapes.scaled({"channels": 2.0, "ranks": 0.5})
    assert scaled.channels[0] == {160: 0.0, 96: 0.4} and scaled.heads == shapes.heads
    assert scaled.ranks["blk.0.attn_q.weight"] == {32: 0.5}
    factor = Option("Q4_0", 10, 1.0)
    assert corrected("blk.0.attn_q_a.weight", factor, {"attn_q": 2.0, "quarter 1": 1.0}, 4).damage == 2.0


def test_kinds_that_are_none() -> None:
    assert known(("ranks", "channels")) == ("channels", "ranks")
    with pytest.raises(SpecError, match="shapes: 'chanels' is none; name some of channels, heads, ranks"):
        known(("channels", "chanels"))


@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        ("tiny-mixtral", ("channels",), "this model has experts, whose channels are not pruned"),
        ("tiny-gemma3", ("heads",), "shapes: heads: each block has one key-value head, which stays; leave heads out"),
        ("tiny-olmoe", ("heads",), "is a norm over all heads"),
        ("tiny-mixtral", ("ranks",), "shapes: ranks: no matrix is smaller as two of a rank that is a multiple of 32"),
    ],
)
def test_shapes_that_a_model_does_not_have(tmp_path: Path, name: str, kinds: tuple[str, ...], message: str) -> None:
    make_model(name, "F32", tmp_path / "model.gguf", 1)
    with pytest.raises(SpecError, match=message):
        found(tmp_path / "model.gguf", tmp_path / "out.gguf", Goal(bytes=1000), kinds)


def test_blocks_that_are_narrow_already(llama: Path, tmp_path: Path) -> None:
    from genmote.compress.steps.prune_channels import PruneChannels

    recipe = Recipe((PruneChannels(widths=("blk.0=32", "blk.1=32")), Rtn()), SMALL)
    with pytest.raises(SpecError, match="shapes: channels: of 32 in a block no multiple of 32 is left that is smaller"):
        found(llama, tmp_path / "out.gguf", Goal(bytes=1000), ("channels",), recipe=recipe)


def test_factors_come_after_channels(llama: Path, tmp_path: Path) -> None:
    recipe = Recipe((LowRank(ranks=("blk.0.ffn_up.weight=32",)), Rtn()), SMALL)
    with pytest.raises(SpecError, match="is one of two low-rank factors; put prune-channels before low-rank"):
        found(llama, tmp_path / "out.gguf", Goal(bytes=1000), ("channels",), recipe=recipe)
