"""Make a GGUF file of a Hugging Face model folder, or of another GGUF file, tensor by tensor; without PyTorch.

A folder holds config.json, safetensors and a tokenizer. Its family is `checkpoints/MODEL_TYPE.py`; names, metadata and
the order of rows are those of llama.cpp's converter, so that other engines run the result.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote import registry
from genmote.errors import ModelFileError, SpecError
from genmote.fetch import quiet
from genmote.models import hub_folder, requantise, store
from genmote.models.checkpoints._described import Described, Part, parts
from genmote.models.checkpoints._folder import Folder
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._tokenizer import tokenizer
from genmote.models.gguf import ModelFile
from genmote.models.gguf_values import one_line
from genmote.models.gguf_write import Progress, Tensor, check_target, write_gguf
from genmote.models.safetensors import WEIGHTS, Stored, open_folder
from genmote.ops import quant

CHECKPOINTS = "genmote.models.checkpoints"
# Numbers taken through float32 at once.
_PIECE = 1 << 22
# `general.sampling.*`: what the model's makers advise (generation_config.json), by llama.cpp's names.
_SAMPLING = {"top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "temperature": "temp"}


@dataclass(frozen=True)
class Conversion:
    """What was made: `type` is that of the matrices; `notes` tell what did not come along."""

    architecture: str
    type: str
    tensors: int
    notes: tuple[str, ...] = ()


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str | None = None,
    *,
    embedding_type: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the model in `source` to `target` as GGUF.

    `source` is a Hugging Face folder, ``hf:ORG/REPO`` for one on the hub, or a GGUF file by its path or model's name.
    `type` is that of the matrices (None: of a folder, the one that most of its numbers have); for `embedding_type`
    see :func:`requantise.convert_type`. Needs memory for a piece of one tensor and the tokenizer. `ModelFileError` for
    a folder that is damaged, not whole, or of an unknown family; `SpecError` for a type that the numbers do not fit;
    `UserError` where the target is the source.
    """
    path = _find(source, progress)
    if path.is_dir():
        return _convert_folder(Folder(path), target, type, embedding_type, progress)
    if type is None:
        raise SpecError(f"{path} is a GGUF file already: give the type that its matrices should have (--type)")
    check_target(target, path)
    requantise.convert_type(path, target, type, embedding_type=embedding_type, progress=progress)
    made = ModelFile.open(target)
    return Conversion(made.architecture, quant.by_name(type).name, len(made.tensors))


@contextlib.contextmanager
def open_source(
    source: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Iterator[Path]:
    """The GGUF file that `source` means (as in `convert`): itself, or one made of a folder in its own number type.

    The latter lies in a temporary folder (inside `folder`, or the system's) and is gone after the block.
    """
    path = _find(source, progress)
    if not path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="genmote-", dir=folder) as temporary:
        made = Path(temporary) / "model.gguf"
        convert(path, made, progress=progress)
        yield made


def _find(source: str | os.PathLike[str], progress: Progress | None) -> Path:
    """The folder or file that a source means, fetched first if it is a name and not here."""
    name = os.fspath(source)
    if Path(name).is_dir():
        return Path(name)
    if hub_folder.is_folder(name):
        return hub_folder.pull(name, progress or quiet)
    return store.resolve(name, progress=progress or quiet)


def _convert_folder(
    folder: Folder, target: str | os.PathLike[str], type: str | None, embedding_type: str | None, progress: Any
) -> Conversion:
    described = describe(folder)
    stored = open_folder(folder.path)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    made, dropped = parts(described, shapes, str(folder.path))
    _check_weights(stored, made)
    types = requantise.MatrixTypes(type or _own_type(stored, made), described.tied, embedding_type)
    tensors: list[Tensor] = []
    for part in made:
        wanted = types.of(part.name, part.shape, "F32")
        tensors.append((part.name, wanted, part.shape, Rows(stored, part, wanted)))
    if (factors := described.rope_factors) is not None:
        tensors.append(("rope_freqs.weight", "F32", factors.shape, factors))
    tokens, told = tokenizer(folder, described.sizes.vocab)
    notes = [*described.notes, *told]
    if dropped:
        notes.append(f"{len(dropped)} tensors are left out, such as {one_line(dropped[0]):.80}")
    metadata = {
        "general.architecture": described.architecture,
        "general.type": "model",
        **_general(folder),
        **{f"{described.architecture}.{key}": value for key, value in described.metadata.items()},
        "general.file_type": np.uint32(requantise.FILE_TYPES[types.matrices]),
        **tokens,
        "general.quantization_version": 2,
    }
    try:
        write_gguf(target, metadata, tensors, progress=progress)
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{folder.path}: {error.object!r:.80} in it is no Unicode text; fetch it again") from None
    return Conversion(described.architecture, types.matrices, len(tensors), tuple(notes))


def describe(folder: Folder) -> Described:
    """What the folder's family says of it; ``ModelFileError`` for an unknown one and for quantised weights."""
    if not folder.has("config.json"):
        raise ModelFileError(
            f"{folder.path}: has no config.json; give a Hugging Face model folder (config.json, safetensors, tokenizer)"
        )
    config = Hparams(folder.path / "config.json", folder.json("config.json"))
    if config.has("quantization_config"):
        method = config.inner("quantization_config").values.get("quant_method")
        raise config.fail(f"its weights are quantised ({method!r:.40}); take the original model, and give --type")
    name = config.text("model_type")
    family = registry.load(CHECKPOINTS, name[:80], what="model family of a folder", error=ModelFileError)
    described: Described = family.describe(config)
    return described


def _check_weights(stored: dict[str, Stored], made: list[Part]) -> None:
    for part in made:
        for source in part.sources:
            if (tensor := stored[source]).dtype not in WEIGHTS:
                raise tensor.source.fail(
                    f"tensor {source} is stored as {tensor.dtype}, wanted {', '.join(WEIGHTS)}; take the original model"
                )


def _own_type(stored: dict[str, Stored], made: list[Part]) -> str:
    """The type that most numbers of the folder's matrices have."""
    counts: Counter[str] = Counter()
    for part in made:
        if len(part.shape) > 1:
            for source in part.sources:
                counts[stored[source].dtype] += stored[source].nbytes
    dtype = counts.most_common(1)[0][0]
    return "F32" if dtype == "F64" else dtype


class Rows:
    """A part's bytes in the file's type, some rows at a time."""

    def __init__(self, stored: dict[str, Stored], part: Part, wanted: str) -> None:
        self.stored, self.part, self.wanted = stored, part, wanted

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        part = self.part
        # A vector whose numbers change places is a matrix of one column.
        cols = 1 if part.order is not None and len(part.shape) == 1 else part.shape[-1]
        for source in part.sources:
            for numbers in self.stored[source].pieces(cols, part.order, _PIECE):
                try:
                    yield quant.quantize(self.wanted, numbers + np.float32(part.add) if part.add else numbers)
                except SpecError as error:
                    raise SpecError(f"tensor {source}: {error}") from None


def _general(folder: Folder) -> dict[str, Any]:
    """The model's name and licence, and the sampling that its makers advise."""
    made: dict[str, Any] = {"general.name": folder.path.resolve().name or "model"}
    card = re.match(r"---\s*\n(.*?)\n---", folder.text("README.md") or "", re.DOTALL)
    licence = re.search(r"^license:[ \t]*(\S+)[ \t]*$", card[1] if card else "", re.MULTILINE)
    if licence:
        made["general.license"] = licence[1].strip("'\"")
    advised = folder.json("generation_config.json")
    for theirs, ours in _SAMPLING.items():
        value = advised.get(theirs)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
            kind = np.int32 if theirs == "top_k" else np.float32
            made[f"general.sampling.{ours}"] = kind(value)
    return made
