"""Judge how small genmote signal compress makes recordings, beside xz and bzip2 on the same whole numbers.

    genmote eval signal compress --test recording.wav other.wav
    genmote eval signal compress --test room.csv --drop HumidityRatio --max-error 0.005 --json
    genmote eval signal compress --test other.wav --model voice.gguf

Each recording is compressed, given back and compared. The ratio is that of the whole numbers, in as few bytes each as
all need, to what is left of them. Energy is measured where the machine tells it. Without --model the coder learns as it
goes, and carries nothing; a model has paid for itself after so many MB as it says. --train is taken, and not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from genmote.cli._output import Bar, Output, size
from genmote.cli.eval.signal._shared import Files, check, figure, recordings, tell
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Files):
    train: tuple[Path, ...] = setting("not used: taken so that all five verbs take the same", default=(), many=True)
    model: Path | None = setting("a model of such recordings that helps (genmote signal train, practise)", default=None)
    max_error: float = setting("the most that a sample may be off, in its unit (0: exact)", default=0.0)
    threads: int = setting("blocks that are coded at once", default=1)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if not 0 <= self.max_error < float("inf"):
            yield f"max_error={self.max_error}: use 0 (exact) or more, such as 0.01"
        if self.threads < 1:
            yield f"threads={self.threads}: use 1 or more"


def run(settings: Settings, out: Output) -> None:
    from genmote.generator.evaluate import compress

    check(settings)
    notes: list[str] = []
    with Bar(unit_bytes=False, late=True) as bar:
        test = recordings(settings, settings.test, notes, bar)
        result = compress.evaluate(
            test,
            model=settings.model,
            max_error=settings.max_error,
            threads=settings.threads,
            notes=notes,
            progress=bar,
        )
    values = result.values
    table = [[f"{values['recordings']} recordings, {size(values['plain_bytes'])}", "bytes", "ratio"]]
    table += [[name, size(found["bytes"]), figure(found["ratio"])] for name, found in values["sides"].items()]
    table.append(["MB/s, there and back", figure(values["mb_per_s"]), figure(values["decode_mb_per_s"])])
    table.append([f"J/MB ({values['energy']})", figure(values["joules_per_mb"]), ""])
    if settings.model is not None:
        paid = values["model_paid_after_mb"]
        table.append(
            [f"{settings.model.name} has paid for itself after", "never" if paid is None else f"{paid:.3g} MB", ""]
        )
    tell(settings, "compress", result, notes, out, table)
