"""Reports as a page: one file of HTML with drawings in it, no script, nothing fetched."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from genmote.compress.report import expected_on, measured_on, rows
from genmote.ops import quant
from genmote.records import Record
from genmote.signals.chart import STYLE, ticks

WIDTH, LEFT, RIGHT = 960, 110, 30  # pixels of a drawing
BLUE, RED, GREY = "#1c4f91", "#d9480f", "#8a97a3"
PART_COLOURS = ("#1c4f91", "#3f86d1", "#e8b04a", "#d9480f", "#2b8a3e", "#862e9c", "#8a97a3")
KIND_COLOURS = ("#1c4f91", "#3f86d1", "#7fb2e5", "#0b7285", "#d9480f", "#e8b04a", "#862e9c", "#2b8a3e")
PAGE_STYLE = """
body { font: 15px/1.5 system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; color: #16202b; background: #f3f5f7; margin: 0 }
main { max-width: 1000px; margin: 0 auto; padding: 24px 20px 60px }
h1 { font-size: 26px; margin: 8px 0 4px } h2 { font-size: 18px; margin: 0 0 10px }
p { margin: 4px 0; color: #4a5560 } code { font-size: 13px }
section { background: #fff; border: 1px solid #dfe4e8; border-radius: 8px; padding: 18px 20px; margin-top: 18px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px }
.tile { background: #fff; border: 1px solid #dfe4e8; border-radius: 8px; padding: 12px 16px }
.tile b { display: block; font-size: 24px; font-weight: 600 } .tile span { color: #4a5560; font-size: 13px }
table { border-collapse: collapse; width: 100% } td, th { padding: 5px 10px; border-bottom: 1px solid #e4e8ec }
th { text-align: left; font-weight: 600 } .n { text-align: right; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto; display: block } pre { overflow-x: auto; font-size: 13px; margin: 0 }
details summary { cursor: pointer; color: #1c4f91 }
"""


def page(record: Record, others: Sequence[Record] = ()) -> str:
    """The page of one result; with `others` its frontier too."""
    told = record.values
    a, b = told["original"], told["compressed"]
    parts = [_tiles(told), _section("Before and after", _table(told), f"<p>{escape(measured_on(record))}</p>")]
    parts.append(_section("Where the bytes are", _parts(a, b)))
    parts.append(_section("Bits per weight, matrix by matrix", _map(b["types"])))
    if drawn := _errors(told["steps"]):
        parts.append(_section("Squared error at each matrix's output, as a share of the output that it aims at", drawn))
    if told["search"]:
        parts.append(_section("What the search expected and what came", _search(told["search"])))
    if others:
        parts.append(_section("Beside other results", _frontier([record, *others])))
    parts.append(_section("How it was made", _steps(told["steps"]), _details("recipe", told["recipe"])))
    parts.append(_section("Where this was measured", _provenance(record)))
    return _page(f"{a['name']} → {b['name']}", "What compressing cost, and what it gained", parts)


def frontier(found: Sequence[Record]) -> str:
    """The page of several results."""
    heads = (
        "result",
        "file",
        "bits per weight",
        "perplexity",
        "times",
        "bits per byte",
        "KL, nats a token",
        "writes/s",
    )
    lines = []
    for record in sorted(found, key=lambda one: float(one.values["compressed"]["size_bytes"])):
        b, told = record.values["compressed"], record.values
        kl = told["kl_nats_per_token"]
        cells = (
            f"{b['size_bytes'] / 1e6:.1f} MB",
            f"{b['bits_per_weight']:.2f}",
            f"{b['perplexity']:.3f}",
            "" if told["perplexity_ratio"] is None else f"{told['perplexity_ratio']:.3f}",
            f"{b['bits_per_byte']:.4f}",
            "" if kl is None else f"{kl:.4f}",
            f"{b['decode_tokens_per_s']:.4g}",
        )
        lines.append(f"<tr><td>{escape(b['name'])}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th{' class=n' if number else ''}>{text}</th>" for number, text in enumerate(heads))
    table = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    texts = sorted({f"{one.values['text']} ({one.values['windows']} windows)" for one in found})
    named = f"<p>Measured on {escape('; '.join(texts))}.</p>"
    if len(texts) > 1:
        named += "<p><b>These texts differ: losses on one say nothing about those on another.</b></p>"
    machines = sorted({f"{one.device['cpu']}, {one.threads} threads" for one in found})
    table += (
        "<p>Each speed is of its result's own run, with whatever else ran there then, on "
        f"{escape('; '.join(machines))}: small differences say nothing.</p>"
    )
    parts = [_section("Loss over size", _frontier(found), named), _section("All results", table)]
    return _page("Results side by side", f"{len(found)} results; those on the line are beaten by none", parts)


def _page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{PAGE_STYLE}</style></head><body><main>'
        f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, *inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(inside)}</section>"


def _tiles(told: Mapping[str, Any]) -> str:
    """The figures that are asked for first."""
    a, b = told["original"], told["compressed"]
    tiles = [(f"{b['size_bytes'] / 1e6:.1f} MB", f"file, {b['size_bytes'] / a['size_bytes']:.1%} of the original's")]
    # Of tokens that differ perplexities say nothing about each other.
    key, places = ("perplexity", 2) if told["perplexity_ratio"] is not None else ("bits_per_byte", 4)
    change = f"{key.replace('_', ' ')}, {a[key]:.{places}f} → {b[key]:.{places}f}"
    tiles.append((f"{b[key] / a[key]:.3f}x", change))
    if told["kl_nats_per_token"] is not None:
        tiles.append((f"{told['kl_nats_per_token']:.3f}", "nats a token, KL divergence"))
        tiles.append((f"{told['agreement']:.1%}", "of tokens: the same is likeliest"))
    faster = b["decode_tokens_per_s"] / a["decode_tokens_per_s"]
    tiles.append((f"{b['decode_tokens_per_s']:.4g}/s", f"tokens written, {faster:.2f}x the original's"))
    drawn = (f"<div class=tile><b>{escape(big)}</b><span>{escape(small)}</span></div>" for big, small in tiles)
    return f"<div class=tiles>{''.join(drawn)}</div>"


def _table(told: Mapping[str, Any]) -> str:
    lines = [
        f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows(told)
    ]
    return (
        "<table><tr><th></th><th class=n>original</th><th class=n>compressed</th><th class=n>change</th></tr>"
        f"{''.join(lines)}</table>"
    )


def _parts(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Two bars on one scale."""
    names = sorted({*a["parts_bytes"], *b["parts_bytes"]}, key=lambda name: -a["parts_bytes"].get(name, 0))
    whole = max(a["size_bytes"], b["size_bytes"])
    span = WIDTH - LEFT - RIGHT
    drawn = []
    for row, (label, side) in enumerate((("original", a), ("compressed", b))):
        y, at = 10 + 56 * row, float(LEFT)
        drawn.append(_text(LEFT - 10, y + 24, label, anchor="end"))
        rest = side["size_bytes"] - sum(side["parts_bytes"].values())
        pieces = [(name, side["parts_bytes"].get(name, 0)) for name in names] + [("vocabulary and header", rest)]
        for number, (name, count) in enumerate(pieces):
            wide = span * count / whole
            colour = PART_COLOURS[number % len(PART_COLOURS)] if number < len(names) else "#c9d1d8"
            drawn.append(
                f'<rect x="{at:.1f}" y="{y}" width="{wide:.1f}" height="38" fill="{colour}">'
                f"<title>{escape(name)}: {count / 1e6:.2f} MB</title></rect>"
            )
            if wide > 60:
                white = ' style="fill:#fff"'
                drawn.append(f'<text{white} x="{at + 7:.1f}" y="{y + 24}">{count / 1e6:.1f} MB</text>')
            at += wide
        if span + LEFT - at > 70:
            drawn.append(_text(at + 8, y + 24, f"{side['size_bytes'] / 1e6:.1f} MB", "panel"))
    legend = [(name, PART_COLOURS[number % len(PART_COLOURS)]) for number, name in enumerate(names)]
    return _svg(144 + 24 * (len(legend) // 5), drawn + _legend([*legend, ("vocabulary and header", "#c9d1d8")], 136))


def _map(types: Mapping[str, str]) -> str:
    """A cell a matrix: blocks across, kinds down, darker the more bits."""
    kinds: dict[str, dict[int, str]] = {}
    others: list[tuple[str, str]] = []
    for name, stored in types.items():
        words = name.split(".")
        if words[0] == "blk":
            kinds.setdefault(words[2], {})[int(words[1])] = stored
        else:
            others.append((name.removesuffix(".weight"), stored))
    blocks = 1 + max((number for row in kinds.values() for number in row), default=0)
    used = sorted(set(types.values()), key=lambda name: (quant.by_name(name).bits_per_weight, name))
    colours = {name: _shade(number, len(used)) for number, name in enumerate(used)}
    wide, drawn, y = (WIDTH - LEFT - RIGHT) / blocks, [], 6
    for kind, row in kinds.items():
        drawn.append(_text(LEFT - 10, y + 16, kind, anchor="end"))
        for number, stored in row.items():
            drawn.append(
                f'<rect x="{LEFT + number * wide:.1f}" y="{y}" width="{wide - 2:.1f}" height="22" '
                f'fill="{colours[stored]}"><title>blk.{number}.{kind}: {stored}, '
                f"{quant.by_name(stored).bits_per_weight:.3g} bits</title></rect>"
            )
        y += 25
    for number in range(0, blocks, max(1, blocks // 10)):
        drawn.append(_text(LEFT + (number + 0.5) * wide, y + 14, str(number), anchor="middle"))
    drawn.append(_text(LEFT - 10, y + 14, "block", anchor="end"))
    y += 26
    for name, stored in others:
        drawn.append(_text(LEFT - 10, y + 16, name, anchor="end"))
        drawn.append(
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - RIGHT - 2}" height="22" fill="{colours[stored]}">'
            f"<title>{escape(name)}: {stored}</title></rect>"
        )
        y += 25
    legend = [(f"{name}, {quant.by_name(name).bits_per_weight:.3g} bits", colours[name]) for name in used]
    return _svg(y + 30 + 24 * ((len(legend) - 1) // 5), drawn + _legend(legend, y + 20))


def _shade(number: int, count: int) -> str:
    """From light to dark blue, lightness falling evenly."""
    share = 0.5 if count == 1 else number / (count - 1)
    low, high = (0xD3, 0xE5, 0xF6), (0x0B, 0x2C, 0x5C)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(low, high, strict=True))


def _errors(steps: Sequence[Mapping[str, Any]]) -> str:
    """A line for each kind of matrix over the blocks, of the last step that tells errors; empty where none does."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for step in steps:
        figures = step.get("figures") or {}
        found = {
            name: float(told["error"])
            for name, told in figures.items()
            if isinstance(told, Mapping) and isinstance(told.get("error"), (int, float)) and told["error"] > 0
        }
        if found:
            lines = {}
        for name, error in found.items():
            words = name.split(".")
            if words[0] == "blk":
                lines.setdefault(words[2], []).append((int(words[1]), error))
    if not lines:
        return ""
    named = [
        (kind, sorted(points), KIND_COLOURS[i % len(KIND_COLOURS)]) for i, (kind, points) in enumerate(lines.items())
    ]
    return _plot(named, "block", lambda share: f"{share:.2g}", logarithmic=True, joined=True)


def _search(told: Mapping[str, Any]) -> str:
    """Rounds: expected and measured; and what each group's damage was scaled by."""
    lines = "".join(
        f"<tr><td>{number}, {escape(one['of'])}</td><td class=n>{one['size_bytes'] / 1e6:.2f} MB</td>"
        + "".join(f"<td class=n>{one[key]:.4f}</td>" for key in ("expected", "bound", "measured"))
        + "</tr>"
        for number, one in enumerate(told["rounds"], 1)
    )
    table = (
        "<table><tr><th>round</th><th class=n>file</th><th class=n>KL expected, nats a token</th>"
        f"<th class=n>no choice expected below</th><th class=n>KL measured</th></tr>{lines}</table>"
    )
    scales = next((one["scales"] for one in told["rounds"] if one["scales"]), None)
    goal = f"<p>{escape(told['goal'])}</p>" + (f"<p><b>{escape(told['missed'])}</b></p>" if told["missed"] else "")
    goal += f"<p>Expected: {escape(device)}.</p>" if (device := expected_on(told)) is not None else ""
    if not scales:
        return goal + table
    drawn, span = [], WIDTH - LEFT - RIGHT
    most = max(2.0, *scales.values())
    for number, (name, scale) in enumerate(sorted(scales.items())):
        y = 30 + 24 * number
        drawn.append(_text(LEFT - 10, y + 14, name, anchor="end"))
        drawn.append(f'<rect x="{LEFT}" y="{y}" width="{span * scale / most:.1f}" height="18" fill="{BLUE}"/>')
        drawn.append(_text(LEFT + span * scale / most + 6, y + 14, f"{scale:.2f}"))
    at, bottom = LEFT + span / most, 30 + 24 * len(scales)
    drawn.append(f'<path stroke="#16202b" stroke-dasharray="5 4" d="M{at:.1f} 24V{bottom}"/>')
    drawn.append(_text(at, 16, "as expected", anchor="middle"))
    told_so = "<p>Measured KL divergence over the expected one, each group of matrices compressed alone:</p>"
    return goal + table + told_so + _svg(bottom + 8, drawn)


def _frontier(found: Sequence[Record]) -> str:
    """Bits per byte over size, and the line of the results that none beats."""
    points = [
        (
            one.values["compressed"]["size_bytes"] / 1e6,
            one.values["compressed"]["bits_per_byte"],
            one.values["compressed"]["name"],
        )
        for one in found
    ]
    originals = {
        (
            one.values["original"]["size_bytes"] / 1e6,
            one.values["original"]["bits_per_byte"],
            one.values["original"]["name"],
        )
        for one in found
    }
    best: list[tuple[float, float]] = []
    for x, y, _ in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    lines = [("", best, GREY)]
    marks = [(x, y, name, BLUE) for x, y, name in points] + [(x, y, name, RED) for x, y, name in sorted(originals)]
    drawn = _plot(lines, "file, MB", lambda bits: f"{bits:.3f}", joined=True, marks=marks)
    return drawn + "<p>Bits per byte of text, less is better; blue: results, red: originals.</p>"


def _plot(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]], str]],
    x_label: str,
    told: Callable[[float], str],
    *,
    logarithmic: bool = False,
    joined: bool = False,
    marks: Sequence[tuple[float, float, str, str]] = (),
) -> str:
    """Lines and named marks over two axes."""
    top, tall = 16, 300
    points = [point for _, each, _ in lines for point in each] + [(x, y) for x, y, _, _ in marks]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if logarithmic:
        low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        high = max(high, low + 1)
        steps = [10.0**power for power in range(low, high + 1)]
    else:
        steps = list(ticks(min(ys), max(ys), 5))
    x_steps = list(ticks(min(xs), max(xs), 8))
    x_low, x_high = min(x_steps[0], min(xs)), max(x_steps[-1], max(xs))
    right = 200 if marks else RIGHT

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - right) * (x - x_low) / ((x_high - x_low) or 1.0)

    def down(y: float) -> float:
        a, b, c = (math.log10(v) for v in (steps[0], steps[-1], y)) if logarithmic else (steps[0], steps[-1], y)
        return top + tall * (1 - (c - a) / ((b - a) or 1.0))

    drawn = []
    for step in steps:
        drawn.append(f'<path class="grid" d="M{LEFT} {down(step):.1f}H{WIDTH - right}"/>')
        drawn.append(_text(LEFT - 8, down(step) + 4, told(step), anchor="end"))
    for step in x_steps:
        drawn.append(_text(across(step), top + tall + 20, f"{step:g}", anchor="middle"))
    drawn.append(_text(WIDTH - right, top + tall + 42, x_label, anchor="end"))
    for name, each, colour in lines:
        if joined and len(each) > 1:
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in each)
            drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{path}"/>')
        drawn += [
            f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.6" fill="{colour}"><title>{escape(name)} {x:g}: '
            f"{told(y)}</title></circle>"
            for x, y in each
        ]
    for x, y, name, colour in marks:
        drawn.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="5" fill="{colour}"/>')
        drawn.append(_text(across(x) + 9, down(y) - 7, name))
    legend = [(name, colour) for name, _, colour in lines if name]
    height = top + tall + 56 + (26 * (1 + (len(legend) - 1) // 5) if legend else 0)
    return _svg(height, drawn + (_legend(legend, top + tall + 70) if legend else []))


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    if not steps:
        return "<p>The steps are not known: the report was made of two files.</p>"
    lines = []
    for number, step in enumerate(steps, 1):
        settings = {key: value for key, value in step["settings"].items() if not isinstance(value, (list, tuple))}
        told = ", ".join(f"{key} {value}" for key, value in settings.items())
        own = {
            key: value for key, value in (step.get("figures") or {}).items() if not isinstance(value, (Mapping, list))
        }
        figures = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in own.items()
        )
        figures += f"{'; ' if figures else ''}{step['note']}" if step.get("note") else ""
        lines.append(
            f"<tr><td>{number}. {escape(step['use'])}</td><td>{escape(told)}</td><td>{escape(figures)}</td>"
            f"<td class=n>{step['seconds']:.0f} s</td></tr>"
        )
    head = "<tr><th>step</th><th>settings</th><th>figures</th><th class=n>time</th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def _details(name: str, values: Any) -> str:
    if values is None:
        return ""
    return f"<details><summary>{name}</summary><pre>{escape(json.dumps(values, indent=1))}</pre></details>"


def _provenance(record: Record) -> str:
    told = record.values
    lines = [
        ("time", record.time),
        ("machine", f"{record.device['cpu']}, {record.device['cores']} cores, {record.device['system']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("text", f"{told['text']}, {told['windows']} windows of {told['context']} tokens"),
        ("original, SHA-256", told["original"]["sha256"]),
        ("compressed, SHA-256", told["compressed"]["sha256"]),
        ("energy", record.energy),
    ]
    cells = "".join(f"<tr><td>{escape(a)}</td><td>{escape(str(b))}</td></tr>" for a, b in lines)
    return f"<table>{cells}</table>"


def _legend(entries: Sequence[tuple[str, str]], y: float) -> list[str]:
    """Five a line, from `y` on."""
    drawn, wide = [], (WIDTH - LEFT - RIGHT) / 5
    for number, (name, colour) in enumerate(entries):
        x, at = LEFT + number % 5 * wide, y + 24 * (number // 5)
        drawn.append(f'<rect x="{x:.1f}" y="{at - 11:.1f}" width="13" height="13" fill="{colour}"/>')
        drawn.append(_text(x + 19, at, name))
    return drawn


def _svg(height: float, drawn: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
        f"<style>{STYLE}</style>{''.join(drawn)}</svg>"
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
