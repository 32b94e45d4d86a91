"""Re-lay a model's weights for the native kernels ahead of time, into the cache folder, beside its token table.

    genmote pack smollm2-135m

The first load of a model does the same by itself; afterwards a load only maps the file. One layout serves every
instruction set, so the file may be copied to another machine, into its cache or beside the model. A file that is here
is compared with the model, and made again where a bit has changed.
"""

from __future__ import annotations

import contextlib
import os
import time

from genmote.cli._model import find
from genmote.cli._output import Bar, Output, size
from genmote.errors import ModelFileError, UserError
from genmote.spec import dataclass, setting


@dataclass(frozen=True)
class Settings:
    model: str = setting("a model's name (fetched if it is not here) or path", positional=True)
    isa: str | None = setting("instruction set that does the re-laying (default: the best here)", default=None)


def run(settings: Settings, out: Output) -> None:
    from genmote import home, ops
    from genmote.models import packed
    from genmote.models.gguf import ModelFile
    from genmote.models.tokenizer import load_tokenizer

    kernels = ops.load("native", isa=settings.isa)
    model = ModelFile.open(find(settings.model))
    path = packed.path_of(model)
    if not home.usable(path.parent):
        raise UserError(f"{path.parent} cannot be written: set GENMOTE_HOME to a folder that can")
    here, started = path.exists(), time.perf_counter()
    with contextlib.suppress(ModelFileError):  # a model without one is packed all the same
        load_tokenizer(model)  # makes the table
    with Bar() as bar:
        found = packed.loader(model, kernels, progress=bar)
        damaged = isinstance(found, packed.Packed) and here and not packed.intact(found)
        if damaged and found is not None:
            found = packed.pack(model, kernels, found.path, progress=bar)
    if found is None or found.path is None:
        raise UserError(f"{path} was not written: see that {path.parent} has room and can be written")
    count = os.stat(found.path).st_size
    values = {
        "path": found.path,
        "model": model.path,
        "size_bytes": count,
        "of_original": round(count / model.nbytes, 4),
        "made": damaged or not here,
        "was_damaged": damaged,
        "seconds": round(time.perf_counter() - started, 3),
    }
    made = f"made in {values['seconds']:.1f} s"
    told = f"was damaged, {made}" if damaged else "was here and is whole" if here else made
    out.result(values, f"{found.path} ({size(count)}, {values['of_original']:.3f} of the model file, {told})")
