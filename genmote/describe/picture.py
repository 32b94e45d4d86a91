"""A picture of a signal with the stretches that an answer rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from genmote.describe.model import Evidence
from genmote.models.patches import as_series
from genmote.signals import chart, picture
from genmote.signals.kinds import Signal

MOST = 3  # stretches that are shaded


def svg(signal: Signal, spans: Sequence[Evidence], said: str) -> str:
    """The picture as the text of an SVG file. `spans`: the most telling first."""
    series = as_series(signal)
    panels = picture.channels(series)
    _, seconds = picture.unit(series.duration_s)
    shades = [(one.start_s / seconds, one.stop_s / seconds) for one in spans[:MOST]]
    return chart.svg(signal.name, said, [replace(panel, shades=shades) for panel in panels])
