"""What may be chosen of a training: one dataclass for Python, the command line and the card."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from genmote import registry
from genmote.models.parts import HEAD, PARTS
from genmote.spec import dataclass, setting

# What `on` takes beside the names of a block's matrices.
GROUPS = {
    "all": tuple(PARTS),
    "attention": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "ffn": ("ffn_gate", "ffn_up", "ffn_down"),
}
HEAD_PART, NORMS_PART, BIASES_PART = "head", "norms", "biases"
RATES: dict[str, float] = {"backward": 5e-4, "forward": 0.02}  # of the methods that need no PyTorch
MOST_RATE = 1e30  # of which a float32 takes many steps: what they make of the model is judged, not what overflows
MOST_BATCH = 1 << 16
KEPT = 0.1  # by select, unless told otherwise
WORKBENCH = "workbench"  # the method that a memory budget chooses of those in this room
ROOM = "genmote.tune.workbench"
PLACES = (*GROUPS, *PARTS, HEAD_PART, NORMS_PART, BIASES_PART)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How an adapter is learnt."""

    on: str = setting(
        "what is learnt: all (every matrix of the blocks), attention, ffn, head, norms, biases, or matrices' names "
        "such as attn_q, with commas between",
        default="all",
    )
    method: str = setting(
        "backward: gradients by the way back through the model; forward: passes forward alone, in the memory that "
        "inference takes, also of weights that are read from the disk; with PyTorch: full, galore, lisa, badam, "
        "adalomo, lomo, dora, lora, rslora or qlora, with settings as NAME:FIELD=VALUE, or workbench, the strongest of "
        "these that --memory has room for",
        default="backward",
    )
    rank: int = setting("rank of the adapter", default=8)
    alpha: float | None = setting("the update counts alpha / rank (default: twice the rank)", default=None)
    steps: int = setting("steps of training", default=200)
    batch: int = setting("examples of a step", default=4)
    context: int = setting("most tokens of an example", default=256)
    rate: float | None = setting(
        f"learning rate, the highest (default: {RATES['backward']:g}; forward {RATES['forward']:g}, a part of the "
        "residual stream's length; methods with PyTorch have their own)",
        default=None,
    )
    warmup: float = setting(
        "part of the steps in which the rate rises; then it falls to nothing as a cosine", default=0.05
    )
    decay: float = setting("weight decay", default=0.0)
    clip: float = setting("a longer gradient of a matrix is shortened to this length", default=1.0)
    seed: int = setting("seed of the adapter's first numbers and of the order of examples", default=0)
    base: Path | None = setting("an adapter to go on from (default: begin anew)", default=None, flag="--from")
    held_out: Path | None = setting("examples to judge by (default: a tenth of the file's)", default=None)
    judge_every: int = setting("steps between two judgements", default=25)
    patience: int = setting("stop after so many judgements without a better one (0: never)", default=0)
    select: str | None = setting(
        "learn from a part of the examples, chosen so: auto, random, dedup, balance, perplexity, coreset, curves, "
        "forgetting, gradients or cover, with settings as NAME:FIELD=VALUE",
        default=None,
    )
    keep: float = setting("with --select: how many examples, a share such as 10% or a number", default=KEPT)
    inputs: Literal["f32", "f16"] = setting("how layers' inputs are kept until the way back", default="f32")
    rows: int = setting("tokens that go through the model at once (0: one example of --context)", default=0)
    logit_rows: int = setting("rows whose logits are held at once", default=32)
    weights: Literal["memory", "disk"] = setting(
        "where the model's weights are: in memory, or read from the disk as they are needed", default="memory"
    )
    recompute: bool = setting(
        "with PyTorch: keep the inputs of layers alone, and compute each layer again on the way back (gradient "
        "checkpointing)",
        default=False,
    )
    type: str | None = setting(
        "tensor type of the matrices of a model that is written whole (default: each as in the base)", default=None
    )

    def faults(self) -> Iterable[str]:
        unknown = [part for part in self.parts if part not in PLACES]
        if unknown or not self.parts:
            yield f"on={self.on}: {', '.join(unknown) or 'nothing'} cannot be learnt; use of {', '.join(PLACES)}"
        if not 1 <= self.rank <= 1024:
            yield f"rank={self.rank}: use 1 to 1024, such as 8"
        if self.alpha is not None and not 0 < self.alpha < 1e6:
            yield f"alpha={self.alpha}: use more than 0, such as {2 * self.rank}"
        if self.steps < 1 or not 1 <= self.batch <= MOST_BATCH or self.judge_every < 1 or self.patience < 0:
            yield (
                f"steps={self.steps}, batch={self.batch}, judge_every={self.judge_every}, patience={self.patience}: "
                f"use at least 1, of patience at least 0, of batch at most {MOST_BATCH}"
            )
        if not 8 <= self.context <= 1 << 20:
            yield f"context={self.context}: use 8 or more, such as 256"
        if (
            not (self.rate is None or 0 < self.rate <= MOST_RATE)
            or not 0 <= self.warmup <= 1
            or not 0 <= self.decay < 10
            or not self.clip > 0
        ):
            yield (
                f"rate={self.rate}, warmup={self.warmup}, decay={self.decay}, clip={self.clip}: "
                "use such as 0.0005, 0.05, 0 and 1"
            )
        if self.method_name not in (*RATES, WORKBENCH, *(known := registry.names(ROOM))):
            close = registry.near(self.method_name, known)
            every = ", ".join((*RATES, WORKBENCH, *known))
            yield f"method={self.method}: no method is called so{close}; use of {every}"
        elif ":" in self.method and self.method_name not in known:
            yield f"method={self.method}: {self.method_name} has no settings after a colon; leave them out"
        if self.select is None and self.keep not in (KEPT, 1):
            yield f"keep={self.keep:g}: how much select keeps; give select, too (--select auto), or leave it out"
        if not self.on_workbench and (self.recompute or self.type is not None):
            yield f"recompute, type: of methods with PyTorch; method={self.method} takes neither"
        if self.on_workbench and (self.weights == "disk" or self.inputs != "f32"):
            yield f"method={self.method}: keeps weights and inputs in memory, as floats (no --weights, no --inputs)"
        if self.method == "forward" and (self.base is not None or self.weights == "disk"):
            yield "method=forward: begins anew (no --from), and has weights on the disk by --memory (no --weights)"
        if not 0 <= self.seed < 1 << 32:
            yield f"seed={self.seed}: use 0 to {(1 << 32) - 1}"
        if self.rows < 0 or self.logit_rows < 1:
            yield f"rows={self.rows}, logit_rows={self.logit_rows}: use 0 or more, and at least 1"

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.on.split(",") if part.strip())

    @property
    def method_name(self) -> str:
        return self.method.partition(":")[0]

    @property
    def on_workbench(self) -> bool:
        """Whether the method needs PyTorch."""
        return self.method_name not in RATES

    @property
    def highest_rate(self) -> float:
        return RATES[self.method] if self.rate is None else self.rate

    @property
    def factor(self) -> float:
        """What the update counts."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank

    def learns(self, tensor: str) -> bool:
        """Whether the matrix of this name (`blk.0.attn_q.weight`) gets an adapter."""
        if tensor == HEAD:
            return HEAD_PART in self.parts
        part = tensor.split(".")[2]
        return any(part in GROUPS.get(asked, (asked,)) for asked in self.parts)
