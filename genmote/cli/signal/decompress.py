"""Give back what `genmote signal compress` made small, as a table or as sound.

    genmote signal decompress recording.gmsc -o recording.wav
    genmote signal decompress drive.gmsc -o drive.csv

The ending of the output says how it is written: .csv (a column of times, and one for each channel) or .wav (whole
numbers of 8 to 32 bits). A file of several series becomes several files, numbered.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from genmote.cli._output import Bar, Output, check_place, note, size
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    file: Path = setting("a compressed signal", positional=True)
    output: Path = setting("the file to write, .csv or .wav", short="-o")
    model: Path | None = setting("the generator that it was compressed with, if any", default=None)
    threads: int | None = setting("threads for the generator (default: one a core)", default=None)
    cut: bool = setting("give what is whole of a file that ends in the middle", default=False)

    def faults(self) -> Iterable[str]:
        if self.output.suffix.lower() not in (".csv", ".wav"):
            yield f"output={self.output}: wanted a name that ends in .csv or .wav"
        if self.output == self.file:
            yield f"output={self.output} is the compressed signal itself: name another file"
        if self.threads is not None and self.threads < 1:
            yield f"threads={self.threads}: use 1 or more"


def run(settings: Settings, out: Output) -> None:
    from genmote.signals import container, writing

    check_place(settings.output, "--output")
    teller = None
    if settings.model is not None:
        from genmote.generator.compress import Teller

        teller = Teller.load(settings.model, threads=settings.threads)
    notes: list[str] = []
    pieces = container.read(settings.file, teller, notes=notes if settings.cut else None)
    with Bar(unit_bytes=False, late=True) as bar:
        made = writing.write(settings.output, pieces, progress=bar)
    for line in notes:
        note(line)
    lines = [f"{path} ({size(path.stat().st_size)}, {rows} samples)" for path, rows in made]
    values = {"paths": [path for path, _ in made], "samples": [rows for _, rows in made], "notes": notes}
    out.result(values, "\n".join(lines))
