"""What every step stands on: a member of this folder is a frozen dataclass whose fields are its settings.

A step takes a whole GGUF file and gives one. A *layer step* is shown one transformer block after the other
(`compress_layer`), then what is not a block's; a *model step* rewrites the file itself (`compress_model`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genmote.fetch import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from genmote.compress.block import Block, Head
    from genmote.models.gguf import ModelFile, TensorInfo


@dataclass(frozen=True)
class Step:
    """The base of all steps. A method `faults() -> Iterable[str]` tells what is wrong with the settings' values."""

    calibrates: ClassVar[bool] = True  # whether calibration text is needed
    note: ClassVar[str] = ""  # what whoever reads the report should know of the step's result
    reads_text: ClassVar[bool] = False  # whether windows of token ids that are no text do not do
    any_vocabulary: ClassVar[bool] = False  # whether it takes text in the original's tokens, also where there are fewer
    exact: ClassVar[bool] = False  # whether the model computes the same after it: later steps compare with that
    relearns: ClassVar[bool] = False  # whether it says the same by other states: later steps compare with those

    def begin(self, model: ModelFile) -> Iterable[str]:
        """Before the step's work: SpecError where the settings do not fit this model; gives the notes of the report."""
        if self.note:
            yield self.note


@dataclass(frozen=True)
class LayerStep(Step):
    """Works on one block at a time: memory is one layer's, and finished layers outlive a kill."""

    @property
    def compares(self) -> bool:
        """Whether blocks come with the original model's (`Block.original`)."""
        return False

    def changes(self, info: TensorInfo) -> bool:
        """Whether a block's matrix may get other bytes: text is read up to the last block that has one."""
        return True

    def compress_layer(self, block: Block) -> None:
        """Put new weights into the block's sites: `Site.store` stored bytes, `Site.replace` plain numbers."""
        raise NotImplementedError

    def table_type(self, info: TensorInfo) -> str:
        """The tensor type of an embedding that is not the output matrix too: it is looked up in, not multiplied, and
        so rounded to the nearest."""
        return info.type

    def wants_head(self, name: str) -> bool:
        """Whether `compress_head` is to be called for the matrix `name` that makes the logits."""
        return False

    def compress_head(self, head: Head) -> None:
        """Like `compress_layer`, for the output matrix; called before the blocks, which then see a tied embedding as
        it was left here."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sight:
    """What a model step is given beside the file."""

    windows: NDArray[np.int32] | None  # calibration text (N, T); None where the step does not calibrate
    original: Path  # the model that the recipe began with
    compared: Path  # the model whose matrices, channel by channel, the file's were made from
    folder: Path  # for files of its own, kept until the step is done: what a killed run left is there again
    progress: Progress


@dataclass(frozen=True)
class ModelStep(Step):
    """Rewrites a whole file."""

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        """Write `target` (whole or not at all, as `write_gguf` does); returns figures for the report, JSON values."""
        raise NotImplementedError
