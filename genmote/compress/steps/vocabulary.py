"""Fewer tokens: those that a text uses stay, up to a number, with what they are made of (`models/prune_vocabulary.py`).

The output matrix, which a small model spends a third of its time on, shrinks with them; texts that use other tokens
still encode, in more and shorter ones. What comes after this step reads its text in the smaller vocabulary.

Whether the text was enough to choose by, half of it tells: what that would choose is counted in the other half.
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

RUN = 256  # tokens in a row that go to the same half
LOST = 0.02  # share of the tokens that a choice by half of the text may lose more of the other half than of its own


@dataclass(frozen=True)
class Vocabulary(ModelStep):
    any_vocabulary: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    size: int = setting("tokens that stay")
    text: Path | None = setting("a text whose tokens are counted (default: the calibration text)", default=None)

    @property
    def calibrates(self) -> bool:  # type: ignore[override]
        return self.text is None

    def faults(self) -> Iterable[str]:
        if self.size < 1:
            yield f"size={self.size}: use 1 or more"

    def begin(self, model: ModelFile) -> Iterable[str]:
        yield from super().begin(model)
        most_used(model, np.zeros(_size(model)), self.size)  # raises where so few cannot stay

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        file = ModelFile.open(source)
        tokens = self._tokens(file, sight)
        first = np.arange(len(tokens)) // max(1, min(RUN, len(tokens) // 2)) % 2 == 0
        size = _size(file)
        counts, half, other = (np.bincount(some, minlength=size) for some in (tokens, tokens[first], tokens[~first]))
        kept = prune_vocabulary(source, target, most_used(file, counts, self.size), progress=sight.progress)
        chosen = most_used(file, half, self.size)
        own, elsewhere = (float(found[chosen].sum() / max(1, found.sum())) for found in (half, other))
        covered = float(counts[kept].sum() / max(1, counts.sum()))
        found: dict[str, Any] = {"tokens": len(kept), "of": size, "covered": covered, "covered_elsewhere": elsewhere}
        if own - elsewhere > LOST:
            found["note"] = (
                f"a text of {len(tokens)} tokens is little to choose by: what half of it would keep is {own:.1%} of "
                f"that half and {elsewhere:.1%} of the other; give more of it (text in the recipe's step, or --samples)"
            )
        return found

    def _tokens(self, file: ModelFile, sight: Sight) -> NDArray[np.int64]:
        """The text that is counted, in ids of `file` (n,), without tokens that an earlier step has taken out."""
        if self.text is not None:
            return np.array(load_tokenizer(file).encode(read(self.text)[0], bos=False), np.int64)
        assert sight.windows is not None
        # The text is in the original's tokens.
        before, left = _ids(ModelFile.open(sight.original)), _ids(file)
        new = np.full(len(before), -1)
        new[np.searchsorted(before, left)] = np.arange(len(left))
        tokens = new[sight.windows.reshape(-1)]
        return tokens[tokens >= 0]


def _size(file: ModelFile) -> int:
    """Tokens of the tokenizer: a matrix may have more rows, which pad it."""
    return len(file.metadata.get("tokenizer.ggml.tokens", ()))


def _ids(file: ModelFile) -> NDArray[Any]:
    """Each token's id (V,), ascending, in the vocabulary that tokens were first taken out of."""
    ids = file.metadata.get(KEPT_IDS)
    return np.arange(len(file.metadata["tokenizer.ggml.tokens"])) if ids is None else np.asarray(ids)
