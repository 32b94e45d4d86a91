"""What a generator's model file says beside its tensors: the codec, how rows are laid out, and its card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from genmote.errors import ModelFileError, SignalError
from genmote.generator.layout import Layout
from genmote.generator.scale import Own
from genmote.models.gguf import ModelFile
from genmote.signals import coding

CODEC, OWN = "genmote.codec.", "genmote.generator."
VERSION = 1
ARCHITECTURE = "qwen3"  # Llama's block with normalised queries and keys: steady at high learning rates


@dataclass(frozen=True)
class Form:
    """A decoder's size. `heads` are of 32 numbers each, and share one key and value (Shazeer 2019, arXiv 1911.02150):
    many ways are drawn at once, and what each keeps of its past is what takes the time."""

    width: int
    layers: int
    ffn_width: int

    @property
    def heads(self) -> int:
        return self.width // 32

    def metadata(self, context: int, name: str) -> dict[str, Any]:
        """The keys of a model file of this size."""
        return {
            "general.architecture": ARCHITECTURE,
            "general.name": name,
            f"{ARCHITECTURE}.block_count": np.uint32(self.layers),
            f"{ARCHITECTURE}.embedding_length": np.uint32(self.width),
            f"{ARCHITECTURE}.feed_forward_length": np.uint32(self.ffn_width),
            f"{ARCHITECTURE}.attention.head_count": np.uint32(self.heads),
            f"{ARCHITECTURE}.attention.head_count_kv": np.uint32(1),
            f"{ARCHITECTURE}.attention.key_length": np.uint32(32),
            f"{ARCHITECTURE}.attention.value_length": np.uint32(32),
            f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon": np.float32(1e-5),
            f"{ARCHITECTURE}.rope.freq_base": np.float32(10000.0),
            f"{ARCHITECTURE}.rope.dimension_count": np.uint32(32),
            f"{ARCHITECTURE}.context_length": np.uint32(context),
        }


FORMS = {
    "tiny": Form(96, 3, 256),
    "small": Form(128, 4, 384),
    "medium": Form(192, 6, 512),
    "large": Form(320, 7, 896),
}


def keys(layout: Layout, card: dict[str, Any]) -> dict[str, Any]:
    """The keys of a generator: its codec's, its layout's, and its card as JSON."""
    return {
        **{CODEC + key: value for key, value in layout.codec.state().items()},
        OWN + "version": np.uint32(VERSION),
        OWN + "clock": layout.clock,
        OWN + "scale": layout.scale,
        OWN + "labelled": layout.labelled,
        OWN + "card": json.dumps(card),
    }


def layout_of(file: ModelFile) -> Layout:
    """How a model file's rows are laid out; ModelFileError for one that is no generator."""
    version = file.metadata.get(OWN + "version")
    if version is None:
        raise ModelFileError(f"{file.path.name} is no generator of signals: make one with genmote signal train")
    if version != VERSION:
        raise ModelFileError(
            f"{file.path.name} is a generator of version {version!r}, this genmote reads {VERSION}; use a newer one"
        )
    state = {key.removeprefix(CODEC): value for key, value in file.metadata.items() if key.startswith(CODEC)}
    try:
        codec = coding.from_state(state)
    except SignalError as fault:
        raise ModelFileError(f"{file.path.name}: {fault}") from None
    context = file.metadata.get(f"{file.architecture}.context_length")
    clock = file.metadata.get(OWN + "clock")
    if not isinstance(context, int) or not isinstance(clock, bool):
        raise ModelFileError(f"{file.path.name}: no context_length or {OWN}clock; the file is damaged")
    scale = file.metadata.get(OWN + "scale", "none")  # which files of the first days do not have
    if scale not in get_args(Own):
        raise ModelFileError(
            f"{file.path.name}: {OWN}scale is {scale!r}, this genmote knows {', '.join(get_args(Own))}"
        )
    layout = Layout(codec, clock, context, scale, file.metadata.get(OWN + "labelled") is True)
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    if rows != layout.vocabulary:
        raise ModelFileError(
            f"{file.path.name} has {rows} embeddings for {layout.vocabulary} tokens of its codec; the file is damaged"
        )
    return layout


def card_of(file: ModelFile) -> dict[str, Any]:
    """What the training wrote of itself; empty where it is not readable."""
    try:
        card = json.loads(file.metadata.get(OWN + "card", "{}"))
    except (TypeError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}
