from __future__ import annotations

import numpy as np
import pytest

from genmote.fetch import Progress, quiet
from genmote.signals import recordings
from genmote.signals.kinds import Series


def made_up(name: str, *, progress: Progress = quiet) -> list[Series]:
    """A pulse of 75 beats a minute, and an arm that is raised twenty times in 40 s."""
    t = np.arange(4000) / 100
    if name == "heart":
        wave = np.exp(-((((t + 0.4) % 0.8 - 0.4) / 0.06) ** 2))
        return [Series(name, wave[:, None].astype(np.float32), 100.0, ("light",), ("counts",))]
    swing = np.stack([0.3 * np.sin(np.pi * t), 0 * t, 1 + 0 * t], axis=1)[::2].astype(np.float32)
    return [Series("abduction", swing, 50.0, ("ax", "ay", "az"), ("g", "g", "g"))]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings that need no fetching."""
    monkeypatch.setattr(recordings, "read", made_up)
