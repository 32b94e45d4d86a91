"""A training as an SVG picture: the loss of each step, the held-out loss, and the memory over the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genmote.signals import chart
from genmote.signals.chart import Panel

if TYPE_CHECKING:
    from genmote.tune.run import Tuned


def svg(made: Tuned) -> str:
    """The picture as the text of an SVG file."""
    progress = made.progress
    steps = np.arange(1, len(progress.losses) + 1, dtype=np.float64)
    judged = np.array(progress.judged, np.float64).reshape(-1, 2)
    panels = [Panel("loss of what is learnt from", steps, np.array(progress.losses), "step", "nats a token")]
    if len(judged):
        panels.append(
            Panel(
                "loss of what is held out",
                judged[:, 0],
                judged[:, 1],
                "step",
                "nats a token",
                points=(judged[:, 0], judged[:, 1]),
            )
        )
    if any(progress.memory):
        panels.append(Panel("memory after each step", steps, np.array(progress.memory) / 1e6, "step", "MB"))
    what = f"{made.card['base']}, {made.card['examples']} examples, on {made.card['settings']['on']}"
    return chart.svg(made.path.name, what, panels)
