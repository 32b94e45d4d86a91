"""A whole training by a method of the workbench: it learns, the engine uses what it writes, a kill loses nothing, a
budget chooses, and what goes wrong is said."""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import Engine, registry
from genmote.errors import BudgetError, OpsError, SpecError, TrainingError
from genmote.models.backward import Batch
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.tune import run
from genmote.tune.run import CARD, Tuned
from genmote.tune.settings import ROOM, Tuning
from genmote.tune.workbench import _plan
from genmote.tune.workbench._base import ENDS, block_of
from genmote.tune.workbench._model import Matrix
from genmote.tune.workbench._passes import Passes
from genmote.tune.workbench._trainer import WorkbenchTrainer

METHODS = registry.names(ROOM)
QUICK = Tuning(steps=16, batch=2, context=32, judge_every=8)
# What makes a tiny model with drawn numbers learn in 16 steps; a real one is harmed by such rates.
RATES = {"full": 0.01, "galore": 0.04, "lisa": 0.01, "badam": 0.05, "adalomo": 0.03, "lomo": 0.1}


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("halves") / "halves.gguf"
    make_model("tiny-llama", "F16", path, seed=5)
    return path


def tune(*args: Any, **options: Any) -> Tuned:
    return run.tune(*args, **{"threads": 1} | options)


def nats(engine: Engine, path: Path) -> float:
    """Mean nats of the completions' tokens and of the one that ends them, by an engine."""
    found: list[float] = []
    for example in map(json.loads, path.read_text().splitlines()):
        answer = [*engine.tokenizer.encode(example["completion"], bos=False, start=False), engine.tokenizer.eos_id]
        found += map(float, engine.score(engine.rows(example["prompt"]).ids, answer).logprobs)
    return -float(np.mean(found))


def quick(method: str, **changes: Any) -> Tuning:
    return replace(QUICK, method=method, rate=RATES.get(method, 0.02), **changes)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_the_engine_uses_what_it_writes(method: str, halves: Path, data: Path, tmp_path: Path) -> None:
    output, told = tmp_path / "mine.gguf", list[str]()
    made = tune(halves, data, output, quick(method), tell=told.append)
    assert made.before is not None and made.after is not None and made.after < 0.95 * made.before
    assert method in told[0] and "MB planned" in told[0]
    with Engine.load(halves, threads=1) as engine:
        before = nats(engine, data)
    writes_model = ModelFile.open(output).metadata.get("general.type") != "adapter"
    if writes_model:
        with Engine.load(output, threads=1) as engine:
            assert nats(engine, data) < 0.97 * before
        assert made.written == pytest.approx(made.after, rel=2e-3)  # float16 rounds little
        assert made.values()["held_out_written"] == made.written
    else:
        with Engine.load(halves, adapter=output, threads=1) as engine:
            assert nats(engine, data) < 0.97 * before
        assert made.written is None
    card = json.loads(ModelFile.open(output).metadata[CARD])
    assert card == made.card and card["settings"]["method"] == method and card["base"] == halves.name
    assert not (tmp_path / "mine.gguf.work").exists()


def test_rounding_to_few_bits_is_told(halves: Path, data: Path, tmp_path: Path) -> None:
    fine = tune(halves, data, tmp_path / "a.gguf", quick("full"))
    coarse = tune(halves, data, tmp_path / "b.gguf", quick("full", type="Q4_0"))
    assert coarse.after == fine.after and coarse.written is not None and fine.written is not None
    assert abs(coarse.written - coarse.after) > abs(fine.written - fine.after)  # type: ignore[operator]
    # What is told of the file is what an engine finds, but for its own roundings of activations.
    judge = [json.loads(line) for line in data.read_text().splitlines()]
    (tmp_path / "judge.jsonl").write_text("".join(json.dumps(each) + "\n" for each in judge[:20]))
    made = tune(halves, data, tmp_path / "c.gguf", quick("full", type="Q4_0", held_out=tmp_path / "judge.jsonl"))
    with Engine.load(tmp_path / "c.gguf", threads=1) as engine:
        assert nats(engine, tmp_path / "judge.jsonl") == pytest.approx(made.written, rel=0.02)


# -- going on --------------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal
    from genmote.tune import run, state
    from genmote.tune.settings import Tuning
    run.KEEP_S = 0.0  # kept after each step
    saved = state.save
    def save(path, name, progress, *rest):
        saved(path, name, progress, *rest)
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    state.save = save
    run.tune({model!r}, {data!r}, {output!r}, Tuning(**{settings!r}), threads=1)
"""


@pytest.mark.parametrize("method", ["galore:rank=16,every=3", "lisa:layers=1,every=2"])
def test_after_a_kill_it_goes_on_to_the_same_bits(method: str, halves: Path, data: Path, tmp_path: Path) -> None:
    settings = {"steps": 8, "batch": 2, "context": 32, "judge_every": 4, "method": method, "rate": 0.01}
    output = tmp_path / "mine.gguf"
    code = textwrap.dedent(KILLED).format(model=str(halves), data=str(data), output=str(output), settings=settings)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    made = tune(halves, data, output, Tuning(**settings))  # type: ignore[arg-type]
    assert "goes on after step 5 of 8" in made.notes
    whole = tune(halves, data, tmp_path / "whole.gguf", Tuning(**settings))  # type: ignore[arg-type]
    one, two = ModelFile.open(output), ModelFile.open(tmp_path / "whole.gguf")
    assert all(np.array_equal(one.raw(name), two.raw(name)) for name in two.tensors)
    assert made.progress.losses == whole.progress.losses and made.progress.judged == whole.progress.judged


def test_the_best_is_written_also_where_the_last_is_worse(halves: Path, lines: Any, tmp_path: Path) -> None:
    learn = lines(*({"prompt": "a", "completion": "b" * n} for n in range(1, 4)))
    judge = lines({"prompt": "a", "completion": "zyxw"}, name="judge.jsonl")
    tuning = replace(quick("full", held_out=judge, patience=2, warmup=0.0), rate=1e-3, steps=60, judge_every=2, batch=3)
    made = tune(halves, learn, tmp_path / "a.gguf", tuning)
    assert made.card["best_step"] < made.progress.step
    assert made.written == pytest.approx(made.after, rel=2e-3)


def test_a_loss_that_is_no_number_stops_it(halves: Path, data: Path, tmp_path: Path) -> None:
    said = r"step \d+: .*training stopped, no model was written; use a lower --rate"
    with pytest.raises(TrainingError, match=said):
        tune(halves, data, tmp_path / "a.gguf", replace(quick("lomo", clip=1e30), rate=1e30))
    assert not (tmp_path / "a.gguf").exists()


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_budget_chooses_the_strongest_that_fits_and_says_why(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _plan, "resident_bytes", lambda: 0
    )  # as in a process of its own: not what other tests left here
    file = ModelFile.open(smollm2)
    tuning = Tuning(method="workbench", batch=4)
    order = [_plan.name_of(method) for method in _plan.every()]
    assert order == ["full", "galore", "lisa", "badam", "adalomo", "lomo", "dora", "lora", "qlora"]
    roomy, method, need, why = _plan.planned(file, tuning, 256, 20 * 10**9)
    assert roomy.method == "full" and roomy.rate == method.rate and not roomy.recompute and not roomy.rows
    assert "full, " in why and "4 examples in one pass" in why
    # Each time a little less than what was chosen takes: what is chosen takes less, and is never stronger.
    found, seen = need, ["full"]
    while True:
        budget = math.floor(_plan.SPARE * found.total) - 1
        try:
            chosen, method, found, why = _plan.planned(file, tuning, 256, budget)
        except BudgetError as fault:
            assert fault.least_bytes == math.ceil(_plan.SPARE * found.total)
            assert "qlora takes at least" in str(fault) and "leave --method out, which needs no PyTorch" in str(fault)
            break
        assert _plan.SPARE * found.total <= budget and found.total == _plan.need(file, method, chosen, 256).total
        assert order.index(chosen.method) >= order.index(seen[-1])
        if chosen.method != "full":
            assert f"the next stronger, {order[order.index(chosen.method) - 1]}, takes" in why
        seen.append(chosen.method)
    assert {"full", "galore", "lora", "qlora"} <= set(seen) and seen[-1] == "qlora"
    # Of one that is asked for the fastest way.
    ways = [_plan.planned(file, replace(tuning, method="lora"), 256, budget)[0] for budget in (4 * 10**9, 11 * 10**8)]
    assert not ways[0].recompute and ways[1].recompute
    without, _, need, told = _plan.planned(file, tuning, 256, None)
    assert without.method == "full" and told.startswith("all weights learn by full: ")


def test_the_rows_of_the_largest_step_are_planned(
    halves: Path, lines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long example among short ones: no step has a batch of long ones."""
    monkeypatch.setattr(_plan, "resident_bytes", lambda: 0)
    seen, step, given, planned = list[int](), Passes.step, list[int](), _plan.planned

    def counted(self: Passes, batch: Batch, lowest: int) -> float:
        seen.append(len(batch.tokens))
        return step(self, batch, lowest)

    def asked(file: ModelFile, tuning: Tuning, longest: int, budget: int | None, most: int) -> Any:
        given.extend((longest, most))
        return planned(file, tuning, longest, budget, most)

    monkeypatch.setattr(Passes, "step", counted)
    monkeypatch.setattr(_plan, "planned", asked)
    learn = lines(*({"prompt": "a", "completion": "b" * count} for count in (20, 1, 2, 3)))
    judge = lines({"prompt": "a", "completion": "b"}, name="judge.jsonl")
    made = tune(halves, learn, tmp_path / "a.gguf", replace(quick("qlora", held_out=judge), steps=6))
    longest, most = given
    assert len(seen) == 6 and most == max(seen) and longest < most < 2 * longest
    of_all = _plan.need(ModelFile.open(halves), _plan.named("qlora"), replace(QUICK, method="qlora"), longest)
    assert made.planned.total < of_all.total


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gemma3", "tiny-opt", "tiny-qwen3", "tiny-olmoe"])
@pytest.mark.parametrize(("method", "on"), [("lora", "all"), ("lora", "attention"), ("dora", "all"), ("full", "all")])
def test_what_a_layer_s_graph_keeps_is_planned(method: str, on: str, shape: str, tmp_path: Path) -> None:
    """The memory that PyTorch keeps of one layer for the way back, counted, beside the plan's numbers a row."""
    torch = pytest.importorskip("torch")
    make_model(shape, "Q8_0", tmp_path / "m.gguf", seed=1)
    file = ModelFile.open(tmp_path / "m.gguf")
    found = _plan.named(method)
    ours = WorkbenchTrainer(file, found, Tuning(method=method, on=on, rate=0.01))
    weights = list(ours.tensors.values()) + [
        matrix.weight for matrix in ours.model.matrices.values() if isinstance(matrix, Matrix)
    ]
    own = {x.untyped_storage().data_ptr() for x in weights}
    kept: dict[int, int] = {}

    def count(x: Any) -> Any:
        if (storage := x.untyped_storage()).data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    from genmote.models.backward import Batch

    rows = 32
    tokens = np.arange(rows, dtype=np.int32)
    x, spans, tables = ours.passes._start(Batch(tokens, (12, 20), tokens, np.ones(rows, np.float32)))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        layer = ours.decoder.weights.layers[0]
        end = ours.passes._block(x.detach().requires_grad_(), layer, tables, spans)
    assert end.requires_grad
    config = read_config(file)
    learnt = {name: x for name, x in found.shapes(file, ours.tuning).items() if block_of(name) != ENDS}
    wanted = _plan.layer_numbers(file, config, found, learnt, 0)
    assert sum(kept.values()) / 4 / rows == pytest.approx(wanted, rel=0.1)


# -- what cannot be --------------------------------------------------------------------------------------------------


def test_without_pytorch_the_extra_is_named(
    halves: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    said = (
        r"method=full needs PyTorch, which is not installed: run pip install 'genmote\[workbench\]', or leave --method"
    )
    with pytest.raises(OpsError, match=said):
        tune(halves, data, tmp_path / "a.gguf", quick("full"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "lorra"}, "method=lorra: no method is called so, did you mean lora"),
        ({"method": "backward", "recompute": True}, "recompute, type: of methods with PyTorch; method=backward takes"),
        ({"keep": 0.3}, "keep=0.3: how much select keeps; give select, too"),
        ({"method": "backward", "type": "F16"}, "recompute, type: of methods with PyTorch; method=backward takes"),
        ({"method": "full", "weights": "disk"}, "method=full: keeps weights and inputs in memory"),
        ({"method": "full", "inputs": "f16"}, "method=full: keeps weights and inputs in memory"),
        ({"method": "full", "base": Path("a.gguf")}, "method=full: --from goes on from an adapter"),
        ({"method": "dora", "base": Path("a.gguf")}, "method=dora: --from goes on from an adapter"),
        ({"method": "lora", "type": "F16"}, "method=lora: writes an adapter, whose numbers are F32"),
        ({"method": "full", "type": "Q9"}, "Q9"),
        ({"method": "dora", "on": "head"}, "method=dora: output.weight is of low rank, or the embedding itself"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(changes: dict[str, Any], said: str, halves: Path, data: Path, tmp_path: Path) -> None:
    make_model("tiny-gemma3", "F16", tmp_path / "tied.gguf", seed=1)
    model = tmp_path / "tied.gguf" if changes.get("on") == "head" else halves
    with pytest.raises(SpecError, match=said):
        tune(model, data, tmp_path / "a.gguf", replace(QUICK, **changes))
    assert not (tmp_path / "a.gguf").exists()


def test_another_op_set_is_refused(halves: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="method=full computes with the torch op set, not numpy: leave --ops out"):
        tune(halves, data, tmp_path / "a.gguf", quick("full"), ops="numpy")


def test_a_part_of_the_examples_can_be_chosen(halves: Path, data: Path, tmp_path: Path) -> None:
    made: Tuned = tune(halves, data, tmp_path / "a.gguf", quick("lora", select="perplexity", keep=0.5))
    assert any("are chosen by perplexity" in note for note in made.notes) and made.card["examples"] < 40
