"""Judge what a model of signals generates: useful, hard to tell apart, alike, and giving nothing away.

    genmote eval signal generate --train a.csv b.csv --test c.csv --label activity
    genmote eval signal generate --train walks/ --test more/ --model walks.gguf --svg generated.svg --json

Recordings are cut into windows of --steps rows, and the model makes as many as there are of --train, of the same
labels. trained on: how often a classifier (random convolutions and ridge regression) that has learnt from real, or from
generated windows tells the label of a window of --test. told apart: |accuracy - 0.5| of a classifier of real and
generated windows, 0 where it cannot tell; by a recurrent network (as TimeGAN has it) and by random convolutions.
context-FID, autocorrelation: how far apart both are. Leakage: whether generated windows lie nearer to --train than to
--test, and how often an attacker tells a window of --train from one of --test (50%: he guesses). The column "real
against real" is what real windows of --test get in place of generated ones. The two scores with networks need PyTorch
and take minutes; --no-networks leaves them out. Of rows that stand for themselves, windows are of --steps 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from genmote.cli._output import Bar, Output
from genmote.cli.eval.signal._shared import Trained, both, check, figure, most, tell
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Trained):
    steps: int | None = setting("rows of a window (default: 128, or the shortest recording's)", default=None)
    windows: int = setting("windows of each side at most", default=1000)
    networks: bool = setting("also the two scores for which a network is trained", default=True)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        yield from most({"windows": self.windows, "steps": 1 if self.steps is None else self.steps})


def run(settings: Settings, out: Output) -> None:
    from genmote.generator.evaluate import generate

    check(settings)
    notes: list[str] = []
    with Bar(unit_bytes=False, late=True) as bar:
        train, test, make = both(settings, notes, bar)
        result = generate.evaluate(
            train,
            test,
            make,
            steps=settings.steps,
            most=settings.windows,
            networks=settings.networks,
            seed=settings.seed,
            notes=notes,
            progress=bar,
        )
    tell(settings, "generate", result, notes, out, table(result.values))


def table(values: dict[str, Any]) -> list[list[str]]:
    rows = [["", "generated", "real against real"]]
    if useful := values.get("trained_on"):
        for name in ("accuracy", "balanced"):
            rows.append([f"trained on, {name}", *(figure(useful[side][name]) for side in ("synthetic", "real"))])
    for name, title in (
        ("discriminative", "told apart, recurrent network"),
        ("discriminative_rocket", "told apart, random convolutions"),
        ("context_fid", "context-FID"),
        ("autocorrelation", "autocorrelation, distance"),
    ):
        if (found := values[name]) is not None:
            rows.append([f"{title}, against --train", figure(found["train"]), figure(found["real"])])
            rows.append([f"{title}, against --test", figure(found["test"]), ""])
    leaks = values["leakage"]
    rows.append(["nearest of --train", figure(leaks["synthetic_to_train"]), figure(leaks["held_out_to_train"])])
    rows.append(["nearest of --test", figure(leaks["synthetic_to_held_out"]), ""])
    rows.append(["nearer to --train", figure(leaks["closer_to_train"]), ""])
    by_chance = figure(leaks["membership_nearest_by_chance"])
    rows.append(["membership, by nearest generated", figure(leaks["membership_nearest"]), by_chance])
    rows.append(["membership, by likelihood", figure(leaks["membership_likelihood"]), ""])
    return rows
