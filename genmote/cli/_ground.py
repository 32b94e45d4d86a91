"""What `compress` does where the model is a generator of signals: recordings are what its steps learn from."""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote import home
from genmote.cli._model import find
from genmote.cli._output import note
from genmote.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genmote.compress import Recipe
    from genmote.signals.said import Said


@dataclass(frozen=True, eq=False)
class Ground:
    """`path`: stretches of recordings to learn from, a file in the work folder; `others`: stretches to judge by."""

    path: Path
    others: Any

    @classmethod
    def of(cls, model: str, recordings: Sequence[Path], said: Said, recipe: Recipe, work: Path) -> Ground:
        import numpy as np

        from genmote.cli.signal._series import merged
        from genmote.compress.run import without_text
        from genmote.generator import calibrate
        from genmote.generator.model import Generator

        without_text(recipe)
        settings = recipe.calibration
        generator, told = Generator.load(find(model)), list[str]()
        signals = calibrate.read(generator, recordings, told, said)
        learnt, others = calibrate.stretches(generator, signals, settings.windows, settings.length)
        for line in merged(told):
            note(line)
        held = io.BytesIO()
        np.save(held, learnt)
        # Named as what steps leave there, with which it goes.
        path = work / f"00-signals-{hashlib.sha256(held.getvalue()).hexdigest()[:16]}"
        try:
            work.mkdir(parents=True, exist_ok=True)
            with home.atomic_write(path) as out:
                out.write(held.getvalue())
        finally:
            with contextlib.suppress(OSError):
                work.rmdir()  # where nothing was written
        return cls(path, others)

    def forget(self) -> None:
        """Nothing stays of a run that was refused before a step was begun."""
        if self.path.exists() and list(self.path.parent.iterdir()) == [self.path]:
            self.path.unlink()
            self.path.parent.rmdir()

    def judged(self, before: Path, after: Path) -> dict[str, Any]:
        """What both models lose on the other stretches, in nats a token."""
        from genmote.generator import calibrate
        from genmote.generator.model import Generator

        if not len(self.others):
            note("too few recordings to judge by others than were learnt from: measure with genmote eval signal")
            return {}
        first, second = (calibrate.nats(Generator.load(path), self.others) for path in (before, after))
        return {"nats_before": round(first, 4), "nats": round(second, 4), "judged_windows": len(self.others)}


def text(values: dict[str, Any]) -> str:
    """A line of what was judged, where anything was."""
    if "nats" not in values:
        return ""
    return (
        f"\n{values['nats']:.4f} nats a token on {values['judged_windows']} other stretches of the recordings, "
        f"{values['nats_before']:.4f} before"
    )


def refuse(model: str, recipe: Recipe, text: Sequence[str]) -> None:
    """UserError, before the work, for a generator of signals that a step would have write text; `text`: flags that
    were given and are about text, too."""
    from genmote.compress.run import without_text
    from genmote.generator.file import OWN
    from genmote.models.gguf import ModelFile

    path = find(model)
    if OWN + "version" not in ModelFile.open(path).metadata:
        return
    if text:
        raise UserError(
            f"{path.name} is a generator of signals, which reads no text, as {', '.join(text)} would have it: leave "
            "that out, name recordings to learn from with --signals, and measure with genmote eval signal"
        )
    without_text(recipe)
    if any(step.calibrates for step in recipe.steps) and recipe.calibration.tokens is None:
        raise UserError(f"{path.name} is a generator of signals: name recordings to learn from with --signals")
