"""Let a generator's model practise compressing, on recordings like those that it will compress.

    genmote signal practise recordings/ --model ecg.gguf -o ecg-practised.gguf

The model file, for genmote signal compress, is written again with what the coder learnt on the first two thousand rows
of at most 64 recordings: how channels go together, also those that the generator does not know, how large errors are,
and what tends to follow what. It needs whole numbers (ADC samples). What was compressed with the one file is not read
with the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from genmote.cli._output import Bar, Output, check_place, note, size
from genmote.cli.signal import _series
from genmote.signals.said import Said
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Said):
    files: tuple[Path, ...] = setting("recordings, or folders of them", positional=True)
    model: Path = setting("a generator of such recordings (genmote signal train)")
    output: Path = setting("the model file to write (.gguf)", short="-o")
    modality: str | None = setting("what the recordings are of (genmote signal modalities)", default=None)
    reader: str | None = setting("the reader of the files (default: found by name and first bytes)", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.output.suffix.lower() != ".gguf":
            yield f"output={self.output}: wanted a name that ends in .gguf"


def run(settings: Settings, out: Output) -> None:
    from genmote.generator import material, practise
    from genmote.models.gguf_write import check_target

    check_place(settings.output, "--output")
    if settings.model.is_file():
        check_target(settings.output, settings.model)
    notes: list[str] = []
    with Bar(unit_bytes=False) as bar:
        signals = material.read(
            settings.files, reader=settings.reader, said=settings, modality=settings.modality, notes=notes, progress=bar
        )
        learnt = practise.run(settings.model, signals, settings.output, progress=bar)
    notes = _series.merged(notes)
    for line in notes:
        note(line)
    nbytes = settings.output.stat().st_size
    out.result(
        {"path": settings.output, "size_bytes": nbytes, "channels": list(learnt.channels), "notes": notes},
        f"{settings.output} ({size(nbytes)}, practised on {', '.join(learnt.channels)})",
    )
