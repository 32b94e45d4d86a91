"""Make recordings small: exact for whole numbers, or with a stated greatest error.

    genmote signal compress recording.wav -o recording.gmsc
    genmote signal compress drive.csv -o drive.gmsc --max-error 0.05

    genmote signal compress 100.hea -o 100.gmsc --model ecg.gguf

Every sample comes back as it was (genmote signal decompress). With --max-error no sample is off by more, in its own
unit. Blocks are coded in parallel, each with a checksum, and a piece of the file is in memory at a time. A generator
of such recordings (--model, see genmote signal train and practise) makes them smaller yet, and must then be there to
read them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from genmote.cli._output import Bar, Output, check_place, note, size
from genmote.signals.said import Said
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.signals.kinds import Signal


@dataclass(frozen=True, kw_only=True)
class Settings(Said):
    file: Path = setting("a file of signals", positional=True)
    output: Path = setting("the file to write, .gmsc", short="-o")
    max_error: float = setting("the most that a sample may be off, in its unit (0: exact)", default=0.0)
    model: Path | None = setting("a generator of such recordings, which reading will need, too", default=None)
    reader: str | None = setting("the reader of the file (default: found by its name and first bytes)", default=None)
    threads: int | None = setting("blocks that are coded at once (default: one a core)", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if not 0 <= self.max_error < float("inf"):
            yield f"max_error={self.max_error}: use 0 (exact) or more, such as 0.01"
        if self.threads is not None and self.threads < 1:
            yield f"threads={self.threads}: use 1 or more"
        if self.output == self.file:
            yield f"output={self.output} is the recording itself: name another file"
        elif self.output.suffix.lower() != ".gmsc":
            yield f"output={self.output}: wanted a name that ends in .gmsc"


def run(settings: Settings, out: Output) -> None:
    from genmote.signals import container, reading

    check_place(settings.output, "--output")
    notes: list[str] = []
    teller = None
    if settings.model is not None:
        from genmote.generator.compress import Teller

        teller = Teller.load(settings.model, threads=settings.threads)
    before = settings.file.stat().st_size if settings.file.is_file() else 0
    started = time.perf_counter()
    with Bar(unit_bytes=False, late=True) as bar:

        def told() -> Iterator[Signal]:
            done = 0
            for piece in reading.pieces(settings.file, reader=settings.reader, said=settings, notes=notes):
                yield piece
                done += len(piece)
                bar("compressing", done, 0)

        made = container.write(
            settings.output,
            told(),
            max_error=settings.max_error,
            threads=settings.threads,
            source=settings.file.name,
            teller=teller,
            notes=notes,
        )
    seconds = time.perf_counter() - started
    for line in notes:
        note(line)
    bits = 8 * made.bytes / max(1, made.samples)
    # A header that names its samples' files is smaller than they are.
    share = f"{made.bytes / before:.3f} of the file, " if made.bytes < before else ""
    out.result(
        {
            "path": settings.output,
            "size_bytes": made.bytes,
            "source_bytes": before,
            "series": made.series,
            "samples": made.samples,
            "bits_per_sample": round(bits, 4),
            "max_error": settings.max_error,
            "model": settings.model,
            "seconds": round(seconds, 3),
            "samples_per_s": round(made.samples / max(seconds, 1e-9)),
            "notes": notes,
        },
        f"{settings.output} ({size(made.bytes)}, {share}{bits:.2f} bits a sample, "
        f"{made.samples / max(seconds, 1e-9) / 1e3:.0f} thousand samples/s)",
    )
