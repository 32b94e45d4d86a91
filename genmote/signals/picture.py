"""A signal as an SVG picture: a series' channels over time, what is in the fields of records, frames side by side."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape

import numpy as np
from numpy.typing import NDArray

from genmote.signals import chart
from genmote.signals.chart import Panel
from genmote.signals.kinds import Frames, Records, Series, Signal

MOST = 8  # channels, fields or frames that are drawn
BARS = 60  # stretches of time, or of values
TILE = 300  # pixels of a frame


def svg(signal: Signal, subtitle: str) -> str:
    """The picture as the text of an SVG file."""
    if isinstance(signal, Frames):
        return _frames(signal, subtitle)
    panels = channels(signal) if isinstance(signal, Series) else _fields(signal)
    return chart.svg(signal.name, subtitle, panels)


def channels(series: Series) -> list[Panel]:
    times = series.times_s
    x = np.arange(len(series)) / series.rate_hz if times is None or series.rate_hz > 0 else times - times[0]
    label, seconds = unit(float(x[-1]) if len(x) else 0.0)
    panels = []
    for n, (channel, of) in enumerate(zip(series.channels[:MOST], series.units, strict=False)):
        there = np.isfinite(series.values[:, n])
        if there.any():
            panels.append(Panel(channel, x[there] / seconds, series.values[there, n], f"time, {label}", of))
    return panels


def unit(span_s: float) -> tuple[str, float]:
    """What a time axis is counted in.

    >>> unit(90.0), unit(86400.0)
    (('s', 1.0), ('h', 3600.0))
    """
    for unit, seconds, most in (("s", 1.0, 300.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172_800.0)):
        if span_s <= most:
            return unit, seconds
    return "days", 86400.0


def _fields(records: Records) -> list[Panel]:
    panels = []
    if records.times_s is not None and len(records) > 1:
        since = records.times_s - records.times_s.min()
        label, seconds = unit(float(since.max()))
        counts, edges = np.histogram(since, BARS)
        panels.append(_stairs(f"rows of {len(records)}", counts, edges / seconds, f"time, {label}"))
    for field, column in zip(records.fields, records.columns, strict=True):
        if len(panels) == MOST:
            break
        if field.type in ("number", "integer"):
            numbers = column.astype(np.float64)
            numbers = numbers[np.isfinite(numbers)]
            if len(numbers):
                counts, edges = np.histogram(numbers, BARS)
                panels.append(_stairs(field.name, counts, edges, field.unit or field.name))
    return panels


def _stairs(title: str, counts: NDArray[np.integer], edges: NDArray[np.floating], label: str) -> Panel:
    return Panel(title, np.repeat(edges, 2)[1:-1], np.repeat(counts, 2).astype(np.float64), label, "rows")


def _frames(frames: Frames, subtitle: str) -> str:
    count = min(len(frames), MOST)
    chosen = [frames.frames[int(n)] for n in np.linspace(0, len(frames) - 1, count)] if count else []
    pictures = [_top_view(frame) if frames.shape == "points" else _grey(frame) for frame in chosen]
    across = min(4, max(1, count))
    width, height = 72 + across * (TILE + 12), 100 + -(-count // across) * (TILE + 12)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(frames.name)}">',
        f'<style>{chart.STYLE} image {{ image-rendering: pixelated }}</style><rect width="{width}" height="{height}" '
        'fill="#fff"/>',
        f'<text class="title" x="36" y="34">{escape(frames.name)}</text><text x="36" y="56">{escape(subtitle)}</text>',
    ]
    for n, picture in enumerate(pictures):
        data = base64.b64encode(_png(picture)).decode("ascii")
        x, y = 36 + n % across * (TILE + 12), 80 + n // across * (TILE + 12)
        drawn.append(f'<image x="{x}" y="{y}" width="{TILE}" height="{TILE}" href="data:image/png;base64,{data}"/>')
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _grey(frame: NDArray[np.generic]) -> NDArray[np.uint8]:
    """(H, W, C) → (H, W): the channels' mean, from the darkest to the brightest."""
    values = frame.astype(np.float64).mean(axis=2)
    there = np.isfinite(values)
    low, high = (values[there].min(), values[there].max()) if there.any() else (0.0, 1.0)
    scaled = (np.where(there, values, low) - low) / ((high - low) or 1.0)
    return (255 * scaled).astype(np.uint8)


def _top_view(points: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Points (P, C), metres, seen from above: the more in a place, the darker; the sensor in the middle."""
    xy = points[:, :2].astype(np.float64)
    xy = xy[np.isfinite(xy).all(axis=1)]
    reach = float(np.quantile(np.abs(xy), 0.98)) if len(xy) else 1.0
    counts, _, _ = np.histogram2d(xy[:, 0], xy[:, 1], bins=150, range=[[-reach, reach], [-reach, reach]])
    shade = np.log1p(counts[::-1, ::-1])  # ahead is up, left is left
    return (255 - 255 * shade / (shade.max() or 1.0)).astype(np.uint8)


def _png(grey: NDArray[np.uint8]) -> bytes:
    """A grey picture (H, W) as a PNG file (ISO/IEC 15948)."""
    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")
