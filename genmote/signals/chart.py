"""Draws series as an SVG picture, without any plotting library: a page of panels, one above the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, LEFT, RIGHT = 960, 72, 24  # pixels
HEAD, PANEL, GAP = 86, 190, 84
COLUMNS = WIDTH - LEFT - RIGHT

STYLE = """
text { font: 13px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #4a5560 }
.title { font-size: 20px; font-weight: 600; fill: #16202b }
.panel { font-size: 14px; font-weight: 600; fill: #16202b }
.grid { stroke: #e4e8ec } .axis { stroke: #a9b4be }
.line { fill: none; stroke: #2468b4; stroke-width: 1.4; stroke-linejoin: round }
.band { fill: #2468b4; fill-opacity: 0.18; stroke: #2468b4; stroke-opacity: 0.35 }
.shade { fill: #eef4fb } .point { fill: #d9480f; stroke: #fff; stroke-width: 1 }
"""


@dataclass(frozen=True)
class Panel:
    """One drawing: a line through x, y (T,) each, points upon it (K,) each, stretches of x to shade, and a band
    from where to where at each x (N,)."""

    title: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    x_label: str
    y_label: str
    points: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None
    shades: Sequence[tuple[float, float]] = ()
    band: tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]] | None = None


def svg(title: str, subtitle: str, panels: Sequence[Panel]) -> str:
    """The picture as the text of an SVG file."""
    height = HEAD + len(panels) * (PANEL + GAP) - 20
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(LEFT, 34, title, "title"),
        _text(LEFT, 56, subtitle),
    ]
    for number, panel in enumerate(panels):
        drawn += _panel(panel, HEAD + 14 + number * (PANEL + GAP))
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _panel(panel: Panel, top: float) -> list[str]:
    bottom = top + PANEL
    x0, x1 = float(panel.x[0]), float(panel.x[-1])
    drawn_y = [panel.y] if panel.band is None else [panel.y, *panel.band[1:]]
    if panel.points is not None and len(panel.points[1]):
        drawn_y.append(panel.points[1])
    least, most = min(float(y.min()) for y in drawn_y), max(float(y.max()) for y in drawn_y)
    y_ticks = ticks(least, most, 4)
    low, high = min(y_ticks[0], least), max(y_ticks[-1], most)

    def across(x: float) -> float:
        return LEFT + COLUMNS * (x - x0) / ((x1 - x0) or 1.0)

    def down(y: float) -> float:
        return bottom - PANEL * (y - low) / ((high - low) or 1.0)

    drawn = [_text(LEFT, top - 10, panel.title, "panel")]
    for start, stop in panel.shades:
        start, stop = max(start, x0), min(stop, x1)
        if start < stop:
            wide = across(stop) - across(start)
            drawn.append(f'<rect class="shade" x="{across(start):.1f}" y="{top}" width="{wide:.1f}" height="{PANEL}"/>')
    for tick in y_ticks:
        at = down(tick)
        drawn.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(_text(LEFT - 8, at + 4, f"{tick:g}", anchor="end"))
    for tick in ticks(x0, x1, 10):
        if x0 <= tick <= x1:
            drawn.append(f'<path class="axis" d="M{across(tick):.1f} {bottom}v5"/>')
            drawn.append(_text(across(tick), bottom + 20, f"{tick:g}", anchor="middle"))
    drawn.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    drawn.append(_text(WIDTH - RIGHT, bottom + 38, panel.x_label, anchor="end"))
    middle = (top + bottom) / 2
    upright = f'<text transform="rotate(-90 18 {middle:.1f})"'
    drawn.append(_text(18, middle, panel.y_label, anchor="middle").replace("<text", upright, 1))
    if panel.band is not None:
        x, lower, upper = panel.band
        corners = [*zip(x, upper, strict=True), *zip(x[::-1], lower[::-1], strict=True)]
        places = " ".join(f"{across(float(a)):.1f},{down(float(b)):.1f}" for a, b in corners)
        drawn.append(f'<polygon class="band" points="{places}"/>')
    line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(*thinned(panel.x, panel.y, COLUMNS), strict=True))
    drawn.append(f'<polyline class="line" points="{line}"/>')
    if panel.points is not None:
        for x, y in zip(*panel.points, strict=True):
            if x0 <= x <= x1:
                drawn.append(f'<circle class="point" cx="{across(float(x)):.1f}" cy="{down(float(y)):.1f}" r="3.6"/>')
    return drawn


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers, about so many, from the first at or below `low` to the first at or above `high`.

    >>> ticks(0.0, 128.2, 10)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 140.0]
    """
    span = high - low or 1.0
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    return [round(step * (first + n), 12) for n in range(max(1, count) + 1)]


def thinned(
    x: NDArray[np.floating], y: NDArray[np.floating], columns: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """A line that looks the same in `columns` pixels: of each column's samples the lowest and the highest."""
    if len(x) <= 4 * columns:
        return x, y
    edges = np.linspace(0, len(x), columns + 1).astype(int)
    kept: list[int] = []
    for start, stop in itertools.pairwise(edges):
        kept += sorted({start + int(np.argmin(y[start:stop])), start + int(np.argmax(y[start:stop]))})
    return x[kept], y[kept]
