"""Choose the next token from the logits.

Order of the steps, each off by default:

1. `logit_bias` is added, a grammar's mask applied.
2. Penalties: repetition (Keskar et al. 2019, over the last `repetition_window` tokens of prompt and text), then
   presence and frequency (OpenAI's definition, over the tokens generated so far).
3. Filters on the model's own distribution: `top_k`, then `top_p` (nucleus, Holtzman et al. 2020) on what is left, then
   `min_p` (Nguyen et al. 2024).
4. `temperature` on what survived (0: the greatest logit), and one draw.

The draw for the i-th generated token is a function of (seed, i) alone. So a session draws the same text whatever
else is in its batch, and a token that speculation proposed is accepted exactly when it would have been drawn.

Greedy decoding compares logits and nothing else: equal logits give equal texts on every machine. Drawing takes NumPy's
`exp`, whose last bit differs between processors, so a drawn text is fixed by its seed on one machine; on another one it
differs where a draw falls between two last bits, about once in 10**13 tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError, SpecError

_NO_BIAS: Mapping[int, float] = MappingProxyType({})
_MASK64 = (1 << 64) - 1
_BLOCK = 512
_MOST_BIAS = 10_000  # far beyond any logit, and within float32 whatever it meets there


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. The defaults are greedy decoding.

    >>> Sampling(temperature=0.7, top_p=0.9, seed=1).greedy
    False
    """

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # keep the k greatest; 0: all
    top_p: float = 1.0  # keep the fewest whose probabilities reach top_p; 1: all
    min_p: float = 0.0  # keep those at least min_p times as probable as the best; 0: all
    repetition_penalty: float = 1.0  # positive logits of recent tokens are divided by it, negative ones multiplied
    repetition_window: int = 64  # tokens looked back at; -1: all
    presence_penalty: float = 0.0  # taken once from tokens that were generated before
    frequency_penalty: float = 0.0  # taken for each time that a token was generated before
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)  # token id: added to its logit
    seed: int | None = None  # None: a fresh one, which the result reports

    def __post_init__(self) -> None:
        faults = [fault for fault in _faults(self) if fault]
        if faults:
            raise SpecError("; ".join(faults))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _number(value: object) -> bool:
    return isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _faults(s: Sampling) -> list[str]:
    """One line for each setting that cannot be used: what it is, what is wanted."""

    def real(name: str, low: float, high: float, wanted: str, open_low: bool = False) -> str:
        value: Any = getattr(s, name)
        inside = _number(value) and low <= value <= high and not (open_low and value == low)
        return "" if inside and math.isfinite(value) else f"{name}={value!r}: use {wanted}"

    def whole(name: str, low: int, wanted: str) -> str:
        value: Any = getattr(s, name)
        return "" if _whole(value) and value >= low else f"{name}={value!r}: use {wanted}"

    faults = [
        real("temperature", 0, 100, "a number from 0 (greedy) to 100"),
        whole("top_k", 0, "a whole number, 0 for all tokens"),
        real("top_p", 0, 1, "a number above 0, at most 1 (1: all tokens)", open_low=True),
        real("min_p", 0, 1, "a number from 0 (all tokens) to 1"),
        real("repetition_penalty", 0.01, 100, "a number from 0.01 to 100 (1: none)"),
        whole("repetition_window", -1, "a whole number of tokens, -1 for all"),
        real("presence_penalty", -100, 100, "a number from -100 to 100 (0: none)"),
        real("frequency_penalty", -100, 100, "a number from -100 to 100 (0: none)"),
    ]
    if s.seed is not None and not _whole(s.seed):
        faults.append(f"seed={s.seed!r}: use a whole number, or None for a fresh one")
    if not isinstance(s.logit_bias, Mapping):
        faults.append(f"logit_bias={s.logit_bias!r}: use a mapping of token id to number")
    else:
        for token, bias in s.logit_bias.items():
            good = _number(bias) and (abs(bias) <= _MOST_BIAS or bias == -math.inf)
            if not _whole(token) or not 0 <= token < 1 << 31 or not good:
                wanted = f"a token id and a number from {-_MOST_BIAS} to {_MOST_BIAS}, or -inf, which forbids the token"
                faults.append(f"logit_bias[{token!r}]={bias!r}: use {wanted}")
    return faults


def uniform(seed: int, index: int) -> float:
    """The index-th number of the stream `seed`, in [0, 1): SplitMix64 (Steele et al. 2014) as a counter.

    >>> uniform(1, 0) == uniform(1, 0) != uniform(1, 1)
    True
    """
    return (_mix(_mix(seed & _MASK64) + (index + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z &= _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def fresh_seed() -> int:
    return int.from_bytes(os.urandom(7), "little")


class Sampler:
    """Draws the tokens of one text. `history` is prompt and text so far; `accept` every token that joins the text.

    `sample` changes nothing, so that a drawn token may still be refused.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self.seed = fresh_seed() if sampling.seed is None else int(sampling.seed)
        self.history = list(prompt)
        self.index = 0  # tokens generated
        self.counts: dict[int, int] = {}  # of generated tokens
        self._plain = not sampling.penalised and not sampling.logit_bias
        self._bias = (
            np.fromiter(sampling.logit_bias.keys(), np.int64, len(sampling.logit_bias)),
            np.fromiter(sampling.logit_bias.values(), np.float32, len(sampling.logit_bias)),
        )

    def accept(self, token: int) -> None:
        self.history.append(token)
        self.index += 1
        if not self._plain:
            self.counts[token] = self.counts.get(token, 0) + 1

    def sample(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """Token for logits (V,); `allowed` (V,) is a grammar's mask. The logits are left as they are."""
        if not self._plain or allowed is not None:
            if not math.isfinite(logits.max()):  # before a mask or a bias could hide it
                raise ModelFileError(_BROKEN)
            logits = self.adjusted(logits, allowed)
        if self.sampling.temperature == 0.0:
            token = int(logits.argmax())
            if not math.isfinite(logits[token]):
                raise ModelFileError(_BROKEN)
            return token
        tokens, weights = keep(logits, self.sampling)
        place = draw(weights, uniform(self.seed, self.index))
        return place if tokens is None else int(tokens[place])

    def adjusted(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """A copy of logits (V,) after steps 1 and 2 of the module's order."""
        s = self.sampling
        logits = logits.copy() if allowed is None else np.where(allowed, logits, np.float32(-np.inf))
        ids, bias = self._bias
        if len(ids):
            if int(ids.max()) >= len(logits):
                raise SpecError(f"logit_bias names token {ids.max()}: this model has tokens 0 to {len(logits) - 1}")
            logits[ids] += bias
        if s.repetition_penalty != 1.0 and s.repetition_window:
            recent = self.history if s.repetition_window < 0 else self.history[-s.repetition_window :]
            seen = np.array(sorted({t for t in recent if t >= 0}), np.int64)  # below 0: rows of embeddings
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
        if self.counts and (s.presence_penalty or s.frequency_penalty):
            made = np.fromiter(self.counts.keys(), np.int64, len(self.counts))
            times = np.fromiter(self.counts.values(), np.float32, len(self.counts))
            logits[made] -= times * np.float32(s.frequency_penalty) + np.float32(s.presence_penalty)
        return logits


_BROKEN = (
    "the model's logits are not numbers, or no token is allowed: the model file, its adapter or its re-laid copy is "
    "likely damaged; `genmote pack` mends the copy, else fetch the model again"
)


def keep(logits: NDArray[np.float32], s: Sampling) -> tuple[NDArray[np.int64] | None, NDArray[np.float64]]:
    """Steps 3 and 4 for logits (V,): the tokens that may be drawn, in order of id (None: all), and their weights
    exp((l-max)/T).

    The full vocabulary is never sorted: each filter first finds a threshold below which nothing can survive.
    """
    best = float(logits.max())
    if not math.isfinite(best):
        raise ModelFileError(_BROKEN)
    tokens: NDArray[np.int64] | None = None  # None: the whole vocabulary
    values = logits
    if 0 < s.top_k < len(logits):
        threshold = np.partition(logits, len(logits) - s.top_k)[len(logits) - s.top_k]
        tokens = np.flatnonzero(logits >= threshold)
        values = logits[tokens]
        if len(tokens) > s.top_k:  # several tokens share the last place: the lower ids win
            tied = np.flatnonzero(values == threshold)
            drop = tied[len(tied) - (len(tokens) - s.top_k) :]
            tokens, values = np.delete(tokens, drop), np.delete(values, drop)
    if s.top_p < 1.0:
        weights = np.exp(values.astype(np.float64) - best)
        total = weights.sum()
        # Tokens below this weight together hold less than 1 - top_p, so the nucleus lies among the others.
        likely = np.flatnonzero(weights >= total * (1.0 - s.top_p) / len(weights))
        order = likely[np.argsort(-weights[likely], kind="stable")]
        reach = np.searchsorted(weights[order].cumsum(), s.top_p * total)
        chosen = np.sort(order[: int(reach) + 1])
        tokens = chosen if tokens is None else tokens[chosen]
        values = values[chosen]
    if s.min_p > 0.0:
        chosen = np.flatnonzero(values >= best + math.log(s.min_p))
        tokens = chosen if tokens is None else tokens[chosen]
        values = values[chosen]
    with np.errstate(over="ignore"):  # the smallest temperatures: -inf is right
        return tokens, np.exp((values.astype(np.float64) - best) / s.temperature)


def draw(weights: NDArray[np.float64], u: float) -> int:
    """The place in weights (N,) where their running sum passes u times the whole, u in [0, 1).

    In blocks, whose sums NumPy adds several at a time; a running sum over a whole vocabulary adds one by one.

    >>> [draw(np.array([1.0, 0.0, 3.0]), u) for u in (0.0, 0.24, 0.25, 0.99)]
    [0, 0, 2, 2]
    """
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).cumsum()
    target = min(u * float(sums[-1]), math.nextafter(float(sums[-1]), 0.0))
    block = int(np.searchsorted(sums, target, side="right"))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    rest = target - (float(sums[block - 1]) if block else 0.0)
    place = int(np.searchsorted(inside.cumsum(), rest, side="right"))
    # Rounding may carry the target past the block's last weight: never to one of weight 0, which is forbidden.
    return block * _BLOCK + min(place, int(np.flatnonzero(inside)[-1]))


def log_softmax(logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float64)


def token_logprobs(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probability of each row's target: (N, V), (N,) → (N,) float64, without a float64 copy of the logits.

    Raises ModelFileError where logits are no numbers.
    """
    best = logits.max(-1)
    if not np.isfinite(best).all():
        raise ModelFileError(_BROKEN)
    spread = np.empty(len(logits))
    row = np.empty_like(logits[0]) if len(logits) else best  # one row's work: a window of a large vocabulary is huge
    for i in range(len(logits)):
        spread[i] = np.exp(np.subtract(logits[i], best[i], out=row), out=row).sum(dtype=np.float64)
    picked = logits[np.arange(len(targets)), targets]
    return np.asarray(picked.astype(np.float64) - best - np.log(spread), np.float64)


def top_logprobs(logits: NDArray[np.float32], n: int) -> list[tuple[int, float]]:
    """The n most probable tokens of logits (V,) with their log-probabilities, best first, ties by id."""
    if n <= 0:
        return []
    n = min(n, len(logits))
    threshold = np.partition(logits, len(logits) - n)[len(logits) - n]
    tokens = np.flatnonzero(logits >= threshold)
    tokens = tokens[np.argsort(-logits[tokens], kind="stable")][:n]
    offset = float(token_logprobs(logits[None], tokens[:1])[0]) - float(logits[tokens[0]])
    return [(int(token), float(logits[token]) + offset) for token in tokens]
