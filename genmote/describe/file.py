"""A model that describes signals is a small TOML file, which names its parts by their SHA-256: the language model, the
encoder, and an adapter of the language model. docs/formats.md tells its keys.

Files lie beside the TOML; the language model may be a model's name. Every part's digest is checked before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from genmote import home, spec
from genmote.errors import ModelFileError, ModelNameError, SpecError
from genmote.fetch import Progress, quiet
from genmote.models import digests, store
from genmote.models.gguf import ModelFile
from genmote.signals.kinds import Records, Signal
from genmote.spec import setting

VERSION = 1
KNOWN = 0.5  # of a signal's channels


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file and what it must be: `file` is a path from the TOML's folder, or (of the language model) a name."""

    file: str = setting("a file's name")
    sha256: str = setting("its SHA-256")

    def faults(self) -> Iterable[str]:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            yield f"sha256={self.sha256!r}: wanted 64 hexadecimal digits"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question whose answer is one of some labels. Log-likelihoods are divided by `temperature` (Guo et al. 2017,
    arXiv 1706.04599), which was found on `examples` held out."""

    about: str = setting("what it asks for, in a word")
    question: str = setting("the question, as it was trained")
    labels: tuple[str, ...] = setting("the labels")
    temperature: float = setting("what log-likelihoods are divided by", default=1.0)
    examples: int = setting("held-out examples that the temperature was found on", default=0)

    def faults(self) -> Iterable[str]:
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            yield f"labels={self.labels}: wanted at least two, each once"
        if not 0 < self.temperature < 1e6:
            yield f"temperature={self.temperature}: wanted more than 0"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the TOML file holds."""

    version: int = setting("of the file's form")
    title: str = setting("what the model is called")
    facts: bool = setting("prompts have a line of facts that are computed from the signal", default=False)
    health: bool = setting("what it says may be of somebody's health", default=False)
    confidence: float = setting("a label less likely than this is not told", default=0.5)
    question: str = setting("what `describe` asks", default="Describe this recording.")
    licence: str = setting("the licence of what it was trained on", default="not stated")
    channels: tuple[str, ...] = setting("channels (of tables: fields) that it was trained on", default=())
    language: Part = setting("the language model")
    encoder: Part = setting("the sensor encoder and its projector")
    adapter: Part | None = setting("an adapter of the language model", default=None)
    tasks: tuple[Task, ...] = setting("what `classify` knows", default=())

    def faults(self) -> Iterable[str]:
        if self.version != VERSION:
            yield f"version={self.version}: this genmote reads {VERSION}"
        if not 0 <= self.confidence <= 1:
            yield f"confidence={self.confidence}: wanted 0 to 1"


@dataclass(frozen=True, eq=False)
class Found:
    """A model's parts, there and checked."""

    parts: Parts
    language: Path
    encoder: ModelFile
    adapter: Path | None


def names() -> list[str]:
    """The models that come with the package."""
    return sorted(path.stem for path in store.ZOO.glob("*/*.toml") if path.stem == path.parent.name)


def meant_for(signal: Signal) -> str:
    """Which of the models that come with the package is taken for a signal where none is named: the one that was
    trained on the most of its channels, among equals that with the fewest others; of a signal that none knows half
    of, the one with the most channels. ModelNameError where none comes with the package."""
    channels = {name: read(place(name)).channels for name in names()}
    if not channels:
        raise ModelNameError("no model comes with this package: name one with -m, made by genmote describe-train")
    told = [f.name for f in signal.fields] if isinstance(signal, Records) else list(getattr(signal, "channels", ()))
    own = {word.casefold() for word in told}

    def known(name: str) -> float:
        return len(own & {word.casefold() for word in channels[name]}) / max(1, len(own))

    best = max(channels, key=lambda name: (known(name), -len(channels[name]), name))
    return best if known(best) >= KNOWN else max(channels, key=lambda name: (len(channels[name]), name))


def place(name: str | os.PathLike[str]) -> Path:
    """The TOML file that a path or a name means. ModelNameError where there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if str(name) in names():
        return store.ZOO / str(name) / f"{name}.toml"
    known = f"; models of genmote are {', '.join(names())}" if names() else ""
    raise ModelNameError(f"{name}: no such file; give the .toml that genmote describe-train made{known}")


def read(path: Path) -> Parts:
    """The TOML file. ModelFileError for what is no such file."""
    if path.suffix.lower() != ".toml":
        raise ModelFileError(f"{path}: wanted the .toml that names a model's parts, not one of them")
    try:
        return spec.from_toml(Parts, path)
    except SpecError as fault:
        raise ModelFileError(str(fault)) from None


def find(name: str | os.PathLike[str], *, progress: Progress = quiet) -> Found:
    """A model's parts, by its path or its name; the language model is fetched where it is named and not here.
    ModelNameError where there is no such model, ModelFileError where a part is not the one that the TOML names, or is
    not there."""
    path = place(name)
    parts = read(path)
    language = _language(path, parts.language, progress)
    encoder = _checked(_beside(path, parts.encoder), parts.encoder, "encoder")
    adapter = None
    if parts.adapter is not None:
        adapter = _checked(_beside(path, parts.adapter), parts.adapter, "adapter").path
    return Found(parts, language, encoder, adapter)


def write(path: Path, parts: Parts) -> None:
    """The TOML file, whole or not at all."""
    with home.atomic_write(path, "w") as out:
        out.write(spec.to_toml(parts))


def _beside(path: Path, part: Part) -> Path:
    return path.parent / part.file


def _language(path: Path, part: Part, progress: Progress) -> Path:
    beside = _beside(path, part)
    found = beside if beside.is_file() else store.resolve(part.file, progress=progress)
    _checked(found, part, "language model")
    return found


def _checked(path: Path, part: Part, what: str) -> ModelFile:
    if not path.is_file():
        raise ModelFileError(f"{path}: the model's {what} is not there; keep a model's files in one folder")
    file = ModelFile.open(path)
    if (digest := digests.sha256(file)) != part.sha256:
        raise ModelFileError(
            f"{path}: is not the {what} that the model was made with (SHA-256 {digest[:12]}…, wanted "
            f"{part.sha256[:12]}…); give it the right one"
        )
    return file
