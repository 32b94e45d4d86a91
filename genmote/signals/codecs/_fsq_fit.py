"""Training of `_fsq.py`'s networks, with PyTorch: imported when a codec is fitted, and never on a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.signals.codecs._fsq import WEIGHTS, Layers, Net

Tensor = torch.Tensor
BATCH, RATE, LONGEST = 512, 3e-3, 1.0  # patches a step; the first step's size; of a gradient
BEND = 0.3  # of a spread: errors above it count by their size, those below by its square


def train(
    channels: Sequence[Sequence[NDArray[np.float32]]],
    patch: int,
    levels: tuple[int, ...],
    hidden: int,
    steps: int,
    seed: int,
) -> Net:
    """Networks for patches that begin anywhere in the runs (n,) of each channel, n at least `patch`, in units of its
    spread. The same for the same seed, on one machine with one number of threads."""
    draw = np.random.default_rng(seed)
    batch = _sampler(channels, patch, draw)
    half = torch.tensor([(level - 1) / 2 for level in levels])
    encoder = _begin(patch, len(levels), hidden, len(channels), draw)
    decoder = _begin(len(levels), patch, hidden, len(channels), draw)
    optimiser = torch.optim.Adam([*encoder, *decoder], RATE)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        x, channel = batch()
        bent = (torch.tanh(_run(encoder, x, channel)) + 1) * half
        rounded = bent + (torch.round(bent) - bent).detach()  # straight through
        again = _run(decoder, rounded / half - 1, channel)
        loss = torch.nn.functional.smooth_l1_loss(again, x, beta=BEND)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*encoder, *decoder], LONGEST)
        optimiser.step()
    return Net(levels, _layers(encoder), _layers(decoder))


def _sampler(
    channels: Sequence[Sequence[NDArray[np.float32]]], patch: int, draw: np.random.Generator
) -> Callable[[], tuple[Tensor, Tensor]]:
    runs = [(run, n) for n, some in enumerate(channels) for run in some]
    flat = np.concatenate([run for run, _ in runs])
    channel = np.array([n for _, n in runs])
    begins = np.cumsum([0] + [len(run) for run, _ in runs[:-1]])
    ends = np.cumsum([len(run) - patch + 1 for run, _ in runs])  # of the patches, counted through all runs

    def batch() -> tuple[Tensor, Tensor]:
        chosen = draw.integers(0, ends[-1], BATCH)
        run = np.searchsorted(ends, chosen, side="right")
        start = begins[run] + chosen - np.where(run > 0, ends[run - 1], 0)
        return torch.from_numpy(flat[start[:, None] + np.arange(patch)]), torch.from_numpy(channel[run])

    return batch


def _begin(inputs: int, outputs: int, hidden: int, channels: int, draw: np.random.Generator) -> list[Tensor]:
    """Weights (I, H), (C, H), (H + 1, H), (H + I + 1, O): those of `Layers`."""
    shapes = (inputs, hidden), (channels, hidden), (hidden + 1, hidden), (hidden + inputs + 1, outputs)
    weights = [draw.normal(0, shape[0] ** -0.5, shape) for shape in shapes]
    weights[1] *= 0.1
    weights[2][-1] = weights[3][-1] = 0
    return [torch.tensor(w, dtype=torch.float32, requires_grad=True) for w in weights]


def _run(weights: list[Tensor], x: Tensor, channels: Tensor) -> Tensor:
    first, channel, second, last = weights
    hidden = torch.relu(x @ first + channel[channels])
    hidden = torch.relu(hidden @ second[:-1] + second[-1])
    return torch.cat([hidden, x], 1) @ last[:-1] + last[-1]


def _layers(weights: list[Tensor]) -> Layers:
    most = np.iinfo(np.int16).max
    first, channel, second, last = (
        np.clip(np.rint(w.detach().numpy().astype(np.float64) * WEIGHTS), -most, most).astype(np.int16) for w in weights
    )
    return Layers(first, channel, second, last)
