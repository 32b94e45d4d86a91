"""Train a small generator on recordings: one model for generate, forecast, impute and detect.

    genmote signal train my_sensor.csv -o sensor.gguf
    genmote signal train recordings/ -o ecg.gguf --channels II --modality ecg --minutes 20
    genmote signal train more.csv -o better.gguf --from sensor.gguf

Some recordings, or the end of each where there are few, are held out to judge by; training stops when it gets no
better on them. A run that was killed goes on where it was when it is started again. A model that is to help compressing
(genmote signal compress --model) is to practise after that (genmote signal practise). Needs the extra `workbench`; to
run the model needs none.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genmote.cli._output import Bar, Output, check_place, note, save, size
from genmote.cli.signal import _series
from genmote.generator.train import Training
from genmote.signals.said import Said
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Training, Said):
    files: tuple[Path, ...] = setting("recordings, or folders of them", positional=True)
    output: Path = setting("the model file to write (.gguf)", short="-o")
    labels: tuple[str, ...] = setting(
        "what the model is told of, and can be asked for: labels of the recordings, or channels, which are taken out",
        default=(),
        many=True,
        flag="--label",
    )
    channels: tuple[str, ...] = setting("only these channels, or fields of a table", default=(), many=True)
    missing: tuple[float, ...] = setting("numbers that stand for a missing sample, such as -200", default=(), many=True)
    modality: str | None = setting("what the recordings are of (genmote signal modalities)", default=None)
    reader: str | None = setting("the reader of the files (default: found by name and first bytes)", default=None)

    def faults(self) -> Iterable[str]:
        yield from Training.faults(self)
        yield from Said.faults(self)
        if self.output.suffix.lower() != ".gguf":
            yield f"output={self.output}: wanted a name that ends in .gguf"


def run(settings: Settings, out: Output) -> None:
    import shlex
    from dataclasses import fields

    from genmote.generator import card, material, practise
    from genmote.generator.train import train, working

    check_place(settings.output, "--output")
    with working(settings.output):  # told before recordings are read
        pass
    notes: list[str] = []
    with Bar(unit_bytes=False) as bar:
        signals = material.read(
            settings.files,
            reader=settings.reader,
            said=settings,
            labels=settings.labels,
            channels=settings.channels,
            modality=settings.modality,
            missing=settings.missing,
            notes=notes,
            progress=bar,
        )
        chosen = {field.name: getattr(settings, field.name) for field in fields(Training)}
        made = train(signals, settings.output, Training(**chosen), missing=settings.missing, notes=notes, progress=bar)
    notes = _series.merged(notes)
    for line in notes:
        note(line)
    page = settings.output.with_suffix(".md")
    save(page, card.page(made), "--output")
    values: dict[str, Any] = {"path": settings.output, "size_bytes": settings.output.stat().st_size, "card": page}
    text = f"{settings.output} ({size(values['size_bytes'])})\n{card.text(made)}"
    if made["codec"] == "bins" and made["settings"]["scale"] == "none" and any(practise.stretches(signals)):
        values["practise"] = shlex.join(_practise(settings))
        text += f"\nto compress with it (genmote signal compress --model), let it practise first: {values['practise']}"
    out.result({**values, **made, "notes": notes}, text)


def _practise(settings: Settings) -> list[str]:
    """The command that lets the model practise on what it was trained on."""
    words = ["genmote", "signal", "practise", *map(str, settings.files), "--model", str(settings.output), "-o"]
    words.append(str(settings.output.with_stem(f"{settings.output.stem}-practised")))
    for option in ("group", "names", "sample_rate", "modality", "reader"):
        if value := getattr(settings, option):
            given = value if isinstance(value, tuple) else (value,)
            words += [f"--{option.replace('_', '-')}", *map(str, given)]
    return words
