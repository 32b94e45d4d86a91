"""Passes forward alone: the estimate against the true gradient, what is learnt, the same bits after a kill and while
weights are streamed, and the memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import Engine
from genmote.errors import BudgetError, SpecError, TrainingError
from genmote.models.backward import Backward
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.ops.gradients import of
from genmote.tune import batches, examples, forward
from genmote.tune.forward import GUIDES, STATE, ForwardTrainer
from genmote.tune.learnt import Learnt
from genmote.tune.memory import EXACT_RANKS
from genmote.tune.run import tune
from genmote.tune.settings import Tuning
from tests.conftest import settled_bytes

QUICK = Tuning(method="forward", rank=2, steps=24, batch=4, context=32, judge_every=8, rate=0.1)


@pytest.fixture
def data(lines: Any) -> Path:
    """A rule: the completion is the prompt's last letter, twice."""
    rng = np.random.default_rng(4)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(60)]
    return lines(*({"prompt": word, "completion": word[-1] * 2} for word in words))  # type: ignore[no-any-return]


def adapter(path: Path) -> dict[str, np.ndarray]:
    file = ModelFile.open(path)
    return {name: file.tensor(name) for name in file.tensors}


def same(a: Path, b: Path) -> bool:
    one, two = adapter(a), adapter(b)
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def trained(engine: Engine, data: Path, tuning: Tuning, steps: int) -> tuple[ForwardTrainer, examples.Examples]:
    found = examples.read(data, engine, tuning.context, [])
    trainer = ForwardTrainer(engine.decoder, tuning, found)
    for step in range(steps):
        trainer.step(found, batches.chosen(len(found), tuning.batch, step, tuning.seed), step + 1)
    return trainer, found


def true_gradients(trainer: ForwardTrainer, engine: Engine, batch: Any) -> dict[str, np.ndarray]:
    weights = Learnt(engine.decoder.weights, engine.decoder.ops, trainer.numbers, trainer.weights.alpha)
    decoder = Decoder(engine.config, weights, engine.decoder.ops, fused=False)
    found: dict[str, np.ndarray] = {}
    Backward(decoder, of(engine.decoder.ops), trainer.numbers).step(batch, found.__setitem__)
    return found


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gemma3", "tiny-opt"])
def test_the_estimate_is_the_gradient_on_average(
    shape: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many draws the estimate's mean comes to the gradient that goes the way back, along the guides, within what
    so many draws leave, and stands out of it. The move is small here: what is left over goes with its square."""
    monkeypatch.setattr(forward, "MOVE", 0.02)
    make_model(shape, "F32", tmp_path / "m.gguf", seed=5)
    with Engine.load(tmp_path / "m.gguf", ops="native", threads=1) as engine:
        trainer, found = trained(engine, data, Tuning(method="forward", context=32, batch=2, rank=2, rows=64), 3)
        some = [1, 5]
        (batch,) = batches.passes(found, some, 64, 1 / batches.learnt_tokens(found, some))
        true = true_gradients(trainer, engine, batch)
        state, caught = trainer.adam.states[STATE], dict[str, Any]()
        trainer._move = lambda differences, rate, step: caught.update(  # type: ignore[method-assign]
            differences=differences
        )
        trainer.adam.update = lambda *_: None  # type: ignore[method-assign]
        draws, sums, squares = 1000, dict[str, Any](), dict[str, Any]()
        for step in range(100, 100 + draws):
            trainer.step(found, some, step)
            for tensor, one in trainer.estimate(caught["differences"], step).items():
                sums[tensor] = sums.get(tensor, 0) + one.astype(np.float64)
                squares[tensor] = squares.get(tensor, 0) + np.square(one, dtype=np.float64)
        assert len(sums) == len(trainer.estimated) >= 1
        off, clear = list[Any](), list[Any]()  # in standard errors of the mean
        for scale, (tensor, total) in zip(state["scales"], sums.items(), strict=True):
            error = np.sqrt(squares[tensor]) / draws
            wanted = state["guides"] @ true[f"{tensor}.lora_b"] * scale
            off.append((total / draws - wanted) / error)
            clear.append(wanted / error)
        assert np.abs(off).max() < 5 and np.square(off).mean() < 1.5
        assert np.square(clear).mean() > 5


def test_where_nothing_is_estimated_the_gradient_is_exact(tiny: Path, data: Path) -> None:
    """The last ffn_down's first step of AdamW goes against the sign of the true gradient."""
    with Engine.load(tiny, threads=1) as engine:
        found = examples.read(data, engine, 32, [])
        tuning = Tuning(method="forward", context=32, on="ffn_down", warmup=0, decay=0.0)
        trainer = ForwardTrainer(engine.decoder, tuning, found)
        trainer.estimated = ()
        (tensor,) = trainer.exact
        assert tensor == f"blk.{engine.config.n_layers - 1}.ffn_down.weight"
        (batch,) = batches.passes(found, [0, 1, 2], 500, 1 / batches.learnt_tokens(found, [0, 1, 2]))
        true = true_gradients(trainer, engine, batch)[f"{tensor}.lora_b"]
        before = trainer.numbers[f"{tensor}.lora_b"].copy()
        loss = trainer.step(found, [0, 1, 2], 1)
        assert loss == pytest.approx(trainer_loss(engine, batch), rel=1e-5)
        moved = trainer.numbers[f"{tensor}.lora_b"] - before
        clear = np.abs(true) > 1e-3 * np.abs(true).max()
        assert clear.mean() > 0.5 and np.array_equal(np.sign(moved[clear]), -np.sign(true[clear]))


def trainer_loss(engine: Engine, batch: Any) -> float:
    return Backward(engine.decoder, of(engine.decoder.ops), ()).loss(batch)


def test_how_many_texts_go_through_at_once_changes_only_last_bits(tiny: Path, data: Path) -> None:
    """With the same components: a pass for each text, or one for all."""
    with Engine.load(tiny, threads=1) as engine:
        alone, found = trained(engine, data, Tuning(method="forward", context=32, rows=1, batch=4), 0)
        together, _ = trained(engine, data, Tuning(method="forward", context=32, rows=1000, batch=4), 0)
        for name, numbers in alone.numbers.items():
            together.numbers[name][...] = numbers
        together.adam.states[STATE] = {name: array.copy() for name, array in alone.adam.states[STATE].items()}
        losses = [trainer.step(found, [3, 0, 7, 4], 1) for trainer in (alone, together)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        for tensor in alone.estimated:
            one, two = (trainer.numbers[f"{tensor}.lora_b"] for trainer in (alone, together))
            assert np.abs(one).max() > 0 and np.allclose(one, two, rtol=0, atol=1e-3 * np.abs(one).max())


def test_it_learns_and_the_engine_uses_what_it_writes(tiny: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine.gguf"
    tuning = Tuning(**{**vars(QUICK), "steps": 150, "judge_every": 50})
    made = tune(tiny, data, output, tuning)
    assert made.before is not None and made.after is not None and made.after < 0.85 * made.before
    words = [json.loads(line) for line in data.read_text().splitlines()]
    with Engine.load(tiny) as engine:

        def likelihood() -> float:
            return sum(float(sum(engine.score(e["prompt"], e["completion"]).logprobs)) for e in words)

        before = likelihood()
        engine.set_adapters(output)
        assert likelihood() > before + 10


def test_estimates_alone_learn(tiny: Path, data: Path) -> None:
    """Without the exact gradient of the last ffn_down: attention's outputs only, whose gradient is estimated."""
    with Engine.load(tiny, threads=1) as engine:
        tuning = Tuning(method="forward", context=32, batch=8, rate=0.2, on="attn_output", steps=300, warmup=0.01)
        found = examples.read(data, engine, 32, [])
        trainer = ForwardTrainer(engine.decoder, tuning, found)
        assert not trainer.exact and len(trainer.estimated) == 1
        before = trainer.judge(found)
        for step in range(300):
            trainer.step(found, batches.chosen(len(found), 8, step, 0), step + 1)
        assert trainer.judge(found) < 0.97 * before


KILLED = """
    import os, signal
    from genmote.tune import run, state
    from genmote.tune.settings import Tuning
    run.KEEP_S = 0.0  # kept after each step
    saved = state.save
    def save(path, name, progress, *rest):
        saved(path, name, progress, *rest)
        if progress.step == 13:
            os.kill(os.getpid(), signal.SIGKILL)
    state.save = save
    quick = Tuning(method="forward", rank=2, steps=24, batch=4, context=32, judge_every=8, rate=0.1)
    run.tune({model!r}, {data!r}, {output!r}, quick)
"""


def test_after_a_kill_it_goes_on_to_the_same_bits(tiny: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine.gguf"
    code = textwrap.dedent(KILLED).format(model=str(tiny), data=str(data), output=str(output))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    told: list[str] = []
    made = tune(tiny, data, output, QUICK, tell=told.append)
    assert told[0] == "goes on after step 13 of 24"
    whole = tune(tiny, data, tmp_path / "whole.gguf", QUICK)
    assert same(output, tmp_path / "whole.gguf") and made.progress.losses == whole.progress.losses


def test_streamed_weights_give_the_same_bits(tiny: Path, data: Path) -> None:
    with Engine.load(tiny, threads=1) as engine:
        kept, _ = trained(engine, data, QUICK, 6)
    with Engine.load(tiny, threads=1, memory=settled_bytes() + 60_000_000, context=32) as engine:
        assert engine.streaming is not None
        engine.streaming.pin(0)
        streamed, found = trained(engine, data, QUICK, 6)
        assert engine.streaming.streamed_bytes > 0 and engine.streaming.pinned_bytes == 0
        judged = streamed.judge(found)
    assert judged == kept.judge(found)
    assert all(np.array_equal(numbers, streamed.numbers[name]) for name, numbers in kept.numbers.items())


def test_a_loss_that_is_no_number_keeps_the_best_adapter(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ForwardTrainer.step

    def spoilt(self: ForwardTrainer, found: Any, some: Any, number: int) -> float:
        if number == 18:
            for name, numbers in self.numbers.items():
                numbers[...] = np.nan if name.endswith("lora_b") else numbers
        return step(self, found, some, number)

    monkeypatch.setattr(ForwardTrainer, "step", spoilt)
    output = tmp_path / "mine.gguf"
    with pytest.raises(TrainingError, match=r"step 18: the loss is nan: training stopped, .* is the adapter of step"):
        tune(tiny, data, output, QUICK)
    assert all(np.isfinite(numbers).all() for numbers in adapter(output).values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"on": "attn_q"}, "on=attn_q: passes forward alone learn attn_output and ffn_down"),
        ({"base": Path("a.gguf")}, "method=forward: begins anew"),
        ({"weights": "disk"}, "method=forward: .* by --memory"),
    ],
)
def test_what_cannot_be_learnt_is_told(
    changes: dict[str, Any], told: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=told):
        tune(tiny, data, tmp_path / "a.gguf", Tuning(**{**vars(QUICK), **changes}))


def test_experts_are_no_hindrance(data: Path, tmp_path: Path) -> None:
    make_model("tiny-mixtral", "Q8_0", tmp_path / "m.gguf", seed=5)
    made = tune(tmp_path / "m.gguf", data, tmp_path / "a.gguf", QUICK)
    assert made.after is not None and made.before is not None and made.after < made.before
    assert all(".attn_output." in name for name in adapter(tmp_path / "a.gguf"))


def test_a_budget_streams_what_does_not_fit_and_the_least_is_told(data: Path, tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(BudgetError):
        tune(tiny, data, tmp_path / "a.gguf", QUICK, memory="20MB")
    told: list[str] = []
    tune(tiny, data, tmp_path / "a.gguf", QUICK, memory=settled_bytes() + 200_000_000, tell=told.append)
    assert any("all weights fit" in line for line in told)
    assert same_as_free(tiny, data, tmp_path)


def same_as_free(tiny: Path, data: Path, tmp_path: Path) -> bool:
    tune(tiny, data, tmp_path / "b.gguf", QUICK)
    return same(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_guides_are_orthonormal_and_few(tiny: Path, data: Path) -> None:
    with Engine.load(tiny, threads=1) as engine:
        trainer, _ = trained(engine, data, QUICK, 0)
        guides = trainer.adam.states[STATE]["guides"]
        assert 1 <= len(guides) <= GUIDES
        assert np.allclose(guides @ guides.T, np.eye(len(guides)), atol=1e-4)


def test_the_exact_part_s_components_are_of_enough_rows_and_keep_their_sizes(tiny: Path, data: Path) -> None:
    """A pass of 16 rows says fewer tokens than there are components. An adapter is given a size of 1 on average
    over its components, each as large as it is."""
    with Engine.load(tiny, threads=1) as engine:
        trainer, found = trained(engine, data, Tuning(method="forward", context=32, rank=2, rows=16), 0)
        down = trainer.numbers[f"{trainer.exact[0]}.lora_a"]
        assert len(down) == 2 * EXACT_RANKS
        products = down @ down.T
        assert np.allclose(products, products[0, 0] * np.eye(len(down)), atol=1e-3 * products[0, 0])
        given: list[Any] = []
        steer = trainer._steer
        trainer.decoder.ops._steer = lambda own, x, low, y: (  # type: ignore[attr-defined]
            given.append(low) if own.tensor in trainer.exact else None,
            steer(own, x, low, y),
        )
        trainer.step(found, range(len(found)), 1)
        squares = np.square(np.concatenate(given)).mean(axis=0)
        assert 0.5 < squares.mean() < 1.5 and squares[0] > 4 * squares[-1]


def test_a_process_takes_what_was_planned(lines: Any, tmp_path: Path) -> None:
    make_model("tiny-llama-256", "Q8_0", tmp_path / "m.gguf", seed=3)
    data = lines(*({"text": "All day long the light was on. " * (8 + n)} for n in range(8)))
    words = [str(tmp_path / "m.gguf"), str(data), "-o", str(tmp_path / "a.gguf"), "--method", "forward", "--json"]
    words += ["--steps", "2", "--judge-every", "2", "--threads", "1", "--context", "256"]
    done = subprocess.run([sys.executable, "-m", "genmote.cli", "tune", *words], capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert 0.85 * told["planned_bytes"] < told["peak_rss_bytes"] < 1.1 * told["planned_bytes"]
