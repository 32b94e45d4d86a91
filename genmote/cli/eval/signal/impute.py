"""Judge how a model of signals fills gaps, beside a straight line and the last value.

    genmote eval signal impute --train monday.csv --test tuesday.csv --gaps 4 16
    genmote eval signal impute --train days/ --test more/ --model days.gguf --svg gaps.svg --json

Each stretch of --context rows of --test loses a gap of each length in its middle half, in all channels. The error is
the mean absolute one, over each channel's spread in --train; --json also tells it by channel, in its unit.
"""

from __future__ import annotations

from collections.abc import Iterable

from genmote.cli._output import Bar, Output
from genmote.cli.eval.signal._shared import Trained, both, check, figure, most, tell
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Trained):
    gaps: tuple[int, ...] = setting("rows of a gap", default=(8, 32), many=True)
    context: int = setting("rows of a stretch", default=128)
    windows: int = setting("stretches at most, evenly spread", default=100)
    paths: int = setting("ways that the model draws, whose median counts", default=16)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        yield from most({"gaps": min(self.gaps, default=0), "windows": self.windows, "paths": self.paths})
        if max(self.gaps, default=1) > self.context // 2:
            yield f"gaps={max(self.gaps)}: use at most half of context={self.context}"


def run(settings: Settings, out: Output) -> None:
    from genmote.generator.evaluate import impute

    check(settings)
    notes: list[str] = []
    with Bar(unit_bytes=False, late=True) as bar:
        train, test, make = both(settings, notes, bar)
        result = impute.evaluate(
            train,
            test,
            make,
            lengths=settings.gaps,
            context=settings.context,
            most=settings.windows,
            paths=settings.paths,
            seed=settings.seed,
            progress=bar,
        )
    by_length = result.values["by_length"]
    names = list(next(iter(by_length.values())))
    table = [["gap", *names]]
    table += [[length, *(figure(found[name]["mae_scaled"]) for name in names)] for length, found in by_length.items()]
    tell(settings, "impute", result, notes, out, table)
