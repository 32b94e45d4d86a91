"""How much each matrix of a model minds each tensor type, from one pass over calibration text and one back.

The gradients are those of tokens that are drawn from the model's own distribution (see `expected.py`). Blocks are in
memory one at a time; what went into each lies in the folder meanwhile, and each block's result stays there, so that a
run that was killed need not try its types again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from genmote.compress.allocate import Option
from genmote.compress.block import Block, Site
from genmote.compress.expected import Sample, damages, sample
from genmote.compress.farm import Farm
from genmote.compress.layers import TABLE, Ends, Model, Tokens
from genmote.errors import SpecError
from genmote.fetch import Progress
from genmote.home import atomic_write
from genmote.models.gguf import ModelFile
from genmote.models.requantise import KEPT
from genmote.ops import quant
from genmote.ops.torch_ops import Matrix

Tensor = torch.Tensor
SCORES_BYTES = 1 << 27  # of attention scores at once
LOGITS_BYTES = 1 << 26
SEED = 0  # of the drawn tokens
KEEP = "keep"


@dataclass
class Seen:
    """Sums over the rows x that a matrix multiplied, with g the gradient at its output: of x x^T, of |g|^2 x x^T, and
    of the squares of g."""

    hessian: Tensor  # (in, in)
    weighted: Tensor  # (in, in)
    gains: Tensor  # (out,)

    @classmethod
    def of(cls, site: Site) -> Seen:
        rows, cols = site.weight.shape
        return cls(torch.zeros(cols, cols), torch.zeros(cols, cols), torch.zeros(rows))

    def add(self, x: Tensor, gradient: Tensor) -> None:
        squares = gradient.square()
        self.gains += squares.sum(0)
        self.weighted += x.T @ (x * squares.sum(1, keepdim=True))


def choices(cols: int, stored: str, types: Sequence[str]) -> list[str]:
    """Those of the types that rows of `cols` numbers fit and that take fewer bits than `stored`.

    >>> choices(576, "F16", ["F16", "Q8_0", "Q4_K", "Q4_0"])
    ['Q8_0', 'Q4_0']
    """
    now = quant.by_name(stored).bits_per_weight
    kinds = [quant.by_name(name) for name in types]
    return [kind.name for kind in kinds if cols % kind.block_size == 0 and kind.bits_per_weight < now]


def measure(
    path: Path,
    windows: Tokens,
    types: Sequence[str],
    folder: Path,
    farm: Farm,
    *,
    compensated: bool,
    progress: Progress,
) -> dict[str, list[Option]]:
    """For each matrix of the model at `path` its options: to keep it, and each type that is smaller, with the nats of
    KL divergence a token that it is expected to cost on text like `windows` (n, T).

    `compensated`: whether the quantiser makes up for errors in the columns to come (`expected.conditional`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(ModelFile.open(path))
    count = model.config.n_layers
    parts = [folder / f"damage-{index:04}.json" for index in range(count)] + [folder / "damage-head.json"]
    if not all(part.exists() for part in parts):
        _Passes(model, windows, types, folder, farm, progress).all(parts)
    found: dict[str, list[Option]] = {}
    for part in parts:
        for name, each in json.loads(part.read_text(encoding="utf-8")).items():
            found[name] = [Option(what, size, both[compensated]) for what, size, both in each]
    return found


class _Passes:
    def __init__(
        self,
        model: Model,
        windows: Tokens,
        types: Sequence[str],
        folder: Path,
        farm: Farm,
        progress: Progress,
    ) -> None:
        self.model, self.windows, self.types, self.folder = model, windows, types, folder
        self.farm, self.progress = farm, progress

    def all(self, parts: list[Path]) -> None:
        """Forward, then back; writes each part that is not there yet."""
        model, count = self.model, self.model.config.n_layers
        x = model.states(self.windows)
        for index in range(count):
            self.progress("sensitivity: reading the text", index, count)
            np.save(self._states(index), x.numpy())
            block = model.block(index, x)
            with torch.no_grad():
                x = torch.cat([block.run(x[rows]) for rows in self._pieces(block)])
            if not torch.isfinite(x).all():
                raise SpecError(f"block {index}: the calibration text's states are not finite numbers")
        gradient, head = self._head(x)
        for done, index in enumerate(reversed(range(count))):
            self.progress("sensitivity: trying types", done, count + 1)
            x = torch.from_numpy(np.load(self._states(index)))
            seen: dict[str, Seen] = {}
            block = model.block(index, x)
            gradient = self._back(block, x, gradient, seen)
            if not parts[index].exists():
                self._try(parts[index], list(block.sites.values()), seen)
            self._states(index).unlink()
        self.progress("sensitivity: trying types", count, count + 1)
        if not parts[-1].exists():
            self._try(parts[-1], [model.site(model.head_name)], {model.head_name: head}, gradient)
        self.progress("sensitivity: trying types", count + 1, count + 1)

    def _states(self, index: int) -> Path:
        return self.folder / f"states-{index:04}.npy"

    def _pieces(self, block: Block) -> Iterator[slice]:
        """Rows of whole windows, few enough for memory."""
        count, length = self.windows.shape
        step = max(1, SCORES_BYTES // (4 * block.layer.spec.n_heads * length * length))
        for start in range(0, count, step):
            yield slice(start * length, min(count, start + step) * length)

    def _head(self, x: Tensor) -> tuple[Tensor, Seen]:
        """The gradient at the last block's output, and what the output matrix sees."""
        model = self.model
        site, norm, cap = model.site(model.head_name), Ends(model).output_norm, model.config.logit_cap
        weight, seen = site.weight, Seen.of(site)
        drawn = torch.Generator().manual_seed(SEED)
        gradient = torch.empty_like(x)
        step = max(1, LOGITS_BYTES // (4 * weight.shape[0]))
        for start in range(0, len(x), step):
            piece = x[start : start + step].detach().requires_grad_()
            h = model.ops.norm(piece, norm)
            with torch.no_grad():
                logits = h @ weight.T
                bent = torch.tanh(logits / cap) if cap else torch.zeros(())
                logits = cap * bent if cap else logits
                shares = torch.softmax(logits, -1)
                tokens = torch.multinomial(shares, 1, generator=drawn)
                upstream = -shares
                upstream.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=shares.dtype))
                upstream *= 1 - bent.square()  # d log p(token) / d logits
                seen.hessian += h.T @ h
                seen.add(h, upstream)
            torch.autograd.backward(h, upstream @ weight)
            assert piece.grad is not None
            gradient[start : start + step] = piece.grad
        return gradient, seen

    def _back(self, block: Block, x: Tensor, gradient: Tensor, seen: dict[str, Seen]) -> Tensor:
        """The gradient at the block's input; tells what its matrices see."""
        by_matrix = {id(site.matrix): site for site in block.sites.values()}
        before = torch.empty_like(x)
        shared: list[tuple[Tensor, Tensor]] = []  # the last input, and its x x^T

        def made(rows: Tensor, output: Tensor, matrix: Matrix) -> None:
            sums = seen.setdefault(by_matrix[id(matrix)].name, Seen.of(by_matrix[id(matrix)]))
            if not shared or shared[0][0] is not rows:
                held = rows.detach()
                shared[:] = [(rows, held.T @ held)]
            sums.hessian += shared[0][1]
            if output.requires_grad:
                held = rows.detach()
                output.register_hook(lambda gradient: sums.add(held, gradient))  # type: ignore[no-untyped-call]

        block.ops.made = made
        try:
            for rows in self._pieces(block):
                piece = x[rows].detach().requires_grad_()
                torch.autograd.backward(block.run(piece), gradient[rows])
                assert piece.grad is not None
                before[rows] = piece.grad
        finally:
            block.ops.made = None
        return before

    def _try(self, part: Path, sites: list[Site], seen: dict[str, Seen], embedded: Tensor | None = None) -> None:
        """Damages of the sites' types, into the file `part`; `embedded`: the gradient (N, D) at the embeddings."""
        total = self.windows.size
        jobs, tried = [], []
        for site in sites:
            sums = seen.get(site.name)
            fitting = choices(site.weight.shape[1], site.type, self.types)
            if sums is None or not fitting or site.tensor.endswith(KEPT):
                continue
            gains = (sums.gains / (total * sums.gains.sum().clamp(min=1e-30))).numpy()
            rows, factors = sample(gains)
            shown = looked_up = None
            if embedded is not None and site.tensor == TABLE:
                counts = np.bincount(self.windows.reshape(-1), minlength=len(site.weight))[rows]
                shown = (counts / total * factors).astype(np.float32)
                scale = self.model.config.embedding_scale
                looked_up = (scale**2 * embedded.square().mean(0)).numpy()
            jobs.append(
                Sample(
                    rows=site.weight[torch.from_numpy(rows)].numpy(),
                    gains=gains[rows] * factors,
                    weighted=sums.weighted.numpy(),
                    hessian=sums.hessian.numpy(),
                    types=fitting,
                    shown=shown,
                    looked_up=looked_up,
                )
            )
            tried.append(site)
        told: dict[str, list[tuple[str, int, list[float]]]] = {}
        for site, job, found in zip(tried, jobs, self.farm.map(damages, jobs), strict=True):
            tensor = self.model.file.tensors[site.tensor]
            names, each = (KEEP, *job.types), ((0.0, 0.0), *found)
            nbytes = (tensor.nbytes, *(quant.nbytes(name, tensor.shape) for name in job.types))
            options = told.setdefault(site.tensor, [(n, b, [0.0, 0.0]) for n, b in zip(names, nbytes, strict=True)])
            for (_, _, both), new in zip(options, each, strict=True):  # experts of one tensor add up
                both[:] = [a + b for a, b in zip(both, new, strict=True)]
        with atomic_write(part, "w") as out:
            out.write(json.dumps(told))
