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

    size: int = setting("tokens that stay")
    text: Path | None = setting("a text whose tokens are counted (default: the calibration text)", default=None)

    def faults(self) -> Iterable[str]:
        if self.size < 1:
            yield f"size={self.size}: use 1 or more"

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        file = ModelFile.open(source)
        total = int(file.tensors["token_embd.weight"].shape[0])
        counts = self._counts(file, total, sight)
        kept = prune_vocabulary(source, target, most_used(file, counts, self.size), progress=sight.progress)
        return {"tokens": len(kept), "of": total, "covered": float(counts[kept].sum() / max(1, counts.sum()))}

    def _counts(self, file: ModelFile, total: int, sight: Sight) -> NDArray[np.int64]:
        """How often each token occurs (V,)."""
        if self.text is not None:
            return np.bincount(load_tokenizer(file).encode(read(self.text)[0], bos=False), minlength=total)
        assert sight.windows is not None
        whole = ModelFile.open(sight.original).tensors["token_embd.weight"].shape[0]
        counts = np.bincount(sight.windows.reshape(-1), minlength=whole)
        ids = file.metadata.get(KEPT_IDS)
        # The text is in the original's tokens, of which an earlier step may have taken some out.
        return counts if ids is None else counts[np.asarray(ids)]
