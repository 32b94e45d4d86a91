"""A pass through the model and back, layer by layer: each layer is a graph of its own.

With recomputation (Chen et al. 2016, arXiv 1604.06174) only the input of a layer is kept, and the layer is computed
again on the way back. Logits are made of some rows at a time, and only of those from which something is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from genmote.models import decoder as forward
from genmote.models.backward import Batch
from genmote.models.decoder import Decoder
from genmote.ops.layer import Layer
from genmote.ops.protocol import Rotary, Span

Tensor = torch.Tensor


class Passes:
    """Losses of batches, and their gradients, which are left in the `grad` of whatever requires one."""

    def __init__(self, decoder: Decoder, *, recompute: bool, logit_rows: int) -> None:
        self.decoder, self.recompute, self.logit_rows = decoder, recompute, logit_rows

    def loss(self, batch: Batch) -> float:
        """Sum over the rows of weight * -log p(target), in nats."""
        with torch.no_grad():
            x, spans, tables = self._start(batch)
            for layer in self.decoder.weights.layers:
                x = self._block(x, layer, tables, spans)
            return self._head(x, batch, back=False)[0]

    def step(self, batch: Batch, lowest: int) -> float:
        """The loss, and the way back down to layer `lowest`; to the embedding where that is 0 and learns. Raises
        FloatingPointError, before any gradient is used, where the loss is no number."""
        start, spans, tables = self._start(batch)
        layers, kept = self.decoder.weights.layers, list[tuple[Tensor, Tensor | None]]()
        x = start.detach()
        for index, layer in enumerate(layers):
            given, made = x, None
            with torch.set_grad_enabled(index >= lowest and not self.recompute):
                if index > lowest or start.requires_grad:
                    given.requires_grad_()
                x = self._block(given, layer, tables, spans)
            if index >= lowest:
                made = None if self.recompute else x
                kept.append((given, made))
            x = x.detach()
        loss, d = self._head(x, batch, back=True)
        del x, made, given
        for layer in reversed(layers[lowest:]):
            given, made = kept.pop()
            if made is None:
                made = self._block(given, layer, tables, spans)
            torch.autograd.backward(made, d)
            d, given.grad = given.grad, None
            del made, given
        if start.requires_grad:
            torch.autograd.backward(start, d)
        return loss

    def _start(self, batch: Batch) -> tuple[Tensor, list[Span], list[Rotary]]:
        spans, start, shape = [], 0, (0, 1, self.decoder.config.head_dim)
        for length in batch.lengths:
            spans.append(Span(self.decoder.ops.cache(*shape, length), start, length))
            start += length
        x, tables = self.decoder.start(batch.tokens, spans)
        return x, spans, tables

    def _block(self, x: Tensor, layer: Layer, tables: Sequence[Rotary], spans: Sequence[Span]) -> Tensor:
        rotary = tables[layer.spec.rope] if layer.spec.rope >= 0 else None
        found: Tensor = forward.block(self.decoder.ops, x, layer, rotary, spans)
        return found

    def _head(self, x: Tensor, batch: Batch, *, back: bool) -> tuple[float, Tensor | None]:
        """The loss, and with `back` its gradient by x (N, D)."""
        rows = np.flatnonzero(batch.weights)
        d = torch.zeros_like(x) if back else None
        loss = 0.0
        for first in range(0, len(rows), self.logit_rows):
            some = rows[first : first + self.logit_rows]
            own = x[torch.from_numpy(some)].requires_grad_(back)
            targets, weights = torch.from_numpy(batch.targets[some]).long(), torch.from_numpy(batch.weights[some])
            nats = F.cross_entropy(self.decoder.head(own), targets, reduction="none") @ weights
            loss += float(nats.detach())
            if d is not None:
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss}")
                torch.autograd.backward(nats)
                assert own.grad is not None
                d[torch.from_numpy(some)] = own.grad
        return loss, d
