"""Where a decoder's weights come from: the protocol, and the one that reads a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from genmote import registry
from genmote.errors import ModelFileError
from genmote.models.config import FAMILIES, Config, is_tied, read_config
from genmote.ops import quant
from genmote.ops.layer import Experts, Layer, Linear, Norm
from genmote.ops.protocol import Ops

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from genmote.models.gguf import ModelFile, TensorInfo

# (tensor's name, what the file says of it) -> the op set's matrix; for one expert of a 3-D tensor the name ends in
# "[e]" and the info is the whole tensor's.
MatrixLoader = Callable[[str, "TensorInfo"], Any]


class WeightSource(Protocol):
    """What `Decoder` reads. `layers` may make a block's weights when it is asked for them (streaming, splits)."""

    @property
    def embedding(self) -> Any:
        """Matrix (V, D)."""
        ...

    @property
    def position_embedding(self) -> Any | None:
        """Matrix (context, D) of learned positions, or None."""
        ...

    @property
    def output_norm(self) -> Norm: ...

    @property
    def head(self) -> Linear:
        """(V, D); the embedding's own matrix where the two are tied."""
        ...

    @property
    def layers(self) -> Sequence[Layer]: ...


class TensorFile(Protocol):
    """As much of a `ModelFile` as reading its tensors takes."""

    path: Path
    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> str: ...
    def raw(self, name: str) -> NDArray[np.uint8]: ...
    def tensor(self, name: str) -> NDArray[np.float32]: ...


class Tensors:
    """Checked access to a model file's tensors: each is there, of the right shape, or ModelFileError says which."""

    def __init__(self, model: TensorFile, ops: Ops, matrix_loader: MatrixLoader | None = None) -> None:
        self.model, self.ops, self.matrix_loader = model, ops, matrix_loader
        self.used: set[str] = {"rope_freqs.weight"}

    def has(self, name: str) -> bool:
        return name in self.model.tensors

    def matrix(self, name: str, out: int, cols: int) -> Any:
        info = self._info(name, (out, cols))
        if self.matrix_loader is not None:
            return self.matrix_loader(name, info)
        return self.ops.matrix(info.type, (out, cols), self.model.raw(name))

    def expert(self, prefix: str, part: str, index: int, count: int, out: int, cols: int) -> Any:
        """One expert's matrix: of the 3-D tensor `PREFIX.PART_exps.weight`, or, where experts have types of their own,
        the tensor `PREFIX.PART.INDEX.weight`."""
        name = f"{prefix}.{part}_exps.weight"
        if not self.has(name) and self.has(f"{prefix}.{part}.{index}.weight"):
            return self.matrix(f"{prefix}.{part}.{index}.weight", out, cols)
        info = self._info(name, (count, out, cols))
        if self.matrix_loader is not None:
            return self.matrix_loader(f"{name}[{index}]", info)
        return self.ops.matrix(info.type, (out, cols), self.model.raw(name).reshape(count, -1)[index])

    def vector(self, name: str, length: int) -> Any:
        self._info(name, (length,))
        return self.ops.vector(self.model.tensor(name))

    def vector_numbers(self, name: str, length: int) -> NDArray[np.float32]:
        """The vector `NAME.weight` as it is in the file."""
        self._info(f"{name}.weight", (length,))
        return self.model.tensor(f"{name}.weight")

    def linear(self, name: str, out: int, cols: int, *, bias: bool = False) -> Linear:
        """`NAME.weight`, or of low rank `NAME_a.weight` and `NAME_b.weight`; and `NAME.bias` where the file has one;
        with `bias` it must."""
        wanted = bias or self.has(f"{name}.bias")
        vector = self.vector(f"{name}.bias", out) if wanted else None
        first = self.model.tensors.get(f"{name}_a.weight")
        if first is None or self.has(f"{name}.weight"):
            return Linear(self.matrix(f"{name}.weight", out, cols), vector)
        down = self.matrix(f"{name}_a.weight", first.shape[0], cols)
        return Linear(self.matrix(f"{name}_b.weight", out, first.shape[0]), vector, down=down)

    def has_linear(self, name: str) -> bool:
        """Whether the file has such a linear, whole or of low rank."""
        return self.has(f"{name}.weight") or self.has(f"{name}_a.weight")

    def norm(self, name: str, width: int, eps: float, *, centre: bool = False) -> Norm:
        """`NAME.weight`, and for a layer norm (`centre`) `NAME.bias`."""
        gain = self.vector(f"{name}.weight", width)
        return Norm(gain, self.vector(f"{name}.bias", width) if centre else None, eps, centre)

    def experts(self, prefix: str, config: Config, index: int) -> Experts:
        count, width, inner = config.n_experts, config.width, config.ffn_widths[index]
        router = self.linear(f"{prefix}.ffn_gate_inp", count, width)
        # One expert after the other, so that its three matrices are neighbours in a packed file.
        each = [
            (
                self.expert(prefix, "ffn_gate", number, count, inner, width),
                self.expert(prefix, "ffn_up", number, count, inner, width),
                self.expert(prefix, "ffn_down", number, count, width, inner),
            )
            for number in range(count)
        ]
        gate, up, down = zip(*each, strict=True)
        return Experts(router, gate, up, down, config.n_experts_used, config.normalise_experts)

    def check_all_used(self) -> None:
        """A tensor that the family leaves out would silently make it another model."""
        left = [name if name.isprintable() else repr(name) for name in self.model.tensors if name not in self.used]
        if left:
            some = ", ".join(sorted(left)[:3]) + (", …" if len(left) > 3 else "")
            raise ModelFileError(
                f"{self.model.path.name} has {len(left)} tensors that a {self.model.architecture} model does not use "
                f"({some}): it would compute something else; use a plain conversion of the model"
            )

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self.model.tensors.get(name)
        if info is None:
            raise ModelFileError(
                f"{self.model.path.name} has no tensor {name}, which a {self.model.architecture} model needs; "
                "the file is damaged or another kind of model"
            )
        if tuple(info.shape) != shape:
            raise ModelFileError(
                f"{name} has shape {tuple(info.shape)}: the metadata asks for {shape}; the file is damaged"
            )
        if not quant.by_name(info.type).codec:
            raise ModelFileError(
                f"{name} is stored as {info.type}: wanted a type that holds weights; the file is damaged"
            )
        self.used.add(name)
        return info


def is_expert(name: str) -> bool:
    """Whether a matrix of this name is one of a mixture's experts.

    >>> is_expert("blk.0.ffn_up_exps.weight[3]"), is_expert("blk.0.ffn_up.3.weight"), is_expert("blk.0.ffn_up.weight")
    (True, True, False)
    """
    return "_exps.weight" in name or (name.startswith("blk.") and name.count(".") == 4 and ".ffn_" in name)


def standard_layer(
    tensors: Tensors, config: Config, index: int, *, biased: tuple[str, ...] = (), centre: bool = False
) -> Layer:
    """The block that most families share, by llama.cpp's tensor names; a family replaces what differs.

    `biased`: the linears that must have a bias; others have one where the file does. `centre`: layer norms.
    """
    spec, prefix = config.layers[index], f"blk.{index}"
    width, inner = config.width, config.ffn_widths[index]
    q_width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    gated = config.n_experts == 0

    def linear(name: str, out: int, cols: int) -> Linear:
        return tensors.linear(f"{prefix}.{name}", out, cols, bias=name in biased)

    def norm(name: str) -> Norm:
        return tensors.norm(f"{prefix}.{name}", width, config.eps, centre=centre)

    return Layer(
        spec=spec,
        attn_norm=norm("attn_norm"),
        q=linear("attn_q", q_width, width),
        k=linear("attn_k", kv_width, width),
        v=linear("attn_v", kv_width, width),
        o=linear("attn_output", width, q_width),
        ffn_norm=norm("ffn_norm"),
        gate=linear("ffn_gate", inner, width) if gated and tensors.has_linear(f"{prefix}.ffn_gate") else None,
        up=linear("ffn_up", inner, width) if gated else None,
        down=linear("ffn_down", width, inner) if gated else None,
        experts=None if gated else tensors.experts(prefix, config, index),
    )


class GgufWeights:
    """A whole model's weights out of a GGUF file, checked, as matrices of one op set.

    `matrix_loader(name, info)` supplies prepared matrices instead of `ops.matrix` over the file's bytes.
    """

    def __init__(self, model: ModelFile, ops: Ops, matrix_loader: MatrixLoader | None = None) -> None:
        self.model = model
        self.config = config = read_config(model)
        tensors = Tensors(model, ops, matrix_loader)
        family = registry.load(FAMILIES, config.architecture, what="model family", error=ModelFileError)
        self.embedding = tensors.matrix("token_embd.weight", config.vocab_size, config.width)
        self.position_embedding = (
            None if config.ropes else tensors.matrix("position_embd.weight", config.context_length, config.width)
        )
        self.output_norm = tensors.norm("output_norm", config.width, config.eps, centre=tensors.has("output_norm.bias"))
        tied = is_tied(model.tensors)
        self.head = Linear(self.embedding) if tied else tensors.linear("output", config.vocab_size, config.width)
        self.layers: list[Layer] = [family.layer(tensors, config, index) for index in range(config.n_layers)]
        tensors.check_all_used()
