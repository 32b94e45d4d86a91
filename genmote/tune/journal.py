"""What an adapting model keeps in its folder: every adapter, which one is in use, what happened, what to go on from.

    adapters/0001.gguf   an adapter that was taken, under the next free number
    state.json           the one in use, the one that each took the place of, and `Adapting.state`
    log.jsonl            a record of each change and each refusal, one JSON line

An adapter is written first, then the log's line, then the state: after a kill between them the log may tell of a change
that is then made again, never the other way round.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genmote import home, records
from genmote.errors import SpecError
from genmote.models.write_lora import write_lora
from genmote.tune.adapt import rolled_back
from genmote.tune.learnt import Numbers

VERSION = 1


@dataclass
class Journal:
    """The folder of one adapting model; `base` is the model's sha256."""

    folder: Path
    base: str | None
    current: int | None = None  # the adapter in use; None: none
    before: dict[int, int | None] = field(default_factory=dict)  # of each that was taken: the one then in use
    stream: dict[str, Any] | None = None  # `Adapting.state`

    @classmethod
    def open(cls, folder: Path, base: str | None) -> Journal:
        """The journal in a folder, which is made if need be; `base` None: of whatever model. SpecError where
        it is damaged or another model's."""
        journal = cls(folder, base)
        try:
            (folder / "adapters").mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise SpecError(f"{folder} cannot be made ({fault.strerror}): name another folder with --state") from None
        try:
            found = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if found["version"] != VERSION:
                raise SpecError(f"{folder}/state.json has version {found['version']}: this genmote reads {VERSION}")
            if base not in (None, found["base"]):
                raise SpecError(f"{folder} is of another model: give that one, or another folder with --state")
            journal.base, journal.current = found["base"], found["current"]
            journal.before = {int(number): earlier for number, earlier in found["before"].items()}
            journal.stream = found["stream"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise journal.damaged(fault) from None
        return journal

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While it lasts no other process adapts in this folder. SpecError where one does."""
        with open(self.folder / "lock", "ab") as lock:
            if not home.lock(lock.fileno()):
                raise SpecError(f"{self.folder} is in use: another genmote adapt runs there; stop it first")
            yield

    def damaged(self, fault: Exception) -> SpecError:
        return SpecError(
            f"{self.folder}/state.json is damaged ({fault}): the adapters beside it are whole; name another folder "
            "with --state and give one of them with --adapter"
        )

    def path(self, number: int) -> Path:
        return self.folder / "adapters" / f"{number:04d}.gguf"

    @property
    def adapter(self) -> Path | None:
        """The file in use."""
        return None if self.current is None else self.path(self.current)

    def take(
        self, numbers: Numbers, architecture: str, alpha: float, values: Mapping[str, Any], what: str = "accepted"
    ) -> Path:
        """An adapter is now in use: written, told, the one before it remembered."""
        there = (path.stem for path in self.path(1).parent.glob("*.gguf"))
        number = max([0, *self.before, *(int(stem) for stem in there if stem.isdecimal())]) + 1
        path = self.path(number)
        write_lora(path, architecture, numbers, alpha, **{"general.name": path.stem})
        self.tell(what, {"adapter": path.name, "instead_of": self._name(self.current), **values})
        self.before[number], self.current = self.current, number
        return path

    def back(self) -> Path | None:
        """The adapter before the one in use is in use again; its file, None for none. SpecError where there is none
        to go back from."""
        if self.current is None:
            raise SpecError(f"{self.folder}: no adapter is in use, so there is nothing to go back from")
        earlier = self.before.get(self.current)
        self.tell("rollback", {"adapter": self._name(earlier), "instead_of": self._name(self.current)})
        self.current = earlier
        self.keep(None if self.stream is None else rolled_back(self.stream))
        return self.adapter

    def tell(self, what: str, values: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        records.append(self.folder / "log.jsonl", records.Record(f"adapt.{what}", values, model_sha256=self.base))

    def keep(self, stream: dict[str, Any] | None) -> None:
        """Write the state, whole or not at all."""
        self.stream = stream
        about = {"version": VERSION, "base": self.base, "current": self.current, "before": self.before}
        with home.atomic_write(self.folder / "state.json", "w") as out:
            json.dump({**about, "stream": stream}, out, separators=(",", ":"), allow_nan=False)

    def _name(self, number: int | None) -> str | None:
        return None if number is None else self.path(number).name
