"""Whole models on every op set and instruction set: the same bits from numpy and native, the same text, and torch
within the bounds that docs/numerics.md states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import OpsError
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import load_shape, make_model, shape_names, tensor_list
from genmote.models.requantise import convert_type
from genmote.models.weights import GgufWeights
from genmote.ops import quant
from genmote.ops.numpy_ops import PLAIN, NumpyOps
from genmote.ops.protocol import Span

native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)

TINY = [name for name in shape_names() if name.startswith("tiny-")]
TYPES = quant.codec_names()

# Greatest difference of a logit of torch from the reference's on a real model, over ten prompts of 32 tokens, in
# standard deviations of the logits; and the root mean square of the differences. Measured values: docs/numerics.md.
TORCH_BOUNDS = {name: (0.01, 0.002) if name in PLAIN else (0.7, 0.1) for name in TYPES}
TORCH_SAME_TOKENS = dict.fromkeys(TYPES, 0.94)  # share of 320 steps where the most likely token is the same
# Rounded to the nearest two bits and no more, SmolLM2 is broken (perplexity above 10^4) and enlarges every difference:
# rounding inputs alone, natively, moves its logits by 0.16 (root mean square).
TORCH_BOUNDS["GM2_32"] = (3, 0.3)
TORCH_SAME_TOKENS |= {"GM2_32": 0.9, "Q2_K": 0.9}


PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "A small robot in the garden",
    "def add(a, b):\n    return",
    "The most important thing about a heart is",
    "Once upon a time",
    "Dear customer, thank you for",
    "In physics, energy is",
    "The temperature in the room rose, so",
    "My favourite book is about",
]


def machines() -> list[Any]:
    """The native op set on every instruction set that runs here, on one and on three threads."""
    native = native_ops._native
    names = [name for name in native.isa_names() if native.isa_runs(name)]
    return [native_ops.create(isa=isa, threads=threads) for isa in names for threads in (1, 3)]


def decoder_of(model: ModelFile, ops: Any) -> Decoder:
    weights = GgufWeights(model, ops)
    return Decoder(weights.config, weights, ops)


def all_logits(decoder: Decoder, ids: list[int]) -> np.ndarray:
    logits = decoder.forward(ids, [Span(decoder.cache(len(ids)), 0, len(ids))], logits="all")
    assert logits is not None
    return logits


def greedy(decoder: Decoder, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The texts that go on from some prompts, decoded in one batch."""
    caches = [decoder.cache(len(ids) + count) for ids in prompts]
    texts: list[list[int]] = [[] for _ in prompts]
    rows = prompts
    for _ in range(count):
        spans, start = [], 0
        for cache, ids in zip(caches, rows, strict=True):
            spans.append(Span(cache, start, len(ids)))
            start += len(ids)
        logits = decoder.forward([token for ids in rows for token in ids], spans)
        assert logits is not None
        rows = [[int(row.argmax())] for row in logits]
        for text, ids in zip(texts, rows, strict=True):
            text += ids
    return texts


def torch_decoder(model: ModelFile) -> Decoder | None:
    try:
        return decoder_of(model, op_sets.load("torch"))
    except OpsError:
        return None


def check_torch(type_name: str, got: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Hold torch's logits to the type's bounds; the greatest and the root mean square difference."""
    differences, unit = got - wanted, wanted.std()
    largest, usual = float(np.abs(differences).max() / unit), float(np.sqrt(np.square(differences).mean()) / unit)
    assert largest <= TORCH_BOUNDS[type_name][0] and usual <= TORCH_BOUNDS[type_name][1]
    return largest, usual


# -- tiny models: families, types, instruction sets --------------------------------------------------------------------


def types_of(shape: str) -> list[str]:
    """Types that the shape's matrices take without falling back to another."""
    sizes = load_shape(shape)
    if shape == "tiny-llama-256":
        return [name for name in TYPES if quant.by_name(name).block_size == 256]
    widths = {dims[-1] for _, dims, _, _ in tensor_list(sizes) if len(dims) > 1}
    return [name for name in TYPES if all(width % quant.by_name(name).block_size == 0 for width in widths)]


@pytest.mark.parametrize(
    ("shape", "type_name"), [(shape, name) for shape in TINY for name in types_of(shape)], ids=lambda value: str(value)
)
def test_every_instruction_set_gives_the_bits_of_the_reference(shape: str, type_name: str, tmp_path: Path) -> None:
    make_model(shape, type_name, tmp_path / "m.gguf", seed=11)
    model = ModelFile.open(tmp_path / "m.gguf")
    rng = np.random.default_rng(4)
    prompts = [rng.integers(3, 250, n).tolist() for n in (1, 9, 24)]
    reference = decoder_of(model, NumpyOps())
    wanted = [all_logits(reference, ids) for ids in prompts]
    assert min(logits.std() for logits in wanted) > 0.05
    texts = None
    for ops in machines():
        native = decoder_of(model, ops)
        for ids, logits in zip(prompts, wanted, strict=True):
            assert np.array_equal(all_logits(native, ids), logits)
        told = greedy(native, prompts, 12)
        texts = texts or [greedy(native, [ids], 12)[0] for ids in prompts]
        assert told == texts
    assert greedy(reference, prompts[1:2], 3)[0] == texts[1][:3]
    if (torch := torch_decoder(model)) is not None:
        check_torch(type_name, np.concatenate([all_logits(torch, ids) for ids in prompts]), np.concatenate(wanted))


# -- real models -------------------------------------------------------------------------------------------------------


def told(model: ModelFile, decoder: Decoder) -> list[tuple[list[int], list[int]]]:
    """Prompts and the 32 tokens that go on from each."""
    from genmote.models.tokenizer import load_tokenizer

    prompts = [load_tokenizer(model).encode(prompt) for prompt in PROMPTS]
    return list(zip(prompts, greedy(decoder, prompts, 32), strict=True))


def check(model: ModelFile, type_name: str, *, whole: bool) -> None:
    """Native on its instruction sets and the reference: the same bits. Torch: within its bounds.

    `whole`: the reference reads all ten prompts and texts, else the beginning of the first.
    """
    native = decoder_of(model, machines()[0])
    stories = told(model, native)
    wanted = [all_logits(native, ids + text) for ids, text in stories]
    reference = decoder_of(model, NumpyOps())
    for (ids, text), logits in zip(stories if whole else stories[:1], wanted, strict=False):
        rows = len(ids + text) if whole else 8
        seen = all_logits(reference, (ids + text)[:rows])
        assert np.array_equal(seen, logits[:rows])
        assert seen[len(ids) - 1 : -1].argmax(axis=1).tolist() == text[: rows - len(ids)]
    del reference, native
    for ops in machines()[1:]:  # one at a time: each holds the weights
        assert np.array_equal(
            all_logits(decoder_of(model, ops), [*stories[0][0], *stories[0][1]][:rows]), wanted[0][:rows]
        )

    torch = torch_decoder(model)
    if torch is None:
        return
    steps = np.concatenate([logits[len(ids) - 1 : -1] for (ids, _), logits in zip(stories, wanted, strict=True)])
    got = np.concatenate([all_logits(torch, ids + text)[len(ids) - 1 : -1] for ids, text in stories])
    largest, usual = check_torch(type_name, got, steps)
    same = np.mean(got.argmax(axis=1) == steps.argmax(axis=1))
    bounds = ", ".join(f"{bound:g}" for bound in TORCH_BOUNDS[type_name])
    # A row of the table in docs/numerics.md.
    print(f"| {type_name} | 0 | {largest:.2g} | {usual:.2g} | {round(same * len(steps))} | {bounds} |")
    assert same >= TORCH_SAME_TOKENS[type_name]


@pytest.mark.slow
@pytest.mark.parametrize("type_name", TYPES)
def test_smollm2_in_every_type(type_name: str, smollm2: Path, tmp_path: Path) -> None:
    """The real model, stored again as each type. The reference reads one prompt of each, of the file's own type all."""
    model = ModelFile.open(smollm2)
    own = {info.type for info in model.tensors.values() if info.name.startswith("blk.") and len(info.shape) > 1}
    if own != {type_name}:
        convert_type(smollm2, tmp_path / "m.gguf", type_name)
        model = ModelFile.open(tmp_path / "m.gguf")
    check(model, type_name, whole=own == {type_name})


@pytest.mark.slow
def test_gemma3(gemma3: Path) -> None:
    """The mixed file: several types in one model, windows, norms behind the branches."""
    model = ModelFile.open(gemma3)
    assert len({info.type for info in model.tensors.values() if len(info.shape) > 1}) > 1
    check(model, "Q5_0", whole=True)
