"""Steps of training by passes forward alone, in the memory that inference takes, also while weights come off the disk.

The gradient of an adapter's update B (out, rank) is estimated from differences (MeZO: Malladi et al. 2023, arXiv
2305.17333; two-sided random differences: Spall 1992): each example goes through the model twice, as rows of one pass
that reads the weights once, with B moved along random signs and against them. What the two losses differ by, times the
signs, is an estimate without bias up to the move's square. No direction is kept: it is drawn again from the seed.

An estimate's error grows with the number of directions, so:

- each example of a step has signs of its own, which costs nothing: a step of n examples tries n directions;
- only what writes into the residual stream is learnt (`attn_output`, `ffn_down`), in the upper half of the layers;
- an adapter's `lora_a` are the leading components of what the matrix is given, scaled to a size of 1, and stay;
- B moves in `GUIDES` directions of the residual stream: the leading components of the loss's gradient at the last
  layer's output. That gradient needs no way back through a layer, and residual streams carry much of it down unchanged;
- for the same reason the gradient of the last `ffn_down` is exact and free: there nothing is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.models.backward import Batch, states
from genmote.models.decoder import Decoder
from genmote.models.lora import base_shapes
from genmote.ops.exact import Float32
from genmote.ops.gradients import Gradients, of
from genmote.ops.layer import Adapter, Layer, Linear
from genmote.tune import batches
from genmote.tune.adamw import AdamW
from genmote.tune.examples import Examples
from genmote.tune.learnt import Learnt, Numbers
from genmote.tune.memory import EXACT_RANKS, WRITERS, writes
from genmote.tune.settings import Tuning
from genmote.tune.trainer import AdapterTrainer, scheduled

GUIDES = 8  # directions of the residual stream in which an estimated update moves
MOVE = 0.1  # length of the random move of the residual stream, of all matrices together, as a part of its own length
ESTIMATED = 0.05  # how far estimated updates go in a step, of what exact ones go
MEMORY = 0.9  # of the estimates' mean square in each next step
LOST = 1e-6  # of the largest component's square: a smaller one is none
STATE = "forward"  # the name of what a run keeps beside the numbers


@dataclass(frozen=True)
class _Own(Adapter):
    """An adapter whose update is made of the trainer's own numbers."""

    tensor: str = ""


class _Named(Learnt):
    """The model with the adapters' first halves alone, and their names: what follows is `_Steered`'s."""

    def _linear(self, linear: Linear, tensor: str) -> Linear:
        if f"{tensor}.lora_a" not in self.numbers:
            return linear
        down = self._matrix(self.numbers[f"{tensor}.lora_a"])
        own = _Own(down, None, self.alpha / down.shape[0], tensor)
        return replace(linear, adapters=(*linear.adapters, own))


class _Steered:
    """An op set whose products with an own adapter are another's to end: `steer(adapter, x, low, y)` may change y."""

    def __init__(self, ops: Any, steer: Any) -> None:
        self._ops, self._steer = ops, steer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(self, x: Float32, weight: Linear) -> Float32:
        if not weight.adapters or not isinstance(own := weight.adapters[-1], _Own):
            plain: Float32 = self._ops.linear(x, weight)
            return plain
        y: Float32 = self._ops.linear(x, replace(weight, adapters=weight.adapters[:-1]))
        self._steer(own, x, self._ops.linear(x, Linear(own.down)), y)
        return y


class ForwardTrainer(AdapterTrainer):
    """A model and what is learnt of it, as `trainer.Trainer`: `numbers` are changed in place."""

    def __init__(
        self, decoder: Decoder, tuning: Tuning, learn: Examples, *, gradients: Gradients | None = None
    ) -> None:
        """`decoder` gives the base, and stays as it is; some of `learn` go through it to find the components. Raises
        SpecError where the model has nothing of what is to be learnt, OpsError for an op set without the backward
        operations of a head."""
        self.tuning, self.base, ops = tuning, decoder.weights, decoder.ops
        self.gradients = of(ops) if gradients is None else gradients
        self.estimated, self.exact = _places(decoder, tuning)
        shapes, alpha = base_shapes(decoder.config), tuning.factor * tuning.rank
        self.numbers: Numbers = {}
        for tensor in (*self.estimated, *self.exact):
            out, cols = shapes[tensor]
            rank = min(tuning.rank * (EXACT_RANKS if tensor in self.exact else 1), cols)
            self.numbers[f"{tensor}.lora_a"] = np.zeros((rank, cols), np.float32)
            self.numbers[f"{tensor}.lora_b"] = np.zeros((out, rank), np.float32)
        self.judged = Decoder(decoder.config, Learnt(self.base, ops, self.numbers, alpha), ops)
        self.weights: Any = _Named(self.base, ops, self.numbers, alpha)
        self.decoder = Decoder(decoder.config, self.weights, _Steered(ops, self._steer))
        self.decoder.before_pass = self.judged.before_pass = decoder.before_pass
        self.adam = AdamW(decay=tuning.decay, seed=tuning.seed)
        self._low: dict[str, Float32] = {}  # of the exact ones, in this pass
        self._moves: _Moves | None = None
        self._look(learn)

    @property
    def rows(self) -> int:
        """Rows of a pass, at most: two for each token (an example of more goes alone)."""
        return self.tuning.rows or 2 * self.tuning.context

    # -- before the first step ----------------------------------------------------------------------------------------

    def _look(self, learn: Examples) -> None:
        """Passes of some examples, which give the components of what the matrices are given and of the gradient at the
        last layer's output: one, and more for the exact ones', until there are twice as many rows as components."""
        order = batches.chosen(len(learn), len(learn), 0, self.tuning.seed)
        share = 1 / batches.learnt_tokens(learn, order)
        given, sizes = {tensor: list[Float32]() for tensor in self.exact}, dict[str, float]()
        wanted = 2 * max([len(self.numbers[f"{tensor}.lora_a"]) for tensor in self.exact], default=0)
        first: tuple[Float32, Float32] | None = None  # what the last layer gives where something is said, its gradient
        looked = 0

        def look(own: _Own, x: Float32, low: Float32, y: Float32) -> None:
            if own.tensor in given:
                given[own.tensor].append(x[said])
            elif first is None:
                self._scaled(own.tensor, x[said])
            if first is None:
                sizes[own.tensor] = _length(y[said])

        looking = Decoder(self.decoder.config, self.weights, _Steered(self.judged.ops, look))
        looking.before_pass = self.decoder.before_pass
        for batch in batches.passes(learn, order, self.rows, share):
            said = np.flatnonzero(batch.weights)
            x, _, d = self._run(looking, batch, back=first is None)
            if first is None:
                first = x[said], d[said]
            looked += len(said)
            if looked >= wanted:
                break
        assert first is not None
        for tensor, rows in given.items():
            self._scaled(tensor, np.concatenate(rows))
        guides, _ = _components(first[1], GUIDES)
        # A move of the residual stream is measured by the stream; where a norm follows the product, by the product.
        stream = _length(first[0])
        whole = math.sqrt(max(1, len(self.estimated)) * guides.shape[0] * self.tuning.rank)
        scales = [(sizes[tensor] if _post(self.base, tensor) else stream) / whole for tensor in self.estimated]
        self.adam.states[STATE] = {
            "guides": guides.astype(np.float32),  # (GUIDES, D), orthonormal
            "scales": np.array(scales, np.float32) / np.float32(self.tuning.factor),  # (matrices,) of a sign
            "stream": np.array(stream, np.float32),
            "square": np.array(0, np.float64),  # of the estimates, a running mean
        }

    def _scaled(self, tensor: str, rows: Float32) -> None:
        """An adapter's first half: the leading components of what its matrix is given, scaled to a size of 1: each by
        itself, or, where there are many since the gradient is exact, all by one factor: the last are noise mostly."""
        down = self.numbers[f"{tensor}.lora_a"]
        parts, lengths = _components(rows, len(down))
        if tensor in self.exact:
            lengths = np.full_like(lengths, np.sqrt(np.square(lengths).mean()))
        down[: len(parts)] = parts * (math.sqrt(len(rows)) / lengths)[:, None]

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, examples: Examples, some: Sequence[int], step: int) -> float:
        """Learn from some examples as step number `step`, the first is 1; the mean loss of their tokens before it, in
        nats, as the moved models have it. Raises FloatingPointError where the loss is no number any more, after which
        the numbers are of no use."""
        share = 1 / max(1, batches.learnt_tokens(examples, some))
        sides = [index for index in some for _ in range(2)] if self.estimated else list(some)
        losses, sums = np.zeros(len(sides)), {tensor: self._zeros(tensor) for tensor in self.exact}
        at = 0
        with np.errstate(over="ignore", invalid="ignore"):  # told by the loss
            for batch in batches.passes(examples, sides, self.rows, share * len(some) / len(sides)):
                self._moves = _Moves(self, batch.lengths, at, len(some), step) if self.estimated else None
                _, rows, d = self._run(self.decoder, batch, back=bool(self.exact))
                count = len(batch.lengths)
                losses[at : at + count] = np.add.reduceat(rows, np.cumsum([0, *batch.lengths[:-1]]))
                for tensor in self.exact:
                    sums[tensor] += self.gradients.outer(d, self._low.pop(tensor))
                at += count
        self._moves = None
        if not math.isfinite(loss := float(losses.sum())):
            raise FloatingPointError(f"step {step}: the loss is {loss}")
        rate = scheduled(self.tuning, step)
        if self.estimated:
            self._move(2 * (losses[0::2] - losses[1::2]) / (2 * MOVE), rate, step)
        for tensor, gradient in sums.items():
            name = f"{tensor}.lora_b"
            # By how long the residual stream is: the same rate for every model.
            counts = self.weights.alpha / gradient.shape[1]
            length = float(self.adam.states[STATE]["stream"]) / math.sqrt(gradient.size) / counts
            self.adam.update(name, self.numbers[name], gradient, rate * length, step)
        return loss

    def judge(self, examples: Examples, done: Callable[[int], None] = lambda count: None) -> float:
        """Mean loss of all tokens that are to be learnt, in nats; `done` is told how many examples are gone through."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = batches.judged(examples, self.rows, done)
            return sum(float(self._run(self.judged, batch, back=False)[1].sum()) for batch in found)

    def estimate(self, differences: NDArray[np.float64], step: int) -> dict[str, Float32]:
        """Each estimated matrix's gradient (GUIDES, rank), along the guides and by the size of a sign: the examples'
        differences of loss (n,), each along the signs that its example had in this step."""
        drawn = {tensor: self.signs(tensor, len(differences), step) for tensor in self.estimated}
        return {tensor: np.tensordot(differences, signs, 1).astype(np.float32) for tensor, signs in drawn.items()}

    def signs(self, tensor: str, count: int, step: int) -> NDArray[np.int8]:
        """The directions of a step's examples in one matrix, (n, GUIDES, rank) of 1 and -1."""
        draw = np.random.default_rng([self.tuning.seed, 3, step, crc32(tensor.encode())])
        shape = (count, len(self.adam.states[STATE]["guides"]), self.tuning.rank)
        return 2 * draw.integers(0, 2, shape, np.int8) - 1

    def _move(self, differences: NDArray[np.float64], rate: float, step: int) -> None:
        """A step along the estimates: each number goes by its share of `rate` on average."""
        state = self.adam.states[STATE]
        square, before = float(np.square(differences).sum()), float(state["square"])
        state["square"] = np.array(MEMORY * before + (1 - MEMORY) * square if before else square)
        if not square:
            return
        far = ESTIMATED * rate / math.sqrt(float(state["square"]))
        estimates = self.estimate(differences, step)
        for scale, (tensor, estimate) in zip(state["scales"], estimates.items(), strict=True):
            self.numbers[f"{tensor}.lora_b"] -= state["guides"].T @ (estimate * np.float32(far * scale))

    def _steer(self, own: _Own, x: Float32, low: Float32, y: Float32) -> None:
        """What an adapter adds to its product in a step: its numbers', and each row's move."""
        low = low * np.float32(own.scale)
        y += low @ self.numbers[f"{own.tensor}.lora_b"].T
        if own.tensor in self.exact:
            self._low[own.tensor] = low
        elif self._moves is not None:
            self._moves.add(own.tensor, low, y)

    def _run(self, decoder: Decoder, batch: Batch, *, back: bool) -> tuple[Float32, NDArray[np.float64], Float32]:
        """What the last block gives (N, D), each row's part of the loss (N,), and with `back` the gradient of the
        former (N, D)."""
        weights, cap, said = self.base, decoder.config.logit_cap, np.flatnonzero(batch.weights)
        at_once = self.tuning.logit_rows
        if decoder.before_pass is not None:
            decoder.before_pass(min(at_once, len(said)), len(batch.tokens))
        x = states(decoder, batch)
        losses, d = np.zeros(len(x)), np.zeros_like(x) if back else x
        for start in range(0, len(said), at_once):
            rows = said[start : start + at_once]
            h = decoder.ops.norm(x[rows], weights.output_norm)
            logits = decoder.ops.linear(h, weights.head)
            if cap:
                logits = decoder.ops.soft_cap(logits, cap)
            capped = logits.copy() if cap and back else logits
            losses[rows] = _losses(logits, batch.targets[rows]) * batch.weights[rows]
            if back:
                _gradients(logits, batch.targets[rows], batch.weights[rows])
                if cap:
                    logits = self.gradients.soft_cap(logits, capped, cap)
                dh = self.gradients.matrix(logits, weights.head.matrix)
                if weights.head.down is not None:
                    dh = self.gradients.matrix(dh, weights.head.down)
                d[rows] = self.gradients.norm(dh, x[rows], weights.output_norm)[0]
        return x, losses, d

    def _zeros(self, tensor: str) -> Float32:
        return np.zeros_like(self.numbers[f"{tensor}.lora_b"])


class _Moves:
    """The moves of one pass: text number i of the step goes along the signs of example i // 2, or against them."""

    def __init__(self, trainer: ForwardTrainer, lengths: Sequence[int], first: int, count: int, step: int) -> None:
        self.trainer, self.lengths, self.first, self.count, self.step = trainer, lengths, first, count, step
        self.state = trainer.adam.states[STATE]
        self.scales = dict(zip(trainer.estimated, self.state["scales"], strict=True))

    def add(self, tensor: str, low: Float32, y: Float32) -> None:
        """Add the moves to a product y (N, D) whose adapter's first half, scaled, gave `low` (N, rank)."""
        signs = self.trainer.signs(tensor, self.count, self.step).astype(np.float32)
        along, start = np.empty((len(low), signs.shape[1]), np.float32), 0
        for text, length in enumerate(self.lengths, self.first):
            rows = slice(start, start + length)
            along[rows] = low[rows] @ signs[text // 2].T
            along[rows] *= -1 if text % 2 else 1
            start += length
        along *= np.float32(MOVE) * self.scales[tensor]
        y += along @ self.state["guides"]


def _places(decoder: Decoder, tuning: Tuning) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The matrices whose updates are estimated, and those whose gradient is exact: the last `ffn_down`, which only the
    head comes after. SpecError where there is neither."""
    config = decoder.config
    found = [tensor for tensor in base_shapes(config) if writes(tensor, config, tuning)]
    if not found:
        raise SpecError(f"on={tuning.on}: passes forward alone learn {' and '.join(WRITERS)}; use all, or one of these")
    last = f"blk.{config.n_layers - 1}.ffn_down.weight"
    exact = [tensor for tensor in found if tensor == last and not _post(decoder.weights, tensor)]
    return tuple(tensor for tensor in found if tensor not in exact), tuple(exact)


def _post(weights: Any, tensor: str) -> bool:
    """Whether a norm follows a writer's product."""
    _, index, part, _ = tensor.split(".")
    layer: Layer = weights.layers[int(index)]
    return (layer.post_attn_norm if part == "attn_output" else layer.post_ffn_norm) is not None


def _components(rows: Float32, count: int) -> tuple[Float32, NDArray[np.float64]]:
    """The leading directions (n, D) of rows (N, D), orthonormal, and how long the rows are along each; at most `count`,
    fewer where the rows have no more."""
    squares, mixes = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    order = np.argsort(-squares)[:count]
    order = order[squares[order] > LOST * max(float(squares.max(initial=0)), 1e-30)]
    lengths = np.sqrt(squares[order])
    return ((mixes[:, order] / lengths).T.astype(np.float32) @ rows), lengths


def _length(rows: Float32) -> float:
    """The middle one of the rows' lengths."""
    return float(np.median(np.linalg.norm(rows.astype(np.float64), axis=1)))


def _losses(logits: Float32, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log p of each row's target; the logits (N, V) become e to the power of their distance from the row's largest."""
    logits -= logits.max(axis=1, keepdims=True)
    of_target = logits[np.arange(len(targets)), targets].astype(np.float64)
    np.exp(logits, out=logits)
    found: NDArray[np.float64] = np.log(logits.sum(axis=1, dtype=np.float64)) - of_target
    return found


def _gradients(powers: Float32, targets: NDArray[np.int32], weights: Float32) -> None:
    """What `_losses` left, made into the gradient of weight * loss."""
    powers *= (weights / powers.sum(axis=1))[:, None]
    powers[np.arange(len(targets)), targets] -= weights
