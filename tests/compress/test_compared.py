"""What the blocks of a step are compared with: the original's only where each channel is the same thing in both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from genmote.compress import Calibration, Recipe, compress
from genmote.compress.block import Block, Inputs, Site
from genmote.compress.calibration import in_tokens_of
from genmote.compress.recipe import step_class
from genmote.compress.steps._base import LayerStep, Step
from genmote.compress.steps.awq import Awq
from genmote.compress.steps.distill import Distill
from genmote.compress.steps.gptq import Gptq
from genmote.compress.steps.rtn import Rtn
from genmote.compress.steps.vocabulary import Vocabulary
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.tokenizer import load_tokenizer
from genmote.spec import build
from tests.compress.test_steps import uneven

SMALL = Calibration(windows=3, length=24)


@dataclass(frozen=True)
class Looks(LayerStep):
    """Keeps what it is shown: whether the original's matrices are its own ones, and how far the inputs differ."""

    same: ClassVar[list[bool]] = []
    apart: ClassVar[dict[str, float]] = {}

    @property
    def compares(self) -> bool:
        return True

    def compress_layer(self, block: Block) -> None:
        other = block.original
        assert other is not None
        assert all(other.sites[name].weight.shape == site.weight.shape for name, site in block.sites.items())
        self.same.append(all(torch.equal(other.sites[n].weight, site.weight) for n, site in block.sites.items()))

        def visit(site: Site, inputs: Inputs) -> None:
            assert inputs.original is not None
            apart = (inputs.rows - inputs.original).norm() / inputs.rows.norm()
            self.apart[site.name] = float(apart)

        block.sweep(visit)


def looked(model: Path, tmp_path: Path, *before: Step) -> list[bool]:
    Looks.same.clear()
    Looks.apart.clear()
    compress(model, tmp_path / "out.gguf", Recipe((*before, Looks()), SMALL))
    return list(Looks.same)


@pytest.mark.parametrize(
    "values",
    [
        {"use": "prune-channels"},
        {"use": "prune-channels", "even": True},
        {"use": "prune-heads", "share": 0.5},
        {"use": "prune-heads", "share": 0.5, "even": True},
        {"use": "prune-layers", "share": 0.5},
        {"use": "low-rank", "multiple": 8},
    ],
    ids=lambda values: f"{values['use']}{'-even' if 'even' in values else ''}",
)
def test_other_shapes_are_compared_with_what_they_were_left_as(
    llama: Path, tmp_path: Path, own_home: Path, values: dict[str, Any]
) -> None:
    settings = {key: value for key, value in values.items() if key != "use"}
    same = looked(llama, tmp_path, build(step_class(values["use"]), settings))
    assert same and all(same) and max(Looks.apart.values()) == 0


@pytest.mark.parametrize("values", [{"use": "rtn"}, {"use": "prune"}, {"use": "gptq"}], ids=lambda v: v["use"])
def test_the_same_shapes_are_compared_with_the_original(
    llama: Path, tmp_path: Path, own_home: Path, values: dict[str, Any]
) -> None:
    assert looked(llama, tmp_path, build(step_class(values["use"]), {})) == [False, False]
    assert 0 < max(Looks.apart.values()) < 0.9


def test_scaled_channels_are_compared_with_scaled_ones(tmp_path: Path, own_home: Path) -> None:
    """Also where a step came before that is not exact: the original's channels have other sizes there."""
    model = uneven("tiny-llama", tmp_path / "model.gguf")
    assert looked(model, tmp_path, Awq(powers=4)) == [True, True] and max(Looks.apart.values()) < 1e-6
    assert looked(model, tmp_path, Rtn(type="Q8_0"), Awq(powers=4)) == [True, True]
    assert max(Looks.apart.values()) < 1e-6
    assert looked(model, tmp_path, Awq(powers=4), Rtn(type="Q8_0")) == [False, False]
    assert max(Looks.apart.values()) < 0.1  # not the unscaled channels
    assert looked(model, tmp_path, Rtn(type="Q8_0"), Awq(powers=4), Rtn(type="Q8_0")) == [False, False]
    assert max(Looks.apart.values()) < 0.1


def test_what_was_taught_is_compared_with_what_it_has_learned(llama: Path, tmp_path: Path, own_home: Path) -> None:
    step = Distill(tokens=4 * 2 * 16, batch=2, at_once=2, length=16, measured=2)
    assert all(looked(llama, tmp_path, Rtn(type="Q4_0"), step)) and max(Looks.apart.values()) == 0


@dataclass(frozen=True)
class Reads(LayerStep):
    """Keeps the states that come to the first block."""

    seen: ClassVar[list[torch.Tensor]] = []

    def compress_layer(self, block: Block) -> None:
        if block.index == 0 and block.x is not None:
            self.seen.append(block.x)


def test_fewer_tokens_read_the_same_text(llama: Path, tmp_path: Path, own_home: Path) -> None:
    """The states of the first block are embeddings: of the new tokens, which together say what the old ones did."""
    Reads.seen.clear()
    text = tmp_path / "text.txt"
    text.write_text("the cat and the other cat are there; " * 40)
    calibration = Calibration(windows=3, length=24, text=text)
    made = compress(llama, tmp_path / "out.gguf", Recipe((Vocabulary(size=290), Reads(), Gptq()), calibration))
    file, (x,) = ModelFile.open(made.path), Reads.seen
    table = ModelFile.open(made.path).tensor("token_embd.weight")  # no step stored it anew
    ids = [int(abs(table - row).sum(1).argmin()) for row in x.numpy()]
    assert np.array_equal(table[ids], x.numpy()) and len(ids) == 72
    tokenizer = load_tokenizer(file)
    for start in (0, 24, 48):
        assert tokenizer.decode(ids[start : start + 24]).strip("� ") in text.read_text()
    assert made.steps[2]["figures"]["blk.1.ffn_down.weight"]["error"] < 0.1


def test_a_text_that_is_too_short_in_fewer_tokens(llama: Path, tmp_path: Path) -> None:
    prune = compress(llama, tmp_path / "out.gguf", Recipe((Vocabulary(size=290),), SMALL))
    few, whole = ModelFile.open(prune.path), ModelFile.open(llama)
    ends = np.full((1, 24), sorted(load_tokenizer(whole).eog_ids)[0], np.int32)  # no text at all
    with pytest.raises(SpecError, match="the text has 0 tokens of those that are left, one window takes 24: give more"):
        in_tokens_of(few, whole, ends)
