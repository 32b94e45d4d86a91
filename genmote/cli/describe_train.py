"""Train a model that describes signals, for describe, ask and classify.

    genmote describe-train examples.npz -o home.toml
    genmote describe-train ecg.npz motion.npz -o small.toml --language smollm2-135m --minutes 50
    genmote describe-train more.npz -o better.toml --from home.toml --encoder-steps 0

Examples are signals with questions and answers. Some groups of them (patients, subjects, recordings) are held out to
judge by. A run that was killed goes on where it was when it is started again. Written are NAME.toml, NAME-encoder.gguf,
NAME-adapter.gguf and a card, NAME.md. Needs the extra `workbench`; to run the model needs none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from genmote.cli._output import Bar, Output, check_place, note, save, size
from genmote.describe.settings import Training
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    files: tuple[Path, ...] = setting("files of examples (.npz); none: drawn ones alone", positional=True, default=())
    output: Path = setting("the model to write (.toml)", short="-o")

    def faults(self) -> Iterable[str]:
        yield from Training.faults(self)
        if self.output.suffix.lower() != ".toml":
            yield f"output={self.output}: wanted a name that ends in .toml"


def run(settings: Settings, out: Output) -> None:
    from genmote.describe import card, examples
    from genmote.describe.train import train

    check_place(settings.output, "--output")
    notes: list[str] = []
    chosen = Training(**{field.name: getattr(settings, field.name) for field in fields(Training)})
    given = [example for path in settings.files for example in examples.read(path)]
    with Bar(unit_bytes=False) as bar:
        made = train(given, settings.output, chosen, notes=notes, progress=bar)
    for line in notes:
        note(line)
    page = settings.output.with_suffix(".md")
    save(page, card.page(made), "--output")
    whole = made["encoder_bytes"] + made["adapter_bytes"]
    text = f"{settings.output}, with encoder and adapter {size(whole)}\n{card.text(made)}"
    out.result({"path": settings.output, "card": page, "size_bytes": whole, **made, "notes": notes}, text)
