"""A training as an SVG picture: the loss of each step, the held-out loss, and the memory over the steps; and a stream
that was followed: the loss of each example, with what happened, and the memory."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from genmote.signals import chart
from genmote.signals.chart import Panel

if TYPE_CHECKING:
    from genmote.tune.follow import Followed
    from genmote.tune.run import Tuned


SMOOTH = 9  # examples whose mean loss is drawn, too
SHOWN = 6  # events that the picture names


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


def followed(told: Followed, model: str) -> str:
    """The picture of a stream: shaded from a change on until an adapter is taken, with a point where one is."""
    losses = np.array(told.losses, np.float64)
    last = told.first + told.examples  # and one: of a long stream only the last losses are there
    x = np.arange(last - len(losses), last, dtype=np.float64)
    there = np.isfinite(losses)
    x, losses, memory = x[there], losses[there], np.array(told.memory, np.float64)[there]
    what = f"{model}: " + (", ".join(f"{e.what} at {e.example}" for e in islice(told.events, SHOWN)) or "no change")
    if not len(x):
        return chart.svg(told.folder.name, f"{what}; no example was read", [])
    taken = np.array([e.example for e in told.events if e.what == "accepted" and e.example >= x[0]], np.float64)
    ones = np.ones(min(SMOOTH, len(losses)))
    smooth = np.convolve(losses, ones, "same") / np.convolve(np.ones(len(losses)), ones, "same")
    own: dict[str, Any] = {"x": x, "x_label": "example", "y_label": "nats a token", "shades": _unknown(told, x[-1])}
    panels = [
        Panel("loss of each example; shaded: since a change, to an adapter that was taken", y=losses, **own),
        Panel(
            f"mean of {SMOOTH}; points: adapters taken", y=smooth, points=(taken, np.interp(taken, x, smooth)), **own
        ),
    ]
    if memory.any():
        panels.append(Panel("memory after each example", x, memory / 1e6, "example", "MB"))
    return chart.svg(told.folder.name, what, panels)


def _unknown(told: Followed, last: float) -> list[tuple[float, float]]:
    """Stretches of examples from a change to what ended it: an adapter that was taken, or that it was for a while."""
    found, since = [], None
    for event in told.events:
        if event.what == "drift" and since is None:
            since = float(event.values["since"])
        elif event.what in ("accepted", "eased") and since is not None:
            found.append((since, float(event.example)))
            since = None
    return found if since is None else [*found, (since, last)]
