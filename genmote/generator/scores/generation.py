"""How good generated series are: useful for training, hard to tell apart, alike in time. Windows are (N, T, C)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genmote.generator.scores import rocket

Floats = NDArray[np.float32]
Labels = NDArray[np.generic]
TRAINED = 0.8  # share of the windows that a discriminator learns from


def right(found: Labels, labels: Labels) -> dict[str, float]:
    """`accuracy`, and `balanced`: the mean over the labels that there are of the share of each that is found.

    >>> right(np.array(["a", "a", "a", "a"]), np.array(["a", "a", "a", "b"]))
    {'accuracy': 0.75, 'balanced': 0.5}
    """
    hit = found == labels
    return {
        "accuracy": float(hit.mean()),
        "balanced": float(np.mean([hit[labels == label].mean() for label in np.unique(labels)])),
    }


def predicted(windows: Floats, labels: Labels, unseen: Floats, *, seed: int = 0) -> Labels:
    """Labels (M,) of `unseen` real windows by a classifier that is trained on `windows` and their labels (N,). Where
    those were generated: train on synthetic, test on real (Esteban, Hyland & Rätsch, arXiv 1706.02633)."""
    if len(np.unique(labels)) == 1:
        return np.repeat(labels[:1], len(unseen))
    seen = rocket.Rocket(windows, seed=seed)
    return rocket.Ridge(seen(windows), labels)(seen(unseen))


def halves(real: Floats, synthetic: Floats, *, seed: int) -> tuple[Floats, Labels, Floats, Labels]:
    """Windows to train a discriminator on and to test it on, with 1 for real: as many synthetic ones as real."""
    rng = np.random.default_rng(seed)
    count = min(len(real), len(synthetic))
    both = [(x[rng.permutation(len(x))[:count]], y) for x, y in ((real, 1), (synthetic, 0))]
    cut = min(count - 1, max(1, round(TRAINED * count)))
    train = np.concatenate([x[:cut] for x, _ in both])
    test = np.concatenate([x[cut:] for x, _ in both])
    return train, np.repeat([1, 0], cut), test, np.repeat([1, 0], count - cut)


def discriminative(real: Floats, synthetic: Floats, *, seed: int = 0) -> float:
    """|accuracy - 0.5| of the classifier of `rocket` in telling real from synthetic: 0 where it cannot, 0.5 where it
    always can. The score of Yoon, Jarrett & van der Schaar (TimeGAN, NeurIPS 2019), by a stronger classifier than
    their recurrent network, which `networks.discriminative` trains."""
    train, of, test, truth = halves(real, synthetic, seed=seed)
    return abs(float((predicted(train, of, test, seed=seed) == truth).mean()) - 0.5)


def autocorrelation(windows: Floats, lags: int) -> NDArray[np.float64]:
    """(lags, C): of each channel with itself 1 to `lags` steps before, over all windows together."""
    x = windows.astype(np.float64)
    x = x - x.mean(axis=(0, 1))
    variance = (x**2).mean(axis=(0, 1))
    variance = np.where(variance > 0, variance, 1.0)
    return np.stack([(x[:, lag:] * x[:, :-lag]).mean(axis=(0, 1)) / variance for lag in range(1, lags + 1)])


def autocorrelation_distance(real: Floats, synthetic: Floats, lags: int) -> float:
    """Mean over channels and lags of how far the autocorrelations are apart (0 to 2). In the manner of Wiese et al.,
    "Quant GANs", Quantitative Finance 20 (2020), arXiv 1907.06673, with a mean in place of a norm."""
    return float(np.abs(autocorrelation(real, lags) - autocorrelation(synthetic, lags)).mean())


def frechet(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The squared Fréchet distance of two normal distributions that are fitted on embeddings (N, E) and (M, E):
    |m - n|² + tr(S + R - 2 (S R)^½) (Dowson & Landau 1982; Heusel et al., arXiv 1706.08500)."""
    (m, s), (n, r) = ((x.mean(axis=0), np.atleast_2d(np.cov(x.astype(np.float64), rowvar=False))) for x in (a, b))
    root = _root(s)
    return max(0.0, float(((m - n) ** 2).sum() + np.trace(s) + np.trace(r) - 2 * np.trace(_root(root @ r @ root))))


def _root(symmetric: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    root: NDArray[np.float64] = (vectors * np.maximum(values, 0) ** 0.5) @ vectors.T
    return root
