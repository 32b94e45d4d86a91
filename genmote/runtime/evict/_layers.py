"""How the rows of a session are shared out among the layers: evenly, as a pyramid, or to the layers that look back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.ops.protocol import Span
from genmote.registry import near
from genmote.runtime.evict._base import Seen

if TYPE_CHECKING:
    from genmote.models.decoder import Decoder

Float64 = NDArray[np.float64]
KINDS = ("even", "pyramid", "retrieval")
REPEATED = 128  # tokens of the text that tells which layers look back
SLICE = 32  # of them at once: no more memory than a short prompt takes
NOISE = 0.05  # attention that a head gives to such places in any case
LEAST = 0.03  # what a layer's heads give such places at least, for the layer to count as one that looks back


def weights(kind: str, decoder: Decoder) -> Float64:
    """What each layer's share is in proportion to, beside the least that every layer gets: (L,).

    even: the same for all. pyramid: falls evenly from the first layer to none at the last (PyramidKV, Cai et al.
    2024). retrieval: how much a layer's heads look back (`look_back`), its fourth root, which
    leaves something for those that do so a little.
    """
    return np.sqrt(np.sqrt(look_back(decoder))) if kind == "retrieval" else fixed(kind, decoder.config.n_layers)


def fixed(kind: str, count: int) -> Float64:
    """The weights of so many layers where they do not depend on the model. Raises SpecError."""
    if kind == "even":
        return np.ones(count)
    if kind == "pyramid":
        return np.linspace(1.0, 0.0, count)
    raise SpecError(unknown(kind))


def unknown(kind: str) -> str:
    """The message for a way of sharing that there is not."""
    return f"no way to share out rows is called {kind!r}{near(kind, list(KINDS))}; known: {', '.join(KINDS)}"


def shared(weight: Float64, mean: int, least: int, most: int) -> NDArray[np.int64]:
    """Whole blocks for each layer, (L,): `mean` on average, at least `least`, at most `most`, otherwise as `weight`
    says.

    >>> shared(np.array([1.0, 0, 0, 1]), mean=4, least=2, most=16).tolist()
    [6, 2, 2, 6]
    """
    count = len(weight)
    if most <= mean or not weight.any():
        return np.full(count, min(mean, most))
    found = np.full(count, float(least))
    left = float(count * (mean - least))
    while left > 1e-9:  # what goes beyond a layer's most goes to the others
        open_ = (found < most) & (weight > 0)
        if not open_.any():
            break
        part = np.where(open_, weight, 0.0)
        given = np.minimum(left * part / part.sum(), most - found)
        found += given
        left -= float(given.sum())
    whole = np.floor(found + 1e-9).astype(np.int64)
    spare = int(count * mean - whole.sum())
    order = np.argsort(-(found - whole), kind="stable")
    whole[[layer for layer in order if whole[layer] < most][:spare]] += 1
    return whole


def look_back(decoder: Decoder) -> Float64:
    """How much the heads of each layer look back, (L,): in a text of random tokens said twice, the attention that a
    token gives to the token after it in the first saying (induction), and half of what it gives to itself there (echo),
    summed over the heads.

    Layers without such heads do well with few rows; the others lose what the text said long ago (RazorAttention, Tang
    et al. 2024, who give such heads all rows; Olsson et al. 2022).
    """
    config = decoder.config
    # Scattered by a multiplicative hash (Knuth): NumPy's generators would load 7 MB of libraries for this.
    count = min(REPEATED, config.context_length // 2)
    tokens = np.arange(1, count + 1) * 2654435761 % 2**32 * config.vocab_size // 2**32
    cache = decoder.cache(2 * count, queries=count)
    twice = np.concatenate([tokens, tokens])
    for start in range(0, 2 * count, SLICE):
        part = twice[start : start + SLICE]
        decoder.forward(part, [Span(cache, 0, len(part))], logits=None)
    at, none = np.arange(count), np.zeros((max(config.kv_heads), 0), np.float32)
    found = np.zeros(config.n_layers)
    for layer in decoder.weights.layers:
        spec = layer.spec
        if spec.window:
            continue
        queries = cache.queries(spec.index)
        for head in range(spec.n_kv_heads):
            each = Seen.head(cache, spec, head, ("keys",), queries, none).attention()  # (G, n, T)
            echo, induction = each[:, at, at].mean(axis=1), each[:, at[:-1], at[1:]].mean(axis=1)  # (G,) each
            found[spec.index] += (0.5 * np.maximum(echo - NOISE, 0) + np.maximum(induction - NOISE, 0)).sum()
    return np.where(found > LEAST, found, 0.0)
