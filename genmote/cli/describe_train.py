"""Train a model that describes signals, for describe, ask and classify.

    genmote describe-train ptb-xl:ptbxl -o ecg.toml --folds 9 10 --licence "CC BY 4.0" --minutes 50
    genmote describe-train my-recordings -o home.toml
    genmote describe-train more.npz -o better.toml --from home.toml --encoder-steps 0

Learnt from are folders of labelled recordings, as FOLDER:LAYOUT (FOLDER alone: a labels.csv and files), and files of
examples (.npz). Of a folder --folds, or else a fifth of the groups (patients, subjects, recordings), is left to
genmote eval describe, which leaves the same; of the others some are held out to choose the best numbers by. A run that
was killed goes on where it was when it is started again. Written are NAME.toml, NAME-encoder.gguf, NAME-adapter.gguf
and a card, NAME.md. Needs the extra `workbench`; to run the model needs none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from genmote.cli._output import Bar, Output, check_place, note, save, size
from genmote.describe.settings import Training
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.describe.examples import Example


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    files: tuple[str, ...] = setting(
        "folders of labelled recordings, FOLDER:LAYOUT, and files of examples (.npz); none: drawn examples alone",
        positional=True,
        default=(),
    )
    folds: tuple[int, ...] = setting(
        "folds of the folders that are not learnt from (default: a fifth of the groups)", default=(), many=True
    )
    each: int = setting("kinds of computed facts that are asked of each recording", default=4)
    output: Path = setting("the model to write (.toml)", short="-o")

    def faults(self) -> Iterable[str]:
        yield from Training.faults(self)
        if self.each < 0:
            yield f"each={self.each}: use 0 or more"
        if self.output.suffix.lower() != ".toml":
            yield f"output={self.output}: wanted a name that ends in .toml"


def run(settings: Settings, out: Output) -> None:
    from genmote.describe import card
    from genmote.describe.train import train

    check_place(settings.output, "--output")
    notes: list[str] = []
    chosen = Training(**{field.name: getattr(settings, field.name) for field in fields(Training)})
    with Bar(unit_bytes=False) as bar:
        given = [example for name in settings.files for example in _examples(name, settings, notes, bar)]
        made = train(given, settings.output, chosen, notes=notes, progress=bar)
    for line in notes:
        note(line)
    page = settings.output.with_suffix(".md")
    save(page, card.page(made), "--output")
    whole = made["encoder_bytes"] + made["adapter_bytes"]
    text = f"{settings.output}, with encoder and adapter {size(whole)}\n{card.text(made)}"
    out.result({"path": settings.output, "card": page, "size_bytes": whole, **made, "notes": notes}, text)


def _examples(name: str, settings: Settings, notes: list[str], bar: Bar) -> list[Example]:
    """What is to be learnt from of a file, or of a folder."""
    from genmote.describe import evaluation, examples, labelled

    folder, colon, layout = name.rpartition(":")
    if not colon or layout not in labelled.layouts() or Path(name).exists():
        folder, layout = name, "csv"
    if not Path(folder).is_dir():
        return examples.read(Path(folder))
    found = labelled.load(Path(folder), layout, notes=notes, progress=bar)
    own = settings.folds if any(one.fold for one in found) else ()  # a folder without folds is split by its groups
    learnt, left = evaluation.parts(found, own)
    notes.append(f"{folder}: {len(left)} of {len(found)} recordings are left to genmote eval describe")
    return labelled.examples(learnt, seed=settings.seed, each=settings.each)
