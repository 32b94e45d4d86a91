"""The memory budget as a picture: a bar of letters for the terminal, an SVG page for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from genmote.runtime.advice import rate
from genmote.runtime.plan import Plan
from genmote.signals.chart import STYLE, ticks

# Part -> letter, name, colour; in the order of the bar. Colours differ in lightness too.
PARTS = {
    "interpreter": ("P", "Python, NumPy, kernels", "#4a5560"),
    "tables": ("T", "token table", "#8a97a3"),
    "adapters": ("L", "adapters (LoRA)", "#2f7d6b"),
    "weights": ("W", "weights", "#1c4f91"),
    "ring": ("R", "ring of streamed weights", "#3f86d1"),
    "experts": ("E", "cache of experts", "#7fb2e5"),
    "kv": ("K", "keys and values", "#d9480f"),
    "queries": ("Q", "stored queries", "#f08c5a"),
    "activations": ("A", "activations", "#e8b04a"),
}
WIDTH, LEFT, RIGHT = 960, 24, 24  # pixels
BAR, LEGEND = 46, 26
Line = tuple[str, Sequence[tuple[int, int]]]  # a name, (context, bytes) points


def bar(plan: Plan, columns: int = 64) -> str:
    """One line: a letter for each share of the budget, dots for what is free, all in brackets.

    The largest remainders get the last cells, so that the letters add up.
    """
    whole = max(plan.budget_bytes or 0, plan.predicted_bytes)
    sizes = {PARTS[name][0]: plan.parts[name] for name in PARTS}
    sizes["."] = whole - plan.predicted_bytes
    exact = {letter: columns * size / whole for letter, size in sizes.items()}
    cells = {letter: int(share) for letter, share in exact.items()}
    for letter in sorted(exact, key=lambda one: cells[one] - exact[one])[: columns - sum(cells.values())]:
        cells[letter] += 1
    return "[" + "".join(letter * count for letter, count in cells.items()) + "]"


def svg(plan: Plan, title: str, lines: Sequence[Line] = ()) -> str:
    """An SVG file: the budget as a bar with its legend; below, `lines` of predicted bytes over context length with the
    budget drawn across."""
    whole = max(plan.budget_bytes or 0, plan.predicted_bytes)
    span = WIDTH - LEFT - RIGHT
    shown = [name for name in PARTS if plan.parts[name]]
    legend_rows = -(-(len(shown) + 1) // 3)
    top = 120 + BAR + legend_rows * LEGEND + (74 if plan.streamed_bytes else 50)
    height = top + (300 if lines else 0)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(LEFT, 36, title, "title"),
        _text(LEFT, 60, _subtitle(plan)),
        f'<rect x="{LEFT}" y="84" width="{span}" height="{BAR}" fill="#f3f5f7" stroke="#a9b4be"/>',
    ]
    at = float(LEFT)
    for name in shown:
        wide = span * plan.parts[name] / whole
        drawn.append(
            f'<rect x="{at:.1f}" y="84" width="{wide:.1f}" height="{BAR}" fill="{PARTS[name][2]}">'
            f"<title>{PARTS[name][1]}: {_mb(plan.parts[name])}</title></rect>"
        )
        at += wide
    entries = [(f"{PARTS[name][1]} {_mb(plan.parts[name])}", PARTS[name][2]) for name in shown]
    if plan.budget_bytes is not None:
        entries.append((f"free {_mb(plan.budget_bytes - plan.predicted_bytes)}", "#f3f5f7"))
    for number, (text, colour) in enumerate(entries):
        x, y = LEFT + number % 3 * (span // 3), 84 + BAR + 28 + number // 3 * LEGEND
        drawn.append(f'<rect x="{x}" y="{y - 11}" width="14" height="14" fill="{colour}" stroke="#a9b4be"/>')
        drawn.append(_text(x + 22, y, text))
    if plan.streamed_bytes:
        drawn.append(
            _text(
                LEFT, top - 52, f"Read from storage in each pass: up to {_mb(plan.streamed_bytes)} of weights", "panel"
            )
        )
    if lines:
        drawn += _chart(plan, lines, top)
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _subtitle(plan: Plan) -> str:
    told = f"{_mb(plan.predicted_bytes)} predicted"
    if plan.budget_bytes is not None:
        told += f" of {_mb(plan.budget_bytes)}"
    told += f"; context {plan.context}, keys and values as {plan.kv}"
    if plan.expected is not None:
        speed = plan.expected
        told += (
            f"; expected {rate(speed.decode_tokens_per_s)} tokens/s at the beginning, "
            f"{rate(speed.full_decode_tokens_per_s)} with the context full"
        )
    return told


def _chart(plan: Plan, lines: Sequence[Line], top: int) -> list[str]:
    """Predicted memory over the context's length, a line for each way to keep keys and values."""
    left, right, bottom = LEFT + 60, WIDTH - 150, top + 220
    most = max(size for _, points in lines for _, size in points)
    across_to = max(tokens for _, points in lines for tokens, _ in points)
    marks = ticks(0.0, max(most, plan.budget_bytes or 0) / 1e6, 4)
    high = marks[-1]

    def x(tokens: float) -> float:
        return left + (right - left) * tokens / across_to

    def y(count: float) -> float:
        return bottom - (bottom - top) * count / 1e6 / high

    drawn = [_text(LEFT, top - 14, "Memory that all weights and a context of so many tokens take, MB", "panel")]
    for mark in marks:
        drawn.append(f'<path class="grid" d="M{left} {y(mark * 1e6):.1f}H{right}"/>')
        drawn.append(_text(left - 8, y(mark * 1e6) + 4, f"{mark:g}", anchor="end"))
    for mark in ticks(0.0, float(across_to), 8):
        if mark <= across_to:
            drawn.append(_text(x(mark), bottom + 20, f"{mark:g}", anchor="middle"))
    drawn.append(_text(right, bottom + 40, "tokens of context", anchor="end"))
    for (name, points), colour in zip(lines, ("#d9480f", "#1c4f91", "#4a5560"), strict=False):
        path = " ".join(f"{x(tokens):.1f},{y(size):.1f}" for tokens, size in points)
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        drawn.append(_text(right + 8, y(points[-1][1]) + 4, name))
    if plan.budget_bytes is not None:
        at = y(plan.budget_bytes)
        drawn.append(f'<path stroke="#16202b" stroke-dasharray="6 4" d="M{left} {at:.1f}H{right}"/>')
        drawn.append(_text(left + 6, at - 6, "budget"))
    return drawn


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
