"""Which of the examples a training learns from: `tune/select/`, by the model that is to learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genmote.errors import SpecError
from genmote.models.decoder import Decoder
from genmote.tune import examples
from genmote.tune.examples import Examples
from genmote.tune.select._base import choose, how_many, named
from genmote.tune.select._probe import DecoderProbe, Pilot
from genmote.tune.settings import Tuning

HELD_OUT = 0.1  # share of the examples by which gradients and trials are judged, and which are not chosen
UNMEASURED = ("random", "dedup")  # ways that take no model


def chosen(
    decoder: Decoder,
    learn: Examples,
    tuning: Tuning,
    note: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> Examples:
    """The examples that `tuning.select` and `tuning.keep` choose; the same for the same seed. `note` is told which and
    why. Raises SpecError where nothing can be chosen as asked."""
    assert tuning.select is not None
    named(tuning.select)
    count = how_many(tuning.keep, len(learn))
    if tuning.select.partition(":")[0] in UNMEASURED:
        found = choose(learn, count, tuning.select, seed=tuning.seed)
        some = learn
    elif tuning.weights == "disk":
        raise SpecError(
            f"select={tuning.select} reads the examples with all weights in memory, weights=disk keeps them out: "
            f"choose by {' or '.join(UNMEASURED)}"
        )
    else:
        some, judge = examples.held_out(learn, HELD_OUT, Pilot.held_out, tuning.seed + 1)
        if len(some) < count or not len(judge):
            raise SpecError(
                f"keep={tuning.keep:g}: {count} of {len(learn)} examples, but {tuning.select} holds out "
                f"{len(learn) - len(some)} to judge by: keep fewer, or choose by {' or '.join(UNMEASURED)}"
            )
        probe = DecoderProbe(decoder, some, judge, tuning, progress=progress)
        found = choose(some, count, tuning.select, seed=tuning.seed, probe=probe)
    for line in found.notes:
        note(line)
    note(f"{len(found.indices)} of {len(learn)} examples are chosen by {found.method} in {found.seconds:.3g} s")
    return some.take(np.asarray(found.indices).tolist())
