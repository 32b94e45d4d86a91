"""What generated windows, and the model, give away of the recordings that the model was trained on.

Distances are root mean squares over the T steps and C channels of windows (N, T, C). Attacks are given as many members
(windows that the model was trained on) as non-members; each chooses its threshold on one half of both and is measured
on the other, over and over, so that a guess stays at one half.

Chen, Yu, Zhang & Fritz, "GAN-Leaks", CCS 2020, arXiv 1909.03935 (nearest generated neighbour); Yeom, Giacomelli,
Fredrikson & Jha, CSF 2018, arXiv 1709.01604 (threshold on the model's loss).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
HALVINGS = 50
BATCH = 256


def nearest(windows: Floats, others: Floats) -> NDArray[np.float64]:
    """(N,): how far each of `windows` is from the nearest of `others`."""
    flat = others.reshape(len(others), -1).astype(np.float64)
    squares = (flat**2).sum(axis=1)
    found = []
    for start in range(0, len(windows), BATCH):
        part = windows[start : start + BATCH].reshape(-1, flat.shape[1]).astype(np.float64)
        which = (squares - 2 * part @ flat.T).argmin(axis=1)
        # Once more without the cancellation, which would make a copy look some way off.
        found.append((((part - flat[which]) ** 2).mean(axis=1)) ** 0.5)
    return np.concatenate(found)


def neighbours(synthetic: Floats, train: Floats, held_out: Floats, *, seed: int = 0) -> dict[str, float]:
    """Median distances from generated windows to the nearest of train and of held-out windows, as many of each, and
    from held-out to train windows, which is how near windows come that were not copied. `closer_to_train`: the share of
    generated windows whose nearest is one of train (one half where nothing was copied and both are alike)."""
    train, held_out = evened(train, held_out, seed=seed)
    to_train, to_held_out = nearest(synthetic, train), nearest(synthetic, held_out)
    closer = (to_train < to_held_out) + 0.5 * (to_train == to_held_out)
    return {
        "synthetic_to_train": float(np.median(to_train)),
        "synthetic_to_held_out": float(np.median(to_held_out)),
        "held_out_to_train": float(np.median(nearest(held_out, train))),
        "closer_to_train": float(closer.mean()),
    }


def evened(a: Floats, b: Floats, *, seed: int) -> tuple[Floats, Floats]:
    """As many of each, drawn by `seed`, in their order."""
    rng = np.random.default_rng(seed)
    count = min(len(a), len(b))
    kept = [x[np.sort(rng.permutation(len(x))[:count])] for x in (a, b)]
    return kept[0], kept[1]


def membership(members: NDArray[np.floating], others: NDArray[np.floating], *, seed: int = 0) -> float:
    """Balanced accuracy of telling members from others by a threshold on a figure that is lower for members: a distance
    to the nearest generated window, or the model's nats a sample. (N,) and (M,)."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(HALVINGS):
        (m, m_test), (o, o_test) = (_halved(x[rng.permutation(len(x))]) for x in (members, others))
        at = _threshold(m, o)
        found.append(((m_test <= at).mean() + (o_test > at).mean()) / 2)
    return float(np.mean(found))


def _halved(x: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    return x[: len(x) // 2], x[len(x) // 2 :]


def _threshold(members: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """Where at or below is taken for a member with the best balanced accuracy."""
    values = np.unique(np.concatenate([members, others]))
    places = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    found = np.searchsorted(np.sort(members), places, "right") / len(members)
    false = np.searchsorted(np.sort(others), places, "right") / len(others)
    return float(places[(found - false).argmax()])


def attack(members: Floats, others: Floats, synthetic: Floats, *, seed: int = 0) -> float:
    """:func:`membership` by how near the nearest generated window is."""
    members, others = evened(members, others, seed=seed)
    return membership(nearest(members, synthetic), nearest(others, synthetic), seed=seed)
