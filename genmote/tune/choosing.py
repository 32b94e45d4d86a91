"""Which of the examples a training learns from: `tune/select/`, by the model that is to learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from genmote.errors import SpecError, TrainingError
from genmote.home import atomic_write
from genmote.models.decoder import Decoder
from genmote.tune import examples
from genmote.tune.examples import Examples
from genmote.tune.learnt import Learnt, fresh, go_on
from genmote.tune.select._base import UNMEASURED, Choice, choose, how_many, named
from genmote.tune.select._probe import DecoderProbe, Pilot
from genmote.tune.settings import Tuning

HELD_OUT = 0.1  # share of the examples whose gradients others are compared to, and which are not chosen
VERSION = 1


def chosen(
    decoder: Decoder,
    learn: Examples,
    tuning: Tuning,
    note: Callable[[str], None],
    progress: Callable[[str, int, int], None],
    kept: tuple[Path, str] | None = None,
) -> Examples:
    """The examples that `tuning.select` and `tuning.keep` choose; the same for the same seed. `note` is told which and
    why. `kept`: a file that keeps the choice, and the name of the run that it is of: a choice of that run is taken from
    it. Raises SpecError where nothing can be chosen as asked, TrainingError where the file cannot be written."""
    if tuning.method != "backward":
        tuning = replace(tuning, method="backward", rate=None)  # a pilot goes back, at a rate of its own
    assert tuning.select is not None
    named(tuning.select)
    count = how_many(tuning.keep, len(learn))
    some, judge = learn, learn.take([])
    if "gradients" in tuning.select:
        some, judge = examples.held_out(learn, HELD_OUT, Pilot.held_out, tuning.seed + 1)
        if len(some) < count or not len(judge):
            raise SpecError(
                f"keep={tuning.keep:g}: {count} of {len(learn)} examples, but {tuning.select} holds out "
                f"{len(learn) - len(some)} to compare to: keep fewer, or choose by another way"
            )
    found = None if kept is None else _restored(*kept, len(some))
    if found is not None:
        note(f"{len(found.indices)} of {len(learn)} examples were chosen by {found.method} before")
        return some.take(found.indices.tolist())
    if tuning.select.partition(":")[0] in UNMEASURED:
        found = choose(some, count, tuning.select, seed=tuning.seed)
    elif tuning.weights == "disk":
        raise SpecError(
            f"select={tuning.select} reads the examples with all weights in memory, weights=disk keeps them out: "
            f"choose by {' or '.join(UNMEASURED)}"
        )
    else:
        probe = DecoderProbe(_with_base(decoder, tuning), some, judge, tuning, progress=progress)
        found = choose(some, count, tuning.select, seed=tuning.seed, probe=probe)
    for line in found.notes:
        note(line)
    note(f"{len(found.indices)} of {len(learn)} examples are chosen by {found.method} in {found.seconds:.3g} s")
    if kept is not None:
        _keep(*kept, found)
    return some.take(found.indices.tolist())


def _with_base(decoder: Decoder, tuning: Tuning) -> Decoder:
    """The model as the training begins with it: with the adapter that it goes on from."""
    if tuning.base is None:
        return decoder
    numbers = fresh(decoder.weights, decoder.config, tuning)
    go_on(numbers, tuning.base, decoder.config, tuning.factor)
    weights = Learnt(decoder.weights, decoder.ops, numbers, tuning.factor * tuning.rank)
    return Decoder(decoder.config, weights, decoder.ops, fused=False)


def _restored(path: Path, run: str, total: int) -> Choice | None:
    """A choice that was kept of this run; None where there is none that can be read."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about.pop("version") != VERSION or about.pop("run") != run:
            return None
        found = Choice(np.array(about.pop("indices"), np.int64), **about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if len(found.indices) and 0 <= found.indices.min() <= found.indices.max() < total else None


def _keep(path: Path, run: str, choice: Choice) -> None:
    about = {"version": VERSION, "run": run, **asdict(choice), "indices": choice.indices.tolist()}
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path, "w") as out:
            json.dump(about, out)
    except OSError as fault:
        raise TrainingError(
            f"{path} cannot be written ({fault.strerror}): make room, or name another --output"
        ) from None
