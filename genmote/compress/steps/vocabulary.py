"""Fewer tokens: those that a text uses stay, up to a number, with what they are made of (`models/prune_vocabulary.py`).

The output matrix, which a small model spends a third of its time on, shrinks with them; texts that use other tokens
still encode, in more and shorter ones. What comes after this step reads its text in the smaller vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from genmote.compress.calibration import read
from genmote.compress.steps._base import ModelStep, Sight
from genmote.models.gguf import ModelFile
from genmote.models.prune_vocabulary import KEPT_IDS, most_used, prune_vocabulary
from genmote.models.tokenizer import load_tokenizer
from genmote.spec import setting


@dataclass(frozen=True)
class Vocabulary(ModelStep):
    any_vocabulary: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    size: int = setting("tokens that stay")
    text: Path | None = setting("a text whose tokens are counted (default: the calibration text)", default=None)

    def faults(self) -> Iterable[str]:
        if self.size < 1:
            yield f"size={self.size}: use 1 or more"

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        file = ModelFile.open(source)
        counts = self._counts(file, sight)
        kept = prune_vocabulary(source, target, most_used(file, counts, self.size), progress=sight.progress)
        return {"tokens": len(kept), "of": len(counts), "covered": float(counts[kept].sum() / max(1, counts.sum()))}

    def _counts(self, file: ModelFile, sight: Sight) -> NDArray[np.int64]:
        """How often each of the tokenizer's tokens occurs (V,): a matrix may have more rows, which pad it."""
        if self.text is not None:
            tokenizer = load_tokenizer(file)
            return np.bincount(tokenizer.encode(read(self.text)[0], bos=False), minlength=tokenizer.vocab_size)
        assert sight.windows is not None
        # The text is in the original's tokens, of which an earlier step may have taken some out.
        original = _ids(ModelFile.open(sight.original))
        counts = np.bincount(sight.windows.reshape(-1), minlength=len(original))
        return counts[np.searchsorted(original, _ids(file))]


def _ids(file: ModelFile) -> NDArray[Any]:
    """Each token's id (V,), ascending, in the vocabulary that tokens were first taken out of."""
    ids = file.metadata.get(KEPT_IDS)
    return np.arange(len(file.metadata["tokenizer.ggml.tokens"])) if ids is None else np.asarray(ids)
