"""The sensor encoder: a signal of any kind as a few embeddings that a language model reads between its tokens.

Written once over an op set, of the decoder's own blocks. Attention in them looks back alone; so of the blocks over time
every other one runs backward, from the last slot to the first. C channels, T slots, D width.

1. A row for each channel and slot (`models/patches.py`), and one channel more that is to sum them up: (C + 1, T, D).
2. `time` blocks over the slots of each channel.
3. `across` blocks over the channels of each slot, the summary last, which sees them all; it alone goes on: (T, D).
4. `after` blocks over the slots again.
5. Some slots together become one embedding, as wide and as large as the language model's own; to each a portrait of
   the whole signal is added, which two matrices make of its channels' features, as blocks alone learn kinds slowly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError, SpecError
from genmote.models.config import Keys
from genmote.models.decoder import block
from genmote.models.patches import INPUTS, NAMES, PLACES, WHOLE, Patches, patches, portrait
from genmote.models.weights import Tensors
from genmote.ops.layer import Array, Layer, LayerSpec, Linear, Norm
from genmote.ops.protocol import Ops, Span
from genmote.signals.kinds import Signal

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile

ARCHITECTURE = "genmote-encoder"
VERSION = 1
HEAD_DIM = 32
ROPE_BASE = 1000.0  # slots are few
EPS = 1e-5
MOST_NUMBERS = 3_000_000  # of an encoder
MOST_SLOTS = 4096


@dataclass(frozen=True)
class Form:
    """An encoder's size. `slots`: most stretches of time that a signal is cut into, of which `join` together are one
    embedding. `out`: the language model's width; `bridge`: numbers between the last block and that."""

    out: int
    width: int = 192
    ffn: int = 384
    time: int = 2
    across: int = 1
    after: int = 1
    slots: int = 48
    join: int = 2
    bridge: int = 384
    portrait: int = 128

    def faults(self) -> Iterator[str]:
        for name in ("width", "ffn", "bridge", "portrait"):
            if getattr(self, name) % 32 or not 32 <= getattr(self, name) <= 8192:
                yield f"{name}={getattr(self, name)}: use a multiple of 32, such as 192"
        if self.time < 1 or self.across < 1 or self.after < 0 or self.time + self.across + self.after > 64:
            yield f"time={self.time}, across={self.across}, after={self.after}: use such as 2, 1 and 1"
        if not 1 <= self.slots <= MOST_SLOTS or not 1 <= self.join <= self.slots or self.slots % self.join:
            yield f"slots={self.slots}, join={self.join}: use such as 48 and 2, the one a multiple of the other"
        if self.out < 1:
            yield f"out={self.out}: wanted the language model's width"

    @property
    def blocks(self) -> int:
        return self.time + self.across + self.after

    @property
    def embeddings(self) -> int:
        """The most embeddings of a signal."""
        return self.slots // self.join

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file, by name."""
        wide = self.width
        found: dict[str, tuple[int, ...]] = {"input.weight": (wide, INPUTS), "names.weight": (wide, NAMES)}
        for n in range(self.blocks):
            found |= {f"blk.{n}.{part}.weight": (wide, wide) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
            found |= {f"blk.{n}.{part}.weight": (self.ffn, wide) for part in ("ffn_gate", "ffn_up")}
            found[f"blk.{n}.ffn_down.weight"] = (wide, self.ffn)
            found |= {f"blk.{n}.{part}.weight": (wide,) for part in ("attn_norm", "ffn_norm")}
        together = wide * self.join
        found["joined_norm.weight"] = (together,)
        found |= {f"bridge_{part}.weight": (self.bridge, together) for part in ("gate", "up")}
        found["bridge_down.weight"] = (self.out, self.bridge)
        found["output_norm.weight"] = (self.out,)
        found |= {f"portrait_{part}.weight": (WHOLE,) for part in ("mean", "scale")}
        found["portrait_in.weight"] = (self.portrait, PLACES * (WHOLE + 1))
        found["portrait_out.weight"] = (self.out, self.portrait)
        return found

    @property
    def numbers(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes().values())


# What a form's fields are called in a file.
KEYS = {
    "out": "output_length",
    "width": "embedding_length",
    "ffn": "feed_forward_length",
    "time": "time_blocks",
    "across": "across_blocks",
    "after": "after_blocks",
    "slots": "slots",
    "join": "slots_joined",
    "bridge": "bridge_length",
    "portrait": "portrait_length",
}
LANGUAGE = f"{ARCHITECTURE}.language."  # of the language model: sha256, name


def read_form(file: ModelFile) -> Form:
    """An encoder file's form; ModelFileError for what is no encoder, or has an impossible form."""
    if file.metadata.get("general.architecture") != ARCHITECTURE:
        raise ModelFileError(
            f"{file.path.name} is no sensor encoder: it is of {file.metadata.get('general.architecture')!r}, wanted "
            f"{ARCHITECTURE}; make one with genmote describe-train"
        )
    keys = Keys(file.metadata)
    if (version := keys.integer("version")) != VERSION:
        raise ModelFileError(
            f"{file.path.name} is an encoder of version {version}, this genmote reads {VERSION}; use a newer one"
        )
    form = Form(**{field: keys.integer(key, low=0) for field, key in KEYS.items()})
    if faults := list(form.faults()):
        raise ModelFileError(f"{file.path.name}: {'; '.join(faults)}; the file is damaged")
    return form


class Weights:
    """An encoder's weights for one op set. `matrices` is a `Tensors` of the file, or what gives them as it does."""

    def __init__(self, form: Form, matrices: Any) -> None:
        self.form = form
        wide, together = form.width, form.width * form.join
        self.input: Linear = matrices.linear("input", wide, INPUTS)
        self.names: Linear = matrices.linear("names", wide, NAMES)
        self.layers = [_layer(form, matrices, n) for n in range(form.blocks)]
        self.joined_norm: Norm = matrices.norm("joined_norm", together, EPS)
        self.gate: Linear = matrices.linear("bridge_gate", form.bridge, together)
        self.up: Linear = matrices.linear("bridge_up", form.bridge, together)
        self.down: Linear = matrices.linear("bridge_down", form.out, form.bridge)
        self.output_norm: Norm = matrices.norm("output_norm", form.out, EPS)
        self.whole_mean: NDArray[np.float32] = matrices.vector_numbers("portrait_mean", WHOLE)
        self.whole_scale: NDArray[np.float32] = matrices.vector_numbers("portrait_scale", WHOLE)
        self.portrait_in: Linear = matrices.linear("portrait_in", form.portrait, PLACES * (WHOLE + 1))
        self.portrait_out: Linear = matrices.linear("portrait_out", form.out, form.portrait)


def _layer(form: Form, matrices: Any, n: int) -> Layer:
    wide, name = form.width, f"blk.{n}."
    over_time = not form.time <= n < form.time + form.across
    heads = wide // HEAD_DIM
    return Layer(
        # Index 0: the blocks of one stage take the same rows of the same caches, one after the other.
        LayerSpec(0, heads, heads, HEAD_DIM, HEAD_DIM**-0.5, rope=0 if over_time else -1),
        attn_norm=matrices.norm(name + "attn_norm", wide, EPS),
        ffn_norm=matrices.norm(name + "ffn_norm", wide, EPS),
        q=matrices.linear(name + "attn_q", wide, wide),
        k=matrices.linear(name + "attn_k", wide, wide),
        v=matrices.linear(name + "attn_v", wide, wide),
        o=matrices.linear(name + "attn_output", wide, wide),
        gate=matrices.linear(name + "ffn_gate", form.ffn, wide),
        up=matrices.linear(name + "ffn_up", form.ffn, wide),
        down=matrices.linear(name + "ffn_down", wide, form.ffn),
    )


def forward(ops: Ops, weights: Weights, signals: Sequence[Patches]) -> Array:
    """The embeddings of some signals, one after the other, (sum of T / join, out)."""
    form = weights.form
    x = slot_states(ops, weights, signals)
    x = ops.norm(x.reshape(-1, form.width * form.join), weights.joined_norm)
    x = ops.glu(ops.linear(x, weights.gate), ops.linear(x, weights.up), "silu")
    portraits = ops.array(np.stack([portrait(one, weights.whole_mean, weights.whole_scale) for one in signals]))
    whole = ops.linear(ops.linear(portraits, weights.portrait_in), weights.portrait_out)
    counts = [len(one.spans_s) // form.join for one in signals]
    x = ops.add(ops.linear(x, weights.down), whole[np.repeat(np.arange(len(counts)), counts)])
    return ops.norm(x, weights.output_norm)


def slot_states(ops: Ops, weights: Weights, signals: Sequence[Patches]) -> Array:
    """What is known of each slot of each signal, (sum of T, D)."""
    form = weights.form
    shapes = [one.rows.shape[:2] for one in signals]  # (C + 1, T) each
    x = ops.linear(ops.array(np.concatenate([one.rows.reshape(-1, INPUTS) for one in signals])), weights.input)
    named = ops.linear(ops.array(np.concatenate([one.names for one in signals])), weights.names)
    lengths = [slots for channels, slots in shapes for _ in range(channels)]
    x = ops.add(x, named[np.repeat(np.arange(len(lengths)), lengths)])
    x = _over_time(ops, weights.layers[: form.time], x, lengths)

    order, widths, last, first = [], list[int](), list[int](), 0
    for channels, slots in shapes:  # from channel by channel to slot by slot
        order.append((first + np.arange(channels * slots)).reshape(channels, slots).T.reshape(-1))
        last += [first + (slot + 1) * channels - 1 for slot in range(slots)]
        widths += [channels] * slots
        first += channels * slots
    x = x[np.concatenate(order)]
    spans = _spans(ops, form, widths)
    for layer in weights.layers[form.time : form.time + form.across]:
        x = _block(ops, x, layer, None, spans)
    return _over_time(ops, weights.layers[form.time + form.across :], x[np.array(last)], [slots for _, slots in shapes])


def _over_time(ops: Ops, layers: Sequence[Layer], x: Array, lengths: Sequence[int]) -> Array:
    """Blocks over sequences of these lengths, one after the other: there, back, there, …"""
    if not layers:
        return x
    starts = np.cumsum([0, *lengths[:-1]])
    there = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)  # (N,) the slot of each row
    back = np.concatenate([np.arange(start + n - 1, start - 1, -1) for start, n in zip(starts, lengths, strict=True)])
    inv_freq = ROPE_BASE ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turns = [ops.rotary(positions, inv_freq, 1.0) for positions in (there, np.ascontiguousarray(there[back]))]
    spans = _spans(ops, None, lengths, layers[0].spec.n_heads)
    for n, layer in enumerate(layers):
        if n % 2:
            x = x[back]  # its own inverse
        x = _block(ops, x, layer, turns[n % 2], spans)
        if n % 2:
            x = x[back]
    return x


def _spans(ops: Ops, form: Form | None, lengths: Sequence[int], heads: int = 0) -> list[Span]:
    heads = heads if form is None else form.width // HEAD_DIM
    spans, start = [], 0
    for length in lengths:
        spans.append(Span(ops.cache(1, heads, HEAD_DIM, length), start, length))
        start += length
    return spans


def _block(ops: Ops, x: Array, layer: Layer, rotary: Any, spans: Sequence[Span]) -> Array:
    fused = getattr(ops, "block", None)
    found = None if fused is None else fused(x, layer, rotary, spans)
    return block(ops, x, layer, rotary, spans) if found is None else found


class Encoder:
    """An encoder file, ready to run."""

    @classmethod
    def load(cls, file: ModelFile, ops: Ops) -> Encoder:
        """ModelFileError for what is no encoder, or is damaged."""
        form = read_form(file)
        tensors = Tensors(file, ops)
        made = cls(form, Weights(form, tensors), ops)
        tensors.check_all_used()
        file.release(0, file.nbytes)  # the op set has its own form of the weights
        return made

    def __init__(self, form: Form, weights: Weights, ops: Ops) -> None:
        self.form, self.weights, self.ops = form, weights, ops

    def check(self, width: int, name: str, language: str) -> None:
        """Raise ModelFileError where it is not made for a language model of this width. `name`, `language`: what to
        call the two files."""
        if self.form.out != width:
            raise ModelFileError(
                f"{name} gives embeddings of {self.form.out} numbers, {language} takes {width}: use the language "
                "model that it was trained with"
            )

    def patches(self, signal: Signal) -> Patches:
        """A signal as the encoder reads it. SignalError for an empty one, or of frames."""
        return patches(signal, self.form.slots, self.form.join)

    def embed(self, signal: Signal | Patches) -> NDArray[np.float32]:
        """A signal's embeddings, (E, out), E at most `form.embeddings`. SignalError as `patches`."""
        one = signal if isinstance(signal, Patches) else self.patches(signal)
        return np.ascontiguousarray(self.ops.numpy(forward(self.ops, self.weights, [one])))


def fresh(form: Form, seed: int, size: float = 1.0, seen: Sequence[Patches] = ()) -> dict[str, NDArray[np.float32]]:
    """An encoder's numbers as it begins, drawn with a seed. `size`: root mean square of its embeddings; `seen`: signals
    whose channels' features are to have a mean of 0 and a spread of 1."""
    if faults := list(form.faults()):
        raise SpecError("; ".join(faults))
    if form.numbers > MOST_NUMBERS:
        raise SpecError(
            f"an encoder of {form.numbers} numbers: at most {MOST_NUMBERS}; use a smaller width, ffn or bridge"
        )
    draw = np.random.default_rng([seed, 4])
    deep = (2 * form.blocks) ** -0.5
    found = {}
    for name, shape in form.shapes().items():
        if name == "portrait_mean.weight":
            found[name] = np.zeros(shape, np.float32)
            continue
        if len(shape) == 1:
            found[name] = np.full(shape, size if name == "output_norm.weight" else 1.0, np.float32)
            continue
        factor = deep if name.endswith(("attn_output.weight", "ffn_down.weight")) else 1.0
        if name == "names.weight":  # few of its columns meet, and their parts are small
            factor = NAMES**0.5
        if name == "portrait_in.weight":  # of the places few are taken
            factor = PLACES**0.5
        found[name] = (draw.standard_normal(shape) * (factor / shape[1] ** 0.5)).astype(np.float32)
    if seen:
        told = np.concatenate([one.whole for one in seen]).astype(np.float64)
        found["portrait_mean.weight"] = told.mean(axis=0).astype(np.float32)
        found["portrait_scale.weight"] = (1 / np.maximum(0.02, told.std(axis=0))).astype(np.float32)
    return found


def metadata(form: Form, name: str, language_sha256: str, language_name: str) -> dict[str, Any]:
    """The keys of an encoder file (docs/formats.md)."""
    numbers = {KEYS[f.name]: np.uint32(getattr(form, f.name)) for f in fields(form)}
    return {
        "general.architecture": ARCHITECTURE,
        "general.name": name,
        f"{ARCHITECTURE}.version": np.uint32(VERSION),
        **{f"{ARCHITECTURE}.{key}": value for key, value in numbers.items()},
        LANGUAGE + "sha256": language_sha256,
        LANGUAGE + "name": language_name,
    }


def stored_as(name: str, shape: tuple[int, ...], type_name: str) -> str:
    """The type that a tensor of an encoder is stored as: vectors as floats, and what reads the features and the names
    as F16 at the least, as features tell fine differences."""
    if len(shape) == 1:
        return "F32"
    return (
        "F16"
        if name in ("input.weight", "names.weight", "portrait_in.weight") and type_name not in ("F32", "F16")
        else type_name
    )


def write(
    path: Any, form: Form, numbers: dict[str, NDArray[np.float32]], type_name: str, about: dict[str, Any]
) -> None:
    """An encoder file, whole or not at all; `about`: its keys. SpecError for an unknown type."""
    from genmote.models.gguf_write import write_gguf
    from genmote.ops import quant

    tensors = []
    for name, shape in form.shapes().items():
        kind = stored_as(name, shape, type_name)
        tensors.append((name, kind, shape, quant.quantize(kind, np.ascontiguousarray(numbers[name], np.float32))))
    write_gguf(path, about, tensors)
