"""The two scores of generated series for which a network is trained. With PyTorch (the workbench extra).

The discriminative score as its authors define it, by a recurrent network: Yoon, Jarrett & van der Schaar, "Time-series
generative adversarial networks", NeurIPS 2019. Context-FID: Jeha et al., "PSA-GAN", ICLR 2022, arXiv 2108.00981, over
the embeddings of an encoder that is trained without labels on the real training windows, in the manner of Yue et al.,
"TS2Vec", AAAI 2022, arXiv 2106.10466: dilated convolutions, two overlapping crops with masked steps, contrasted from
instance to instance and from step to step on every scale. Theirs is larger (64 wide, 10 blocks, 320 numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from genmote.fetch import Progress, quiet
from genmote.generator.scores.generation import frechet, halves

Floats = NDArray[np.float32]
Tensor = torch.Tensor
BATCH = 64
GRU_WIDE, GRU_STEPS, GRU_RATE = 32, 400, 2e-3
WIDE, BLOCKS, EMBEDDING = 32, 6, 32  # of the encoder
ENCODER_STEPS, ENCODER_BATCH, ENCODER_RATE = 200, 16, 1e-3
MASKED = 0.5  # share of the steps that the encoder does not see while it learns


def discriminative(real: Floats, synthetic: Floats, *, seed: int = 0, progress: Progress = quiet) -> float:
    """|accuracy - 0.5| of a recurrent network in telling real windows (N, T, C) from synthetic ones: trained on 80 % of
    as many of each, measured on the others."""
    train, of, test, truth = halves(real, synthetic, seed=seed)
    with _seeded(seed):
        gru = torch.nn.GRU(train.shape[2], GRU_WIDE, batch_first=True)
        out = torch.nn.Linear(GRU_WIDE, 1)
        learnt = torch.optim.Adam([*gru.parameters(), *out.parameters()], lr=GRU_RATE)
        x, y = torch.from_numpy(train), torch.from_numpy(of.astype(np.float32))
        for step in range(GRU_STEPS):
            some = torch.randint(len(x), (BATCH,))
            _, last = gru(x[some])
            loss = functional.binary_cross_entropy_with_logits(out(last[0])[:, 0], y[some])
            learnt.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            learnt.step()
            progress("training a discriminator", step + 1, GRU_STEPS)
        with torch.no_grad():
            parts = [out(gru(part)[1][0])[:, 0] > 0 for part in torch.split(torch.from_numpy(test), BATCH)]
    return abs(float((torch.cat(parts).numpy() == (truth == 1)).mean()) - 0.5)


class Encoder(torch.nn.Module):
    """Windows (N, T, C) as EMBEDDING numbers each."""

    def __init__(self, windows: Floats, *, seed: int = 0, progress: Progress = quiet) -> None:
        super().__init__()
        with _seeded(seed):
            self.into = torch.nn.Linear(windows.shape[2], WIDE)
            reaches = [2 ** (n // 2) for n in range(2 * BLOCKS)]
            self.convolutions = torch.nn.ModuleList(
                torch.nn.Conv1d(WIDE, WIDE, 3, padding=reach, dilation=reach) for reach in reaches
            )
            self.out = torch.nn.Conv1d(WIDE, EMBEDDING, 1)
            self._learn(torch.from_numpy(windows), progress)

    def forward(self, x: Tensor, masked: float = 0.0) -> Tensor:
        """(N, T, C) → (N, T, E)"""
        y = self.into(x)
        if masked:
            y = y * (torch.rand(y.shape[:2]) >= masked)[..., None]
        y = y.transpose(1, 2)
        for n in range(0, 2 * BLOCKS, 2):
            inner = self.convolutions[n](functional.gelu(y))
            y = y + self.convolutions[n + 1](functional.gelu(inner))
        found: Tensor = self.out(functional.gelu(y)).transpose(1, 2)
        return found

    @torch.no_grad()
    def embed(self, windows: Floats) -> Floats:
        """(N, T, C) → (N, E): of each number the highest over the window."""
        parts = [self(part).amax(dim=1) for part in torch.split(torch.from_numpy(windows), BATCH)]
        found: Floats = torch.cat(parts).numpy()
        return found

    def _learn(self, windows: Tensor, progress: Progress) -> None:
        learnt = torch.optim.AdamW(self.parameters(), lr=ENCODER_RATE)
        steps = windows.shape[1]
        for step in range(ENCODER_STEPS):
            some = windows[torch.randint(len(windows), (min(ENCODER_BATCH, len(windows)),))]
            # Two crops, a to d and b to e, that have b to d in common.
            both = int(torch.randint(min(2, steps), steps + 1, ()))
            b = int(torch.randint(0, steps - both + 1, ()))
            a, e = int(torch.randint(0, b + 1, ())), int(torch.randint(b + both, steps + 1, ()))
            first = self(some[:, a : b + both], MASKED)[:, b - a :]
            second = self(some[:, b:e], MASKED)[:, :both]
            loss = _contrast(first, second)
            learnt.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            learnt.step()
            progress("training an encoder", step + 1, ENCODER_STEPS)


def context_fid(encoder: Encoder, real: Floats, synthetic: Floats) -> float:
    """The Fréchet distance of real and synthetic windows' embeddings, each scaled by the real ones' spread, so that the
    figure does not hang on the encoder's units."""
    a, b = encoder.embed(real).astype(np.float64), encoder.embed(synthetic).astype(np.float64)
    spread = a.std(axis=0)
    spread[spread == 0] = 1.0
    return frechet(a / spread, b / spread) / EMBEDDING


def _contrast(first: Tensor, second: Tensor) -> Tensor:
    """Of (B, T, E) twice: on every scale, each step is to be like its other view, unlike the batch's others and unlike
    the window's other steps."""
    losses = []
    while True:
        losses.append(_alike(first.transpose(0, 1), second.transpose(0, 1)))
        if first.shape[1] == 1:
            return torch.stack(losses).mean()
        losses.append(_alike(first, second))
        first, second = (functional.max_pool1d(z.transpose(1, 2), 2).transpose(1, 2) for z in (first, second))


def _alike(first: Tensor, second: Tensor) -> Tensor:
    """(G, K, E) twice: of the K in a group each is the other view of the one at its place."""
    both = torch.cat([first, second], dim=1)
    count = first.shape[1]
    like = both @ both.transpose(1, 2)
    like = like.masked_fill(torch.eye(2 * count, dtype=torch.bool), float("-inf"))
    places = torch.arange(2 * count).roll(count)
    return functional.cross_entropy(like.flatten(0, 1), places.repeat(len(both)))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """PyTorch draws from `seed` in the block, and goes on afterwards as if there had been none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
