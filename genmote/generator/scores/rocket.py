"""A strong classifier of series that trains in seconds: random convolution kernels and ridge regression.

Features as in MiniRocket: 84 kernels of length 9 with three weights of 2 and six of -1, dilated, each with thresholds
taken from what it gives on the training series; a feature is the share of a convolution that is above its threshold.
Of several channels each kernel sums a few.

Dempster, Schmidt & Webb, "MiniRocket: A very fast (almost) deterministic transform for time series classification",
KDD 2021, arXiv 2012.08791. Ridge with leave-one-out choice of its penalty: Rifkin & Lippert, "Notes on regularized
least squares", MIT-CSAIL-TR-2007-025.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.generic]
LENGTH, TWOS = 9, np.array(list(itertools.combinations(range(9), 3)))  # (84, 3)
GOLDEN = (5**0.5 + 1) / 2
ALPHAS = 10.0 ** np.linspace(-3, 5, 17)  # penalties of the ridge that are tried
MOST_CHANNELS = 9  # that a kernel sums
FEW = 8  # windows that a kernel's thresholds are taken from
BATCH = 128  # windows that are convolved at once
FEATURES = 2500


class Rocket:
    """The features of windows (N, T, C): :meth:`fit` on some, then called on any of that shape."""

    def __init__(self, windows: Floats, *, features: int = FEATURES, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        count, steps, channels = windows.shape
        most = max(1, (steps - 1) // (LENGTH - 1))
        self.dilations = np.unique(np.floor(2.0 ** np.linspace(0, np.log2(most), 8)).astype(int))
        each = max(1, features // (len(TWOS) * len(self.dilations)))
        self.chosen: dict[tuple[int, int], NDArray[np.intp]] = {}
        self.thresholds: dict[tuple[int, int], Floats] = {}
        at = 0
        for dilation, kernel in itertools.product(self.dilations.tolist(), range(len(TWOS))):
            summed = int(2 ** rng.uniform(0, np.log2(min(channels, MOST_CHANNELS) + 1)))
            self.chosen[dilation, kernel] = rng.permutation(channels)[: max(1, summed)]
            # At places that spread evenly over all kernels, of what a few windows give: of one, as in the paper, there
            # would be one threshold where a window is a single row.
            places = (np.arange(at, at + each) * GOLDEN) % 1
            at += each
            few = windows[rng.integers(count, size=FEW)]
            self.thresholds[dilation, kernel] = np.zeros(each, np.float32)
            self.thresholds[dilation, kernel] = np.quantile(self._some(few, dilation, kernel), places).astype(
                np.float32
            )

    def __call__(self, windows: Floats) -> Floats:
        """(N, T, C) → (N, F): shares."""
        parts = [self._batch(windows[start : start + BATCH]) for start in range(0, len(windows), BATCH)]
        return np.concatenate(parts)

    def _batch(self, windows: Floats) -> Floats:
        found: list[Floats] = []
        for dilation in self.dilations.tolist():
            shifted = _shifted(windows, dilation)
            every = sum(shifted[1:], shifted[0])
            for kernel in range(len(TWOS)):
                given = self._convolved(shifted, every, dilation, kernel)
                marks = self.thresholds[dilation, kernel]
                found.append(np.stack([(given > mark).mean(axis=1, dtype=np.float32) for mark in marks], axis=1))
        return np.concatenate(found, axis=1)

    def _some(self, windows: Floats, dilation: int, kernel: int) -> Floats:
        shifted = _shifted(windows, dilation)
        return self._convolved(shifted, sum(shifted[1:], shifted[0]), dilation, kernel)

    def _convolved(self, shifted: list[Floats], every: Floats, dilation: int, kernel: int) -> Floats:
        """(N, T'): of every second kernel only where it lies within the series."""
        which = self.chosen[dilation, kernel]
        a, b, c = TWOS[kernel]
        whole = 3 * (shifted[a][..., which] + shifted[b][..., which] + shifted[c][..., which]) - every[..., which]
        given: Floats = whole.sum(axis=2)
        edge = (LENGTH - 1) // 2 * dilation
        return given[:, edge:-edge] if (kernel + dilation) % 2 and given.shape[1] > 2 * edge else given


def _shifted(windows: Floats, dilation: int) -> list[Floats]:
    """What each of the kernel's nine places meets, with zeros beyond the ends."""
    reach = (LENGTH - 1) // 2 * dilation
    wide = np.pad(windows, ((0, 0), (reach, reach), (0, 0)))
    return [wide[:, n * dilation : n * dilation + windows.shape[1]] for n in range(LENGTH)]


class Ridge:
    """Labels by ridge regression on ±1, one against all; the penalty with the least leave-one-out error."""

    def __init__(self, features: Floats, labels: Labels) -> None:
        self.classes, which = np.unique(labels, return_inverse=True)
        self.mean, spread = features.mean(axis=0), features.std(axis=0)
        self.scale = np.where(spread > 0, spread, 1.0)
        x = ((features - self.mean) / self.scale).astype(np.float64)
        y = np.where(which[:, None] == np.arange(len(self.classes)), 1.0, -1.0)
        self.offset = y.mean(axis=0)
        values, vectors = np.linalg.eigh(x @ x.T + 1)
        # The features are centred, so that by the 1 the direction of all ones, the intercept's, has a value of its own;
        # it is not penalised.
        turned = vectors.T @ (y - self.offset)
        constant = np.abs(vectors.sum(axis=0)) > 0.999 * len(x) ** 0.5
        best = np.inf
        for alpha in ALPHAS:
            inverse = np.where(constant, 0.0, 1 / (np.maximum(values, 0) + alpha))
            dual = vectors @ (inverse[:, None] * turned)
            left = dual / ((vectors**2) @ inverse)[:, None]
            error = float((left**2).mean())
            if error < best:
                best, self.weights = error, x.T @ dual

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """(N, classes): the higher, the likelier."""
        found: NDArray[np.float64] = ((features - self.mean) / self.scale) @ self.weights + self.offset
        return found

    def __call__(self, features: Floats) -> Labels:
        found: Labels = self.classes[self.scores(features).argmax(axis=1)]
        return found
