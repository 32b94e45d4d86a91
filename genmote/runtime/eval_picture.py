"""What `eval kv` found as a picture: a panel a measure, over the share of rows kept, a line for each policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from genmote.runtime.eval_kv import Measured
from genmote.signals.chart import STYLE, ticks

WIDTH, LEFT, RIGHT = 960, 72, 260  # pixels
HEAD, PANEL, GAP = 86, 170, 66
COLOURS = ("#1c4f91", "#d9480f", "#2b8a3e", "#862e9c", "#e8b04a", "#0b7285", "#c2255c", "#4a5560", "#74b816", "#845ef7")
MOST_RATIO = 2.0  # what is worse is drawn at the edge
PANELS: tuple[tuple[str, Callable[[Measured], float | None]], ...] = (
    ("perplexity, times the full cache's", lambda row: min(row.ratio, MOST_RATIO)),
    ("words found in a long text", lambda row: row.needle),
    ("tokens copied right", lambda row: row.copy),
    ("decoding, tokens/s at a full context", lambda row: row.decode_tokens_per_s),
)


def svg(title: str, subtitle: str, rows: Sequence[Measured]) -> str:
    """The picture as the text of an SVG file; a panel whose measure the full cache failed is left out."""
    names = list(dict.fromkeys((row.policy, row.kv) for row in rows if row.policy != "full"))
    panels = [(label, value) for label, value in PANELS if any(value(row) is not None for row in rows)]
    height = HEAD + len(panels) * (PANEL + GAP)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(LEFT, 34, title, "title"),
        _text(LEFT, 56, subtitle),
    ]
    for number, (policy, kv) in enumerate(names):
        y = HEAD + 24 + 22 * number
        drawn.append(_mark(WIDTH - RIGHT + 30, y - 4, number))
        drawn.append(_text(WIDTH - RIGHT + 44, y, policy if kv == "f16" else f"{policy}, {kv}"))
    drawn.append(_text(WIDTH - RIGHT + 22, HEAD + 24 + 22 * len(names), "– –  full cache"))
    for number, (label, value) in enumerate(panels):
        drawn += _panel(label, value, rows, names, HEAD + 14 + number * (PANEL + GAP))
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _panel(
    label: str,
    value: Callable[[Measured], float | None],
    rows: Sequence[Measured],
    names: Sequence[tuple[str, str]],
    top: float,
) -> list[str]:
    shown = [y for row in rows if (y := value(row)) is not None]
    marks = ticks(min(shown), max(shown), 4)
    low, high = marks[0], marks[-1]
    most = max((row.budget for row in rows if row.policy != "full"), default=1.0)
    span = WIDTH - LEFT - RIGHT

    def across(x: float) -> float:
        return LEFT + span * x / most

    def down(y: float) -> float:
        return top + PANEL * (1 - (y - low) / ((high - low) or 1.0))

    drawn = [_text(LEFT, top - 8, label, "panel")]
    for tick in marks:
        drawn.append(f'<path class="grid" d="M{LEFT} {down(tick):.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(_text(LEFT - 8, down(tick) + 4, f"{tick:g}", anchor="end"))
    for budget in sorted({row.budget for row in rows if row.policy != "full"}):
        drawn.append(_text(across(budget), top + PANEL + 18, f"{100 * budget:g}%", anchor="middle"))
    drawn.append(_text(LEFT, top + PANEL + 18, "rows kept", anchor="start"))
    full = next((value(row) for row in rows if row.policy == "full"), None)
    if full is not None:
        drawn.append(f'<path class="axis" stroke-dasharray="6 5" d="M{LEFT} {down(full):.1f}H{WIDTH - RIGHT}"/>')
    for number, name in enumerate(names):
        points = sorted(
            (row.budget, y) for row in rows if (row.policy, row.kv) == name and (y := value(row)) is not None
        )
        line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{line}"/>')
        drawn += [_mark(across(x), down(y), number) for x, y in points]
    return drawn


def _mark(x: float, y: float, number: int) -> str:
    """A dot in the line's colour; of a second round of colours, a square."""
    colour = COLOURS[number % len(COLOURS)]
    if number < len(COLOURS):
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
