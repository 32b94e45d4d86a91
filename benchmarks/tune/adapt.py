"""A model that adapts itself: how late it sees a change, how much of what retraining does it does, whether it ever ends
worse, and whether it adapts where nothing changes.

Streams: `benchmarks/tune/regimes.py`. The settings were chosen on others (`TRIED`), the delay that is stated with them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import Bench, missing
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, AT_MOST, Row
from benchmarks.tune.regimes import Regime, hearts, learnt, logs, together
from genmote.errors import GenmoteError
from genmote.models.write_lora import write_lora
from genmote.tune.adapt import One
from genmote.tune.follow import Followed, follow_with
from genmote.tune.trainer import Trainer
from genmote.tune.watch import Watch

TRIED = (("ECG of 100", "03700181"), ("log of Apache", "HDFS"))  # changes on which the settings were chosen
CHANGES = {
    ("hearts", "100"): ("a103l", "v102s"),
    ("logs", "OpenSSH"): ("Linux", "Windows"),
    ("logs", "Zookeeper"): ("OpenSSH",),
}
BEFORE, AFTER, LATER = 120, 200, 60  # examples of a stream before and after its change, and those to judge by
UNCHANGED, STREAMS = 250, 10  # examples of a stream without a change; streams
STATED = 24  # examples after the change, within which it is seen
RETRAINING = 240  # steps, of which the best by the judge's own examples counts
MEASURE = "tune_adapt"


def measure(bench: Bench) -> Iterator[Row]:
    """A row of recovery for each change; the delay, the worst end, and streams without a change."""
    changes, quiet = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, ((kind, first), others) in enumerate(CHANGES.items()):
        try:
            regime = {"hearts": hearts, "logs": logs}[kind](bench, first)
            quiet += unchanged(bench, regime, (4, 3, 3)[number])
            for other in others[: bench.pick(len(others), 1)]:
                changes.append(changed(bench, regime, other))
                yield recovery(changes[-1])
        except (ContestantError, GenmoteError) as why:
            yield missing(f"adapt: {kind} of {first}", MEASURE, why)
    if not changes or not quiet:
        return
    delays = [float(each["delay"]) if each["delay"] is not None else float(AFTER) for each in changes]
    yield Row(
        name=f"adapt: a change is seen after, the latest of {len(changes)}",
        measure=MEASURE,
        value=max(delays),
        value_unit="examples",
        asked=STATED,
        sense=AT_MOST,
        unit="examples",
        ours=float(np.median(delays)),
        ours_samples=delays,
        threads=1,
        details={each["name"]: each["delay"] for each in changes},
    )
    ends = [each[f"{side}_after"] - each[f"{side}_before"] for each in changes for side in ("old", "new")]
    ends += [each["after"] - each["before"] for each in quiet]
    yield Row(
        name=f"adapt: loss at the end over that before, either side, the worst of {len(changes) + len(quiet)} streams",
        measure=MEASURE,
        value=max(ends),
        value_unit="nats a token",
        asked=Watch().guard_loss,
        sense=AT_MOST,
        unit="nats a token",
        ours=float(np.median(ends)),
        ours_samples=ends,
        threads=1,
    )
    for what, asked in (("accepted", 0.0), ("drift", None)):
        yield Row(
            name=f"adapt: {'adapters taken' if asked == 0 else 'alarms'} in {len(quiet)} streams without a change",
            measure=MEASURE,
            value=float(sum(each[what] for each in quiet)),
            value_unit="",
            asked=asked,
            sense=AT_MOST,
            threads=1,
            details={"streams": quiet},
        )


def unchanged(bench: Bench, regime: Regime, count: int) -> list[dict[str, Any]]:
    """Streams of one side: in an order drawn by chance, in which nothing changes whatever they hold; of hearts two as
    they were recorded."""
    found = []
    for seed in range(bench.pick(count, 1)):
        some, order = regime.later[LATER:], "drawn"
        if regime.numbers is None and seed < 2:
            some, order = some[seed * UNCHANGED :][:UNCHANGED], "as recorded"
        else:
            some = [some[n] for n in np.random.default_rng(seed).permutation(len(some))[:UNCHANGED]]
        name = f"{regime.name}, order {order}, {seed}"
        bench.say(f"no change: {name}")
        told, judged = followed(regime, some, {"": regime.later[:LATER]})
        counts = {what: told.count(what) for what in ("drift", "eased", "accepted", "refused")}
        found.append({"name": name, "examples": len(some), **counts, **judged})
    return found


def changed(bench: Bench, regime: Regime, other: str) -> dict[str, Any]:
    """One stream with a change, and retraining beside it."""
    name = f"{regime.name} to {other}"
    bench.say(f"a change: {name}")
    rest = regime.other(other)
    after = min(AFTER, len(rest) - LATER)
    new, new_later = rest[:after], rest[after:][:LATER]
    old, old_later = regime.later[:BEFORE], regime.later[BEFORE:][:LATER]
    told, judged = followed(regime, [*old, *new], {"old_": old_later, "new_": new_later})
    seen = [event.example - BEFORE for event in told.events if event.what == "drift" and event.example > BEFORE]
    best = float(judged["new_before"])

    def look(step: int, trainer: Trainer) -> None:
        nonlocal best
        if step % (RETRAINING // 4) == 0:
            best = min(best, trainer.judge(together(new_later)))

    bench.say(f"retraining: {name}")
    learnt(regime.decoder, regime.tuning, regime.numbers, new, RETRAINING, look)
    events = [{"what": e.what, "example": e.example, **e.values} for e in told.events]
    values = {key: str(v) if isinstance(v, Path) else v for key, v in told.values().items()}
    return {
        "name": name,
        "model": regime.model,
        "delay": seen[0] if seen else None,
        "new_retrained": best,
        **judged,
        "events": events,
        "losses": [round(loss, 4) for loss in told.losses],
        **values,
    }


def followed(regime: Regime, stream: list[One], judged: dict[str, list[One]]) -> tuple[Followed, dict[str, float]]:
    """A stream followed with all defaults but the training's, and the loss on other examples before and after."""
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as room:
        adapter = None
        if regime.numbers is not None:
            adapter = Path(room) / "first.gguf"
            alpha = regime.tuning.factor * regime.tuning.rank
            write_lora(adapter, regime.decoder.config.architecture, regime.numbers, alpha)
        trainer = Trainer(regime.decoder, regime.tuning, numbers=regime.numbers)
        losses |= {f"{side}before": trainer.judge(together(some)) for side, some in judged.items()}
        told = follow_with(
            regime.decoder,
            regime.identity,
            stream,
            lambda one: one,
            Path(room) / "state",
            regime.tuning,
            adapter=adapter,
        )
        if told.adapter is not None:
            trainer = Trainer(regime.decoder, replace(regime.tuning, base=told.adapter))
        losses |= {f"{side}after": trainer.judge(together(some)) for side, some in judged.items()}
    return told, losses


def recovery(found: dict[str, Any]) -> Row:
    """How much of what retraining recovers an adapted model does."""
    before, after, best = (found[f"new_{when}"] for when in ("before", "after", "retrained"))
    return Row(
        name=f"adapt: recovered of what retraining does, {found['name']}",
        measure=MEASURE,
        value=100 * (before - after) / (before - best),
        value_unit="%",
        asked=80,
        sense=AT_LEAST,
        unit="nats a token",
        ours=after,
        peer=best,
        peer_name=f"retraining, {RETRAINING} steps on all of it",
        threads=1,
        model=found["model"],
        details=found,
        note=f"{before:.3f} nats a token before",
    )
