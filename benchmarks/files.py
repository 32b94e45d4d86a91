"""The model files that are measured: made here from the named models, or from seeds, and kept under build/."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process import REPOSITORY
from benchmarks.record import SEED

FOLDER = REPOSITORY / "build" / "bench-models"


@dataclass(frozen=True)
class Recipe:
    """How a file comes to be: a named model as it is, one with another tensor type, one trained further, or a shape
    with seeded weights."""

    title: str
    source: str
    type_name: str | None = None
    shape: bool = False
    tuned: bool = False


RECIPES = {
    "smollm2-q4_1": Recipe("SmolLM2-135M Q4_1", "smollm2-135m"),
    "smollm2-q4_0": Recipe("SmolLM2-135M Q4_0", "smollm2-135m", "Q4_0"),
    "smollm2-tuned": Recipe("SmolLM2-135M fine-tuned, F16", "smollm2-135m", "F16", tuned=True),
    "smollm2-q8_0": Recipe("SmolLM2-135M Q8_0", "smollm2-135m", "Q8_0"),
    "llama1b-q4_0": Recipe("Llama-3.2-1B shape Q4_0", "llama-3.2-1b", "Q4_0", shape=True),
    "opt1.3b-q4_0": Recipe("OPT-1.3B shape Q4_0", "opt-1.3b", "Q4_0", shape=True),
    "llama7b-q4_0": Recipe("LLaMA-7B shape Q4_0", "llama-7b", "Q4_0", shape=True),
    "llama160m-q4_0": Recipe("LLaMA-160M shape Q4_0", "llama-160m", "Q4_0", shape=True),
    "olmoe-q4_0": Recipe("OLMoE-1B-7B shape Q4_0", "olmoe-1b-7b", "Q4_0", shape=True),
    "gemma3": Recipe("Gemma-3-270M, its own mix", "gemma3-270m"),
}


def title(name: str) -> str:
    """A file's name in a table."""
    return RECIPES[name].title


def path(name: str, folder: Path = FOLDER) -> Path:
    """The file of a recipe, made on first use. Another name is taken for a path.

    Raises what making it raises: the pull or the requantising says in one line what is wrong.
    """
    if name not in RECIPES:
        return Path(name)
    recipe = RECIPES[name]
    from genmote.models import store

    if recipe.type_name is None:
        return store.resolve(recipe.source)
    target = folder / f"{name}.gguf"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    print(f"bench: making {target.name}", file=sys.stderr, flush=True)
    # Both writers put the whole file in place at the end, so an interrupted one leaves nothing half.
    if recipe.shape:
        from genmote.models import make_model

        make_model.make_model(recipe.source, recipe.type_name, target, seed=SEED)
    elif recipe.tuned:
        from benchmarks.finetune import finetune

        finetune(store.resolve(recipe.source), target)
    else:
        from genmote.models.requantise import convert_type

        convert_type(store.resolve(recipe.source), target, recipe.type_name)
    return target


def weight_bytes(file: Path) -> int:
    """Bytes of weights that one decoded token reads: all tensors, but a table only used to look up one row."""
    from genmote.models.gguf import ModelFile

    tensors = ModelFile.open(file).tensors
    total = sum(tensor.nbytes for tensor in tensors.values())
    if "output.weight" in tensors:
        total -= tensors["token_embd.weight"].nbytes
    return total
