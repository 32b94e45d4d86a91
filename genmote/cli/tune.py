"""Adapt a model to examples of your own, on the device: learn an adapter.

    genmote tune smollm2-135m mine.jsonl -o mine.gguf
    genmote tune smollm2-135m mine.jsonl -o mine.gguf --memory 250MB --steps 400 --plot mine.svg
    genmote tune smollm2-135m more.jsonl -o better.gguf --from mine.gguf
    genmote tune smollm2-135m mine.jsonl -o whole.gguf --method workbench --memory 2GB

The adapter is given to generate, chat and serve with --adapter mine.gguf, or worked into the model by merge.

Each line of a .jsonl file is an example: {"prompt": …, "completion": …}, {"messages": [...]} in the model's own chat
format, of which the assistant's turns are learnt, or {"text": …}. Any other file is one text. The model's weights stay
as they are, quantised; what is learnt is an adapter (LoRA), and with --on norms also norms. Needs no PyTorch.

With PyTorch, --method learns the weights themselves too (full, galore, lisa, badam, adalomo, lomo, dora: the output is
a whole model then), or chooses by the memory (workbench).

A tenth of the examples is held out to judge by, and the adapter of the best judgement is kept. A run that was killed
goes on where it was when the same command is given again; the file at --output stays as it is until the run is over,
and where what was learnt is no better than the base.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from genmote.cli._model import find
from genmote.cli._output import Bar, Output, check_place, going_on, note, save, size
from genmote.errors import UserError
from genmote.spec import dataclass, setting
from genmote.tune.settings import Tuning

GOES_ON = "what was kept last stays: the same command goes on from there"


@dataclass(frozen=True, kw_only=True)
class Settings(Tuning):
    model: str = setting("a model's name (fetched if it is not here) or path", positional=True)
    data: Path = setting("examples (.jsonl), or a text", positional=True)
    output: Path = setting("the adapter, or model, file to write (.gguf)", short="-o")
    memory: str | None = setting(
        "keep to so much memory in all, such as 250MB: what takes memory is chosen by what fits", default=None
    )
    ops: str | None = setting("op set: native or numpy (default: the fastest here)", default=None)
    isa: str | None = setting("instruction set of the native kernels (default: the best here)", default=None)
    threads: int | None = setting("threads (default: one a physical core)", default=None)
    plot: Path | None = setting("a picture (.svg) of the loss and of the memory over time", default=None)
    record: Path | None = setting("add the figures to this file, a record on a line", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.output.suffix.lower() != ".gguf":
            yield f"output={self.output}: wanted a name that ends in .gguf"


def run(settings: Settings, out: Output) -> None:
    from genmote import records
    from genmote.generator.file import OWN
    from genmote.models.gguf import ModelFile
    from genmote.tune import picture
    from genmote.tune.run import tune

    for path, option in ((settings.output, "--output"), (settings.plot, "--plot"), (settings.record, "--record")):
        if path is not None:
            check_place(path, option)
    model = find(settings.model)
    if OWN + "version" in ModelFile.open(model).metadata:
        raise UserError(
            f"{model.name} is a generator of signals, which reads no text: let it learn from recordings with genmote "
            f"adapt {settings.model} FILES --state FOLDER, or genmote signal train FILES -o NEW.gguf --from "
            f"{settings.model}"
        )
    tuning = Tuning(**{field.name: getattr(settings, field.name) for field in fields(Tuning)})
    with going_on(GOES_ON), Bar(unit_bytes=False) as bar:

        def tell(line: str) -> None:
            bar.make_way()
            note(line)

        made = tune(
            model,
            settings.data,
            settings.output,
            tuning,
            memory=settings.memory,
            ops=settings.ops,
            isa=settings.isa,
            threads=settings.threads,
            progress=bar,
            tell=tell,
        )
    values: dict[str, Any] = {"path": made.path, **made.values()}
    if settings.plot is not None:
        save(settings.plot, picture.svg(made), "--plot")
        values["plot"] = settings.plot
    if settings.record is not None:
        records.append(settings.record, made.record())
        values["record"] = settings.record
    out.result({**values, "judged": made.progress.judged, "notes": made.notes, "card": made.card}, text(made))


def text(made: Any) -> str:
    """The result for people."""
    values = made.values()
    told = [f"{made.path} ({size(values['output_bytes'])}), step {values['best_step']} of {values['steps']}"]
    if made.before is not None and made.after is not None:
        told.append(f"held out: {made.before:.4f} nats a token before, {made.after:.4f} after")
    if made.written is not None:
        told.append(f"the file, rounded: {made.written:.4f} nats a token")
    speed = f"{values['tokens_per_s']:.4g} tokens/s" if values["tokens_per_s"] else "speed unknown"
    peak = made.reading.peak_rss_bytes
    memory = "memory unknown" if peak is None else f"{size(peak)} of memory at most"
    told.append(f"{values['seconds']:.4g} s of training, {speed}, {memory}, {made.reading.energy}")
    return "\n".join(told)
