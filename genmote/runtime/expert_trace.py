"""Routing traces: what a mixture's routers chose for a text, what was guessed of it, and their replay in another model.

A model with made-up weights costs what the real one does, but its routers choose at random. A replay gives it the
choices that a trained router made: shares of experts that the op set chooses by (`Experts.routing`), and guesses for
the cache (`ExpertCache.guess`), both as they were on the trained model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.models.packed import Packed
from genmote.ops.layer import Layer
from genmote.ops.protocol import Span
from genmote.runtime.experts import ExpertCache, open_experts

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Trace:
    """For T tokens, L layers and E experts: the routers' shares, and the guesses of them, (L, T, E) each.

    `early` is guessed when the layer before begins its experts (nothing for the first layer), `late` before the layer's
    own attention.
    """

    shares: Float32
    early: Float32
    late: Float32
    used: int  # experts that a token goes through

    @property
    def tokens(self) -> int:
        return int(self.shares.shape[1])


def record(packed: Packed, tokens: Sequence[int], window: int = 256) -> Trace:
    """The trace of a text on a model, whole windows of it, each read from an empty context."""
    decoder, cache = open_experts(packed, 1 << 60)
    layers = decoder.weights.layers
    shares: list[list[Float32]] = [[] for _ in layers]
    guesses: list[list[Float32]] = [[] for _ in layers]

    def listen(index: int) -> Callable[[Float32], Float32]:
        def heard(given: Float32) -> Float32:
            shares[index].append(given.copy())
            return given

        return heard

    def guess(index: int, h: Float32) -> Float32:
        guesses[index].append(cache.layers[index].shares(h))
        return guesses[index][-1]

    for index, layer in enumerate(layers):
        assert layer.experts is not None
        layer.experts = replace(layer.experts, routing=listen(index))
    cache.guess = guess
    for at in range(0, len(tokens) - window + 1, window):
        session = decoder.cache(window)
        decoder.forward(tokens[at : at + window], [Span(session, 0, window)], logits=None)
    if not shares[0]:
        raise SpecError(f"a trace of {len(tokens)} tokens: wanted at least {window}; give more text")
    late = [guesses[0], *(each[1::2] for each in guesses[1:])]
    early = [[np.zeros_like(part) for part in guesses[0]], *(each[::2] for each in guesses[1:])]
    made, first, second = (np.stack([np.concatenate(layer) for layer in part]) for part in (shares, early, late))
    return Trace(made, first, second, decoder.config.n_experts_used)


class Replay:
    """A trace in the place of a larger model's routers, a token after another.

    Each of the trace's experts stands for E' / E neighbours that are chosen together; layer i replays the trace's layer
    i mod L, those beyond the trace's L some way further in the text, so that no two layers choose alike.
    """

    def __init__(self, trace: Trace, n_layers: int, n_experts: int, start: int = 0) -> None:
        layers, _, experts = trace.shares.shape
        if n_experts % experts:
            raise SpecError(f"{n_experts} experts: wanted a multiple of the trace's {experts}")
        self.trace, self.n_layers, self.group, self.at = trace, n_layers, n_experts // experts, start
        self.laps = -(-n_layers // layers)
        self.begun = [False] * n_layers  # whether this pass's early guess of a layer was given

    @property
    def used(self) -> int:
        """Experts that a token goes through."""
        return int(self.trace.used * self.group)

    def describe(self) -> str:
        """How the trace was stretched, for a report."""
        layers, tokens, experts = self.trace.shares.shape
        return (
            f"{tokens} tokens of a trained {layers}-layer router, {self.trace.used} of {experts} experts, replayed as "
            f"{self.used} of {experts * self.group}: each stands for {self.group} neighbours; layer i replays layer "
            f"i mod {layers}, {tokens // self.laps} tokens further in the text for each {layers}"
        )

    def attach(self, layers: Sequence[Layer], cache: ExpertCache | None = None) -> None:
        """Make these layers choose by the trace, and the cache guess by it."""
        for index, layer in enumerate(layers):
            assert layer.experts is not None
            layer.experts = replace(layer.experts, routing=self._routing(index))
        if cache is not None:
            cache.guess = self.guess

    def guess(self, layer: int, h: Float32) -> Float32:
        """What was guessed at this point of the trace for so many rows."""
        early = layer > 0 and not self.begun[layer]
        self.begun[layer] = True
        return self._rows(self.trace.early if early else self.trace.late, layer, len(h))

    def _routing(self, layer: int) -> Callable[[Float32], Float32]:
        def replayed(shares: Float32) -> Float32:
            rows = self._rows(self.trace.shares, layer, len(shares))
            if layer == self.n_layers - 1:
                self.at += len(shares)
                self.begun = [False] * self.n_layers
            return rows

        return replayed

    def _rows(self, part: Float32, layer: int, count: int) -> Float32:
        layers, tokens, _ = part.shape
        at = self.at + layer // layers * (tokens // self.laps)
        rows = part[layer % layers, np.arange(at, at + count) % tokens]
        return np.repeat(rows / np.float32(self.group), self.group, axis=1)
