"""What a run keeps on the disk to go on after a kill with the same bits: the numbers, the averages, how far it is.

It is a file of NumPy arrays (`.npz`) and lies beside the adapter in `NAME.gguf.work/`; docs/formats.md has its members.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import TrainingError
from genmote.home import atomic_write
from genmote.ops.exact import Float32

VERSION = 1


@dataclass
class Progress:
    """How far a run is, and what it has seen."""

    step: int = 0  # steps that are done
    tokens: int = 0  # rows that have gone through the model
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # of each step
    memory: list[int] = field(default_factory=list)  # resident bytes after each step
    judged: list[tuple[int, float]] = field(default_factory=list)  # (steps done, held-out loss); the first is the base

    @property
    def best(self) -> tuple[int, float] | None:
        """The best judgement after the beginning."""
        return min(self.judged[1:], key=lambda each: each[1], default=None)


def save(
    path: Path, run: str, progress: Progress, numbers: dict[str, Float32], states: dict[str, dict[str, NDArray[Any]]]
) -> None:
    """Write all of it, whole or not at all. `run` names what the run is of. TrainingError where that fails."""
    about = json.dumps({"version": VERSION, "run": run, **asdict(progress)}).encode()
    arrays: dict[str, NDArray[Any]] = {"about": np.frombuffer(about, np.uint8)}
    arrays |= {f"numbers/{name}": array for name, array in numbers.items()}
    for name, state in states.items():
        arrays |= {f"adam/{name}/{part}": array for part, array in state.items()}
    try:
        with atomic_write(path) as out:
            np.savez(out, **arrays)  # type: ignore[arg-type]
    except OSError as fault:
        raise TrainingError(
            f"{path} cannot be written ({fault.strerror}): what was kept before is whole; make room and give the "
            "same command again"
        ) from None


def restore(
    path: Path, run: str, numbers: dict[str, Float32], states: dict[str, dict[str, NDArray[Any]]]
) -> Progress | str:
    """Take up what `save` wrote of the same run: the arrays are filled, and how far it was is returned; else why not,
    and nothing has changed."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about.pop("version") != VERSION or about.pop("run") != run:
                return "it is of other settings, another model or other examples"
            progress = Progress(**about)
            if any(file[f"numbers/{name}"].shape != array.shape for name, array in numbers.items()):
                return "its arrays have other shapes"
            averages: dict[str, dict[str, NDArray[Any]]] = {}
            for key in file.files:
                if key.startswith("adam/"):
                    name, part = key.removeprefix("adam/").rsplit("/", 1)
                    averages.setdefault(name, {})[part] = file[key]
            # All of it was read, and is whole. The numbers are read again, so that memory holds one of them twice only.
            for name, array in numbers.items():
                array[...] = file[f"numbers/{name}"]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as fault:
        return f"it is damaged ({fault})"
    states.clear()
    states.update(averages)
    progress.judged = [(int(step), float(loss)) for step, loss in progress.judged]
    return progress
