"""Judge how a model that has seen what is normal tells what is not, beside the distance in standard deviations.

    genmote eval signal detect --train monday.csv --test tuesday.csv --label attack --normal 0
    genmote eval signal detect --train hearts/ --test more/ --label marks --normal N --json

The model learns from what is normal in --train; a tenth of that is kept back, and the threshold is the --quantile of
its scores. What is judged in --test is a row, or the rows about each mark of one sample (a beat), or a recording, by
what has the labels. AUROC and AUPRC need no threshold; precision, recall and F1 are those at it.
"""

from __future__ import annotations

from collections.abc import Iterable

from genmote.cli._output import Bar, Output
from genmote.cli.eval.signal._shared import Trained, both, check, figure, most, tell
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Trained):
    normal: tuple[str, ...] = setting(
        "labels of what is normal (default: normal, benign, ok, n or 0, else the commonest)", default=(), many=True
    )
    ignore: tuple[str, ...] = setting("labels of what is not judged", default=(), many=True)
    quantile: float = setting("part of what is normal that stays below the threshold", default=0.99)
    smooth: int = setting("rows over which scores are averaged, with those before", default=1)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        yield from most({"smooth": self.smooth})
        if not 0 < self.quantile < 1:
            yield f"quantile={self.quantile}: use one between 0 and 1, such as 0.99"


def run(settings: Settings, out: Output) -> None:
    from genmote.generator.evaluate import detect

    check(settings)
    notes: list[str] = []
    with Bar(unit_bytes=False, late=True) as bar:
        train, test, make = both(settings, notes, bar)
        result = detect.evaluate(
            train,
            test,
            make,
            normal=settings.normal,
            ignored=settings.ignore,
            quantile=settings.quantile,
            smooth=settings.smooth,
            notes=notes,
            progress=bar,
        )
    values = result.values
    table = [
        [f"{values['unusual']} of {values['items']} {values['judged']}s", "AUROC", "AUPRC", "precision", "recall", "F1"]
    ]
    for name, found in values["sides"].items():
        table.append([name, *(figure(found[key]) for key in ("auroc", "auprc", "precision", "recall", "f1"))])
    tell(settings, "detect", result, notes, out, table)
