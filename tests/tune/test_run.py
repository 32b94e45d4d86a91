"""A training from a file of examples to an adapter: it learns, what it writes is used, a kill or a full disk loses
nothing, and what goes wrong is said."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import Engine, home
from genmote.errors import ExamplesError, ModelFileError, SpecError, TrainingError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.tune import run
from genmote.tune.run import CARD, tune
from genmote.tune.settings import Tuning
from genmote.tune.trainer import Trainer

QUICK = Tuning(steps=24, batch=2, context=32, rate=0.02, judge_every=8)
METHODS = (QUICK, replace(QUICK, method="forward", rate=0.1))


def adapter(path: Path) -> dict[str, np.ndarray]:
    file = ModelFile.open(path)
    return {name: file.tensor(name) for name in file.tensors}


def same(a: Path, b: Path) -> bool:
    return adapter(a).keys() == adapter(b).keys() and all(
        np.array_equal(adapter(a)[name], adapter(b)[name]) for name in adapter(a)
    )


def test_it_learns_and_the_engine_uses_what_it_writes(tiny: Path, data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    output = tmp_path / "mine.gguf"
    seen: list[tuple[str, int, int]] = []
    made = tune(tiny, data, output, QUICK, tell=told.append, progress=lambda *at: seen.append(at))
    judged = [at for at in seen if at[0] == "judging, examples"]
    assert [at[1:] for at in judged].count((6, 6)) == 4, "the base, and at each judgement"
    base = seen[: 1 + judged.index(("judging, examples", 6, 6))]
    assert {at[0] for at in base} == {"judging, examples"}, "before anything is learnt"
    assert made.before is not None and made.after is not None and made.after < 0.8 * made.before
    assert made.progress.losses[-1] < made.progress.losses[0]
    assert [step for step, _ in made.progress.judged] == [0, 8, 16, 24] and len(made.progress.losses) == 24
    assert told[0].startswith("held out: ") and told[-1].startswith("step 24: learning ")
    assert list(made.notes) == told and not (tmp_path / "mine.gguf.work").exists()
    # The engine, which reads the file by itself, finds the examples likelier with it, and as before at scale 0.
    examples = [json.loads(line) for line in data.read_text().splitlines()]

    def likelihood(engine: Engine) -> float:
        return sum(float(sum(engine.score(e["prompt"], e["completion"]).logprobs)) for e in examples)

    with Engine.load(tiny) as engine:
        before = likelihood(engine)
        engine.set_adapters(output)
        assert likelihood(engine) > before + 10
        engine.set_adapters([(output, 0.0)])
        assert likelihood(engine) == before
    card = json.loads(ModelFile.open(output).metadata[CARD])
    assert card == made.card and card["base"] == tiny.name and card["held_out_after"] == made.after
    assert card["base_sha256"] == ModelFile.open(tiny).sha256()
    values = made.values()
    assert values["tokens"] == made.progress.tokens > 0 and values["tokens_per_s"] > 0
    assert made.record().values["setting_rank"] == 8


def test_the_judgement_is_the_engine_s(tiny: Path, lines: Any, tmp_path: Path) -> None:
    """The held-out loss is the mean of -log p that `Engine.score` gives, before and after."""
    learn, judge = lines({"text": "hello there"}), lines({"prompt": "ab", "completion": "cd"}, name="judge.jsonl")
    made = tune(tiny, learn, tmp_path / "a.gguf", Tuning(steps=3, batch=1, rate=0.01, context=32, held_out=judge))
    with Engine.load(tiny) as engine:
        asked = engine.rows("ab").ids
        answer = [*engine.tokenizer.encode("cd", bos=False, start=False), engine.tokenizer.eos_id]
        assert -np.mean(engine.score(asked, answer).logprobs) == pytest.approx(made.before, rel=1e-5)
        engine.set_adapters(tmp_path / "a.gguf")
        assert -np.mean(engine.score(asked, answer).logprobs) == pytest.approx(made.after, rel=1e-4)


@pytest.mark.parametrize("changes", [{"rows": 1000}, {"rows": 8}, {"inputs": "f16"}, {"logit_rows": 3}])
def test_how_much_goes_through_at_once_changes_only_last_bits(
    changes: dict[str, Any], tiny: Path, data: Path, tmp_path: Path
) -> None:
    plain = Tuning(steps=3, batch=4, context=32, rate=0.002, judge_every=3, warmup=1)
    one = tune(tiny, data, tmp_path / "a.gguf", plain)
    two = tune(tiny, data, tmp_path / "b.gguf", Tuning(**{**vars(plain), **changes}))
    assert two.after == pytest.approx(one.after, rel=2e-3)
    assert np.allclose(one.progress.losses, two.progress.losses, rtol=2e-3)


def test_passes_add_up_to_the_mean_and_long_gradients_are_shortened(tiny: Path, data: Path) -> None:
    """Several passes give the gradient of the step's mean loss, not of each pass's. (AdamW's first step is the same for
    a gradient of any length, so that what it is given is looked at.)"""
    from genmote.tune import examples

    def given(rows: int, clip: float) -> tuple[dict[str, np.ndarray], float]:
        trainer, found = Trainer(engine.decoder, Tuning(rows=rows, context=32, clip=clip)), dict[str, np.ndarray]()
        trainer.adam.update = lambda name, numbers, gradient, *_: found.update({name: gradient.copy()})  # type: ignore[method-assign]
        loss = trainer.step(some, [0, 1, 2, 3], 1)
        assert found.keys() == trainer.numbers.keys() and not trainer._sums
        return {name: gradient for name, gradient in found.items() if name.endswith("lora_b")}, loss

    with Engine.load(tiny, ops="numpy") as engine:
        some = examples.read(data, engine, 32, [])
        (many, loss), (once, at_once) = given(5, 1e9), given(500, 1e9)
        assert loss == pytest.approx(at_once, rel=1e-5)
        lengths = {name: float(np.linalg.norm(gradient)) for name, gradient in once.items()}
        assert min(lengths.values()) > 0
        for name, gradient in many.items():
            assert np.abs(gradient - once[name]).max() < 1e-4 * np.abs(once[name]).max()
        clip = float(np.median(list(lengths.values())))
        for rows in (5, 500):
            for name, gradient in given(rows, clip)[0].items():
                assert np.linalg.norm(gradient) == pytest.approx(min(clip, lengths[name]), rel=1e-4)


def test_threads_change_no_bit(tiny: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    for threads in (1, 3):
        tune(tiny, data, tmp_path / f"{threads}.gguf", Tuning(**{**vars(QUICK), "steps": 8}), threads=threads)
    assert same(tmp_path / "1.gguf", tmp_path / "3.gguf")


# -- going on --------------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    from genmote.tune import run, state
    from genmote.tune.settings import Tuning
    run.KEEP_S = 0.0  # kept after each step
    saved = state.save
    def save(path, name, progress, *rest):
        saved(path, name, progress, *rest)
        if progress.step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
    state.save = save
    run.tune({model!r}, {data!r}, {output!r}, Tuning(steps=24, batch=2, context=32, rate=0.02, judge_every=8))
"""


@pytest.mark.parametrize("step", [5, 16])
def test_after_a_kill_it_goes_on_to_the_same_bits(step: int, tiny: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine.gguf"
    output.write_bytes(b"the one before")
    code = textwrap.dedent(KILLED).format(step=step, model=str(tiny), data=str(data), output=str(output))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert output.read_bytes() == b"the one before"
    told: list[str] = []
    made = tune(tiny, data, output, QUICK, tell=told.append)
    assert told[0] == f"goes on after step {step} of 24" and made.progress.step == 24
    whole = tune(tiny, data, tmp_path / "whole.gguf", QUICK)
    assert same(output, tmp_path / "whole.gguf")
    assert made.progress.losses == whole.progress.losses and made.progress.judged == whole.progress.judged


def test_other_settings_or_a_damaged_state_begin_anew(tiny: Path, data: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "mine.gguf", tmp_path / "mine.gguf.work"

    def interrupted(tuning: Tuning) -> None:
        def bar(what: str, step: int, total: int) -> None:
            if step == 9:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(tiny, data, output, tuning, progress=bar)

    interrupted(QUICK)
    kept = (work / "state.npz").read_bytes()
    told: list[str] = []
    tune(tiny, data, output, Tuning(**{**vars(QUICK), "seed": 5}), tell=told.append)
    assert told[0].endswith("is not gone on from: it is of other settings, another model or other examples")
    for damaged in (kept[: len(kept) // 2], kept[:300] + bytes(40) + kept[340:], b""):
        work.mkdir(exist_ok=True)
        (work / "state.npz").write_bytes(damaged)
        told.clear()
        made = tune(tiny, data, output, Tuning(**{**vars(QUICK), "steps": 8}), tell=told.append)
        assert "is not gone on from: it is" in told[0] and made.progress.step == 8


@pytest.mark.parametrize("tuning", METHODS, ids=lambda tuning: tuning.method)
def test_a_full_disk_stops_it_and_what_was_there_stays(
    tuning: Tuning, tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "mine.gguf"
    output.write_bytes(b"the one before")
    replace, full = os.replace, [True]

    def no_room(source: Any, target: Any) -> None:
        if full[0] and str(target).endswith("state.npz") and (tmp_path / "mine.gguf.work/state.npz").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(home.os, "replace", no_room)
    with pytest.raises(TrainingError, match=r"No space left.*make room and give the same command again"):
        tune(tiny, data, output, tuning)
    assert output.read_bytes() == b"the one before"
    full[0] = False
    told: list[str] = []
    tune(tiny, data, output, tuning, tell=told.append)
    assert told[0] == "goes on after step 8 of 24"
    tune(tiny, data, tmp_path / "whole.gguf", tuning)
    assert same(output, tmp_path / "whole.gguf")


@pytest.mark.parametrize("tuning", METHODS, ids=lambda tuning: tuning.method)
def test_a_disk_without_room_is_told_before_anything_is_read(
    tuning: Tuning, tiny: Path, data: Path, tmp_path: Path, full_disk: Any
) -> None:
    output, seen = tmp_path / "mine.gguf", list[tuple[str, int, int]]()
    with full_disk(10_000):
        wanted = r"mine.gguf.work takes no 1 MB of what is kept on the way \(.*\): make room, or name another --output$"
        with pytest.raises(SpecError, match=wanted):
            tune(tiny, data, output, tuning, progress=lambda *at: seen.append(at))
    assert not seen and not list(tmp_path.glob("mine*")), "no judgement yet, and nothing is left"


def test_a_disk_that_is_full_at_the_very_end_costs_no_step(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "mine.gguf"
    output.write_bytes(b"the one before")
    replace_file = os.replace

    def no_room(source: Any, target: Any) -> None:
        if Path(target) == output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(home.os, "replace", no_room)
        with pytest.raises(ModelFileError, match="No space left"):
            tune(tiny, data, output, QUICK)
    assert output.read_bytes() == b"the one before"
    made = tune(tiny, data, output, QUICK)
    assert made.notes[0] == "goes on after step 24 of 24" and made.reading.tokens == 0
    assert ModelFile.open(output).metadata[CARD] == json.dumps(made.card)


def test_a_kill_while_what_was_kept_is_let_go_of_costs_nothing(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written; whatever is left beside it then is no run to go on with."""
    output = tmp_path / "mine.gguf"

    def killed(work: Path, **_: Any) -> None:
        (work / "best.gguf").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(tiny, data, output, QUICK)
    kept = adapter(output)
    made = tune(tiny, data, output, QUICK)
    assert made.reading.tokens == made.progress.tokens and all(
        np.array_equal(kept[n], adapter(output)[n]) for n in kept
    )


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_keeps_the_last_good_adapter(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "mine.gguf"
    output.write_bytes(b"the one before")
    with pytest.raises(
        TrainingError, match=r"step \d+: .*training stopped, no adapter was written; use a lower --rate"
    ):
        tune(tiny, data, output, Tuning(**{**vars(QUICK), "rate": 1e30, "on": "head"}))  # norms would tame the rest
    assert output.read_bytes() == b"the one before"

    step = Trainer.step

    def breaks(self: Trainer, *args: Any) -> float:
        if args[-1] == 13:
            next(iter(self.numbers.values()))[...] = np.nan
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", breaks)
    with pytest.raises(TrainingError, match=r"step 13: .*training stopped, .*mine.gguf is the adapter of step 8"):
        tune(tiny, data, output, QUICK)
    monkeypatch.undo()
    tune(tiny, data, tmp_path / "until.gguf", Tuning(**{**vars(QUICK), "patience": 0}))
    assert all(np.isfinite(numbers).all() for numbers in adapter(output).values())
    assert not (tmp_path / "mine.gguf.work").exists()


@pytest.mark.parametrize("tuning", METHODS, ids=lambda tuning: tuning.method)
def test_examples_that_cannot_be_learnt_from_leave_what_was_there(
    tuning: Tuning, tiny: Path, lines: Any, tmp_path: Path
) -> None:
    output, data = tmp_path / "mine.gguf", tmp_path / "data.jsonl"
    output.write_bytes(b"the one before")
    for written, said in (
        (b"\n", "no examples to learn from"),
        (b'{"text": "caf\xe9"}\n', "line 1: byte 0xe9 is not UTF-8"),
        (
            b'{"prompt": "' + b"a " * 99 + b'", "completion": "b"}\n',
            "none of 1 examples has anything to learn within 32",
        ),
    ):
        data.write_bytes(written)
        with pytest.raises(ExamplesError, match=said):
            tune(tiny, data, output, tuning)
        assert output.read_bytes() == b"the one before" and not (tmp_path / "mine.gguf.work").exists()


@pytest.mark.parametrize("tuning", METHODS, ids=lambda tuning: tuning.method)
def test_one_answer_or_several_to_one_question_are_told_once_and_learnt(
    tuning: Tuning, tiny: Path, lines: Any, tmp_path: Path
) -> None:
    same = [{"prompt": word, "completion": "on"} for word in ("light", "lamp", "bulb")]
    for examples, select, said in (
        (same, "random", "all examples have the same answer"),
        ([{"prompt": "light", "completion": word} for word in ("on", "off", "dim")], None, "more than one answer"),
    ):
        asked = replace(tuning, steps=8, select=select, keep=1.0)
        made = tune(tiny, lines(*examples), tmp_path / f"{select}.gguf", asked)
        assert sum(said in line for line in made.notes) == 1
        assert made.progress.losses[-1] < made.progress.losses[0]


def test_it_stops_when_it_gets_no_better_and_keeps_the_best(tiny: Path, lines: Any, tmp_path: Path) -> None:
    learn = lines(*({"prompt": "a", "completion": "b" * n} for n in range(1, 4)))
    judge = lines({"prompt": "a", "completion": "zyxw"}, name="judge.jsonl")
    told: list[str] = []
    tuning = Tuning(steps=400, batch=3, context=32, rate=0.03, judge_every=2, patience=2, held_out=judge, warmup=0)
    made = tune(tiny, learn, tmp_path / "a.gguf", tuning, tell=told.append)
    assert made.progress.step < 400 and made.card["best_step"] == made.progress.best[0] < made.progress.step  # type: ignore[index]
    with Engine.load(tiny, adapter=tmp_path / "a.gguf") as engine:
        asked, answer = engine.rows("a").ids, [*engine.tokenizer.encode("zyxw", bos=False), engine.tokenizer.eos_id]
        assert -np.mean(engine.score(asked, answer).logprobs) == pytest.approx(made.after, rel=1e-4)
    assert made.after is not None and made.before is not None
    assert f"stopped after step {made.progress.step}: 2 judgements without a better one" in told
    assert ("no better than the base" in told[-1]) == (made.after >= made.before)


def test_one_example_leaves_none_to_judge_by(tiny: Path, lines: Any, tmp_path: Path) -> None:
    told: list[str] = []
    tuning = Tuning(steps=2, batch=2, context=16)
    made = tune(tiny, lines({"text": "only this"}), tmp_path / "a.gguf", tuning, tell=told.append)
    assert told == ["only one example, or copies of it: none is left to judge by, and the last step's numbers are kept"]
    assert made.before is None and made.after is None and made.card["best_step"] == 2


def test_what_is_odd_in_a_file_to_judge_by_is_told_of_that_file(tiny: Path, lines: Any, tmp_path: Path) -> None:
    told: list[str] = []
    learn = lines({"prompt": "light", "completion": "b"}, {"prompt": "b", "completion": "c"})
    same = [{"prompt": "light", "completion": "b"}, {"prompt": "lamp", "completion": "b"}]
    judge = lines(*same, *same, name="judge.jsonl")
    tune(tiny, learn, tmp_path / "a.gguf", Tuning(steps=2, batch=2, context=16, held_out=judge), tell=told.append)
    assert told[:3] == [
        f"{judge}: 2 of 4 examples are there more than once",
        f"{judge}: all examples have the same answer: what is learnt from them is that answer alone",
        "2 of 4 examples to judge by are learnt from, too: they tell little of others",
    ]


def test_settings_that_cannot_be(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="context=4096: this model takes 1 to 256 tokens"):
        tune(tiny, data, tmp_path / "a.gguf", Tuning(context=4096))
    with pytest.raises(SpecError, match="on=biases: this llama model has none of these"):
        tune(tiny, data, tmp_path / "a.gguf", Tuning(on="biases"))
    with pytest.raises(SpecError, match="rank=0: use 1 to 1024"):
        tune(tiny, data, tmp_path / "a.gguf", Tuning(rank=0))
    told = list(Tuning(on="attn_z,", rank=0, alpha=-1.0, steps=0, context=1, rate=0.0, seed=-1, logit_rows=0).faults())
    wanted = ("on=attn_z,: attn_z cannot be learnt", "rank=0", "alpha=-1", "steps=0", "context=1:", "rate=0", "seed=-1")
    assert all(any(line.startswith(start) for line in told) for start in wanted) and "rows=0, logit_rows=0" in told[-1]
    assert not list(Tuning(on="attn_q, norms,head").faults())
    for method in ("forward:moves=3", "backward:", "workbench:rank=2"):
        (told,) = Tuning(method=method).faults()
        name = method.partition(":")[0]
        assert told == f"method={method}: {name} has no settings after a colon; leave them out"
    (told,) = Tuning(batch=10**9).faults()
    assert told.endswith("patience=0: use at least 1, of patience at least 0, of batch at most 65536")
    assert not list(Tuning(rate=1e30).faults())
    for rate in (1e31, float("inf")):  # which overflow in a first step
        assert [fault for fault in Tuning(rate=rate).faults() if fault.startswith(f"rate={rate}, ")]
    with pytest.raises(SpecError, match=r"mine.gguf.work cannot be made"):
        (tmp_path / "mine.gguf.work").write_text("a file in the way")
        tune(tiny, data, tmp_path / "mine.gguf", QUICK)


def test_an_adapter_of_another_shape_is_refused(tiny: Path, data: Path, tmp_path: Path) -> None:
    tune(tiny, data, tmp_path / "a.gguf", Tuning(steps=1, context=32))
    make_model("tiny-llama-256", "Q4_0", tmp_path / "other.gguf", seed=1)
    with pytest.raises(ModelFileError, match="do not fit the model's"):
        Engine.load(tmp_path / "other.gguf", adapter=tmp_path / "a.gguf")
    kept = (tmp_path / "a.gguf").read_bytes()
    with pytest.raises(ModelFileError, match="do not fit the model's"):
        tune(tmp_path / "other.gguf", data, tmp_path / "a.gguf", replace(QUICK, base=tmp_path / "a.gguf"))
    assert (tmp_path / "a.gguf").read_bytes() == kept


# -- what is learnt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["attn_q,ffn_down", "head", "norms", "all,norms"])
def test_what_is_asked_for_is_learnt_and_nothing_else(on: str, tiny: Path, data: Path, tmp_path: Path) -> None:
    made = tune(tiny, data, tmp_path / "a.gguf", Tuning(**{**vars(QUICK), "on": on, "rank": 4, "steps": 16}))
    names = set(adapter(tmp_path / "a.gguf"))
    blocks = range(2)
    norms = {"output_norm.weight"} | {f"blk.{n}.{part}_norm.weight" for n in blocks for part in ("attn", "ffn")}
    parts = {"attn_q,ffn_down": ("attn_q", "ffn_down"), "head": (), "norms": ()}.get(on)
    every = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    stems = {f"blk.{n}.{part}.weight" for n in blocks for part in (every if parts is None else parts)}
    stems |= {"output.weight"} if on == "head" else set()
    wanted = {f"{stem}.lora_{ab}" for stem in stems for ab in "ab"} | (norms if "norms" in on else set())
    assert names == wanted
    kind = ModelFile.open(tmp_path / "a.gguf").metadata["adapter.type"]
    assert kind == ("genmote.lora" if "norms" in on else "lora")
    assert made.after is not None and made.before is not None and made.after < made.before
    with Engine.load(tiny, adapter=tmp_path / "a.gguf") as engine:
        judged = [(engine.rows(word).ids, word[-1] * 2) for word in ("abcde", "hgfed")]
        after = [sum(engine.score(asked, answer).logprobs) for asked, answer in judged]
        engine.set_adapters(None)
        assert sum(after) > sum(sum(engine.score(asked, answer).logprobs) for asked, answer in judged)


@pytest.mark.parametrize("shape", ["tiny-gemma3", "tiny-opt", "tiny-qwen3", "tiny-olmoe"])
def test_other_families(shape: str, data: Path, tmp_path: Path) -> None:
    make_model(shape, "Q8_0", tmp_path / "m.gguf", seed=2)
    made = tune(
        tmp_path / "m.gguf",
        data,
        tmp_path / "a.gguf",
        Tuning(**{**vars(QUICK), "on": "all,norms,biases" if shape == "tiny-opt" else "all,norms"}),
    )
    assert made.after is not None and made.before is not None and made.after < made.before


def test_it_goes_on_from_an_adapter(tiny: Path, data: Path, tmp_path: Path) -> None:
    first = tune(tiny, data, tmp_path / "a.gguf", QUICK)
    told: list[str] = []
    more = Tuning(**{**vars(QUICK), "base": tmp_path / "a.gguf", "alpha": 4.0, "rate": 1e-9})
    second = tune(tiny, data, tmp_path / "b.gguf", more, tell=told.append)
    assert second.before == pytest.approx(first.after, rel=1e-5)  # though the update counts otherwise
    assert second.card["settings"]["base"] == str(tmp_path / "a.gguf")
    with pytest.raises(SpecError, match=r"a.gguf is of other matrices or another rank \(blk.0.attn_k.weight.lora_a\)"):
        tune(tiny, data, tmp_path / "b.gguf", Tuning(**{**vars(more), "rank": 4}))
    with pytest.raises(ModelFileError, match="is not a LoRA adapter"):
        tune(tiny, data, tmp_path / "b.gguf", Tuning(**{**vars(more), "base": tiny}))


def test_two_trainings_into_one_file_are_one_too_many(tiny: Path, data: Path, tmp_path: Path) -> None:
    """They would keep their numbers in one folder, and write what is of neither."""
    output, told = tmp_path / "mine.gguf", list[str]()

    def other(what: str, step: int, total: int) -> None:
        if what == "training, steps" and step == 9:
            with pytest.raises(SpecError, match=r"mine.gguf.work is in use by process \d+: wait until that is done"):
                tune(tiny, data, output, replace(QUICK, seed=5))
            told.append("refused")

    tune(tiny, data, output, QUICK, progress=other)
    tune(tiny, data, tmp_path / "whole.gguf", QUICK)
    assert told == ["refused"] and same(output, tmp_path / "whole.gguf") and not (tmp_path / "mine.gguf.work").exists()


def test_what_is_no_better_than_the_base_takes_no_file_s_place(
    tiny: Path, data: Path, lines: Any, tmp_path: Path
) -> None:
    """What is held out is made of tokens that the examples never say."""
    output = tmp_path / "mine.gguf"
    made = tune(tiny, data, output, QUICK)
    kept = output.read_bytes()
    judge = lines({"text": [300, 301, 302, 303]}, {"text": [304, 305, 306]}, name="judge.jsonl")
    vain = replace(QUICK, held_out=judge)
    said = (
        r"no better than the base on what was held out \(\d.* nats a token instead of \d.*\): .*mine.gguf stays as it "
        r"was; use more or other examples, .* move that file away and give the same command again"
    )
    for tuning in (replace(vain, base=output), vain, vain):  # the last goes on with what the one before it kept
        with pytest.raises(TrainingError, match=said):
            tune(tiny, data, output, tuning)
        assert output.read_bytes() == kept
    output.unlink()
    worse = tune(tiny, data, output, vain)
    assert "goes on after step 24 of 24" in worse.notes and worse.reading.tokens == 0
    assert worse.notes[-1].startswith("no better than the base on what was held out: ") and output.exists()
    assert worse.after is not None and worse.before is not None and worse.after >= worse.before
    assert not (tmp_path / "mine.gguf.work").exists() and made.path == output
